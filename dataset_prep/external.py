"""Counting and sorting more events than fit in memory."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from dataset_prep.filtering import EVENT

# An event as it comes: ids of the source, and seconds since 1970 (UTC).
RAW = np.dtype([("user", "u4"), ("item", "u4"), ("time", "u4")])

_ROWS = 1 << 16
_BUCKET_ROWS = 1 << 18
# Well under the usual limit of 1,024 open files.
_MOST_BUCKETS = 512


class Tally:
    """Counts keys that arrive in blocks, and remembers where each came first.

    Memory grows with the number of different keys, not with the number counted.
    """

    def __init__(self) -> None:
        """Start with nothing counted."""
        self._parts = [np.zeros((3, 0), np.int64)]
        self._pending = 0

    def add(self, keys: np.ndarray, lines: np.ndarray) -> None:
        """Count ``keys``, whole numbers found on ``lines``."""
        self._parts.append(np.stack([keys, np.ones(len(keys), np.int64), lines]))
        self._pending += len(keys)
        # Merging costs a sort: wait until there is as much to merge as is merged already.
        if self._pending > max(_ROWS, self._parts[0].shape[1]):
            self._merge()

    def _merge(self) -> np.ndarray:
        keys, counts, lines = np.concatenate(self._parts, axis=1)
        order = np.argsort(keys, kind="stable")
        keys, counts, lines = keys[order], counts[order], lines[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        if len(starts):
            counts = np.add.reduceat(counts, starts)
            lines = np.minimum.reduceat(lines, starts)
        self._parts = [np.stack([keys[starts], counts, lines])]
        self._pending = 0
        return self._parts[0]

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the keys in ascending order, their counts and their first lines."""
        keys, counts, lines = self._merge()
        return keys, counts, lines


def read_records(path: Path, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Yield the records of a file written by ``ndarray.tofile``, some at a time."""
    with open(path, "rb") as file:
        while len(records := np.fromfile(file, dtype, _ROWS)):
            yield records


def sort_events(
    raw: Path, users: np.ndarray, counts: np.ndarray, items: np.ndarray, sorted_file: Path
) -> None:
    """Order events by user and time, ties in the order they came, and turn ids into indices.

    The users are dealt to buckets of consecutive ids, each small enough to sort in memory.

    Args:
        raw: file of ``RAW`` records; removed.
        users: the user ids, ascending.
        counts: the number of events of each user.
        items: the item ids, ascending.
        sorted_file: the file of ``EVENT`` records to write.
    """
    total = int(counts.sum())
    size = max(_BUCKET_ROWS, -(-total // _MOST_BUCKETS))
    bucket_of_user = (np.cumsum(counts) - counts) // size
    numbers = np.unique(bucket_of_user)
    buckets = [raw.with_name(f"{raw.name}.{number}") for number in numbers]
    with ExitStack() as stack:
        files = [stack.enter_context(open(bucket, "wb")) for bucket in buckets]
        for records in read_records(raw, RAW):
            of_record = bucket_of_user[np.searchsorted(users, records["user"])]
            order = np.argsort(of_record, kind="stable")
            stops = np.searchsorted(of_record[order], numbers, side="right")
            for file, part in zip(files, np.split(records[order], stops[:-1]), strict=True):
                part.tofile(file)
    raw.unlink()
    with open(sorted_file, "wb") as file:
        for bucket in buckets:
            records = np.fromfile(bucket, RAW)
            bucket.unlink()
            records = records[np.lexsort((records["time"], records["user"]))]
            events = np.empty(len(records), EVENT)
            events["user"] = np.searchsorted(users, records["user"])
            events["item"] = np.searchsorted(items, records["item"])
            events["time"] = records["time"]
            events.tofile(file)
