"""The iterative filter: literal rounds, and an independent computation on arbitrary events."""

from collections import Counter

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_prep.atomic import filter_events
from dataset_prep.report import PrepError


def frame(pairs):
    return pd.DataFrame(pairs, columns=["user", "item"]).assign(time=range(len(pairs)))


def pairs_of(events):
    return list(zip(events["user"].tolist(), events["item"].tolist(), strict=True))


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
    events = filter_events(frame(pairs), 3)
    assert pairs_of(events) == [(0, 0)] * 3 + [(2, 0)] * 3
    assert events["time"].tolist() == [0, 1, 2, 6, 7, 8]
    assert capsys.readouterr().out.splitlines() == [
        "filtering:",
        "  round 1: 3 sequences, 3 items, 10 interactions; drops 0 sequences, 1 items",
        "  round 2: 3 sequences, 2 items, 9 interactions; drops 1 sequences, 0 items",
        "  round 3: 2 sequences, 2 items, 7 interactions; drops 0 sequences, 1 items",
        "  round 4: 2 sequences, 1 items, 6 interactions; drops 0 sequences, 0 items",
    ]


def test_numbers_have_thousands_separators(capsys):
    filter_events(frame([(n, 0) for n in range(1200)]), 1)
    assert "round 1: 1,200 sequences, 1 items, 1,200 inter" in capsys.readouterr().out


def test_a_user_whose_items_all_went_counts_as_found(capsys):
    # Items 1 and 2 go in the first round, and with them all of user 1, who had two events.
    filter_events(frame([(0, 0), (0, 0), (1, 1), (1, 2)]), 2)
    assert capsys.readouterr().out.splitlines()[2:] == [
        "  round 2: 2 sequences, 1 items, 2 interactions; drops 1 sequences, 0 items",
        "  round 3: 1 sequences, 1 items, 2 interactions; drops 0 sequences, 0 items",
    ]


def test_repeats_are_dropped_and_not_across_users():
    pairs = [(0, 0), (0, 0), (0, 1), (0, 0), (1, 0), (1, 0), (1, 1)]
    events = filter_events(frame(pairs), 1, drop_repeats=True)
    assert pairs_of(events) == [(0, 0), (0, 1), (0, 0), (1, 0), (1, 1)]
    assert events["time"].tolist() == [0, 2, 3, 4, 6]  # the first of the repeats stays


def test_repeats_made_by_dropping_an_item_are_dropped_too():
    pairs = [(0, 0), (0, 1), (0, 0), (1, 0), (1, 2), (1, 3), (2, 2), (2, 3)]
    # Without item 1 user 0 heard item 0 once; then item 0 has one event of user 1.
    events = filter_events(frame(pairs), 2, drop_repeats=True)
    assert pairs_of(events) == [(1, 2), (1, 3), (2, 2), (2, 3)]


def test_nothing_left_is_an_error():
    with pytest.raises(PrepError, match="no interactions are left after 3 rounds.*there were 2"):
        filter_events(frame([(0, 0), (1, 0)]), 2)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40),
    st.integers(1, 4),
    st.booleans(),
)
def test_equals_the_plain_rule(pairs, minimum, drop_repeats):
    pairs.sort(key=lambda pair: pair[0])
    expected = plain_filter(pairs, minimum, drop_repeats)
    if not expected:
        with pytest.raises(PrepError):
            filter_events(frame(pairs), minimum, drop_repeats)
        return
    assert pairs_of(filter_events(frame(pairs), minimum, drop_repeats)) == expected
