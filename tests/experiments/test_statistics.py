"""Paired tests, intervals and the correction for many comparisons."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_lea.experiments.statistics import (
    Users,
    average,
    bonferroni,
    compare,
    gain_interval,
    holm,
    seed_test,
    user_test,
)


def users(values, rows=None, tokens=None):
    n = len(values)
    rows = np.ones(n, dtype=int) if rows is None else np.array(rows)
    tokens = np.array([f"u{i}" for i in range(n)] if tokens is None else tokens)
    return Users(tokens, rows, np.array(values, dtype=float))


def test_sums_add_up_to_the_mean_over_rows():
    one = users([1.0, 0.0, 0.5], rows=[1, 2, 4])
    assert one.sums.sum() == pytest.approx((1 * 1.0 + 2 * 0.0 + 4 * 0.5) / 7)


def test_gain_is_the_ratio_of_the_means():
    found = compare([0.2, 0.4], [0.1, 0.1], users([0.3, 0.3]), users([0.1, 0.1]))
    assert found["relative_gain"] == pytest.approx(2.0)
    assert found["seed_gains"] == pytest.approx([1.0, 3.0])
    assert found["interval"] == pytest.approx([2.0, 2.0])


def test_a_baseline_of_0_has_no_gain():
    found = compare([0.2, 0.4], [0.0, 0.0], users([0.3, 0.3]), users([0.0, 0.0]))
    assert (found["relative_gain"], found["interval"]) == (None, None)
    assert found["seed_gains"] == [None, None]


def test_permutation_test_is_exact_for_few_users():
    # 2 of the 2^5 signs give a sum as far from 0
    assert user_test(np.ones(5)) == pytest.approx(2 / 32)
    assert user_test(np.array([1.0, -1.0, 0.0])) == 1.0
    assert user_test(np.zeros(4)) == 1.0
    assert user_test(np.array([0.0, 0.5, 0.0])) == 1.0


def test_users_that_do_not_differ_change_nothing():
    difference = np.array([0.3, 0.1, -0.05, 0.2, 0.4, 0.1])
    assert user_test(difference) == user_test(np.r_[difference, np.zeros(50)])


def test_permutation_test_finds_a_difference_among_many_users():
    rng = np.random.default_rng(1)
    assert user_test(rng.normal(0.3, 1, 400)) < 0.001
    assert user_test(rng.normal(0, 1, 400)) > 0.05


def test_seed_test_is_paired():
    base = np.array([0.1, 0.5, 0.9, 0.3])
    gained = base + np.array([0.010, 0.011, 0.009, 0.010])
    assert seed_test(gained, base) < 0.001
    assert seed_test(base, base) == 1.0
    assert seed_test([0.1], [0.2]) is None


def test_interval_holds_the_gain_and_shrinks_with_users():
    rng = np.random.default_rng(2)
    widths = []
    for n in (50, 5000):
        base = rng.random(n)
        own = base * 1.1 + rng.normal(0, 0.1, n)
        low, high = gain_interval(own / n, base / n)
        assert low < own.sum() / base.sum() - 1 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 5
    assert gain_interval(np.ones(3), np.zeros(3)) is None
    # a ratio's deviation by the delta method, 1.96 to either side
    spread = np.std(own - own.sum() / base.sum() * base) * np.sqrt(n) / base.sum()
    assert widths[1] == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_interval_is_of_each_user_s_own_pair():
    base = np.random.default_rng(3).random(50)
    assert gain_interval(1.1 * base, base) == pytest.approx([0.1, 0.1])


def test_holm_by_hand():
    assert holm([0.01, None, 0.04, 0.03], 3) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.9, 0.8], 2) == [1.0, 1.0]
    assert holm([None], 1) == [None]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(1, 6))
def test_comparisons_to_come_never_raise_a_corrected_value(p_values, made):
    early = holm(p_values[:made], len(p_values))
    final = holm(p_values, len(p_values))
    assert all(a >= b - 1e-12 for a, b in zip(early, final, strict=False))


def test_average_is_over_seeds():
    mean = average([users([0.0, 1.0]), users([1.0, 1.0])])
    assert mean.values.tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    "other", [users([1.0, 2.0], rows=[1, 2]), users([1.0, 2.0], tokens=["u0", "x"])]
)
def test_other_users_cannot_be_paired(other):
    with pytest.raises(ValueError, match="different users"):
        average([users([1.0, 2.0]), other])
    with pytest.raises(ValueError, match="different users"):
        compare([1.0], [1.0], users([1.0, 2.0]), other)


def test_bonferroni_knows_no_other_comparison():
    assert bonferroni([0.01, None, 0.3], 4) == [0.04, None, 1.0]
