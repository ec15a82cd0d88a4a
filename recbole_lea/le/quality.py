"""What is said of an LE's quality."""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import spearmanr

from recbole_lea.store.arrays import pieces, take

if TYPE_CHECKING:
    from recbole_lea.le.pipeline import Pipeline

logger = logging.getLogger(__name__)

# Rewards that the correlation with popularity is taken from: ranks need them all in memory.
CORRELATED = 10**6


def better_than_chance(accuracy: float, n: int) -> bool:
    """Whether an accuracy on n pairs is above 1/2 by more than 1.645 standard errors (p < .05)."""
    return accuracy - 0.5 > 1.645 * math.sqrt(0.25 / n)


def report(record: dict[str, Any], built: bool, folder: Path) -> None:
    """Say how good the LE is on held-out sequences, by the fine-tuning's last record."""
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


def report_rewards(rewards: np.ndarray, mean: float, deviation: float) -> None:
    """Say how often the next item's reward is above a negative's [n_transitions, 1 + pool]."""
    right = sum(int((part[:, :1] > part[:, 1:]).sum()) for part in pieces(rewards))
    logger.info(
        "rewards: mean %.3f, deviation %.3f; positive above negative in %.3f",
        mean, deviation, right / rewards[:, 1:].size,
    )  # fmt: skip


def popularity_correlation(le: "Pipeline", rewards: np.ndarray) -> float | None:
    """Spearman correlation of a negative's reward with its item's count in training.

    Of the negatives, as they are drawn uniformly and not by popularity; of a random
    ``CORRELATED`` of them where there are more.
    """
    n = CORRELATED // le.negatives.shape[1]
    rows = np.arange(len(rewards))
    if len(rows) > n:
        rows = np.random.default_rng([le.settings.seed, 6]).choice(rows, n, replace=False)
    counts = np.bincount(np.concatenate(le.sequences.items), minlength=len(le.catalogue))
    scores = take(rewards, rows)[:, 1:]
    correlation = float(spearmanr(scores, counts[le.negatives[rows]], axis=None).statistic)
    return None if np.isnan(correlation) else correlation
