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
from tokenize import TokenError
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

HEADER_ERRORS = (SyntaxError, TokenError, TypeError)  # of a damaged .npy, which NumPy parses


class DiskFull(OSError):
    """A folder's disk has no room; what is finished stays valid."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"no space left in {folder}: free some, or set lea_cache_dir (the LE) or "
            "checkpoint_dir (models) to another disk, and run again; what is finished is kept"
        )
        self.errno = errno.ENOSPC


class ReadOnly(OSError):
    """This process cannot write to a folder; ``lacks`` is what the cache lacks, if known."""

    def __init__(self, folder: Path, lacks: str | None = None) -> None:
        why = "" if lacks is None else f"the cache lacks {lacks}, and "
        super().__init__(
            f"{why}{folder} cannot be written to: make it writable, or set lea_cache_dir (the LE: "
            "a copy of the cache goes on where it stands) or checkpoint_dir (models) to one that is"
        )
        self.errno = errno.EROFS


@contextlib.contextmanager
def clear_errors_at(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write into ``DiskFull`` or ``ReadOnly``."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DiskFull | ReadOnly):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(folder) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise ReadOnly(folder) from error
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream whose contents become the file at the end of the block, or never.

    Raises ``DiskFull`` or ``ReadOnly``; then the old file stays.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with clear_errors_at(path.parent):
            with partial.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # there may be no such file
            partial.unlink()
        raise


def write_bytes(path: Path, *parts: Any) -> None:
    """Write bytes or C-contiguous arrays, one after the other; errors as in ``replacing``."""
    with replacing(path) as stream:
        for part in parts:
            stream.write(part)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, atomically."""
    write_bytes(path, json.dumps(content, indent=1).encode())


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as ``.npy``, atomically."""
    array, header = np.ascontiguousarray(array), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    write_bytes(path, header.getvalue(), array)


def write_record(path: Path, content: Mapping[str, Any], files: Iterable[str] = ()) -> None:
    """Write JSON with the checksums of itself and of files beside it, atomically."""
    record = dict(content) | {"format": FORMAT}
    record["files"] = {name: file_checksum(path.with_name(name)) for name in files}
    write_json(path, record | {"sha256": record_checksum(record)})


def read_record(path: Path) -> dict[str, Any] | None:
    """What ``write_record`` wrote; None if it is not there.

    The same, and a warning, for a record that is damaged or of another format, one of whose files
    is damaged, or that names a file in another folder.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.pop("sha256") != record_checksum(record) or record["format"] != FORMAT:
            raise ValueError
        for name, stated in record["files"].items():
            file = path.with_name(name)  # a ValueError for another folder
            if not file.is_file() or file_checksum(file) != stated:
                logger.warning("%s is missing or was altered: %s is ignored", file, path)
                return None
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):  # no such JSON object
        logger.warning("%s is broken or of another version: ignored", path)
        return None
    return record


def read_array(path: Path, mapped: bool = False) -> np.ndarray:
    """A ``.npy`` file of numbers, left on disk if ``mapped``; else a ValueError names it."""
    with _damage_named(path, "a .npy array of numbers"):
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file; else a ValueError names it."""
    with _damage_named(path, "a safetensors file"):
        return load_file(path)


def read_json(path: Path) -> Any:
    """A JSON file; else a ValueError names it."""
    with _damage_named(path, "JSON"):
        return json.loads(path.read_text(encoding="utf-8"))


@contextlib.contextmanager
def _damage_named(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, EOFError, RecursionError, SafetensorError, *HEADER_ERRORS) as error:
        raise ValueError(f"{path}: not {kind}: {error}; delete it") from error


def record_checksum(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record without its checksum; the order of keys means nothing."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def file_checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
