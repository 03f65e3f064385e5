"""The errors of a checkpoint that does not fit its module: all that is wrong, each name with its likeliest partner."""

import difflib
from collections.abc import Sequence

from deploykit.errors import CheckpointError
from exporters.checkpoint.dialects import dialect

__all__ = ["SHOWN", "ambiguous", "mismatch", "shown"]

SHOWN = 10
"""So many names of a list are printed."""

_ADVICE = (
    "expected the module's own keys and shapes, with or without one prefix before all of them; "
    "give the class and the constructor arguments (--arg name=value) that the checkpoint was trained with"
)


def shown(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def ambiguous(subject: str, ways: Sequence[str]) -> CheckpointError:
    """Several renamings give every tensor that the module needs."""
    return CheckpointError(
        f"{subject}: its keys fit in {len(ways)} ways ({'; '.join(sorted(ways)[:SHOWN])}); expected exactly one; "
        "save the wanted part alone: "
        "torch.save({k: v for k, v in state_dict.items() if k.startswith('PREFIX')}, 'part.pt')"
    )


def mismatch(
    subject: str, missing: Sequence[str], unexpected: Sequence[str], shapes: Sequence[str], notes: Sequence[str]
) -> CheckpointError:
    """Keys are missing or unexpected, or tensors have another shape."""
    counts = [
        f"{len(items)} {what}"
        for items, what in ((missing, "missing"), (unexpected, "unexpected"), (shapes, "of another shape"))
        if items
    ]
    lines = [
        f"{subject}: {', '.join(counts)}",
        *(f"  after this: {note}" for note in notes),
        *_section("missing", _with_closest(missing, unexpected, "the file has")),
        *_section("unexpected", _with_closest(unexpected, missing, "the module has")),
        *_section("shape", shapes[:SHOWN], len(shapes)),
        dialect(unexpected) or _ADVICE,
    ]
    return CheckpointError("\n".join(lines))


def _section(title: str, items: Sequence[str], total: int | None = None) -> list[str]:
    more = (len(items) if total is None else total) - len(items)
    return [f"  {title}: {item}" for item in items] + ([f"  {title}: and {more} more"] if more else [])


def _with_closest(names: Sequence[str], others: Sequence[str], where: str) -> list[str]:
    # Only what is printed is compared: difflib is slow on thousands of names.
    return [_closest(name, others, where) for name in names[:SHOWN]] + (
        [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    )


def _closest(name: str, others: Sequence[str], where: str) -> str:
    close = difflib.get_close_matches(name, others, n=1)
    return f"{name} ({where} {close[0]})" if close else name
