"""What is said of an LE's quality."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from recbole_lea.le.sequences import Sequences
from recbole_lea.store.arrays import take

logger = logging.getLogger(__name__)

# Rewards that the correlation with popularity is taken from: ranks need them all in memory.
CORRELATED = 10**6


def better_than_chance(accuracy: float, n: int) -> bool:
    """Whether an accuracy on n pairs is above 1/2 by more than 1.645 standard errors (p < .05)."""
    return accuracy - 0.5 > 1.645 * math.sqrt(0.25 / n)


def report(record: dict[str, Any], built: bool, folder: Path) -> None:
    """Say how good the LE is on held-out sequences.

    Args:
        record: the fine-tuning's last one, as far as there is one.
        built: whether the fine-tuning is finished.
        folder: the fine-tuning's.
    """
    if "accuracy" not in record:
        why = "it was built with lea_finetune_eval: 0, or no training sequence was left"
        logger.warning(
            "the LE was not measured: %s", why if built else f"the cache lacks {folder.name}"
        )
        return
    logger.info(
        "LE on %d held-out training transitions: reward accuracy %.3f, state hit@10 %.4f",
        record["n"], record["accuracy"], record["hit_10"],
    )  # fmt: skip
    if not better_than_chance(record["accuracy"], record["n"]):
        logger.warning(
            "the reward model is no better than chance (held-out accuracy %.3f on %d pairs): "
            "its rewards carry no information; train longer (lea_finetune_epochs), raise "
            "lea_finetune_lr, or use a larger LLM", record["accuracy"], record["n"],
        )  # fmt: skip


def popularity_correlation(
    rewards: np.ndarray, negatives: np.ndarray, sequences: Sequences, n_items: int, seed: int
) -> float | None:
    """Spearman correlation of a negative's reward with its item's count in training.

    Of the negatives [n, pool], as they are drawn uniformly and not by popularity; of a random
    ``CORRELATED`` of them where there are more. ``rewards`` [n, 1 + pool] have the positive first.
    """
    n = CORRELATED // negatives.shape[1]
    rows = np.arange(len(rewards))
    if len(rows) > n:
        rows = np.random.default_rng([seed, 6]).choice(rows, n, replace=False)
    counts = np.bincount(np.concatenate(sequences.items), minlength=n_items)
    scores = take(rewards, rows)[:, 1:]
    correlation = float(spearmanr(scores, counts[negatives[rows]], axis=None).statistic)
    return None if np.isnan(correlation) else correlation
