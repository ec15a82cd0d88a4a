"""Interactions, more than fit in memory: counting and sorting them, and the paper's filter."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dataset_prep.report import PrepError

# One interaction: indices into the tables of users and items, and seconds since 1970 (UTC).
EVENT = np.dtype([("user", "i4"), ("item", "i4"), ("time", "u4")])
MOST_SECONDS = 2**32

# Starts a new pass over all interactions, ordered by user and then by place in the sequence.
Chunks = Callable[[], Iterator[np.ndarray]]

# Keys, how often each was counted, and the line where it came first
Totals = tuple[np.ndarray, np.ndarray, np.ndarray]

# The numbers of a round of filtering: what it found, and how much of it it drops.
ROUND = "{:,} sequences, {:,} items, {:,} interactions; drops {:,} sequences, {:,} items"

_ROWS = 1 << 16
_BUCKET_ROWS = 1 << 18


def totals(keys: np.ndarray, counts: np.ndarray, lines: np.ndarray) -> Totals:
    """Return each different key, ascending, the sum of its counts and its first line."""
    keys, place = np.unique(keys, return_inverse=True)
    first = np.full(len(keys), np.iinfo(np.int64).max)
    np.minimum.at(first, place, lines)
    return keys, np.bincount(place, counts, len(keys)).astype(np.int64), first


class Tally:
    """Counts keys that arrive in blocks, and remembers where each came first.

    Memory grows with the number of different keys, not with the number counted.
    """

    def __init__(self) -> None:
        self._parts = [np.zeros((3, 0), np.int64)]
        self._pending = 0

    def add(self, keys: np.ndarray, lines: np.ndarray) -> None:
        """Count ``keys``, whole numbers found on ``lines``."""
        self._parts.append(np.stack([keys, np.ones(len(keys), np.int64), lines]))
        self._pending += len(keys)
        # Merging costs a sort: wait until there is as much to merge as is merged already.
        if self._pending > max(_ROWS, self._parts[0].shape[1]):
            self._parts, self._pending = [np.stack(self.result())], 0

    def result(self) -> Totals:
        """Return the totals of all keys so far."""
        return totals(*np.concatenate(self._parts, axis=1))


def chunks_of(path: Path) -> Iterator[np.ndarray]:
    """Yield the events of a file written by ``ndarray.tofile``, some at a time."""
    with open(path, "rb") as file:
        while len(events := np.fromfile(file, EVENT, _ROWS)):
            yield events


def sort_events(raw: Path, users: np.ndarray, counts: np.ndarray, items: np.ndarray) -> Path:
    """Order events by user and time, ties in the order they came, and turn ids into indices.

    The users are dealt to buckets of consecutive ids, each small enough to sort in memory.

    Args:
        raw: file of events with the source's ids; the sorted file beside it takes its place.
        users: the user ids, ascending.
        counts: the number of events of each user.
        items: the item ids, ascending.
    """
    bucket_of_user = (np.cumsum(counts) - counts) // _BUCKET_ROWS
    for events in chunks_of(raw):
        bucket = bucket_of_user[np.searchsorted(users, events["user"])]
        for number in np.unique(bucket):
            with open(f"{raw}.{number}", "ab") as file:
                events[bucket == number].tofile(file)
    raw.unlink()
    ordered = raw.with_name("ordered")
    with open(ordered, "wb") as file:
        for number in np.unique(bucket_of_user):
            part = Path(f"{raw}.{number}")
            events = np.fromfile(part, EVENT)
            part.unlink()
            events = events[np.lexsort((events["time"], events["user"]))]
            events["user"] = np.searchsorted(users, events["user"])
            events["item"] = np.searchsorted(items, events["item"])
            events.tofile(file)
    return ordered


def kept_events(
    chunks: Chunks, users: np.ndarray, items: np.ndarray, drop_repeats: bool = False
) -> Iterator[np.ndarray]:
    """Yield the events whose user and item are both kept.

    With ``drop_repeats`` one that names the same item as the kept event before it is left out.
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
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, ...]]]:
    """Drop sequences and items with fewer than ``minimum`` interactions until nothing changes.

    Each round counts once and drops both. Memory grows with users and items, not with events.
    With ``drop_repeats`` consecutive repeats of an item are left out, among them repeats that
    appear when what stood between was dropped.

    Returns:
        Which users and which items are kept (boolean, by index), and the numbers of every round
        (see ``ROUND``), the last of which dropped nothing.

    Raises:
        PrepError: nothing is left.
    """
    users, items = np.ones(n_users, bool), np.ones(n_items, bool)
    rounds: list[tuple[int, ...]] = []
    while not rounds or any(rounds[-1][3:]):
        of_user, of_item = np.zeros(n_users, np.int64), np.zeros(n_items, np.int64)
        for kept in kept_events(chunks, users, items, drop_repeats):
            of_user += np.bincount(kept["user"], minlength=n_users)
            of_item += np.bincount(kept["item"], minlength=n_items)
        # Users and items with no interaction left count as found, so that the rounds add up.
        found = int(users.sum()), int(items.sum())
        users, items = of_user >= minimum, of_item >= minimum
        dropped = found[0] - int(users.sum()), found[1] - int(items.sum())
        rounds.append((*found, int(of_user.sum()), *dropped))
    if not rounds[-1][2]:
        raise PrepError(
            f"no interactions are left after {len(rounds)} rounds of filtering at {minimum} per "
            f"sequence and item; there were {rounds[0][2]:,}"
        )
    print("filtering:")
    for number, counts in enumerate(rounds, start=1):
        print(f"  round {number}: {ROUND.format(*counts)}")
    return users, items, rounds
