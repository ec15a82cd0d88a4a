"""Arrays on disk that survive a kill: shards with checksums, and reading within flat memory."""

import logging
import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_lea.engine.processes import from_main, processes
from recbole_lea.store.files import (
    MANIFEST,
    PIECE,
    checksum,
    clear_errors_at,
    npy_header,
    read_array,
    read_record,
    write_record,
)

logger = logging.getLogger(__name__)


class ArrayStore:
    """A folder with one ``.npy`` per array and a manifest of the finished shards.

    A shard is a range of rows, the same in every array. Space for all arrays is taken from the
    disk before the first shard is written. Of several processes, the main one reads and writes.

    Args:
        folder: created with the first shard.
        arrays: name -> (shape, dtype) of what is to be computed; all have the same length.
        bounds: row at which each shard starts, and the end [n_shards + 1].
        key: of the stage; arrays made under another key, or of another shape, count as missing.
        meta: recorded in the manifest.
        given: arrays that are known beforehand and stored beside the computed ones.
    """

    def __init__(
        self,
        folder: Path,
        arrays: Mapping[str, tuple[tuple[int, ...], str]],
        bounds: Sequence[int],
        key: str,
        meta: Mapping[str, Any] | None = None,
        given: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.folder = folder
        self.arrays = dict(arrays)
        self.bounds = [int(bound) for bound in bounds]
        self._given = dict(given or {})
        spec = self.arrays | {name: (a.shape, a.dtype) for name, a in self._given.items()}
        self._files = {name: _ArrayFile(folder, name, *spec[name]) for name in sorted(spec)}
        identity = {
            "key": key,
            "arrays": {
                name: {"shape": list(file.shape), "dtype": file.dtype.name}
                for name, file in self._files.items()
            },
            "bounds": self.bounds,
        }
        self._main = processes().is_main_process
        self._missing: list[int] | None = None
        found = (read_record(folder / MANIFEST) if self._main else None) or {}
        shards, n_shards = found.get("shards"), len(self.bounds) - 1
        fits = isinstance(shards, list) and len(shards) == n_shards and found | identity == found
        if found and not fits:
            logger.warning("%s belongs to other arrays: ignored", folder / MANIFEST)
        new = dict(meta or {}) | identity | {"shards": [None] * n_shards}
        self._manifest = found if fits else new

    def intact(self) -> bool:
        """Whether every array has a file of its own with its header and size."""
        return from_main(self._main and all(file.fits() for file in self._files.values()))

    def missing(self) -> list[int]:
        """Shards to be computed: unfinished ones, and finished ones that were altered since."""
        if self._missing is None:  # the checksums read all data: once
            shards = range(len(self.bounds) - 1) if self._main else ()
            self._missing = from_main([shard for shard in shards if not self._is_whole(shard)])
        return list(self._missing)

    def _is_whole(self, shard: int) -> bool:
        recorded = self._manifest["shards"][shard]
        if recorded is None:
            return False
        found = [file for file in self._files.values() if file.path.is_file()]
        for file in found:
            if not file.fits():
                logger.warning("%s is truncated or has another header, again", file.path)
                file.prepare()
        rows = self.bounds[shard : shard + 2]
        if checksum(piece for file in found for piece in file.read(*rows)) == recorded:
            return True
        logger.warning("%s: shard %d fails its checksum, again", self.folder, shard)
        return False

    def write(self, shard: int, values: Mapping[str, np.ndarray]) -> None:
        """Fill a shard; it counts as finished once its data are on disk.

        Values are brought into the array's shape and dtype.

        Raises:
            ValueError: a value is not finite, or too large for the array's dtype.
            DiskFull: there is no room for the arrays.
            ReadOnly: the folder cannot be written to.
        """
        missing = self.missing()
        if self._main:
            start, end = self.bounds[shard : shard + 2]
            values = {name: values[name] for name in self.arrays}
            values |= {name: array[start:end] for name, array in self._given.items()}
            data = {name: self._encoded(name, shard, values[name]) for name in self._files}
            self.folder.mkdir(parents=True, exist_ok=True)
            for file in self._files.values():  # all arrays have their space before one is filled
                file.prepare()
            for name, file in self._files.items():
                file.write(start, data[name])
            self._manifest["shards"][shard] = checksum(data.values())
            write_record(self.folder / MANIFEST, self._manifest)
        self._missing = [other for other in missing if other != shard]

    def _encoded(self, name: str, shard: int, value: np.ndarray) -> bytes:
        shape, dtype = self._files[name].shape, self._files[name].dtype
        n_rows = self.bounds[shard + 1] - self.bounds[shard]
        with np.errstate(over="ignore"):
            value = np.asarray(value).reshape(n_rows, *shape[1:]).astype(dtype)
        if np.issubdtype(dtype, np.floating) and not np.isfinite(value).all():
            raise ValueError(
                f"{self.folder}: {name} of shard {shard} holds NaN or infinity; "
                "check the LLM's weights and lea_llm_dtype"
            )
        return value.tobytes()

    def array(self, name: str) -> np.ndarray:
        """A read-only memory map."""
        return read_array(self._files[name].path, mapped=True)


class _ArrayFile:
    """A ``.npy`` file whose header and space are there before its rows are."""

    def __init__(self, folder: Path, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        self.path = folder / f"{name}.npy"
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._header = npy_header(self.shape, self.dtype)
        self._row = math.prod(self.shape[1:]) * self.dtype.itemsize  # bytes
        self._size = len(self._header) + self.shape[0] * self._row

    def fits(self) -> bool:
        """Whether there is a file, no link, of this header and size."""
        if self.path.is_symlink() or not self.path.is_file():
            return False
        with self.path.open("rb") as stream:
            header = stream.read(len(self._header))
            return header == self._header and os.fstat(stream.fileno()).st_size == self._size

    def prepare(self) -> None:
        """Give the file its header and its size; checksums tell what a damaged one has lost."""
        with clear_errors_at(self.path.parent, self._size):
            if self.path.is_symlink():  # of a copied cache; the file that it points to is not ours
                logger.warning("%s is a link: removed", self.path)
                self.path.unlink()
            if not self.fits():
                with self.path.open("r+b" if self.path.is_file() else "w+b") as stream:
                    _resize(stream.fileno(), self._size)
                    stream.write(self._header)

    def read(self, start: int, end: int) -> Iterator[bytes]:
        with self.path.open("rb") as stream:
            stream.seek(len(self._header) + start * self._row)
            left = (end - start) * self._row
            while left > 0 and (piece := stream.read(min(PIECE, left))):
                left -= len(piece)
                yield piece

    def write(self, start: int, data: bytes) -> None:
        with clear_errors_at(self.path.parent, len(data)), self.path.open("r+b") as stream:
            stream.seek(len(self._header) + start * self._row)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())


def _resize(descriptor: int, size: int) -> None:
    """Give a file its size with space on disk, so that no write within it can lack room."""
    found = os.fstat(descriptor).st_size
    if found < size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError:
            os.ftruncate(descriptor, found)  # give back what was taken
            raise
    os.ftruncate(descriptor, size)


def release(array: np.ndarray) -> None:
    """Let go of the pages of a memory map: each row once read counts as the process's memory."""
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.base.madvise(mmap.MADV_DONTNEED)


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
