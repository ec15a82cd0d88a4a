"""Arrays on disk that survive a kill: shards with checksums, and reading within flat memory."""

import hashlib
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
    clear_errors_at,
    npy_header,
    read_array,
    read_record,
    write_record,
)

logger = logging.getLogger(__name__)

# Bytes that are read at once, to keep memory flat.
PIECE = 2**22


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
        self.given = dict(given or {})
        self.bounds = [int(bound) for bound in bounds]
        self._spec = {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in arrays.items()}
        self._spec |= {name: (array.shape, array.dtype) for name, array in self.given.items()}
        identity = {
            "key": key,
            "arrays": {
                name: {"shape": list(shape), "dtype": dtype.name}
                for name, (shape, dtype) in sorted(self._spec.items())
            },
            "bounds": self.bounds,
        }
        self._main = processes().is_main_process
        manifest = read_record(folder / MANIFEST) if self._main else None
        if manifest and (
            any(manifest.get(name) != value for name, value in identity.items())
            or not isinstance(manifest.get("shards"), list)
            or len(manifest["shards"]) != len(self.bounds) - 1
        ):
            logger.warning("%s belongs to other arrays: ignored", folder / MANIFEST)
            manifest = None
        self.manifest = manifest or (
            dict(meta or {}) | identity | {"shards": [None] * (len(self.bounds) - 1)}
        )
        self._prepared: set[str] = set()
        self._missing: list[int] | None = None

    def intact(self) -> bool:
        """Whether every array has a file of its own with its header and size."""
        return from_main(self._main and all(self._fits(name) for name in self._spec))

    def _fits(self, name: str) -> bool:
        path, (header, size) = self._path(name), self._layout(name)
        return not path.is_symlink() and path.is_file() and _has(path, header, size)

    def _layout(self, name: str) -> tuple[bytes, int]:
        """The header of an array's file, and the file's size in bytes."""
        shape, dtype = self._spec[name]
        header = npy_header(shape, dtype)
        return header, len(header) + _n_bytes(shape, dtype)

    def missing(self) -> list[int]:
        """Shards to be computed: unfinished ones, and finished ones that were altered since."""
        if self._missing is None:  # the checksums read all data: once
            shards = range(len(self.manifest["shards"])) if self._main else ()
            self._missing = from_main([shard for shard in shards if not self._valid(shard)])
        return list(self._missing)

    def _valid(self, shard: int) -> bool:
        recorded = self.manifest["shards"][shard]
        if recorded is None:
            return False
        digest = hashlib.sha256()
        for name in sorted(self._spec):
            if self._path(name).is_file():
                for piece in self._read(name, shard):
                    digest.update(piece)
        if digest.hexdigest() == recorded:
            return True
        logger.warning("%s: shard %d fails its checksum, again", self.folder, shard)
        return False

    def _read(self, name: str, shard: int) -> Iterator[bytes]:
        self._prepare(name)
        start, left = self._place(name, shard)
        with self._path(name).open("rb") as stream:
            stream.seek(start)
            while left > 0 and (piece := stream.read(min(PIECE, left))):
                left -= len(piece)
                yield piece

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
            self._write(shard, values)
        self._missing = [other for other in missing if other != shard]

    def _write(self, shard: int, values: Mapping[str, np.ndarray]) -> None:
        start, end = self.bounds[shard : shard + 2]
        content = {name: self._converted(name, shard, values[name]) for name in self.arrays}
        content |= {name: array[start:end] for name, array in self.given.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in self._spec:  # all arrays have their space before one is filled
            self._prepare(name)
        digest = hashlib.sha256()
        for name, value in sorted(content.items()):
            data = np.ascontiguousarray(value).tobytes()
            digest.update(data)
            with clear_errors_at(self.folder, len(data)), self._path(name).open("r+b") as stream:
                stream.seek(self._place(name, shard)[0])
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        self.manifest["shards"][shard] = digest.hexdigest()
        write_record(self.folder / MANIFEST, self.manifest)

    def _converted(self, name: str, shard: int, value: np.ndarray) -> np.ndarray:
        shape, dtype = self._spec[name]
        start, end = self.bounds[shard : shard + 2]
        with np.errstate(over="ignore"):
            value = np.asarray(value).reshape(end - start, *shape[1:]).astype(dtype)
        if np.issubdtype(dtype, np.floating) and not np.isfinite(value).all():
            raise ValueError(
                f"{self.folder}: {name} of shard {shard} holds NaN or infinity; "
                "check the LLM's weights and lea_llm_dtype"
            )
        return value

    def _place(self, name: str, shard: int) -> tuple[int, int]:
        """First byte and number of bytes of a shard within an array's file."""
        shape, dtype = self._spec[name]
        row = _n_bytes(shape[1:], dtype)
        start, end = self.bounds[shard : shard + 2]
        return len(npy_header(shape, dtype)) + start * row, (end - start) * row

    def _prepare(self, name: str) -> None:
        """Give an array's file its header and its size.

        What a truncated or damaged file has lost shows in the checksums.
        """
        if name in self._prepared:
            return
        path, (header, size) = self._path(name), self._layout(name)
        with clear_errors_at(self.folder, size):
            if path.is_symlink():  # of a copied cache; what it points to is not ours to write
                logger.warning("%s is a link: removed", path)
                path.unlink()
            if not self._fits(name):
                if any(self.manifest["shards"]):
                    logger.warning("%s is truncated or has another header, again", path)
                with path.open("r+b" if path.is_file() else "w+b") as stream:
                    _resize(stream.fileno(), size)
                    stream.write(header)
        self._prepared.add(name)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def array(self, name: str) -> np.ndarray:
        """A read-only memory map."""
        return read_array(self._path(name), mapped=True)


def _n_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _has(path: Path, header: bytes, size: int) -> bool:
    """Whether a file has this size and begins so; it is not opened for writing."""
    with path.open("rb") as stream:
        return os.fstat(stream.fileno()).st_size == size and stream.read(len(header)) == header


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

    Through the map, each row would leave its page in the process's memory, and with it those
    around that the kernel has in one piece: up to the whole file.
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
