"""Small batches joined for the writer."""

from collections.abc import Iterator, Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deploykit.writers import Batch
from runners.pipeline.groups import GROUP_BYTES, grouped


def batches(sizes: Sequence[int], width: int) -> list[Batch]:
    ends = np.cumsum(sizes)
    return [
        Batch(
            sample_ids=np.arange(end - size, end),
            outputs={"y": np.repeat(np.arange(end - size, end, dtype=np.float32)[:, None], width, axis=1)},
        )
        for size, end in zip(sizes, ends, strict=True)
    ]


@given(st.lists(st.integers(0, 400), max_size=30), st.sampled_from([1, 100, 5000]))
def test_all_rows_come_out_in_order_in_groups_that_are_large_enough(sizes: list[int], width: int) -> None:
    found = list(grouped(batches(sizes, width)))
    ids = [row for batch in found for row in batch.sample_ids.tolist()]
    assert ids == list(range(sum(sizes)))
    assert all((batch.outputs["y"] == batch.sample_ids[:, None]).all() for batch in found)
    assert all(len(batch) for batch in found)
    row_bytes = 4 * width
    for batch in found[:-1]:
        assert len(batch) * row_bytes >= GROUP_BYTES
    largest = max(sizes, default=0)
    assert all((len(batch) - largest) * row_bytes < GROUP_BYTES for batch in found)


def test_a_full_group_does_not_wait_for_the_next_batch() -> None:
    taken: list[int] = []

    def source() -> Iterator[Batch]:
        for batch in batches([40_000, 40_000], 1):
            taken.append(len(batch))
            yield batch

    groups = grouped(source())
    assert len(next(groups)) == 40_000
    assert taken == [40_000]


def test_a_text_counts_with_its_characters() -> None:
    texts = [np.array(["x" * GROUP_BYTES], object), np.array(["x"], object), np.array([None], object)]
    given = [Batch(sample_ids=np.arange(n, n + 1), outputs={"note": text}) for n, text in enumerate(texts)]
    assert list(map(len, grouped(given))) == [1, 2]


def test_rows_of_different_shapes_are_not_joined() -> None:
    def batch(width: int) -> Batch:
        return Batch(sample_ids=np.arange(2), outputs={"y": np.zeros((2, width), np.float32)})

    assert len(list(grouped([batch(3), batch(3)]))) == 1
    assert len(list(grouped([batch(3), batch(4)]))) == 2
