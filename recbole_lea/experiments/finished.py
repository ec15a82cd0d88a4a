"""Finished runs of a dataset: ``runs.jsonl``, a record a line, and ``users.npz``.

Both are committed, so that reports and unfinished tables go on from them in a fresh clone. All
tables and figures of a dataset share them, as they share runs; a record's ``method`` says in
clear text which row it was made for. ``users.npz`` has, under a test's ``name``, its ``metrics``
by test user [n_metrics, U], and the users of each split once, under the test's ``split``.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from recbole_lea.experiments.statistics import Users
from recbole_lea.store.files import replacing, write_bytes


class FinishedRuns:
    """The finished runs in ``folder``, the results of one dataset."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "runs.jsonl"

    def records(self) -> dict[str, dict[str, Any]]:
        """Name -> record of each finished run; a ValueError if a line is none."""
        if not self.path.is_file():
            return {}
        status = self.path.stat()
        return _read(self.path, (status.st_mtime_ns, status.st_ino, status.st_size))

    def users(self, name: str) -> dict[str, Users]:
        """Each metric of a test by test user."""
        record = self.records()[name]
        with np.load(self.folder / "users.npz", allow_pickle=False) as arrays:
            tokens, rows = (arrays[f"{record['split']}-{what}"] for what in ("users", "rows"))
            values = zip(record["metrics"], arrays[name], strict=True)
            return {metric: Users(tokens, rows, own) for metric, own in values}

    def add(self, record: dict[str, Any], users: dict[str, np.ndarray] | None = None) -> None:
        """Write a run down as finished, in place of one of its name.

        A test has ``users``: their tokens (``users``), ``rows`` and each metric, all [U].
        """
        (self.folder / "runs").mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "runs" / "lock"):  # several runs may end at a time
            if users is not None:
                record = record | self._add_users(record["name"], dict(users))
            records = self.records() | {record["name"]: record}
            lines = [json.dumps(own, default=float) + "\n" for own in records.values()]
            write_bytes(self.path, "".join(lines).encode())

    def _add_users(self, name: str, users: dict[str, np.ndarray]) -> dict[str, Any]:
        """Write them down; returns where they are, for the record."""
        tokens, rows = users.pop("users"), users.pop("rows")
        split = hashlib.sha256("\n".join(tokens).encode() + rows.tobytes()).hexdigest()[:12]
        path, arrays = self.folder / "users.npz", {}
        if path.is_file():
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
        arrays |= {f"{split}-users": tokens, f"{split}-rows": rows}
        arrays[name] = np.stack(list(users.values()))
        with replacing(path) as stream:
            np.savez_compressed(stream, **arrays)
        return {"split": split, "metrics": list(users)}


@functools.lru_cache(maxsize=4)
def _read(path: Path, version: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """The records of one version of the file."""
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            found[record["name"]] = record
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}, line {number}: not a run's record ({error}): delete the line"
            ) from None
    return found
