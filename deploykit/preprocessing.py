"""How an image file becomes an input: recorded in the artifact at export, followed when a folder of images is read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from deploykit.errors import ArtifactError, UsageError
from deploykit.tensors import TensorSpec
from deploykit.texts import several

__all__ = ["ImagePreprocessing", "parse_preprocessing", "read_preprocessing"]

Channels = Literal["RGB", "BGR", "L"]
Layout = Literal["CHW", "HWC", "HW"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "channels": get_args(Channels),
    "layout": get_args(Layout),
    "interpolation": get_args(Interpolation),
}
_DTYPES = ("float16", "float32", "float64", "uint8")
_EXAMPLE = "x=image resize=256 crop=224 channels=RGB scale=255 mean=0.485,0.456,0.406 std=0.229,0.224,0.225"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePreprocessing:
    """The steps, in their order: convert to ``channels``, resize, crop, ``((pixel / scale) - mean) / std``, layout.

    Attributes:
        resize: (height, width), or one number: the length of the shorter side; None leaves the size.
        crop: (height, width) around the centre; None cuts nothing.
        channels: order of the colours; ``L`` is grey.
        layout: order of the dimensions of one row; ``HW`` has no channel.
        scale: what a pixel, 0 to 255, is divided by; None leaves it.
        mean: subtracted after that, one number for each channel.
        std: divided by after that, one number for each channel.
        interpolation: of the resizing, as Pillow does it, with antialiasing.
    """

    resize: tuple[int, ...] | None = None
    crop: tuple[int, int] | None = None
    channels: Channels = "RGB"
    layout: Layout = "CHW"
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: Interpolation = "bilinear"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, ``kind`` first."""
        return {"kind": "image", **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}}

    @property
    def has_numbers(self) -> bool:
        """Whether pixels are changed to other numbers."""
        return any(value is not None for value in (self.scale, self.mean, self.std))

    def row_shape(self, height: int, width: int) -> tuple[int, ...]:
        """The shape of a row for an image of this size."""
        count = len(self.channels)
        return {"CHW": (count, height, width), "HWC": (height, width, count), "HW": (height, width)}[self.layout]

    def check(self, spec: TensorSpec) -> None:
        """Hold it against the input that it makes.

        Raises:
            UsageError: the dtype, the number of channels or the size is another.
        """
        if spec.dtype not in _DTYPES or (spec.dtype == "uint8" and self.has_numbers):
            raise UsageError(
                f"preprocessing of {spec.name!r}: the input is {spec}; pixels become {', '.join(_DTYPES)}, and uint8 "
                "only without scale, mean and std"
            )
        size = self.crop or (self.resize if self.resize is not None and len(self.resize) == 2 else (0, 0))
        want = self.row_shape(*size)
        fits = len(want) == len(spec.row_shape) and all(
            isinstance(have, str) or give in (0, have) for have, give in zip(spec.row_shape, want, strict=True)
        )
        if not fits:
            shown = [size or "any" for size in want]
            raise UsageError(
                f"preprocessing of {spec.name!r}: it makes rows of {shown} ({self.layout}), the input is {spec}; "
                "choose channels, layout=CHW, HWC or HW, resize and crop so that they are the same"
            )


def parse_preprocessing(texts: str | Sequence[str], inputs: Sequence[TensorSpec]) -> dict[str, Any] | None:
    """Read ``x=image resize=256 crop=224 mean=0.5,0.5,0.5 ...``, one text for each input; None where there is none.

    What is not said follows from the input: the layout from where its channels are, the channels from their number.

    Raises:
        UsageError: another form, an unknown input or setting, or it does not fit the input.
    """
    by_name = {spec.name: spec for spec in inputs}
    found: dict[str, Any] = {}
    for text in several(texts):
        first, *words = text.replace(";", " ").split()
        name, _, kind = first.partition("=")
        if kind != "image" or name not in by_name or name in found:
            raise UsageError(
                f"preprocess {text!r}: expected INPUT=image and settings, once for each of the inputs "
                f"{list(by_name)}; for example '{_EXAMPLE}'"
            )
        step = ImagePreprocessing(**{**_defaults(by_name[name]), **dict(_setting(text, word) for word in words)})
        _check_counts(text, step)
        _check_crop(text, step)
        step.check(by_name[name])
        found[name] = step.to_json()
    return found or None


def read_preprocessing(value: Mapping[str, Any], name: str) -> ImagePreprocessing:
    """What a manifest says of one input.

    Raises:
        ArtifactError: it says nothing of it, or what this deploykit does not know.
    """
    data = value.get(name)
    try:
        if not isinstance(data, Mapping) or data.get("kind") != "image":
            raise TypeError(f"no preprocessing of kind 'image', got {data!r}")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "kind"}
        for key, choices in _CHOICES.items():
            if fields.get(key, choices[0]) not in choices:
                raise TypeError(f"{key} {fields[key]!r}, known are {', '.join(choices)}")
        return ImagePreprocessing(**fields)
    except TypeError as error:
        raise ArtifactError(
            f"manifest: preprocessing of input {name!r}: {error}; export again with --preprocess, or use the deploykit "
            "that wrote it"
        ) from error


def _defaults(spec: TensorSpec) -> dict[str, Any]:
    shape = spec.row_shape
    if len(shape) != 3:
        return {"layout": "HW", "channels": "L"}
    layout = "HWC" if shape[2] in (1, 3) and shape[0] not in (1, 3) else "CHW"
    count = shape[2] if layout == "HWC" else shape[0]
    return {"layout": layout, "channels": "L" if count == 1 else "RGB"}


def _setting(text: str, word: str) -> tuple[str, Any]:
    key, _, value = word.partition("=")
    try:
        if key in _CHOICES and value in _CHOICES[key]:
            return key, value
        if key in ("resize", "crop"):
            sizes = tuple(int(part) for part in value.lower().split("x"))
            if len(sizes) not in (1, 2) or min(sizes) < 1:
                raise ValueError
            return key, sizes if len(sizes) == 2 or key == "resize" else sizes * 2
        if key == "scale":
            return key, _numbers(value)[0]
        if key in ("mean", "std"):
            return key, _numbers(value)
    except ValueError:
        pass
    raise UsageError(
        f"preprocess {text!r}: cannot read {word!r}; known are resize=N or HxW, crop=N or HxW, scale=255, mean=A,B,C, "
        f"std=A,B,C, {_choices()}"
    )


def _numbers(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if not np.isfinite(values).all():
        raise ValueError(text)
    return values


def _check_crop(text: str, step: ImagePreprocessing) -> None:
    """A crop of more than what ``resize`` leaves, of which a single number is the shorter side, fits into no image."""
    if step.resize is None or step.crop is None:
        return
    crop = step.crop if len(step.resize) == 2 else (min(step.crop),)
    if any(part > whole for part, whole in zip(crop, step.resize, strict=True)):
        raise UsageError(
            f"preprocess {text!r}: the crop of {step.crop[0]}x{step.crop[1]} is larger than the images after resize; "
            "give a smaller crop, or a larger resize"
        )


def _check_counts(text: str, step: ImagePreprocessing) -> None:
    count = len(step.channels)
    for name in ("mean", "std"):
        values = getattr(step, name)
        if values is not None and len(values) != count:
            raise UsageError(
                f"preprocess {text!r}: {name} has {len(values)} numbers for {count} channels; give {count}"
            )
    if step.scale == 0 or 0 in (step.std or ()):
        raise UsageError(f"preprocess {text!r}: scale and std divide and cannot be 0; give another number")
    if step.layout == "HW" and count != 1:
        raise UsageError(f"preprocess {text!r}: layout=HW has one channel; give channels=L, or layout=CHW")


def _choices() -> str:
    return ", ".join(f"{name}={'|'.join(choices)}" for name, choices in _CHOICES.items())
