"""How good an LE is: on held-out training sequences, and what is said of it."""

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from recbole_lea.le.environment import Environment, PromptEnds
from recbole_lea.le.sequences import Sequences, popular_except, uniform_except
from recbole_lea.store.arrays import take

if TYPE_CHECKING:
    from recbole_lea.le.pipeline import Pipeline

logger = logging.getLogger(__name__)

# Rewards that the correlation with popularity is taken from: ranks need them all in memory.
CORRELATED = 10**6

# Held-out states whose scores of all items are in memory at a time.
RANKED = 16

Pairs = list[tuple[int, int]]  # transitions: sequence and t


def comparisons(
    environment: Any, sequences: Sequences, pairs: Pairs, actions: np.ndarray
) -> list[list[list[int]]]:
    """For each of N transitions the reward prompts of its actions [N, K], then its state input."""
    groups, prompts = [], environment.prompts
    for (s, t), own in zip(pairs, actions, strict=True):
        history = sequences.history(s, t)
        groups.append([*(prompts.reward(history, a) for a in own), prompts.state(history)])
    return groups


def drawn(
    sequences: Sequences, pairs: Pairs, n_items: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Next items of N transitions, uniform negatives, and some by popularity; [N] each."""
    positives, shape = np.array([sequences.action(s, t) for s, t in pairs]), (len(pairs),)
    rng = np.random.default_rng([seed, 3])
    uniform = uniform_except(rng, positives, n_items, shape)
    return positives, uniform, popular_except(rng, positives, sequences, shape)


def evaluate(environment: Any, sequences: Sequences, pairs: Pairs, seed: int) -> dict[str, float]:
    """How good the LE, or its twin ``TextEnvironment``, is on N transitions.

    Returns:
        ``accuracy``: share of (next item, uniform negative) pairs that the reward model ranks
        right; ``margin``: their mean reward difference; ``popular_accuracy``: the share with
        negatives drawn by popularity; ``hit_10``, ``ndcg_10``: of the next item among all items
        (history included) by nearness to the state; ``n``: N.
    """
    actions = drawn(sequences, pairs, len(environment.item_tokens), seed)
    groups = comparisons(environment, sequences, pairs, np.column_stack(actions))

    def both(ends: PromptEnds) -> Tensor:
        reward = environment.reward_of(ends)[:, None]
        return torch.cat([reward, environment.state_of(ends)], dim=1)  # [4 N, 1 + d]

    found = environment.answer(groups, both)
    positive, uniform, popular = (found[i::4, 0] for i in range(3))  # [N]
    margin = positive - uniform
    rank = _rank(environment, torch.from_numpy(found[3::4, 1:]), torch.from_numpy(actions[0]))
    hit = rank < 10
    return {
        "accuracy": float((margin > 0).mean()),
        "margin": float(margin.mean()),
        "popular_accuracy": float((positive > popular).mean()),
        "hit_10": float(hit.mean()),
        "ndcg_10": float(np.where(hit, 1 / np.log2(rank + 2.0), 0).mean()),
        "n": len(pairs),
    }


@torch.inference_mode()
def _rank(environment: Environment, states: Tensor, items: Tensor) -> np.ndarray:
    """Place of items [N] among all by their nearness to states [N, d]; 0 is first."""
    ranks, device = [], environment.device
    for own, item in zip(states.split(RANKED), items.split(RANKED), strict=True):
        scores = environment.state_scores(own.to(device))  # [RANKED, n_items]
        ranks.append((scores > scores.gather(1, item[:, None].to(device))).sum(1))
    return torch.cat(ranks).cpu().numpy()


def better_than_chance(accuracy: float, n: int) -> bool:
    """Whether an accuracy on n pairs is above 1/2 by more than 1.645 standard errors (p < .05)."""
    return accuracy - 0.5 > 1.645 * math.sqrt(0.25 / n)


def without_llm(sequences: Sequences, pairs: Pairs, text: Any, seed: int) -> dict[str, float]:
    """What is known without an LLM of the pairs that ``evaluate`` draws: N transitions.

    Returns:
        ``popularity_accuracy``: share of the pairs whose next item has the higher count in
        training, its own place left out, a tie being half; ``text_accuracy``: that of ``text``, a
        ``TextEnvironment``.
    """
    positives, negatives, _ = drawn(sequences, pairs, len(text.item_tokens), seed)
    counts = np.bincount(sequences.events, minlength=len(text.item_tokens))
    more = np.sign(counts[positives] - 1 - counts[negatives])
    accuracy = evaluate(text, sequences, pairs, seed)["accuracy"]
    return {"popularity_accuracy": float((more + 1).mean() / 2), "text_accuracy": accuracy}


def worth(record: Mapping[str, Any]) -> str:
    """In one line what an LE is worth beside what needs no LLM, by ``Pipeline.diagnostics``."""
    if "accuracy" not in record:
        return "the LE was not measured: no sequence was held out"
    accuracy, n = record["accuracy"], record["n"]
    error = math.sqrt(accuracy * (1 - accuracy) / n)
    line = f"LE: reward accuracy {accuracy:.3f} +- {error:.3f} on {n} held-out pairs"
    others = {w: record[k] for w in ("popularity", "text") if (k := f"{w}_accuracy") in record}
    if not others:
        return line
    line += f" ({', '.join(f'{name} {value:.3f}' for name, value in others.items())})"
    best = max(others, key=lambda name: others[name])
    if accuracy - others[best] > 2 * error:
        return f"{line}: better than both"
    return f"{line}: cannot be told apart from {best}" if accuracy + 2 * error > others[best] else (
        f"{line}: worse than {best}"
    )  # fmt: skip


def report(record: dict[str, Any]) -> None:
    """Say how good the LE is on held-out sequences, by the fine-tuning's last record."""
    if "accuracy" not in record:
        logger.warning("the LE was not measured: no sequence was held out, or the cache lacks it")
        return
    accuracy, n = record["accuracy"], record["n"]
    logger.info(
        "LE on %d held-out training transitions: reward accuracy %.3f, state hit@10 %.4f",
        n, accuracy, record["hit_10"],
    )  # fmt: skip
    if not better_than_chance(accuracy, n):
        logger.warning(
            "the reward model is no better than chance (held-out accuracy %.3f on %d pairs): "
            "its rewards carry no information; train longer (lea_finetune_epochs), raise "
            "lea_finetune_lr, or use a larger LLM", accuracy, n,
        )  # fmt: skip


def popularity_correlation(le: "Pipeline", rewards: np.ndarray) -> float | None:
    """Spearman correlation of a negative's reward with its item's count in training.

    Negatives are drawn uniformly, not by popularity; at most ``CORRELATED`` random ones count.
    """
    n, rows = CORRELATED // le.negatives.shape[1], np.arange(len(rewards))
    if len(rows) > n:
        rows = np.random.default_rng([le.settings.seed, 6]).choice(rows, n, replace=False)
    counts = np.bincount(le.sequences.events, minlength=len(le.catalogue))
    scores = take(rewards, rows)[:, 1:]
    correlation = float(spearmanr(scores, counts[le.negatives[rows]], axis=None).statistic)
    return None if np.isnan(correlation) else correlation
