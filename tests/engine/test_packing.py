"""Token trees: prefixes shared, nothing else visible."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recbole_lea.engine.packing import PromptRow, pack, pack_snugly


def test_common_prefix_stands_once():
    row = PromptRow(10)
    assert row.insert([[1, 2, 3], [1, 2, 4, 5], [1, 2]]) == [2, 4, 1]
    assert row.ids == [1, 2, 3, 4, 5]
    assert row.parents == [-1, 0, 1, 1, 3]
    ids, positions, mask = row.layout()
    assert ids.tolist() == [1, 2, 3, 4, 5, 0, 0, 0, 0, 0]
    assert positions.tolist()[:5] == [0, 1, 2, 2, 3]
    assert np.flatnonzero(mask[4]).tolist() == [0, 1, 3, 4]  # the branch 3 is invisible
    assert np.flatnonzero(mask[7]).tolist() == [7]


def test_what_does_not_fit_leaves_the_row_as_it_was():
    row = PromptRow(4)
    row.insert([[1, 2]])
    assert row.insert([[1, 2, 3], [1, 5, 6, 7]]) is None
    assert (row.ids, row.parents) == ([1, 2], [-1, 0])
    assert row.insert([[1, 2, 3], [1, 5]]) == [2, 3]


def test_group_that_needs_more_than_a_row_gets_a_longer_one():
    groups = [[[1, 2]], [[1, 2, 3, 4, 5], [6, 7, 8, 9]], [[3]]]
    short, long = pack(groups, row_length=4, batch_rows=1)
    assert (short.ids.shape, long.ids.shape) == ((1, 4), (1, 16))
    assert (short.prompts.tolist(), long.prompts.tolist()) == ([0, 3], [1, 2])
    assert long.ids.ravel()[long.ends].tolist() == [5, 9]


def test_the_last_batch_is_filled():
    groups = [[[i, i, i]] for i in range(7)]
    batches = list(pack(groups, row_length=3, batch_rows=4))
    assert [batch.ids.shape for batch in batches] == [(4, 3), (4, 3)]
    assert [len(batch.ends) for batch in batches] == [4, 3]


def test_the_last_of_large_batches_is_filled_to_a_power_of_two():
    def shapes(n_rows):
        groups = [[[i] * 512] for i in range(1, n_rows + 1)]
        return [batch.ids.shape for batch in pack(groups, row_length=512, batch_rows=12)]

    assert shapes(1) == [(2, 512)]
    assert shapes(5) == [(8, 512)]
    assert shapes(8) == [(8, 512)]
    assert shapes(9) == [(12, 512)]
    assert shapes(15) == [(12, 512), (4, 512)]


def test_snug_rows_are_as_long_as_needed():
    groups = [[[1, 2, *range(10, 30), 100 + i, 7]] for i in range(60)]  # 22 + 60 * 2 tokens

    def shapes(groups, row_length):
        return [batch.ids.shape for batch in pack_snugly(groups, row_length, batch_rows=4)]

    assert shapes(groups, 64) == [(2, 96)]  # 82 tokens each: the shared ones stand in both rows
    assert shapes(groups, 128) == [(1, 160)]
    assert shapes([[[1] * 5, [2] * 40]], 16) == [(1, 64)]  # a group is never torn


@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=3),
        max_size=12,
    ),
    st.integers(1, 3),
    st.booleans(),
)
def test_every_prompt_can_be_read_back(groups, batch_rows, snug):
    found = {}
    for batch in (pack_snugly if snug else pack)(groups, 6, batch_rows):
        length = batch.ids.shape[1]
        flat_ids, flat_mask = batch.ids.ravel(), batch.mask[:, 0]
        for end, prompt in zip(batch.ends, batch.prompts, strict=True):
            row, column = divmod(end, length)
            seen = np.flatnonzero(flat_mask[row, column])
            order = batch.positions[row, seen].argsort()
            assert batch.positions[row, seen][order].tolist() == list(range(len(seen)))
            found[int(prompt)] = flat_ids[row * length + seen[order]].tolist()
    prompts = [prompt for group in groups for prompt in group]
    assert [found[i] for i in range(len(found))] == prompts
