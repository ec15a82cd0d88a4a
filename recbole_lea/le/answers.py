"""What the LE answers about all training sequences, shard by shard: states and rewards."""

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import IncrementalPCA
from torch import Tensor
from tqdm import tqdm

from recbole_lea.le.environment import Environment
from recbole_lea.le.sequences import Sequences
from recbole_lea.store.arrays import ArrayStore, release

logger = logging.getLogger(__name__)

# Transitions a shard: what a kill can lose, against one checksum and flush per shard.
SHARD = 1024

# Shards at most; each one finished writes the manifest anew, with a checksum of every shard.
SHARDS = 2048

Bar = Callable[..., tqdm]  # makes a progress bar
Histories = Iterator[tuple[int, np.ndarray]]  # rows and x_{1:t}
Filled = Iterator[tuple[int, np.ndarray]]  # shards and their values


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


def shards(
    sequences: Sequences, missing: list[int], bar: Bar, whole: bool = False
) -> Iterator[tuple[int, slice, Histories]]:
    """The missing shards: number, rows, and each row's number and history.

    A row is a transition; ``whole``: a state.
    """
    starts = sequences.state_starts if whole else sequences.transition_starts
    bounds = shard_bounds(sequences)
    for shard in bar(missing):
        first, end = bounds[shard : shard + 2]
        yield shard, slice(starts[first], starts[end]), sequences.histories(first, end, whole)


def states(sequences: Sequences, bar: Bar, le: Environment, missing: list[int]) -> Filled:
    """s'_t for every prefix x_{1:t} (Eq. 3): [n, d] a shard."""
    for shard, _, histories in shards(sequences, missing, bar, whole=True):
        prompts = ([le.prompts.state(history)] for _, history in histories)
        yield shard, le.answer(prompts, le.state_of)


def rewards(
    sequences: Sequences, actions: np.ndarray, bar: Bar, needed: Any, missing: list[int]
) -> Filled:
    """Reward of each action [n_transitions, k] (Eq. 5): [n, k] a shard.

    ``needed`` are the LE, and the rewards that are known: NaN for the others. Where all are, the
    LE may be None.
    """
    le, known = needed
    for shard, rows, histories in shards(sequences, missing, bar):
        found = known[rows].copy()  # [n, k]
        unknown = np.isnan(found)
        prompts = (
            [le.prompts.reward(history, action) for action in actions[row][np.isnan(known[row])]]
            for row, history in histories
        )
        if unknown.any():
            found[unknown] = le.answer(filter(None, prompts), le.reward_of)
        yield shard, found


def shared_prompts(
    sequences: Sequences, actions: np.ndarray, prompts: Any, first: int, end: int
) -> Iterator[list[list[int]]]:
    """A group a state of some sequences: its prompt, and those of its transition's rewards."""
    for s in range(first, end):
        own = actions[slice(*sequences.transition_starts[s : s + 2])]
        for t, asked in enumerate([*own, ()], 1):  # the last state has no transition
            history = sequences.history(s, t)
            yield [prompts.state(history), *(prompts.reward(history, action) for action in asked)]


def states_and_rewards(
    sequences: Sequences, actions: np.ndarray, bar: Bar, states: ArrayStore, le: Any, missing: Any
) -> Filled:
    """As ``rewards``; on the way, the same shards of the states go to their store.

    The reward prompts begin with the state's, which the LLM reads once.
    """

    def head(ends: Any) -> Tensor:
        return torch.cat([le.state_of(ends), le.reward_of(ends)[:, None]], dim=1)  # [N, d + 1]

    bounds, last = shard_bounds(sequences), sequences.state_starts[1:] - 1
    for shard in bar(missing):
        first, end = bounds[shard : shard + 2]
        found = le.answer(shared_prompts(sequences, actions, le.prompts, first, end), head)
        rows = np.arange(sequences.state_starts[first], sequences.state_starts[end])
        sizes = np.where(np.isin(rows, last), 1, 1 + actions.shape[1])  # of the groups [n]
        at = sizes.cumsum() - sizes  # a group's state comes first [n]
        if shard in states.missing():
            states.write(shard, {"states": found[at, :-1]})
        yield shard, np.delete(found[:, -1], at)


def label_scores(
    sequences: Sequences, candidates: np.ndarray, bar: Bar, le: Environment, missing: list[int]
) -> Filled:
    """Log-probability of each label word, for lists [n_transitions, k]: [n, k] a shard."""
    for shard, _, histories in shards(sequences, missing, bar):
        prompts = ([le.prompts.select(history, candidates[row])] for row, history in histories)
        # a shard of users without a transition has no prompts
        yield shard, le.answer(prompts, le.label_scores_of)[..., : candidates.shape[1]]


def projection_bounds(n: int, dim: int) -> list[int]:
    """Rows at which the parts of ``n`` states start, and the end."""
    step = max(4096, dim)
    # the last part is never smaller than the number of components
    return [*range(0, max(1, n - step), step), n]


def fit_projection(full: np.ndarray, dim: int) -> IncrementalPCA:
    """The first ``dim`` principal components of ``full`` [n, d], part by part."""
    pca = IncrementalPCA(dim)
    for part in range(len(projection_bounds(len(full), dim)) - 1):
        pca.partial_fit(_part(full, dim, part))
    return pca


def project(dim: int, full: np.ndarray, missing: list[int]) -> Filled:
    """``state_dim``, a PCA of the states (deviation 17): [n, d] -> [n, dim]."""
    pca = fit_projection(full, dim)
    kept = 100 * pca.explained_variance_ratio_.sum()
    logger.info("state_dim %d keeps %.1f %% of the states' variance", dim, kept)
    for shard in missing:
        yield shard, pca.transform(_part(full, dim, shard))


def _part(full: np.ndarray, dim: int, number: int) -> np.ndarray:
    start, end = projection_bounds(len(full), dim)[number : number + 2]
    values = np.array(full[start:end], dtype=np.float32)
    release(full)
    return values
