"""Gains over a baseline, and whether they are more than chance: over seeds and over test users."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

PERMUTATIONS = 9999
BOOTSTRAPS = 1999
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Users:
    """One metric of one method by test user, averaged over seeds."""

    tokens: np.ndarray  # users [U]
    rows: np.ndarray  # test rows of each [U]
    values: np.ndarray  # mean of the metric over the user's rows [U]

    @property
    def sums(self) -> np.ndarray:
        """The user's part of the table's figure, which is a mean over rows [U]."""
        return self.rows * self.values / self.rows.sum()


def average(users: Sequence[Users]) -> Users:
    """The mean over seeds; a ValueError if they were tested on different users or rows."""
    for what in ("tokens", "rows"):
        first, *others = (getattr(own, what) for own in users)
        if not all(np.array_equal(first, other) for other in others):
            raise ValueError("two runs were tested on different users, so they cannot be paired")
    return dataclasses.replace(users[0], values=np.mean([own.values for own in users], axis=0))


def compare(
    seeds: Sequence[float], baseline_seeds: Sequence[float], users: Users, baseline: Users
) -> dict[str, Any]:
    """Compare a method with its baseline on one metric: by seed, and by test user over all seeds.

    Returns ``relative_gain`` of the means and ``seed_gains`` by seed, None where the baseline has
    0; ``interval`` (see ``gain_interval``), ``p_seeds`` and ``p_users``. Raises a ValueError if
    the two were tested on different users.
    """
    average([users, baseline])  # whether they are the same users
    means = float(np.mean(seeds)), float(np.mean(baseline_seeds))
    pairs = [means, *zip(seeds, baseline_seeds, strict=True)]
    gain, *seed_gains = (own / base - 1 if base else None for own, base in pairs)
    return {
        "seed_gains": seed_gains, "relative_gain": gain,
        "interval": gain_interval(users.sums, baseline.sums),
        "p_seeds": seed_test(seeds, baseline_seeds),
        "p_users": user_test(users.sums - baseline.sums),
    }  # fmt: skip


def seed_test(values: Sequence[float], baseline: Sequence[float]) -> float | None:
    """Two-sided paired t-test (``scipy.stats.ttest_rel``); None with fewer than two seeds.

    A signed-rank test could not fall below 0.0625 with five seeds.
    """
    if len(values) < 2 or np.array_equal(values, baseline):
        return 1.0 if len(values) > 1 else None
    with warnings.catch_warnings():  # scipy warns where all differences are equal
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(stats.ttest_rel(values, baseline).pvalue)


def user_test(difference: np.ndarray) -> float:
    """Two-sided paired permutation test of the mean difference over users [U].

    Fisher's randomization test, as https://doi.org/10.1145/1321440.1321528 recommends for
    retrieval metrics; a user's rows change sign together.
    """
    difference = difference[difference != 0]  # their sign changes nothing
    if len(difference) < 2:  # of one, both signs are as large
        return 1.0
    result = stats.permutation_test(
        (difference,), lambda x, axis: x.sum(axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=PERMUTATIONS, batch=1000, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(result.pvalue)


def gain_interval(sums: np.ndarray, baseline: np.ndarray) -> list[float] | None:
    """95 % bootstrap interval of the relative gain, of each user's part of both means [U].

    None where the baseline's mean is 0, or may be.
    """
    if len(sums) < 2 or not baseline.any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # such an interval is None
        result = stats.bootstrap(
            (sums, baseline), lambda x, y, axis: x.sum(axis=axis) / y.sum(axis=axis) - 1,
            paired=True, vectorized=True, n_resamples=BOOTSTRAPS, batch=1000,
            confidence_level=LEVEL, method="percentile", rng=np.random.default_rng(0),
        )  # fmt: skip
    interval = [float(end) for end in result.confidence_interval]
    return interval if np.isfinite(interval).all() else None


def holm(p_values: Sequence[float | None], n: int) -> list[float | None]:
    """Holm's correction (1979) for ``n`` planned comparisons; None stays None.

    Comparisons that are still to be made count as the largest, which corrects most: whatever
    they turn out to be, no corrected value rises.
    """
    corrected: list[float | None] = [None] * len(p_values)
    highest, order = 0.0, sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    for rank, (p, i) in enumerate(order):
        corrected[i] = highest = max(highest, min(1.0, (n - rank) * p))
    return corrected


def bonferroni(p_values: Sequence[float | None], n: int) -> list[float | None]:
    """Bonferroni's correction: unlike Holm's, it depends on no other comparison's p."""
    return [None if p is None else min(1.0, n * p) for p in p_values]
