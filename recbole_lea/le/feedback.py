"""What training looks up of the LE's feedback: states, rewards and selected actions (3.3, 3.4)."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from recbole_lea.le.environment import Environment
from recbole_lea.le.sequences import Sequences, leave_out, uniform_except
from recbole_lea.store.arrays import pieces, take


@dataclasses.dataclass(frozen=True)
class RewardScale:
    """Maps the reward model's unbounded scores to rewards (deviation 16).

    ``mean`` and ``deviation`` are those of the training scores, positives and negatives together.
    """

    kind: str  # standardize, sigmoid or raw
    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def fit(cls, kind: str, scores: np.ndarray) -> "RewardScale":
        """Take mean and deviation from training scores, without loading them whole."""
        mean = sum(part.sum(dtype=np.float64) for part in pieces(scores)) / scores.size
        squares = sum(np.square(part.astype(np.float64) - mean).sum() for part in pieces(scores))
        return cls(kind, float(mean), max(float(np.sqrt(squares / scores.size)), 1e-8))

    def __call__(self, scores: Tensor) -> Tensor:
        """Scores -> rewards."""
        if self.kind == "standardize":
            return (scores - self.mean) / self.deviation
        return scores.sigmoid() if self.kind == "sigmoid" else scores


class Feedback:
    """What training looks up: rows of transitions to tensors. Subclasses say where from.

    Args:
        sequences: the training sequences.
        n_items: items to draw negatives from.
        seed: of the negative draws and of the permutation.
        scale: reward scale; None where rewards are not wanted.
        state_dim: width of a state; None where states are not wanted.
        shuffle: give each transition the states and rewards of another one, and from its own list
            the item at the place that was chosen in the other's (a control).
        item_ids: what the caller calls the items [n_items]; by default their LE indices.
    """

    def __init__(
        self,
        sequences: Sequences,
        n_items: int,
        seed: int,
        scale: RewardScale | None,
        state_dim: int | None,
        shuffle: bool = False,
        item_ids: np.ndarray | None = None,
    ) -> None:
        self.sequences = sequences
        self.n_items = n_items
        self.scale = scale
        self.state_dim = state_dim
        self.item_ids = np.asarray(np.arange(n_items) if item_ids is None else item_ids, np.int64)
        self.rng = np.random.default_rng([seed, 5])
        self.others: np.ndarray | None = None
        if shuffle:
            self.others = np.random.default_rng([seed, 6]).permutation(sequences.n_transitions)
        self.augmented: tuple[np.ndarray, np.ndarray | None] | None = None  # by LE index
        self._chosen = np.empty(0, np.int64)  # the same items, by the caller's numbers

    def augment(
        self, actions: np.ndarray, scores: np.ndarray | None, candidates: np.ndarray | None = None
    ) -> None:
        """Add the predicted positive action of each transition and its reward score.

        Args:
            actions: LE item indices [n_transitions].
            scores: of the actions [n_transitions], or None.
            candidates: what they were chosen from [n_transitions, k]; ``shuffle`` needs them,
                unless the actions are what an earlier run made of them.
        """
        if self.others is not None and candidates is not None:
            place = (candidates == actions[:, None]).argmax(axis=1)[self.others, None]  # [n, 1]
            actions = np.take_along_axis(candidates, place, axis=1)[:, 0]
        self.augmented = (actions, scores)
        self._chosen = self.item_ids[actions]

    def lookup(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Feedback of transitions, by their numbers [B].

        Returns:
            ``state``, ``next_state`` [B, state_dim] float32; ``reward``, ``negative_reward``,
            ``augmented_reward`` [B] float32; ``negative``, ``augmented`` [B] int64, in the
            caller's numbers - as far as the method wants them and they exist already.
        """
        found: dict[str, Tensor] = {}
        told = rows if self.others is None else self.others[rows]
        if self.state_dim is not None:
            found["state"], found["next_state"] = self._states(told)
        if self.scale is not None:
            positive, negative, items = self._rewards(told)
            if self.others is not None:
                items = self._without_own_positive(rows, items)
            found["reward"] = self.scale(positive)
            found["negative_reward"] = self.scale(negative)
            found["negative"] = torch.from_numpy(items)
        if self.augmented is not None:
            scores = self.augmented[1]
            found["augmented"] = torch.from_numpy(self._chosen[rows])
            if scores is not None and self.scale is not None:
                found["augmented_reward"] = self.scale(_float(scores[told]))
        return found

    def _without_own_positive(self, rows: np.ndarray, negatives: np.ndarray) -> np.ndarray:
        """Under ``shuffle``, another's negative may be this row's positive: then a new one."""
        own = np.array([self.sequences.action(*at) for at in self._pairs(rows)])
        n = self.n_items - 1
        draws = self.rng.integers(0, n, size=len(own))
        new = self.item_ids[leave_out(own, draws)]
        return np.where(negatives == self.item_ids[own], new, negatives)

    def _pairs(self, rows: np.ndarray) -> list[tuple[int, int]]:
        return list(zip(*(part.tolist() for part in self.sequences.locate(rows)), strict=True))

    def _states(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """States before and after the actions [B, state_dim]."""
        raise NotImplementedError

    def _rewards(self, rows: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
        """Scores of the positive and of a negative action, and the negative [B]."""
        raise NotImplementedError


class PrecomputedFeedback(Feedback):
    """Feedback read from arrays on disk; memory does not grow with what has been read.

    Args:
        states: [n_states, state_dim] or None.
        rewards: scores [n_transitions, 1 + pool] or None.
        negatives: LE item indices [n_transitions, pool].
        options: see ``Feedback``.
    """

    def __init__(
        self,
        states: np.ndarray | None,
        rewards: np.ndarray | None,
        negatives: np.ndarray,
        **options,
    ) -> None:
        super().__init__(**options)
        self.states = states
        self.rewards = rewards
        self.negatives = negatives if rewards is None else self.item_ids[negatives]

    def _states(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        assert self.states is not None
        sequence, t = self.sequences.locate(rows)
        first = self.sequences.state_starts[sequence] + t - 1
        return _float(take(self.states, first)), _float(take(self.states, first + 1))

    def _rewards(self, rows: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
        assert self.rewards is not None
        pool = self.negatives.shape[1]
        picked = self.rng.integers(0, pool, size=len(rows))
        scores = take(self.rewards, rows)
        positive = _float(scores[:, 0])
        negative = _float(scores[np.arange(len(rows)), 1 + picked])
        return positive, negative, self.negatives[rows, picked]


class LiveFeedback(Feedback):
    """Feedback computed by the LLM as it is asked for, with a fresh negative each time."""

    def __init__(self, environment: Environment, **options) -> None:
        super().__init__(**options)
        self.environment = environment

    def _states(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        state, history = self.environment.prompts.state, self.sequences.history
        groups = [[state(history(s, t)), state(history(s, t + 1))] for s, t in self._pairs(rows)]
        states = _float(self.environment.answer(groups, self.environment.state_of))
        return states[0::2], states[1::2]

    def _rewards(self, rows: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
        pairs, reward = self._pairs(rows), self.environment.prompts.reward
        positives = np.array([self.sequences.action(s, t) for s, t in pairs], dtype=np.int64)
        negatives = uniform_except(self.rng, positives, self.n_items, (len(rows),))
        groups = []
        for (s, t), *actions in zip(pairs, positives, negatives, strict=True):
            groups.append([reward(self.sequences.history(s, t), action) for action in actions])
        scores = _float(self.environment.answer(groups, self.environment.reward_of))
        return scores[0::2], scores[1::2], self.item_ids[negatives]

    def fit_scale(self, kind: str, n: int = 512) -> None:
        """Estimate the reward scale on ``n`` random transitions."""
        rows = self.rng.integers(0, self.sequences.n_transitions, size=n)
        positive, negative, _ = self._rewards(rows)
        self.scale = RewardScale.fit(kind, torch.cat([positive, negative]).numpy())


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
