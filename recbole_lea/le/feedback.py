"""What training looks up of the LE's feedback: states, rewards and selected actions (3.3, 3.4)."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_lea.le.environment import Environment
from recbole_lea.le.sequences import Sequences, leave_out, uniform_except
from recbole_lea.store.arrays import pieces, take


@dataclasses.dataclass(frozen=True)
class RewardScale:
    """Maps the reward model's unbounded scores to rewards (deviation 16).

    ``mean`` and ``deviation`` are those of the training scores: the positives weigh as much as all
    negatives, whatever the pool.
    """

    kind: str  # standardize, sigmoid or raw
    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def fit(cls, kind: str, scores: np.ndarray) -> "RewardScale":
        """Take them from training scores [n, 1 + pool], which are not loaded whole."""
        n, columns = scores.shape
        share = np.r_[1, np.full(columns - 1, 1 / (columns - 1))] / (2 * n)
        mean = sum((part @ share).sum() for part in pieces(scores))
        squares = sum(
            (np.square(part.astype(np.float64) - mean) @ share).sum() for part in pieces(scores)
        )
        return cls(kind, float(mean), max(float(np.sqrt(squares)), 1e-8))

    def __call__(self, scores: Any) -> Tensor:
        """Scores, an array or a tensor -> rewards, float32."""
        scores = _float(scores)
        if self.kind == "standardize":
            return (scores - self.mean) / self.deviation
        return scores.sigmoid() if self.kind == "sigmoid" else scores


@dataclasses.dataclass(eq=False, kw_only=True)
class Feedback:
    """What training looks up: rows of transitions to tensors. Subclasses say where from."""

    sequences: Sequences  # of the training
    n_items: int  # to draw negatives from
    seed: int  # of the negative draws and of the permutation
    scale: RewardScale | None  # None where rewards are not wanted
    state_dim: int | None  # width of a state; None where states are not wanted
    # a control: each transition gets the states and rewards of another one, and from its own list
    # the item at the place that was chosen in the other's
    shuffle: bool = False
    item_ids: Any = None  # what the caller calls the items [n_items]; by default their LE indices
    augmented: tuple[np.ndarray, np.ndarray | None] | None = None  # see ``augment``; by LE index

    def __post_init__(self) -> None:
        ids = np.arange(self.n_items) if self.item_ids is None else self.item_ids
        self.item_ids = np.asarray(ids, np.int64)
        self.rng = np.random.default_rng([self.seed, 5])
        rng, n = np.random.default_rng([self.seed, 6]), self.sequences.n_transitions
        self.others = rng.permutation(n) if self.shuffle else None  # whose feedback each one gets

    def augment(
        self, actions: np.ndarray, scores: np.ndarray | None, candidates: np.ndarray | None = None
    ) -> None:
        """Add each transition's predicted positive action, its LE index, and its reward score.

        ``candidates`` [n_transitions, k] are what the actions were chosen from; ``shuffle`` needs
        them, unless the actions are what an earlier run made of them.
        """
        if self.others is not None and candidates is not None:
            place = (candidates == actions[:, None]).argmax(axis=1)[self.others, None]  # [n, 1]
            actions = np.take_along_axis(candidates, place, axis=1)[:, 0]
        self.augmented = (actions, scores)

    def lookup(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Feedback of transitions, by their numbers [B], as far as it is wanted and there already.

        ``state``, ``next_state`` [B, state_dim] float32; ``reward``, ``negative_reward``,
        ``augmented_reward`` [B] float32; ``negative``, ``augmented`` [B], the caller's numbers.
        """
        found: dict[str, Tensor] = {}
        told = rows if self.others is None else self.others[rows]
        if self.state_dim is not None:
            found["state"], found["next_state"] = map(_float, self._states(told))
        if self.scale is not None:
            positive, negative, items = self._rewards(told)
            if self.others is not None:
                items = self._without_own_positive(rows, items)
            found["reward"], found["negative_reward"] = self.scale(positive), self.scale(negative)
            found["negative"] = torch.from_numpy(self.item_ids[items])
        if self.augmented is not None:
            actions, scores = self.augmented
            found["augmented"] = torch.from_numpy(self.item_ids[actions[rows]])
            if scores is not None and self.scale is not None:
                found["augmented_reward"] = self.scale(scores[told])
        return found

    def _without_own_positive(self, rows: np.ndarray, negatives: np.ndarray) -> np.ndarray:
        """Under ``shuffle``, another's negative may be this row's positive: then a new one."""
        own = np.array([self.sequences.action(*at) for at in self._pairs(rows)])
        n = self.n_items - 1
        draws = self.rng.integers(0, n, size=len(own))
        return np.where(negatives == own, leave_out(own, draws), negatives)

    def _pairs(self, rows: np.ndarray) -> list[list[int]]:
        """Sequence and t of each transition."""
        return np.stack(self.sequences.locate(rows), axis=1).tolist()

    def _states(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """States before and after the actions [B, state_dim]."""
        raise NotImplementedError

    def _rewards(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores of the positive and of a negative action, and the negative's LE index [B]."""
        raise NotImplementedError


@dataclasses.dataclass(eq=False)
class PrecomputedFeedback(Feedback):
    """Feedback read from arrays on disk; memory does not grow with what has been read."""

    states: Any  # [n_states, state_dim], or None
    rewards: Any  # scores [n_transitions, 1 + pool], or None
    negatives: np.ndarray  # LE item indices [n_transitions, pool]

    def _states(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sequence, t = self.sequences.locate(rows)
        first = self.sequences.state_starts[sequence] + t - 1
        return take(self.states, first), take(self.states, first + 1)

    def _rewards(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pool = self.negatives.shape[1]
        picked = self.rng.integers(0, pool, size=len(rows))
        scores = take(self.rewards, rows)
        negative = scores[np.arange(len(rows)), 1 + picked]
        return scores[:, 0], negative, self.negatives[rows, picked]


@dataclasses.dataclass(eq=False)
class LiveFeedback(Feedback):
    """Feedback computed by the LLM as it is asked for, with a fresh negative each time."""

    environment: Environment

    def _states(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        state, history = self.environment.prompts.state, self.sequences.history
        groups = [[state(history(s, t)), state(history(s, t + 1))] for s, t in self._pairs(rows)]
        states = self.environment.answer(groups, self.environment.state_of)
        return states[0::2], states[1::2]

    def _rewards(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pairs, reward = self._pairs(rows), self.environment.prompts.reward
        positives = np.array([self.sequences.action(s, t) for s, t in pairs], dtype=np.int64)
        negatives = uniform_except(self.rng, positives, self.n_items, (len(rows),))
        groups = [
            [reward(self.sequences.history(s, t), action) for action in actions]
            for (s, t), *actions in zip(pairs, positives, negatives, strict=True)
        ]
        scores = self.environment.answer(groups, self.environment.reward_of)
        return scores[0::2], scores[1::2], negatives

    def fit_scale(self, kind: str, n: int = 512) -> None:
        """Estimate the reward scale on ``n`` random transitions."""
        rows = self.rng.integers(0, self.sequences.n_transitions, size=n)
        positive, negative, _ = self._rewards(rows)
        self.scale = RewardScale.fit(kind, np.stack([positive, negative], axis=1))


def _float(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float32))
