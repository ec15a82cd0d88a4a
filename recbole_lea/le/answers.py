"""What the LE answers about all training sequences, shard by shard: states and rewards."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from recbole_lea.engine.progress import PromptBar
from recbole_lea.le.environment import Environment
from recbole_lea.le.sequences import Sequences
from recbole_lea.store.arrays import ArrayStore, pieces

# Transitions a shard: what a kill can lose, against one checksum and flush per shard.
SHARD = 1024

# Shards at most; each one finished writes the manifest anew, with a checksum of every shard.
SHARDS = 2048

Bar = Callable[[int], PromptBar]  # makes the progress bar of so many prompts
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
    sequences: Sequences, starts: np.ndarray, each: int, missing: list[int], bar: Bar
) -> Iterator[tuple[int, int, int, PromptBar]]:
    """The missing shards: number, first and end of the sequences, and a bar over all prompts.

    A sequence's rows begin at ``starts`` [n_sequences + 1], and a row has ``each`` prompts.
    """
    bounds = shard_bounds(sequences)
    with bar(each * int(np.diff(starts[bounds])[missing].sum())) as progress:
        for shard in missing:
            yield shard, bounds[shard], bounds[shard + 1], progress


def states(sequences: Sequences, bar: Bar, le: Environment, missing: list[int]) -> Filled:
    """s'_t for every prefix x_{1:t} (Eq. 3): [n, d] a shard."""

    for shard, first, end, progress in shards(sequences, sequences.state_starts, 1, missing, bar):
        histories = sequences.histories(first, end, whole=True)
        prompts = ([le.prompts.state(history)] for _, history in histories)
        yield shard, le.answer(prompts, le.state_of, progress)


def rewards(
    sequences: Sequences, actions: np.ndarray, bar: Bar, needed: Any, missing: list[int]
) -> Filled:
    """Reward of each action [n_transitions, k] (Eq. 5): [n, k] a shard.

    ``needed`` are the rewards that are known, NaN for the others, and the LE, if there are others.
    """
    (le, known), starts, k = needed, sequences.transition_starts, actions.shape[1]

    def prompts(first: int, end: int) -> Iterator[list[list[int]]]:
        for row, history in sequences.histories(first, end):
            unknown = actions[row][np.isnan(known[row])]
            if len(unknown):
                yield [le.prompts.reward(history, action) for action in unknown]

    for shard, first, end, progress in shards(sequences, starts, k, missing, bar):
        found = known[starts[first] : starts[end]].copy()  # [n, k]
        unknown = np.isnan(found)
        progress.advance(int((~unknown).sum()), 0)
        if unknown.any():
            found[unknown] = le.answer(prompts(first, end), le.reward_of, progress)
        yield shard, found


def known_rewards(stores: Iterable[ArrayStore], actions: np.ndarray) -> np.ndarray:
    """What the arrays of an LE say already of actions [n_transitions, k]; NaN for nothing.

    Such a reward equals one that is computed now up to the rounding of another row's layout.
    """
    known = np.full(actions.shape, np.nan, dtype=np.float32)
    for store in stores:
        arrays = (known, actions, store.array("actions"), store.array("rewards"))
        for part, wanted, scored, scores in zip(*map(pieces, arrays), strict=True):
            for column in range(scored.shape[1]):
                same = wanted == scored[:, column, None]  # [m, k]
                np.copyto(part, scores[:, column, None], where=same & np.isnan(part))
    return known
