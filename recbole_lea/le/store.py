"""The LE's results on disk: atomic files, checksummed records, arrays that survive a kill.

A cache folder ``lea_cache/<dataset>/`` can be read without this program. It holds JSON, NumPy's
``.npy`` (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html) and safetensors:

- ``sequences-<fingerprint>/``: ``users.json`` and ``items.json`` list the user and item tokens;
  ``sequences.npy`` [n_states] holds the users' items one user after the other, as positions in
  ``items.json``; user ``u`` (a position in ``users.json``) owns its rows ``offsets[u]`` to
  ``offsets[u + 1] - 1``, with ``offsets.npy`` [n_users + 1].
- ``states-<key>/`` and ``projection-<key>/`` (``state_dim``): ``states.npy`` [n_states, width].
  The state of user ``u`` after ``n >= 1`` items is row ``offsets[u] + n - 1``.
- ``rewards-<key>/``: ``rewards.npy`` and ``actions.npy`` [n_transitions, 1 + negative_pool]: the
  scores, and which items they are of, as positions in ``items.json``; the first is the item that
  followed. User ``u``'s action after ``n >= 1`` items is row ``offsets[u] - u + n - 1``: a user
  has one transition less than items.
- ``selection-<key>/`` and ``selection_rewards-<key>/`` (augmentation): likewise one row per
  transition, ``label_scores.npy`` or ``rewards.npy`` beside ``actions.npy``.
- ``manifest.json`` beside arrays, ``done.json`` beside other files: shapes, dtypes, checksums,
  what they were made from and with which versions, and ``sequences``: the folder above.

``read_state`` and ``read_rewards`` follow these rules.
"""

import contextlib
import errno
import hashlib
import io
import json
import logging
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from recbole_lea.le.processes import from_main, processes

logger = logging.getLogger(__name__)

# Bumped when files are laid out in another way; stages of another format are computed again.
FORMAT = 2

MANIFEST = "manifest.json"
DONE = "done.json"

# Bytes that are read at once, to keep memory flat.
PIECE = 2**22


class DiskFull(OSError):
    """The disk has no room for the cache; what is finished stays valid.

    Args:
        folder: where there is no room.
        needed: bytes asked for, where known.
    """

    def __init__(self, folder: Path, needed: int | None = None) -> None:
        wanted = "" if needed is None else f" for {needed:,} bytes"
        super().__init__(
            f"no space left in {folder}{wanted}: free some, or set lea_cache_dir (the LE) or "
            "checkpoint_dir (models) to a folder on another disk, and run again; what is finished "
            "is kept"
        )
        self.errno = errno.ENOSPC


class ReadOnly(OSError):
    """What is to be written stands in a folder that this process cannot write to.

    Args:
        folder: that folder.
        lacks: what the cache lacks, where known.
    """

    def __init__(self, folder: Path, lacks: str | None = None) -> None:
        why = "" if lacks is None else f"the cache lacks {lacks}, and "
        super().__init__(
            f"{why}{folder} cannot be written to: make it writable, or set lea_cache_dir (the LE: "
            "a copy of the cache goes on where it stands) or checkpoint_dir (models) to a folder "
            "that is"
        )
        self.errno = errno.EROFS


@contextlib.contextmanager
def clear_errors_at(folder: Path, needed: int | None = None) -> Iterator[None]:
    """Turn the operating system's refusal to write into ``DiskFull`` or ``ReadOnly``."""
    try:
        yield
    except (DiskFull, ReadOnly):
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(folder, needed) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise ReadOnly(folder) from error
        raise


@contextlib.contextmanager
def replacing(path: Path, needed: int | None = None) -> Iterator[BinaryIO]:
    """A stream whose contents become the file at the end of the block, or never.

    Args:
        path: the file.
        needed: its size, where known.

    Raises:
        DiskFull: there is no room; the old file is still there.
        ReadOnly: nothing can be written beside the file.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with clear_errors_at(path.parent, needed):
            with partial.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # of a file that could not be made
            partial.unlink()
        raise


def write_bytes(path: Path, *parts: Any) -> None:
    """Write a file so that it is either the old or the new one, never half of it.

    Args:
        path: the file.
        parts: its contents, one after the other: bytes or C-contiguous arrays.

    Raises:
        DiskFull: there is no room; the old file is still there.
        ReadOnly: nothing can be written beside the file.
    """
    with replacing(path, sum(memoryview(part).nbytes for part in parts)) as stream:
        for part in parts:
            stream.write(part)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, atomically."""
    write_bytes(path, json.dumps(content, indent=1).encode())


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as ``.npy``, atomically."""
    array = np.ascontiguousarray(array)
    write_bytes(path, _npy_header(array.shape, array.dtype), array)


def write_record(path: Path, content: Mapping[str, Any], files: Iterable[str] = ()) -> None:
    """Write JSON with the checksums of itself and of files beside it, atomically."""
    record = dict(content) | {"format": FORMAT}
    record["files"] = {name: _file_sha256(path.with_name(name)) for name in files}
    write_json(path, record | {"sha256": _record_sha256(record)})


def read_record(path: Path) -> dict[str, Any] | None:
    """What ``write_record`` wrote; None if it is not there.

    A record that is broken, altered or of another format, or one of whose files is, counts as
    not there; so does one that names a file in another folder. The log says so.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        stated = record.pop("sha256", None)
        right = stated == _record_sha256(record) and record["format"] == FORMAT
        files = dict(record["files"]) if right else {}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):  # no JSON object
        right = False
    if not right:
        logger.warning("%s is broken or of another version: ignored", path)
        return None
    for name, checksum in files.items():
        if not _is_name(name):
            logger.warning("%s names %r, which is not beside it: ignored", path, name)
            return None
        file = path.with_name(name)
        if not file.is_file() or _file_sha256(file) != checksum:
            logger.warning("%s is missing or was altered: %s is ignored", file, path)
            return None
    return record


def _is_name(name: Any) -> bool:
    """Whether a name that was read from a file stays in the folder it is looked up in."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def read_array(path: Path, mapped: bool = False) -> np.ndarray:
    """A ``.npy`` file that holds numbers; ``mapped`` leaves them on disk.

    Raises:
        ValueError: it holds anything else, such as pickled objects.
    """
    try:
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a .npy array of numbers: {error}; delete it") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file.

    Raises:
        ValueError: it is none.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}; delete it") from error


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}; delete it") from error


def _record_sha256(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        header, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return header.getvalue()


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
        header = _npy_header(shape, dtype)
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
        return len(_npy_header(shape, dtype)) + start * row, (end - start) * row

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


def read_state(folder: str | Path, user: str, n: int) -> np.ndarray:
    """The state of a user after the first ``n`` items, read from a cache without an LE.

    Args:
        folder: ``lea_cache/<dataset>/states-<key>`` or ``projection-<key>``.
        user: user token.
        n: 1 to the length of the user's training sequence.

    Returns:
        The state [width], float16.

    Raises:
        KeyError: there is no such user.
        IndexError: the sequence is shorter than ``n``.
        ValueError: the folder holds anything but numbers, or points to another one.
    """
    index, offsets = _sequence_of(Path(folder), user)
    start, end = offsets[index : index + 2]
    if not 1 <= n <= end - start:
        raise IndexError(f"user {user!r} has states after 1 to {end - start} items, not {n}")
    return np.array(read_array(Path(folder) / "states.npy", mapped=True)[start + n - 1])


def read_rewards(folder: str | Path, user: str, n: int) -> dict[str, float]:
    """The scores of the actions after the first ``n`` items of a user, by item token.

    Args:
        folder: ``lea_cache/<dataset>/rewards-<key>`` or ``selection_rewards-<key>``.
        user: user token.
        n: 1 to the length of the user's training sequence minus 1.

    Returns:
        Item token -> unscaled reward; in ``rewards-<key>`` the item that followed comes first.

    Raises:
        KeyError: there is no such user.
        IndexError: the user has no transition after ``n`` items.
        ValueError: the folder holds anything but numbers, or points to another one.
    """
    folder = Path(folder)
    index, offsets = _sequence_of(folder, user)
    start, end = offsets[index : index + 2]
    if not 1 <= n < end - start:
        raise IndexError(f"user {user!r} has actions after 1 to {end - start - 1} items, not {n}")
    row = start - index + n - 1
    actions, scores = (
        read_array(folder / name, mapped=True)[row] for name in ("actions.npy", "rewards.npy")
    )
    items = read_json(_sequences_folder(folder) / "items.json")
    return {items[a]: float(score) for a, score in zip(actions, scores, strict=True)}


def _sequence_of(folder: Path, user: str) -> tuple[int, np.ndarray]:
    """Number of a user, and the offsets of all users' sequences."""
    sequences = _sequences_folder(folder)
    users = {token: i for i, token in enumerate(read_json(sequences / "users.json"))}
    if user not in users:
        raise KeyError(f"{sequences / 'users.json'} has no user {user!r}")
    return users[user], read_array(sequences / "offsets.npy", mapped=True)


def _sequences_folder(folder: Path) -> Path:
    name = read_json(folder / MANIFEST)["sequences"]
    if not _is_name(name):
        raise ValueError(f"{folder / MANIFEST}: `sequences` is {name!r}, which is not beside it")
    return folder.parent / name
