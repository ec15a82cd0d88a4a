"""Counting and sorting on disk, with buckets far smaller than the data."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_prep import external
from dataset_prep.external import RAW, Tally, read_records, sort_events
from dataset_prep.filtering import EVENT


@given(st.lists(st.lists(st.integers(0, 2**61), max_size=9), max_size=6), st.integers(1, 5))
def test_tally(blocks, merge_at):
    tally, keys = Tally(), [key for block in blocks for key in block]
    line = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(external, "_ROWS", merge_at)
        for block in blocks:
            tally.add(np.array(block, np.int64), np.arange(line, line + len(block)))
            line += len(block)
    found, counts, lines = (part.tolist() for part in tally.result())
    assert found == sorted(set(keys))
    assert dict(zip(found, counts, strict=True)) == Counter(keys)
    assert lines == [keys.index(key) for key in found]


@pytest.mark.parametrize(("rows", "bucket", "most"), [(7, 10, 512), (1, 1, 3), (1000, 1000, 1)])
def test_sort_is_by_user_and_time_and_keeps_ties_in_order(
    tmp_path, monkeypatch, rows, bucket, most
):
    monkeypatch.setattr(external, "_ROWS", rows)
    monkeypatch.setattr(external, "_BUCKET_ROWS", bucket)
    monkeypatch.setattr(external, "_MOST_BUCKETS", most)
    random = np.random.default_rng(0)
    raw = np.empty(300, RAW)
    raw["user"] = random.choice([4, 9, 70_000, 2**31 - 1], 300)
    raw["item"] = np.arange(300) * 7
    raw["time"] = random.integers(2**32 - 20, 2**32, 300)
    raw.tofile(tmp_path / "raw")
    users, counts = np.unique(raw["user"], return_counts=True)
    items = np.unique(raw["item"]).astype(np.int64)
    sort_events(tmp_path / "raw", users.astype(np.int64), counts, items, tmp_path / "ordered")
    found = np.concatenate(list(read_records(tmp_path / "ordered", EVENT))).tolist()
    rank = {user: n for n, user in enumerate(users.tolist())}
    # Items ascend with the place in the file, so they break ties as the file does.
    expected = sorted((rank[u], t, i // 7) for u, i, t in raw.tolist())
    assert [(u, t, i) for u, i, t in found] == expected
    assert [path.name for path in tmp_path.iterdir()] == ["ordered"]
