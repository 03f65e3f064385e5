"""Say why a capture failed, in words that tell a user what to change and where."""

import inspect
import linecache
import re
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from deploykit.tensors import TensorSpec
from deploykit.traces import line_of
from deploykit.wording import first_line
from exporters.capture.conditions import condition_of, without_the_size
from exporters.capture.fixed import Step
from exporters.noise.sites import site_name

__all__ = ["NO_FUNCTORCH", "at_fault", "explain", "place", "with_functions"]

NO_FUNCTORCH = (
    "torch.vmap and torch.func cannot be exported; write the operations with the batch dimension in the tensors, and "
    "call passes of a loop, or members of an ensemble, one after the other: torch.stack([each(x) for each in members])"
)

_BY_NAME = re.compile(r"invalid data type 'str'|'(?:Fake)?Tensor' object has no attribute '(?:items|keys|get)'")
"""What torch and Python say of a tensor that is used as a dict."""

_LENGTHS = "give pack_padded_sequence the padded rows and their lengths, each as a tensor and not as a list"

_OF_SIZES = (RuntimeError, ValueError, IndexError, AssertionError)
_ABOUT_SIZES = re.compile(
    r"(?i)\b(sizes?|shapes?|dim(ension)?s?|lengths?|elements?|multiples?|divisible|kernel|index|range|bounds|broadcast|empty|small(er)?|short)\b"
)
"""What errors say that a larger example may have spared; the name of an attribute that is missing is none."""

_APART = "its code takes tensors apart along it, one by one, as `for each in x`, x.unbind() and x.tolist() do"

_INSTEAD = {
    "cond": "compute both ways, and choose with torch.where",
    "flex_attention": "use F.scaled_dot_product_attention, with attn_mask for what the functions do",
}
"""What to do without an operation that takes functions, by its name."""

_UNCAPTURED = (
    "torch/_higher_order_ops/associative_scan.py",
    "torch/_higher_order_ops/flex_attention.py",
    "torch/nn/attention/flex_attention.py",
)
"""Files of torch with the names of those at which a capture fails."""

_SOLVER = "torch/fx/experimental/symbolic_shapes.py"
"""It fails by itself on what it finds of some sizes, ``25/4 < n`` for one."""

_ONE_BY_ONE = (
    "declare the dynamic dimensions as numbers, one after the other, to see which it is, and bring the inputs to it"
)

_FUNCTORCH = ("_functorch/vmap.py", "_functorch/eager_transforms.py")
"""Files of torch whose code runs around a function of the user's that it transforms."""


def explain(
    error: Exception,
    module: nn.Module,
    specs: Sequence[TensorSpec],
    example: Sequence[Tensor],
    fixed: Sequence[Step] = (),
) -> str:
    """The lines of torch's message that tell a user something, the module and line at fault, and what to do.

    ``module`` is what was captured, with the user's module as a child; ``specs`` are its inputs, and ``example`` what
    they were. ``fixed`` tells where a size was made a number, outermost first.
    """
    text = _named_sizes(str(error).strip(), specs)
    head = text.splitlines()[0] if text else type(error).__name__
    kind = type(error).__name__
    where = place(_frames(error), module)
    transforming = _transforming(error, fixed)
    if transforming is not None:
        return f"{where or place(fixed, module)}{transforming}"
    if "DataDependent" in kind or "data-dependent" in text:
        return (
            f"{where}the module's path depends on the values of its tensors, which an exported graph cannot follow: "
            f"{head}; {_LENGTHS if _reads(error, '_sequence(') else _way_out(where)}"
        )
    if "specialized" in text or "ConstraintViolation" in kind or "Constraints violated" in text:
        dynamic = dict.fromkeys(size for spec in specs for size in spec.shape if isinstance(size, str))
        where = where or place(fixed, module)
        apart = any(frame.f_code.co_name == "unbind" for frame, _ in fixed)
        rows = text.startswith(f"Constraints violated ({specs[0].shape[0]})!")
        return (
            f"{where}the module fixes a dimension that was declared dynamic ({', '.join(dynamic)}): "
            f"{_APART if apart else condition_of(text)}; {without_the_size(text, rows)}"
        )
    if "not attached to a" in text and "Trainer" in text:
        return (
            f"{where}the module uses self.trainer, which does not exist at export: {head}; "
            "export a --method that does without it"
        )
    missing = _missing_operation(error, text)
    if missing is not None:
        return f"{where}{missing}"
    if _BY_NAME.search(text):
        return (
            f"{where}the method takes its inputs by their names out of one dict: {head}; give --batch dict "
            "(batch='dict'), with an --input for each name"
        )
    given = ", ".join(map(str, specs))
    if "values to unpack" in text:
        return (
            f"{where}the method takes its batch apart into other parts than the inputs {given}: {head}; name each part "
            "with --input, labels as well, or export --method forward"
        )
    return _uncaptured(error, module, specs, example, where)


def _uncaptured(
    error: Exception, module: nn.Module, specs: Sequence[TensorSpec], example: Sequence[Tensor], where: str
) -> str:
    """What is said where nothing else is known; what the module raises itself says in numbers what torch's capture
    says in symbols.
    """
    failure = _own_failure(module, example)
    text = _named_sizes(str(error).strip(), specs)
    head = first_line(failure) if failure is not None else text.splitlines()[0] if text else type(error).__name__
    kind = type(error).__name__ if failure is None else f"{type(failure).__name__} in a batch of {len(example[0])}"
    line = "" if failure is None else _line(failure, where)
    sizes = _sizes(specs, example) if isinstance(error, _OF_SIZES) and _ABOUT_SIZES.search(text) else ""
    what = f"{kind}: {head.removesuffix('.')}{line}; its inputs were {', '.join(map(str, specs))}"
    advice = f" with {sizes}: where that is too small for it, give an --example of a real size" if sizes else ""
    return f"{where}the module could not be captured: {what}{advice}"


def _own_failure(module: nn.Module, example: Sequence[Tensor]) -> Exception | None:
    """What the module raises without any capture."""
    try:
        with torch.no_grad():
            module(*example)
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        return error
    return None


def _line(failure: Exception, where: str) -> str:
    """The line of the user's code, if it is not said already: of a layer of torch's that is the line that calls it."""
    line = Path(line_of(failure)).name
    return f" ({line})" if line and line not in where else ""


def _transforming(error: Exception, fixed: Sequence[Step]) -> str | None:
    """What is said where code of torch's was running that takes functions of the user's."""
    files = [Path(frame.f_code.co_filename) for frame, _ in (*_frames(error), *fixed)]
    taking = next((file.stem for file in files if file.as_posix().endswith(_UNCAPTURED)), None)
    if taking is not None:
        return with_functions(taking)
    return NO_FUNCTORCH if any(file.as_posix().endswith(_FUNCTORCH) for file in files) else None


def with_functions(name: str) -> str:
    """What is said of an operation that takes functions, as ``cond`` does: what these compute, no rewrite follows."""
    called = f"torch.{name}" if hasattr(torch, name) else name
    instead = _INSTEAD.get(name, "write its steps as operations on tensors, in a loop of Python if need be")
    return f"{called}: an operation that takes functions cannot be followed; {instead}"


def _missing_operation(error: Exception, text: str) -> str | None:
    """What is said where torch cannot capture an operation at all, or fails on what it finds of sizes."""
    if isinstance(error, AssertionError) and any(f.f_code.co_filename.endswith(_SOLVER) for f, _ in _frames(error)):
        return f"torch cannot work out the sizes for which the code holds ({text}); {_ONE_BY_ONE}"
    if "UnsupportedOperator" in type(error).__name__ and (
        unknown := re.search(r"aten\.(\w+)", text.partition("\n")[0])
    ):
        return _without_form(unknown[1])
    if "torch._C.Generator" in text or ("SymIntArrayRef" in text and _reads(error, "generator=")):
        return (
            "draws with a generator of its own, whose state is no part of a file; leave generator= out, and the file's "
            "seed decides"
        )
    if ".numpy() is not supported" in text:
        return (
            "computes with numpy, of which a file would have nothing; use the functions of torch, which are mostly of "
            "the same names"
        )
    if "fake tensor in the exported program constant" in text:
        return (
            "computes with what a capture cannot follow, as the gradients of torch.autograd.grad, which would be a "
            "constant in the file; write the derivative as operations, or export a --method that does without it"
        )
    if "data pointer" in text and _reads(error, "copy("):
        return (
            "copies a module or a tensor with Python's copy, which a capture cannot follow; make the copies in the "
            "constructor, or call the module itself: its dropouts draw anew in every call"
        )
    if isinstance(error, SyntaxError) and (called := re.search(r"\baten\.(\w+)\.from\b", error.text or "")):
        # torch writes a graph as code, in which the name of this form is a word of Python's.
        return (
            f"{called[1]}(from, to): cannot be exported; draw with torch.rand_like or bernoulli_, and scale what they "
            "give"
        )
    return None


def _without_form(operation: str) -> str:
    """What is said of an operation that no capture knows."""
    packet = getattr(torch.ops.aten, operation)
    if any(torch.Tag.nondeterministic_seeded in getattr(packet, form).tags for form in packet.overloads()):
        return (
            f"{operation}: draws random numbers that cannot be exported, as the distributions Beta and Dirichlet do; "
            "use the mean of the distribution, or one made of normal, uniform or exponential noise"
        )
    return f"{operation}: torch.export has no form of this operation; write it with others"


def _way_out(line: str) -> str:
    """What to do about a path that depends on values, by the line where it does."""
    if "trunc_normal_" in line:
        return "draw with torch.randn_like and clamp it: the functions of nn.init are for weights, outside of forward"
    if re.search(r"\b(?:math|np|numpy)\.log(?:2|10)?\((?![\d.]+\))", line):
        return "use the logarithm of a size as a factor alone, or declare the dimension as a number"
    # A call of torch's: `if dropout_probability < self.layerdrop` and `dropout_layers(layers)` are layer drop.
    if re.search(r"dropout(?:[123]d)?_?\(", line):
        return "keep the probability of a dropout as a number of Python's, not as a tensor, a buffer or a parameter"
    return (
        "use torch.where, export a --method without that branch, or, where it decides at random as "
        "layer drop does, set that probability to 0"
    )


def _named_sizes(text: str, specs: Sequence[TensorSpec]) -> str:
    """Sizes by the names that the user gave them, where torch writes L['tensors'][0].size()[1]."""

    def name(found: re.Match[str]) -> str:
        return str(specs[int(found[1])].shape[int(found[2])])

    return re.sub(r"L\['tensors'\]\[(\d+)\]\.size\(\)\[(\d+)\]", name, text)


def _sizes(specs: Sequence[TensorSpec], example: Sequence[Tensor]) -> str:
    """The sizes of the dynamic dimensions but the batch; nobody but the user knows real ones."""
    found = {
        size: given
        for spec, tensor in zip(specs, example, strict=True)
        for size, given in zip(spec.shape[1:], tensor.shape[1:], strict=True)
        if isinstance(size, str)
    }
    return ", ".join(f"{name}={size}" for name, size in found.items())


def at_fault(error: BaseException, module: nn.Module) -> str | None:
    """The name of the innermost of the user's modules whose code was running; None where none was."""
    return _innermost(_frames(error), module)[0]


def place(steps: Iterable[Step], module: nn.Module) -> str:
    """The innermost of the user's modules whose code was running, with the line; empty where none was."""
    return _innermost(steps, module)[1]


def _innermost(steps: Iterable[Step], module: nn.Module) -> tuple[str | None, str]:
    names = {id(child): name for name, child in module.named_modules() if child is not module}
    found: tuple[str | None, str] = (None, "")
    for frame, line in steps:
        name, code = names.get(id(_owner(frame))), frame.f_code
        # Every call passes through the base class, which says nothing.
        if name is None or code.co_filename == inspect.getfile(nn.Module):
            continue
        source = linecache.getline(code.co_filename, line).strip()
        own = site_name(name)
        found = (own, f"{own} ({Path(code.co_filename).name}:{line}: {source}): ")
    return found


def _reads(error: BaseException, code: str) -> bool:
    """Whether a line of the user's on the way to the error holds this code."""
    return any(code in linecache.getline(frame.f_code.co_filename, line) for frame, line in _frames(error))


def _owner(frame: FrameType) -> object:
    """The object whose method is running, whatever the method calls it; None in a function."""
    code = frame.f_code
    first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    method = inspect.getattr_static(type(first), code.co_name, None)
    return first if getattr(method, "__code__", None) is code else frame.f_locals.get("self")


def _frames(error: BaseException) -> Iterator[Step]:
    """The frames and lines of the error, and then of what it was made from."""
    link: BaseException | None = error
    while link is not None:
        yield from traceback.walk_tb(link.__traceback__)
        link = link.__cause__ or link.__context__
