"""Which sequences and items stay: the paper's filter, run over any number of events in chunks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dataset_prep.problems import PrepError

# One interaction: indices into the tables of users and items, and seconds since 1970 (UTC).
EVENT = np.dtype([("user", "i4"), ("item", "i4"), ("time", "u4")])

# Starts a new pass over all interactions, ordered by user and then by place in the sequence.
Chunks = Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Round:
    """One round of filtering: what it found, and how much of it fell below the minimum."""

    sequences: int
    items: int
    interactions: int
    dropped_sequences: int
    dropped_items: int

    def __str__(self) -> str:
        """Return the round as a line of the report."""
        return (
            f"{self.sequences:,} sequences, {self.items:,} items, "
            f"{self.interactions:,} interactions; "
            f"drops {self.dropped_sequences:,} sequences, {self.dropped_items:,} items"
        )


@dataclass(frozen=True)
class Kept:
    """The outcome of filtering.

    Attributes:
        users: boolean mask over user indices.
        items: boolean mask over item indices.
        rounds: every round, the last of which dropped nothing.
    """

    users: np.ndarray
    items: np.ndarray
    rounds: list[Round]


def kept_events(
    chunks: Chunks, users: np.ndarray, items: np.ndarray, drop_repeats: bool
) -> Iterator[np.ndarray]:
    """Yield the events whose user and item are both kept.

    With ``drop_repeats`` an event is left out when the kept event before it, of the same user,
    names the same item.
    """
    last = np.array([(-1, -1, 0)], dtype=EVENT)
    for chunk in chunks():
        kept = chunk[users[chunk["user"]] & items[chunk["item"]]]
        if drop_repeats and len(kept):
            before = np.concatenate([last, kept[:-1]])
            last = kept[-1:].copy()
            repeat = (kept["user"] == before["user"]) & (kept["item"] == before["item"])
            kept = kept[~repeat]
        yield kept


def filter_events(
    chunks: Chunks, n_users: int, n_items: int, minimum: int, drop_repeats: bool = False
) -> Kept:
    """Drop sequences and items with fewer than ``minimum`` interactions until nothing changes.

    Each round counts once and drops both. Memory grows with users and items, not with events.

    Args:
        chunks: the interactions.
        n_users: number of users; indices run from 0.
        n_items: number of items; indices run from 0.
        minimum: the least number of interactions a sequence and an item must have, at least 1.
        drop_repeats: also leave out consecutive repeats of an item, among them those that appear
            when what stood between was dropped.

    Raises:
        PrepError: nothing is left.
    """
    users, items = np.ones(n_users, bool), np.ones(n_items, bool)
    rounds: list[Round] = []
    while not rounds or rounds[-1].dropped_sequences or rounds[-1].dropped_items:
        of_user, of_item = np.zeros(n_users, np.int64), np.zeros(n_items, np.int64)
        for kept in kept_events(chunks, users, items, drop_repeats):
            of_user += np.bincount(kept["user"], minlength=n_users)
            of_item += np.bincount(kept["item"], minlength=n_items)
        # Those left with no interaction at all count as found, so that the rounds add up.
        found = np.count_nonzero(users), np.count_nonzero(items)
        users, items = of_user >= minimum, of_item >= minimum
        rounds.append(
            Round(
                sequences=found[0],
                items=found[1],
                interactions=int(of_user.sum()),
                dropped_sequences=found[0] - np.count_nonzero(users),
                dropped_items=found[1] - np.count_nonzero(items),
            )
        )
    if not rounds[-1].interactions:
        raise PrepError(
            f"no interactions are left after {len(rounds)} rounds of filtering at {minimum} per "
            f"sequence and item; there were {rounds[0].interactions:,}"
        )
    return Kept(users, items, rounds)
