"""How much of a long look is done: told in whole rows, whatever the shares are in which it comes."""

from deploykit.tally import Tally


def test_rows_are_told_as_they_come() -> None:
    told: list[tuple[int, int]] = []
    tally = Tally(lambda done, rows: told.append((done, rows)), 10)
    for rows in (3, 2.5, 0.5, 4):
        tally.add(rows)
    assert told == [(3, 10), (5, 10), (6, 10), (10, 10)]


def test_several_passes_over_the_same_rows_are_told_as_one() -> None:
    told: list[int] = []
    tally = Tally(lambda done, _: told.append(done), 10, passes=2)
    for _ in range(2):
        tally.add(10)
    assert told == [5, 10]


def test_shares_of_files_add_up_to_their_rows_and_no_further() -> None:
    told: list[int] = []
    tally = Tally(lambda done, _: told.append(done), 7)
    for rows, size_bytes in ((3, 7), (4, 11)):
        piece = tally.of_bytes(rows, size_bytes)
        for _ in range(size_bytes):
            piece(1)
        assert told[-1] == (3 if rows == 3 else 7)
    tally.of_bytes(5, 0)(1)
    assert told[-1] == 7


def test_nobody_need_listen() -> None:
    Tally(None, 10).add(3)
