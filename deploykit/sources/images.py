"""Rows that are image files: decoded by Pillow, made an input as the artifact's manifest says."""

import importlib.util
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from deploykit.errors import DataError, DeploykitError, MissingExtraError
from deploykit.preprocessing import ImagePreprocessing, read_preprocessing
from deploykit.sources.base import Arrays, FileIdentity
from deploykit.sources.reading import KEPT, Reading
from deploykit.storage.locations import DataFile, Found
from deploykit.tensors import TEXT, TensorSpec, check_inputs, empty_rows
from deploykit.wording import counted, said

__all__ = ["ImagesSource"]

_EXTENSIONS = {"png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff", "webp"}
_KEPT = ("file", "folder")
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
"""Tags of TIFF."""


class ImagesSource:
    """The images of a directory, with all below it, a glob, or one file; the order is that of their names.

    ``--keep file`` gives the name of each, in its directory; ``--keep folder`` the part before the last slash.

    Raises:
        DataError: no image, or a model that does not take one image a row.
        MissingExtraError: Pillow is not installed.
    """

    many: ClassVar[bool] = True

    def __init__(self, found: Found, inputs: Sequence[TensorSpec], reading: Reading) -> None:
        if importlib.util.find_spec("PIL") is None:
            raise MissingExtraError("pillow", "images", f"reading the images of {found.text}")
        self._what, self._files = found.text, [file for file in found.files if file.extension in _EXTENSIONS]
        if not self._files:
            raise DataError(
                f"data {found.text}: {counted(len(found.files), 'file')}, none with an extension of an image "
                f"({', '.join(sorted(_EXTENSIONS))}); name a place with images"
            )
        others = len(found.files) - len(self._files)
        self.notes = [f"ignored: {counted(others, 'file')} with no extension of an image"] if others else []
        self._spec = _only_input(found.text, inputs)
        _check_keep(found.text, reading)
        self._step = _step(found.text, self._spec, reading)
        if reading.preprocessing is None:
            self.notes.append(f"the artifact records no preprocessing: pixels as they are ({self._step.layout})")
        batch = str(self._spec.shape[0])
        self.kept = tuple(TensorSpec(name=name, dtype=TEXT, shape=(batch,)) for name in reading.keep)
        self._identity = FileIdentity(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, start: int, stop: int) -> Arrays:
        """Rows ``[start, stop)``; any thread may call it."""
        rows = [self._row(row) for row in range(start, stop)]
        shapes = [row.shape for row in rows]
        other = next((offset for offset, shape in enumerate(shapes) if shape != shapes[0]), None)
        if other is not None:
            raise DataError(
                f"data {self._files[start + other].place}, row {start + other}: its size gives {list(shapes[other])}, "
                f"row {start} {list(shapes[0])}; export with --preprocess and a crop or a fixed resize, or run a "
                "model that takes any size with --batch-size 1"
            )
        arrays = {self._spec.name: np.stack(rows) if rows else empty_rows(self._spec)}
        try:
            check_inputs([self._spec], arrays, first_row=start)
        except DataError as error:
            raise DataError(f"data {self._files[start].place}, row {start}: {error}") from None
        return {**arrays, **{f"{KEPT}{spec.name}": self._names(spec.name, start, stop) for spec in self.kept}}

    def file_of(self, row: int) -> str:
        """The file of a row."""
        return self._files[row].place

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the files, the preprocessing, and where names are kept, how these begin."""
        content: dict[str, Any] = {"rows": len(self), "preprocessing": self._step.to_json()}
        if self.kept and self._files:  # A pattern gives the names with the folder, which a resume may name otherwise.
            content["first_name"] = self._files[0].name
        return {"kind": "images", **content, **self._identity.values()}

    def is_unchanged(self) -> bool:
        """Whether no image was written to since the fingerprint was taken; of URLs nothing is known."""
        return self._identity.holds()

    def close(self) -> None:
        """Nothing stays open."""

    def _row(self, row: int) -> np.ndarray[Any, Any]:
        file = self._files[row]
        try:
            picture = _decoded(file, self._step)
        except DeploykitError:
            raise
        # Pillow raises OSError, SyntaxError, ValueError ... for what it cannot decode.
        except Exception as error:
            # Of what it does not know, Pillow shows the object that was to read it.
            why = "no image that Pillow knows" if type(error).__name__ == "UnidentifiedImageError" else said(error)
            raise DataError(
                f"data {file.place}, row {row}: cannot be decoded ({why}); mend or remove the file and name a new "
                "run directory, or give the same command again with --on-error skip, which leaves such rows out"
            ) from error
        return _row_of(file, picture, self._step, self._spec)

    def _names(self, kept: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        names = [file.name for file in self._files[start:stop]]
        return np.array([name if kept == "file" else name.rpartition("/")[0] for name in names], dtype=object)


def _only_input(what: str, inputs: Sequence[TensorSpec]) -> TensorSpec:
    if len(inputs) != 1:
        raise DataError(
            f"data {what}: images, but the model takes the inputs {[spec.name for spec in inputs]}; use a factory, "
            "package.module:function, that returns a data set with all of them"
        )
    return inputs[0]


def _check_keep(what: str, reading: Reading) -> None:
    unknown = sorted(set(reading.keep) - set(_KEPT))
    if reading.columns:
        raise DataError(f"data {what}: a file is a row, and has no columns for --map; leave it out")
    if unknown:
        raise DataError(
            f"data {what}: images have the columns {', '.join(_KEPT)} to keep, got {unknown}; name one of them"
        )


def _step(what: str, spec: TensorSpec, reading: Reading) -> ImagePreprocessing:
    if reading.preprocessing is not None:
        return read_preprocessing(reading.preprocessing, spec.name)
    if spec.dtype != "uint8":
        raise DataError(
            f"data {what}: the model takes {spec}, and the artifact does not say how a pixel becomes a value; "
            f"export it again with --preprocess '{spec.name}=image scale=255 ...'"
        )
    layout: Any = "HW" if len(spec.row_shape) == 2 else "HWC" if spec.row_shape[-1] in (1, 3) else "CHW"
    grey = layout == "HW" or 1 in (spec.row_shape[0], spec.row_shape[-1])
    return ImagePreprocessing(channels="L" if grey else "RGB", layout=layout)


def _decoded(file: DataFile, step: ImagePreprocessing) -> Any:
    """All pixels of the file, in colours or grey."""
    from PIL import Image

    with file.open() as opened, Image.open(opened) as image:
        return _eight_bits(file, image).convert("L" if step.channels == "L" else "RGB")


def _row_of(file: DataFile, picture: Any, step: ImagePreprocessing, spec: TensorSpec) -> np.ndarray[Any, Any]:
    """One row: (channels, height, width) or as the layout says, of the input's dtype."""
    pixels = np.asarray(_cropped(file, _resized(picture, step), step))
    if step.channels == "BGR":
        pixels = pixels[..., ::-1]
    values = _normalised(pixels if pixels.ndim == 3 else pixels[..., None], step, spec)
    ordered = {"HWC": values, "CHW": values.transpose(2, 0, 1), "HW": values[..., 0]}[step.layout]
    return np.ascontiguousarray(ordered)


def _eight_bits(file: DataFile, image: Any) -> Any:
    """The image with pixels of 0 to 255: of 16 bits the upper 8, which is how Pillow itself reads 16-bit colours."""
    from PIL import Image

    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    # Older versions of Pillow call the 16-bit grey of a PNG I.
    if bits == 16 and (image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")):
        # Of fewer bits Pillow turns them round.
        if tags.get(_PHOTOMETRIC) == 0:
            raise DataError(
                f"data {file.place}: pixels of 16 bits whose 0 is white, and black is read as 0; write the file again "
                "as black is zero, or use a factory, package.module:function"
            )
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode[0] in "IF":
        raise DataError(
            f"data {file.place}: pixels of mode {image.mode} ({bits} bits a channel), which have no set white; 8 and "
            "16 bits are read; convert the file to one of these, or use a factory, package.module:function"
        )
    return image


def _resized(picture: Any, step: ImagePreprocessing) -> Any:
    from PIL import Image

    if step.resize is None:
        return picture
    if len(step.resize) == 2:
        height, width = step.resize
    else:
        shorter, side = min(picture.size), step.resize[0]
        width, height = (side * length // shorter for length in picture.size)
    return picture.resize((width, height), Image.Resampling[step.interpolation.upper()])


def _cropped(file: DataFile, picture: Any, step: ImagePreprocessing) -> Any:
    if step.crop is None:
        return picture
    height, width = step.crop
    if picture.height < height or picture.width < width:
        raise DataError(
            f"data {file.place}: {picture.height}x{picture.width} is smaller than the crop {height}x{width}; export "
            "with a resize before the crop"
        )
    # Rounded as torchvision's center_crop rounds.
    top, left = round((picture.height - height) / 2), round((picture.width - width) / 2)
    return picture.crop((left, top, left + width, top + height))


def _normalised(pixels: np.ndarray[Any, Any], step: ImagePreprocessing, spec: TensorSpec) -> np.ndarray[Any, Any]:
    if not step.has_numbers:
        return pixels.astype(spec.numpy_dtype)
    wide: Any = np.float64 if spec.dtype == "float64" else np.float32
    values: np.ndarray[Any, np.dtype[Any]] = pixels.astype(wide)
    if step.scale is not None:
        values = values / wide(step.scale)
    if step.mean is not None:
        values = values - np.array(step.mean, wide)
    if step.std is not None:
        values = values / np.array(step.std, wide)
    return values.astype(spec.numpy_dtype, copy=False)
