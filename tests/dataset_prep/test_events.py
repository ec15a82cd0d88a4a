"""Counting and sorting on disk, with buckets far smaller than the data, and the iterative filter.

The filter: literal rounds, and an independent computation on arbitrary events.
"""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_prep import events as under_test
from dataset_prep.events import (
    EVENT,
    ROUND,
    Tally,
    chunks_of,
    filter_events,
    kept_events,
    sort_events,
)
from dataset_prep.report import PrepError


@given(st.lists(st.lists(st.integers(0, 2**61), max_size=9), max_size=6), st.integers(1, 5))
def test_tally(blocks, merge_at):
    tally, keys = Tally(), [key for block in blocks for key in block]
    line = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(under_test, "_ROWS", merge_at)
        for block in blocks:
            tally.add(np.array(block, np.int64), np.arange(line, line + len(block)))
            line += len(block)
    found, counts, lines = (part.tolist() for part in tally.result())
    assert found == sorted(set(keys))
    assert dict(zip(found, counts, strict=True)) == Counter(keys)
    assert lines == [keys.index(key) for key in found]


@pytest.mark.parametrize(("rows", "bucket"), [(7, 10), (1, 1), (1000, 1000)])
def test_sort_is_by_user_and_time_and_keeps_ties_in_order(tmp_path, monkeypatch, rows, bucket):
    monkeypatch.setattr(under_test, "_ROWS", rows)
    monkeypatch.setattr(under_test, "_BUCKET_ROWS", bucket)
    random = np.random.default_rng(0)
    raw = np.empty(300, EVENT)
    raw["user"] = random.choice([4, 9, 70_000, 2**31 - 1], 300)
    raw["item"] = np.arange(300) * 7
    raw["time"] = random.integers(2**32 - 20, 2**32, 300)
    raw.tofile(tmp_path / "raw")
    users, counts = np.unique(raw["user"], return_counts=True)
    items = np.unique(raw["item"]).astype(np.int64)
    ordered = sort_events(tmp_path / "raw", users.astype(np.int64), counts, items)
    found = np.concatenate(list(chunks_of(ordered))).tolist()
    rank = {user: n for n, user in enumerate(users.tolist())}
    # Items ascend with the place in the file, so they break ties as the file does.
    expected = sorted((rank[u], t, i // 7) for u, i, t in raw.tolist())
    assert [(u, t, i) for u, i, t in found] == expected
    assert [path.name for path in tmp_path.iterdir()] == ["ordered"]


def make_chunks(pairs, size):
    events = np.array([(user, item, 0) for user, item in pairs], dtype=EVENT)
    return lambda: iter([events[n : n + size] for n in range(0, len(events), size)])


def plain_filter(pairs, minimum, drop_repeats):
    """Filter by the words of the rule, with nothing of the code under test."""
    while True:
        if drop_repeats:
            pairs = [pair for n, pair in enumerate(pairs) if n == 0 or pair != pairs[n - 1]]
        users, items = Counter(u for u, _ in pairs), Counter(i for _, i in pairs)
        left = [(u, i) for u, i in pairs if users[u] >= minimum and items[i] >= minimum]
        if left == pairs:
            return left
        pairs = left


def test_rounds_until_nothing_changes(capsys):
    # Item 2 is rare; without it user 1 is short; without user 1 item 1 is.
    pairs = [(0, 0), (0, 0), (0, 0), (1, 1), (1, 1), (1, 2), (2, 0), (2, 0), (2, 0), (2, 1)]
    users, items, rounds = filter_events(make_chunks(pairs, 4), 3, 3, 3)
    assert rounds == [(3, 3, 10, 0, 1), (3, 2, 9, 1, 0), (2, 2, 7, 0, 1), (2, 1, 6, 0, 0)]
    assert users.tolist() == [True, False, True]
    assert items.tolist() == [True, False, False]
    assert capsys.readouterr().out.splitlines()[:2] == [
        "filtering:",
        "  round 1: 3 sequences, 3 items, 10 interactions; drops 0 sequences, 1 items",
    ]


def test_round_as_a_line():
    assert ROUND.format(1200, 3, 45000, 5, 0) == (
        "1,200 sequences, 3 items, 45,000 interactions; drops 5 sequences, 0 items"
    )


def test_repeats_are_dropped_across_chunks_and_not_across_users():
    pairs = [(0, 0), (0, 0), (0, 1), (0, 0), (1, 0), (1, 0), (1, 1)]
    every = np.ones(2, bool)
    for size in range(1, 8):
        kept = np.concatenate(list(kept_events(make_chunks(pairs, size), every, every, True)))
        assert [(u, i) for u, i, _ in kept.tolist()] == [(0, 0), (0, 1), (0, 0), (1, 0), (1, 1)]


def test_repeats_made_by_dropping_an_item_are_dropped_too():
    pairs = [(0, 0), (0, 1), (0, 0), (1, 0), (1, 2), (1, 3), (2, 2), (2, 3)]
    users, items, _ = filter_events(make_chunks(pairs, 3), 3, 4, 2, drop_repeats=True)
    # Without item 1 user 0 heard item 0 once; then item 0 has one event of user 1.
    assert users.tolist() == [False, True, True]
    assert items.tolist() == [False, False, True, True]


def test_nothing_left_is_an_error():
    with pytest.raises(PrepError, match="no interactions are left after 3 rounds.*there were 2"):
        filter_events(make_chunks([(0, 0), (1, 0)], 9), 2, 1, 2)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40),
    st.integers(1, 4),
    st.booleans(),
    st.integers(1, 7),
)
def test_equals_the_plain_rule(pairs, minimum, drop_repeats, size):
    pairs.sort(key=lambda pair: pair[0])
    users = sorted({u for u, _ in pairs})
    items = sorted({i for _, i in pairs})
    pairs = [(users.index(u), items.index(i)) for u, i in pairs]
    expected = plain_filter(pairs, minimum, drop_repeats)
    chunks = make_chunks(pairs, size)
    if not expected:
        with pytest.raises(PrepError):
            filter_events(chunks, len(users), len(items), minimum, drop_repeats)
        return
    *kept, rounds = filter_events(chunks, len(users), len(items), minimum, drop_repeats)
    events = np.concatenate(list(kept_events(chunks, *kept, drop_repeats)))
    assert [(u, i) for u, i, _ in events.tolist()] == expected
    assert rounds[-1][2] == len(expected)
    for before, after in zip(rounds, rounds[1:], strict=False):
        assert after[0] == before[0] - before[3]
        assert after[1] == before[1] - before[4]
