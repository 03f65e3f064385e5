"""Numbers of things as people read them."""

__all__ = ["counted", "row_range"]


def counted(count: int, thing: str) -> str:
    """The number, with separators, and the thing in singular or plural.

    >>> counted(1, "row"), counted(1234, "row")
    ('1 row', '1,234 rows')
    """
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def row_range(start: int, stop: int) -> str:
    """The rows ``[start, stop)``, both ends included.

    >>> row_range(0, 256), row_range(199, 200)
    ('rows 0 to 255', 'row 199')
    """
    return f"rows {start} to {stop - 1}" if stop - start > 1 else f"row {start}"
