"""Numbering of states and transitions, and the negative draw."""

import numpy as np
import pytest

from recbole_lea.le.catalogue import Catalogue
from recbole_lea.le.sequences import Sequences, popular_except, sample_negatives

ITEMS = Catalogue({name: {} for name in "abcd"})


def test_states_and_transitions_are_numbered_in_user_order():
    sequences = Sequences({"u2": ["a", "b"], "u1": ["c", "d", "a"]}, ITEMS)
    assert sequences.users == ["u1", "u2"]
    assert sequences.state_starts.tolist() == [0, 3, 5]
    assert sequences.transition_starts.tolist() == [0, 2, 3]
    assert sequences.history(0, 2).tolist() == [2, 3]
    assert sequences.action(0, 2) == 0


def test_unknown_item_is_named():
    with pytest.raises(KeyError, match="'z' of user 'u'"):
        Sequences({"u": ["a", "z"]}, ITEMS)


def test_negatives_differ_from_the_positive_and_are_uniform():
    sequences = Sequences({f"u{i}": ["a", "b"] for i in range(500)}, ITEMS)
    negatives = sample_negatives(sequences, 4, pool=4, seed=3)
    assert negatives.shape == (500, 4)
    counts = np.bincount(negatives.ravel(), minlength=4)
    assert counts[1] == 0  # b is the positive; the history item a is allowed
    assert (abs(counts[[0, 2, 3]] - 2000 / 3) < 4 * np.sqrt(2000 * 2 / 9)).all()


def test_a_user_has_the_same_negatives_whoever_else_is_there():
    one = Sequences({"u": ["a", "b", "c"]}, ITEMS)
    two = Sequences({"a": ["d", "c"], "u": ["a", "b", "c"]}, ITEMS)
    np.testing.assert_array_equal(
        sample_negatives(one, 4, 2, seed=1), sample_negatives(two, 4, 2, seed=1)[1:]
    )


def test_one_item_has_no_negative():
    with pytest.raises(ValueError, match="two items"):
        sample_negatives(Sequences({"u": ["a", "a"]}, ITEMS), 1, 1, 0)


def test_share_of_sequences_that_hold_an_item_twice():
    catalogue = Catalogue({token: {} for token in "abc"})
    assert Sequences({"u": ["a", "b"], "v": ["b", "a", "c"]}, catalogue).repeating == 0
    own = {"u": ["a", "b"], "v": ["b", "a", "b"], "w": ["c", "c", "c"], "x": ["a"]}
    assert Sequences(own, catalogue).repeating == 0.5


def test_negatives_by_popularity_are_drawn_by_count_and_never_the_positive():
    # counts plus one: 2, 6, 1, 1
    sequences = Sequences({"u": ["a", "b", "b", "b", "b", "b"]}, ITEMS)
    rng, excluded = np.random.default_rng(0), np.array([[0], [1]])
    draws = popular_except(rng, excluded, sequences, (2, 4000))
    shares = [0, 6 / 8, 1 / 8, 1 / 8], [2 / 4, 0, 1 / 4, 1 / 4]
    few = popular_except(rng, np.zeros(99, dtype=int), Sequences({"u": ["a"]}, ITEMS), (99,))
    assert set(few) == {1, 2, 3}
    for own, wanted in zip(draws, shares, strict=True):
        assert np.bincount(own, minlength=4) / 4000 == pytest.approx(wanted, abs=0.03)
