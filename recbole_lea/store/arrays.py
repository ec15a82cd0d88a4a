"""Arrays on disk that survive a kill: shards with checksums, and reading within flat memory."""

import contextlib
import hashlib
import itertools
import logging
import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_lea.engine.processes import from_main, processes
from recbole_lea.store.files import MANIFEST, clear_errors_at, read_array, read_record, write_record

logger = logging.getLogger(__name__)


class ArrayStore:
    """A folder with one ``.npy`` per array and a manifest of the finished shards.

    A shard is a range of rows, the same in every array: ``bounds`` are the rows where they start,
    and the end [n_shards + 1]. ``arrays`` (name -> shape, dtype) are to be computed; those that are
    ``given`` are stored beside them. Arrays made under another ``key``, or of another shape, count
    as missing. ``meta`` joins the manifest. Of several processes, the main one reads and writes.
    """

    def __init__(
        self, folder: Path, arrays: Mapping[str, tuple[tuple[int, ...], str]],
        bounds: Sequence[int], key: str, meta: Mapping[str, Any] | None = None,
        given: Mapping[str, np.ndarray] | None = None,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.bounds = [int(bound) for bound in bounds]
        self._given = dict(given or {})
        spec = dict(arrays) | {name: (a.shape, a.dtype.name) for name, a in self._given.items()}
        self._spec = {n: (tuple(a), np.dtype(dtype)) for n, (a, dtype) in sorted(spec.items())}
        described = {n: {"shape": list(a), "dtype": d.name} for n, (a, d) in self._spec.items()}
        identity = {"key": key, "arrays": described, "bounds": self.bounds}
        self._main = processes().is_main_process
        self._missing: list[int] | None = None
        found = (read_record(folder / MANIFEST) if self._main else None) or {}
        shards, n_shards = found.get("shards"), len(self.bounds) - 1
        fits = isinstance(shards, list) and len(shards) == n_shards and found | identity == found
        if found and not (fits and all(map(self._is_there, self._spec))):
            logger.warning("%s is of other arrays, or one was altered: ignored", folder / MANIFEST)
            found = {}
        self._manifest = found or dict(meta or {}) | identity | {"shards": [None] * n_shards}

    def _is_there(self, name: str) -> bool:
        """Whether an array has a file, no link, of its shape and type."""
        with contextlib.suppress(OSError, ValueError):
            array, is_link = self.array(name), (self.folder / f"{name}.npy").is_symlink()
            return not is_link and (array.shape, array.dtype) == self._spec[name]
        return False

    def array(self, name: str) -> np.ndarray:
        """A read-only memory map."""
        return read_array(self.folder / f"{name}.npy", mapped=True)

    def missing(self) -> list[int]:
        """Shards to be computed: unfinished ones, and finished ones that were altered since."""
        if self._missing is None:  # the checksums read all data: once
            recorded = self._manifest["shards"] if self._main else []
            missing = [n for n, checksum in enumerate(recorded) if not self._holds(n, checksum)]
            self._missing = from_main(missing)
        return list(self._missing)

    def _holds(self, shard: int, checksum: str | None) -> bool:
        """Whether the files hold the rows that the checksum, if any, was made of."""
        if checksum is None:
            return False
        digest, rows = hashlib.sha256(), slice(*self.bounds[shard : shard + 2])
        for piece in itertools.chain(*(pieces(self.array(name)[rows]) for name in self._spec)):
            digest.update(piece.data)
        if digest.hexdigest() != checksum:
            logger.warning("%s: shard %d fails its checksum, again", self.folder, shard)
        return digest.hexdigest() == checksum

    def write(self, shard: int, values: Mapping[str, np.ndarray]) -> None:
        """Fill a shard; it counts as finished once its data are on disk.

        Values are brought into the array's shape and dtype. Raises a ValueError if one is not
        finite there; ``DiskFull`` and ``ReadOnly``.
        """
        missing = self.missing()
        if self._main:
            start, end = self.bounds[shard : shard + 2]
            values = dict(values) | {name: array[start:end] for name, array in self._given.items()}
            data = {name: self._encoded(name, shard, values[name]) for name in self._spec}
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, content in data.items():
                self._fill(name, start, content)
            self._manifest["shards"][shard] = hashlib.sha256(b"".join(data.values())).hexdigest()
            write_record(self.folder / MANIFEST, self._manifest)
        self._missing = [other for other in missing if other != shard]

    def _encoded(self, name: str, shard: int, value: np.ndarray) -> bytes:
        shape, dtype = self._spec[name]
        n_rows = self.bounds[shard + 1] - self.bounds[shard]
        with np.errstate(over="ignore"):
            value = np.asarray(value).reshape(n_rows, *shape[1:]).astype(dtype)
        if np.issubdtype(dtype, np.floating) and not np.isfinite(value).all():
            raise ValueError(
                f"{self.folder}: {name} of shard {shard} holds NaN or infinity; "
                "check the LLM's weights and lea_llm_dtype"
            )
        return value.tobytes()

    def _fill(self, name: str, start: int, data: bytes) -> None:
        """Write rows, into a file that has its header and size before them."""
        path = self.folder / f"{name}.npy"
        with clear_errors_at(self.folder):
            if not self._is_there(name):
                path.unlink(missing_ok=True)  # a copied cache may link to what is not ours
                np.lib.format.open_memmap(path, "w+", self._spec[name][1], self._spec[name][0])
            array: Any = self.array(name)
            with path.open("r+b") as stream:  # a full disk would end a write through the map
                stream.seek(array.offset + start * array.strides[0])
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())


def release(array: np.ndarray) -> None:
    """Let go of the pages of a memory map: each row once read counts as the process's memory."""
    base = array.base.base if isinstance(array.base, np.memmap) else array.base  # of a part, or all
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def take(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """``array[rows]``; of a memory map, read from its file.

    Through the map, each row would leave its page in the process's memory, and with it the pages
    around it that the kernel holds in one piece: up to the whole file.
    """
    if not isinstance(array.base, mmap.mmap) or not hasattr(os, "pread"):
        return array[rows]
    size = array.itemsize * math.prod(array.shape[1:])
    with open(array.filename, "rb", buffering=0) as stream:
        at = [array.offset + row * size for row in rows.tolist()]
        data = bytearray().join(os.pread(stream.fileno(), size, start) for start in at)
    return np.frombuffer(data, array.dtype).reshape(len(rows), *array.shape[1:])


def pieces(array: np.ndarray, rows: int = 2**16) -> Iterator[np.ndarray]:
    """Consecutive rows of an array, whose pages are released after use."""
    for start in range(0, len(array), rows):
        yield array[start : start + rows]
        release(array)
