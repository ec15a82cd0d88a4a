"""The LE on held-out training sequences, and the prompts by which it learns and is measured."""

import numpy as np
import torch
from torch import Tensor

from recbole_lea.engine.progress import PromptBar
from recbole_lea.le.environment import Environment, PromptEnds
from recbole_lea.le.selection import choose
from recbole_lea.le.sequences import Sequences, leave_out, uniform_except
from recbole_lea.le.settings import LESettings

# Held-out states whose scores of all items are in memory at a time.
RANKED = 16

# Transitions: sequence and t.
Pairs = list[tuple[int, int]]


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
