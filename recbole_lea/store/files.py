"""Atomic files, checksummed records, and readers that never unpickle."""

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

logger = logging.getLogger(__name__)

# Bumped when files are laid out in another way; stages of another format are computed again.
FORMAT = 2

MANIFEST = "manifest.json"
DONE = "done.json"


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
    write_bytes(path, npy_header(array.shape, array.dtype), array)


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
        if not is_name(name):
            logger.warning("%s names %r, which is not beside it: ignored", path, name)
            return None
        file = path.with_name(name)
        if not file.is_file() or _file_sha256(file) != checksum:
            logger.warning("%s is missing or was altered: %s is ignored", file, path)
            return None
    return record


def is_name(name: Any) -> bool:
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


def npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """The header of a ``.npy`` file."""
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        header, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return header.getvalue()
