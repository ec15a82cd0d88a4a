"""The iterative filter: literal rounds, and an independent computation on arbitrary events."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_prep.filtering import EVENT, Round, filter_events, kept_events
from dataset_prep.problems import PrepError


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


def test_rounds_until_nothing_changes():
    # Item 2 is rare; without it user 1 is short; without user 1 item 1 is.
    pairs = [(0, 0), (0, 0), (0, 0), (1, 1), (1, 1), (1, 2), (2, 0), (2, 0), (2, 0), (2, 1)]
    kept = filter_events(make_chunks(pairs, 4), 3, 3, 3)
    assert kept.rounds == [
        Round(3, 3, 10, 0, 1),
        Round(3, 2, 9, 1, 0),
        Round(2, 2, 7, 0, 1),
        Round(2, 1, 6, 0, 0),
    ]
    assert kept.users.tolist() == [True, False, True]
    assert kept.items.tolist() == [True, False, False]


def test_round_as_a_line():
    assert str(Round(1200, 3, 45000, 5, 0)) == (
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
    kept = filter_events(make_chunks(pairs, 3), 3, 4, 2, drop_repeats=True)
    # Without item 1 user 0 heard item 0 once; then item 0 has one event of user 1.
    assert kept.users.tolist() == [False, True, True]
    assert kept.items.tolist() == [False, False, True, True]


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
    kept = filter_events(chunks, len(users), len(items), minimum, drop_repeats)
    events = np.concatenate(list(kept_events(chunks, kept.users, kept.items, drop_repeats)))
    assert [(u, i) for u, i, _ in events.tolist()] == expected
    assert kept.rounds[-1].interactions == len(expected)
    for before, after in zip(kept.rounds, kept.rounds[1:], strict=False):
        assert after.sequences == before.sequences - before.dropped_sequences
        assert after.items == before.items - before.dropped_items
