"""Data that is not, at the end of a run, what it was at the beginning."""

from deploykit.sources import Source

__all__ = ["note_changed"]


def note_changed(source: Source, name: str, notes: list[str]) -> str:
    """What to say where the data ``name`` was written to since it was opened, which is noted, too; else nothing."""
    is_unchanged = getattr(source, "is_unchanged", None)
    if is_unchanged is None or is_unchanged():
        return ""
    text = (
        f"data {name}: was written to, replaced or removed while it was read, so that predictions may be those of "
        "other rows than it has now, or had at the beginning; leave it as it is during a run, and predict it again "
        "into a new directory"
    )
    notes.append(text)
    return text
