"""How good an LE is: on held-out training sequences, and what is said of it."""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from recbole_lea.engine.progress import PromptBar
from recbole_lea.le.environment import Environment, PromptEnds
from recbole_lea.le.selection import choose
from recbole_lea.le.sequences import Sequences, leave_out, uniform_except
from recbole_lea.le.settings import LESettings
from recbole_lea.store.arrays import pieces, take

if TYPE_CHECKING:
    from recbole_lea.le.pipeline import Pipeline

logger = logging.getLogger(__name__)

# Rewards that the correlation with popularity is taken from: ranks need them all in memory.
CORRELATED = 10**6

# Held-out states whose scores of all items are in memory at a time.
RANKED = 16

Pairs = list[tuple[int, int]]  # transitions: sequence and t


def comparisons(
    environment: Environment,
    sequences: Sequences,
    pairs: Pairs,
    positives: np.ndarray,
    negatives: np.ndarray,
) -> list[list[list[int]]]:
    """For each transition, in one row: the reward prompts of its actions, then its state input."""
    groups, prompts = [], environment.prompts
    for (s, t), positive, others in zip(pairs, positives, negatives, strict=True):
        history = sequences.history(s, t)
        rewards = [prompts.reward(history, action) for action in (positive, *others)]
        groups.append([*rewards, prompts.state(history)])
    return groups


def evaluate(
    environment: Environment,
    sequences: Sequences,
    pairs: Pairs,
    seed: int,
    progress: PromptBar | None = None,
) -> dict[str, float]:
    """How good the LE is on N transitions.

    Returns:
        ``accuracy``: share of (next item, uniform negative) pairs that the reward model ranks
        right; ``margin``: their mean reward difference; ``hit_10``, ``ndcg_10``: of the next item
        among all items (history included) by nearness to the state; ``n``: N.
    """
    positives = np.array([sequences.action(s, t) for s, t in pairs])
    rng, n_items = np.random.default_rng([seed, 3]), len(environment.item_tokens)
    negatives = uniform_except(rng, positives, n_items, (len(pairs),))
    groups = comparisons(environment, sequences, pairs, positives, negatives[:, None])

    def both(ends: PromptEnds) -> Tensor:
        reward = environment.reward_of(ends)[:, None]
        return torch.cat([reward, environment.state_of(ends)], dim=1)  # [3 N, 1 + d]

    found = environment.answer(groups, both, progress)
    margin = found[0::3, 0] - found[1::3, 0]  # [N]
    states = torch.from_numpy(found[2::3, 1:]).to(environment.device)
    parts = zip(states.split(RANKED), torch.from_numpy(positives).split(RANKED), strict=True)
    rank = np.concatenate([_rank(environment, *part) for part in parts])
    hit = rank < 10
    return {
        "accuracy": float((margin > 0).mean()),
        "margin": float(margin.mean()),
        "hit_10": float(hit.mean()),
        "ndcg_10": float(np.where(hit, 1 / np.log2(rank + 2.0), 0).mean()),
        "n": len(pairs),
    }


@torch.inference_mode()
def _rank(environment: Environment, states: Tensor, items: Tensor) -> np.ndarray:
    """Place of items [N] among all by their nearness to states [N, d]; 0 is first."""
    scores = environment.state_scores(states)  # [N, n_items]
    own = scores.gather(1, items[:, None].to(scores.device))
    return (scores > own).sum(1).cpu().numpy()


def selections(
    environment: Environment,
    sequences: Sequences,
    pairs: Pairs,
    positives: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[list[int]]]:
    """Lists that hold the next item [N, k], and the selection prompt of each."""
    n_items = len(environment.item_tokens)
    k = min(len(environment.settings.selection_labels), n_items)
    lists = selection_lists(rng, positives, n_items, k)
    select = environment.prompts.select
    rows = zip(pairs, lists, strict=True)
    return lists, [select(sequences.history(s, t), listed) for (s, t), listed in rows]


def selection_lists(
    rng: np.random.Generator, positives: np.ndarray, n_items: int, k: int
) -> np.ndarray:
    """Lists of the next item [N] and uniform others in random order [N, k], k <= n_items."""
    lists = np.empty((len(positives), k), dtype=np.int64)
    for row, positive in zip(lists, positives, strict=True):
        others = rng.choice(n_items - 1, size=k - 1, replace=False)
        row[:] = rng.permutation([positive, *leave_out(positive, others)])
    return lists


def selection_accuracy(
    environment: Environment,
    sequences: Sequences,
    pairs: Pairs,
    settings: LESettings,
    progress: PromptBar | None = None,
) -> float:
    """Share of lists of the next item and uniform others from which the LE picks the next item."""
    positives = np.array([sequences.action(s, t) for s, t in pairs])
    rng = np.random.default_rng([settings.seed, 4])
    lists, asked = selections(environment, sequences, pairs, positives, rng)
    groups = [[prompt] for prompt in asked]
    scores = environment.answer(groups, environment.label_scores_of, progress)
    chosen, _ = choose(scores[:, : lists.shape[1]], lists, settings.selection_calibration)
    return float((chosen == positives).mean())


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
