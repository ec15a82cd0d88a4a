"""The LE's feedback on logged data: states, rewards and selected actions (sections 3.3, 3.4)."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from recbole_lea.engine.processes import Share, drawn
from recbole_lea.engine.progress import PromptBar
from recbole_lea.le.environment import Environment
from recbole_lea.le.sequences import Sequences, leave_out, uniform_except
from recbole_lea.store.arrays import ArrayStore, pieces, take

# Transitions a shard: what a kill can lose, against one checksum and flush per shard.
SHARD = 1024

# Shards at most; each one finished writes the manifest anew, with a checksum of every shard.
SHARDS = 2048


def shard_bounds(sequences: Sequences) -> np.ndarray:
    """First sequence of each shard, and the end.

    A shard has about ``SHARD`` transitions, or more where that gave over ``SHARDS`` of them.
    """
    starts = sequences.transition_starts.tolist()
    size = max(SHARD, math.ceil(sequences.n_transitions / SHARDS))
    bounds = [0]
    for s in range(1, len(sequences)):
        if starts[s] - starts[bounds[-1]] >= size:
            bounds.append(s)
    return np.array([*bounds, len(sequences)])


def _transitions(sequences: Sequences, first: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(transition number, sequence, t) of some sequences."""
    row = int(sequences.transition_starts[first])
    for s in range(first, end):
        for t in range(1, len(sequences.items[s])):
            yield row, s, t
            row += 1


class Computation:
    """Fills the missing shards of a store's one array with what the LE says.

    Args:
        environment: gives the adapted LE; not called where it has nothing to read.
        sequences: the training sequences; shards are ranges of them.
        store: with one array, whose rows are states or transitions.
        progress: advanced by prompts and tokens.
    """

    def __init__(
        self,
        environment: Callable[[], Environment],
        sequences: Sequences,
        store: ArrayStore,
        progress: PromptBar,
    ) -> None:
        self.environment = environment
        self.sequences = sequences
        self.store = store
        self.progress = progress

    def states(self) -> None:
        """s'_t for every prefix x_{1:t} (Eq. 3): [n_states, d]."""
        environment = self.environment()

        def groups(first: int, end: int) -> Iterator[list[list[int]]]:
            for s in range(first, end):
                for t in range(1, len(self.sequences.items[s]) + 1):
                    yield [environment.prompts.state(self.sequences.history(s, t))]

        self._fill(
            lambda *ends: environment.read(groups(*ends), environment.state_of, self.progress)
        )

    def rewards(self, actions: np.ndarray, known: np.ndarray) -> None:
        """Reward of each given action (Eq. 5): [n_transitions, k] for items [n_transitions, k].

        Args:
            actions: the items.
            known: their rewards as far as they need not be computed, else NaN [n_transitions, k].
        """
        starts = self.sequences.transition_starts

        def groups(environment: Environment, first: int, end: int) -> Iterator[list[list[int]]]:
            for row, s, t in _transitions(self.sequences, first, end):
                unknown = actions[row][np.isnan(known[row])]
                if len(unknown):
                    history = self.sequences.history(s, t)
                    yield [environment.prompts.reward(history, action) for action in unknown]

        def read(first: int, end: int) -> np.ndarray:
            rewards = known[starts[first] : starts[end]].copy()
            unknown = np.isnan(rewards)
            self.progress.advance(int((~unknown).sum()), 0)
            if unknown.any():
                environment = self.environment()
                rewards[unknown] = environment.read(
                    groups(environment, first, end), environment.reward_of, self.progress
                )
            return rewards

        self._fill(read)

    def label_scores(self, candidates: np.ndarray) -> None:
        """Log-probability of each label word: [n_transitions, k] for lists of k items."""
        environment, k = self.environment(), candidates.shape[1]

        def groups(first: int, end: int) -> Iterator[list[list[int]]]:
            for row, s, t in _transitions(self.sequences, first, end):
                history = self.sequences.history(s, t)
                yield [environment.prompts.select(history, candidates[row])]

        def read(first: int, end: int) -> np.ndarray:
            readout = environment.label_scores_of
            return environment.read(groups(first, end), readout, self.progress)[:, :k]

        self._fill(read)

    def _fill(self, read: Callable[[int, int], np.ndarray]) -> None:
        """Write what ``read`` gives for the sequences of each missing shard."""
        bounds = shard_bounds(self.sequences)
        (name,) = self.store.arrays
        for shard in self.store.missing():
            self.store.write(shard, {name: read(*bounds[shard : shard + 2])})


def choose(
    scores: np.ndarray, candidates: np.ndarray, calibration: str
) -> tuple[np.ndarray, np.ndarray]:
    """The predicted positive action a^e: the listed item with the highest score.

    Args:
        scores: log-probabilities of the label words, rewards, or nearness to the state [n, k].
        candidates: listed items [n, k].
        calibration: ``prior`` subtracts each label's mean over all prompts, because a small
            LLM leans to one position whatever the items (row 14b); ``none`` is the paper.

    Returns:
        The chosen item [n] and the share each position won [k].
    """
    n, k = scores.shape
    prior = np.zeros(k, dtype=np.float32)
    if calibration == "prior":
        prior[:] = sum(part.sum(0, dtype=np.float64) for part in pieces(scores)) / n
    position = np.concatenate([(part - prior).argmax(1) for part in pieces(scores)])
    share = np.bincount(position, minlength=k) / n
    return np.take_along_axis(candidates, position[:, None], axis=1)[:, 0], share


@dataclasses.dataclass(frozen=True)
class RewardScale:
    """Maps the reward model's unbounded scores to rewards (row 16).

    Attributes:
        kind: ``standardize``, ``sigmoid`` or ``raw``.
        mean: of the training scores, positives and negatives together.
        deviation: likewise.
    """

    kind: str
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


# Of the looked-up feedback, what holds items
ITEMS = ("negative", "augmented")


class Feedback:
    """What training looks up: rows of transitions to tensors.

    Subclasses say where states and rewards come from. Items are LE item indices.

    Args:
        sequences: the training sequences.
        n_items: items to draw negatives from.
        seed: of the negative draws and of the permutation.
        shuffle: give each transition the states and rewards of another one, and from its own list
            the item at the place that was chosen in the other's (a control).
        scale: reward scale; None where rewards are not wanted.
        state_dim: width of a state; None where states are not wanted.
        item_ids: what ``lookup`` gives for each LE item index [n_items]; None for the index.
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
        self.item_ids = item_ids
        self.sequences = sequences
        self.n_items = n_items
        self.scale = scale
        self.state_dim = state_dim
        self.rng = np.random.default_rng([seed, 5])
        self.others: np.ndarray | None = None
        if shuffle:
            self.others = np.random.default_rng([seed, 6]).permutation(sequences.n_transitions)
        self.augmented: tuple[np.ndarray, np.ndarray | None] | None = None
        self.share: Share | None = None  # in a training in several processes

    def augment(
        self,
        actions: np.ndarray,
        scores: np.ndarray | None,
        candidates: np.ndarray | None = None,
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

    def lookup(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Feedback of transitions.

        Args:
            rows: transition numbers [B].

        Returns:
            ``state``, ``next_state`` [B, state_dim] float32; ``reward``, ``negative_reward``,
            ``augmented_reward`` [B] float32; ``negative``, ``augmented`` [B] int64 - as far
            as the method wants them and they exist already.
        """
        found: dict[str, Tensor] = {}
        judged = rows if self.others is None else self.others[rows]
        if self.state_dim is not None:
            found["state"], found["next_state"] = self._states(judged)
        if self.scale is not None:
            positive, negative, items = self._rewards(judged)
            if self.others is not None:  # another's negative may be this row's own positive
                own = np.array([self.sequences.action(*at) for at in self._pairs(rows)])
                draws = drawn(
                    self.share, len(own), lambda n: self.rng.integers(0, self.n_items - 1, size=n)
                )
                items = np.where(items == own, leave_out(own, draws), items)
            found["reward"] = self.scale(positive)
            found["negative_reward"] = self.scale(negative)
            found["negative"] = torch.from_numpy(items)
        if self.augmented is not None:
            actions, scores = self.augmented
            found["augmented"] = torch.from_numpy(np.asarray(actions[rows], dtype=np.int64))
            if scores is not None and self.scale is not None:
                found["augmented_reward"] = self.scale(_float(scores[judged]))
        if self.item_ids is not None:
            found |= {n: torch.from_numpy(self.item_ids[found[n]]) for n in ITEMS if n in found}
        return found

    def _pairs(self, rows: np.ndarray) -> list[tuple[int, int]]:
        return list(zip(*(part.tolist() for part in self.sequences.locate(rows)), strict=True))

    def _states(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _rewards(self, rows: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
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
        self.negatives = negatives

    def _states(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        assert self.states is not None
        sequence, t = self.sequences.locate(rows)
        first = self.sequences.state_starts[sequence] + t - 1
        return _float(take(self.states, first)), _float(take(self.states, first + 1))

    def _rewards(self, rows: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
        assert self.rewards is not None
        pool = self.negatives.shape[1]
        chosen = drawn(self.share, len(rows), lambda n: self.rng.integers(0, pool, size=n))
        scores = take(self.rewards, rows)
        positive = _float(scores[:, 0])
        negative = _float(scores[np.arange(len(rows)), 1 + chosen])
        return positive, negative, self.negatives[rows, chosen]


class LiveFeedback(Feedback):
    """Feedback computed by the LLM as it is asked for, with a fresh negative each time.

    Args:
        environment: the adapted LE.
        options: see ``Feedback``.
    """

    def __init__(self, environment: Environment, **options) -> None:
        super().__init__(**options)
        self.environment = environment

    def _states(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        state, history = self.environment.prompts.state, self.sequences.history
        groups = [[state(history(s, t)), state(history(s, t + 1))] for s, t in self._pairs(rows)]
        read = _float(self.environment.read(groups, self.environment.state_of))
        return read[0::2], read[1::2]

    def _rewards(self, rows: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
        pairs = self._pairs(rows)
        positives = np.array([self.sequences.action(s, t) for s, t in pairs], dtype=np.int64)
        negatives = uniform_except(self.rng, positives, self.n_items, (len(rows),))
        groups = []
        for (s, t), *actions in zip(pairs, positives, negatives, strict=True):
            history = self.sequences.history(s, t)
            groups.append([self.environment.prompts.reward(history, a) for a in actions])
        read = _float(self.environment.read(groups, self.environment.reward_of))
        return read[0::2], read[1::2], negatives

    def fit_scale(self, kind: str, n: int = 512) -> None:
        """Estimate the reward scale on ``n`` random transitions."""
        rows = self.rng.integers(0, self.sequences.n_transitions, size=n)
        positive, negative, _ = self._rewards(rows)
        self.scale = RewardScale.fit(kind, torch.cat([positive, negative]).numpy())


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
