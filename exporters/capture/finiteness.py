"""Code that asks whether numbers are finite, only to mend or to refuse those that are not.

``if not torch.isfinite(x).all(): x = x.clamp(...)`` is a branch on values, which a graph cannot hold; that the
numbers are mended always it can. That is the same only where the mend changes no number that was not asked for, which
is known of a few functions, and where nothing but mends depends on the answers, which another capture shows.
"""

import dis
import sys
from collections.abc import Collection
from typing import Any, Self, cast

from torch import Tensor
from torch.overrides import TorchFunctionMode

from exporters.capture.fixed import Step, steps_to
from exporters.capture.mending import Mask, mask_of, mend_of

__all__ = ["FiniteAnswers", "UnmendedError"]

_MOST = 256
"""A loop that goes on until all numbers are finite would ask without end."""


class UnmendedError(Exception):
    """The code does something else with the answer than to mend what was asked for; ``steps`` lead to the question."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__("more than a mend depends on whether numbers are finite")
        self.steps = steps


class FiniteAnswers(TorchFunctionMode):
    """Answer the questions whether numbers are finite; ``questions`` holds the steps that led to each.

    With ``finite`` all are answered that they are; otherwise that they are not, except for the questions with the
    numbers in ``refusals``. With ``leave`` what mends is left out: the capture is then the one with ``finite``, if
    nothing but mends depends on the answers.
    """

    def __init__(self, *, finite: bool, refusals: Collection[int] = (), leave: bool = False) -> None:
        super().__init__()
        self._finite, self._refusals, self._leave = finite, refusals, leave
        self._begin()

    def __enter__(self) -> Self:
        # torch may be asked to capture more than once, and what was told before is over.
        self._begin()
        cast(Any, super()).__enter__()
        return self

    def _begin(self) -> None:
        self.questions: list[list[Step]] = []
        # The masks are held, so that no other tensor gets the number of one that is gone.
        self._told: dict[int, tuple[Tensor, int, Mask]] = {}
        self._unmended: Mask | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = getattr(func, "__name__", ""), kwargs or {}
        if getattr(func, "__self__", None) is Tensor.data:
            # torch does not count what is written through it.
            self._told.clear()
            self._unmended = None
        asked = self._known(args[0]) if name in ("__bool__", "item") else None
        if asked is not None and asked.reduced:
            return asked.none == self._are_finite(asked, steps_to(sys._getframe(1)))
        subject = self._mended(name, args, given)
        if subject is not None and self._leave:
            return None if name == "__setitem__" else subject
        says = mask_of(name, args, self._known) if "out" not in given else None
        result = func(*args, **given)
        if says is not None and isinstance(result, Tensor) and not result.is_inference():
            self._told[id(result)] = result, result._version, says
        return result

    def _known(self, value: object) -> Mask | None:
        tensor, version, mask = self._told.get(id(value), (None, 0, None))
        return mask if tensor is not None and tensor._version == version and mask and mask.holds() else None

    def _are_finite(self, asked: Mask, steps: list[Step]) -> bool:
        number = len(self.questions)
        self.questions.append(steps)
        if self._unmended is not None or number >= _MOST:
            # What follows from two answers together would take a capture for each pair of them.
            raise UnmendedError(steps)
        if self._finite or number in self._refusals:
            return True
        self._unmended = asked
        return False

    def _mended(self, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
        """The tensor that a call mends, if it was asked for all the numbers that the call changes."""
        asked = self._unmended
        mend = mend_of(name, args, kwargs, self._known) if asked is not None else None
        if mend is None or asked is None or mend.subject is not asked.subject or not asked.holds():
            return None
        if not mend.changed <= asked.about:
            return None
        self._unmended = None
        return mend.subject

    def refusal(self, error: BaseException) -> int | None:
        """The number of the last question, where code that asked it raised the error; None where another did."""
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        number = len(self.questions) - 1
        if last is None or number < 0 or number in self._refusals or self._finite:
            return None
        raised = last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]
        asked = any(frame is last.tb_frame for frame, _ in self.questions[number])
        return number if raised and asked else None
