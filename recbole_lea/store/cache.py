"""Which of an LE's stages a cache folder holds, and who computes the others.

``store.py`` says what the files look like and writes them. Here a stage is found by its key, held
against other runs and processes while it is computed, and declared finished.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from recbole_lea.engine.processes import from_main, processes
from recbole_lea.engine.stagelog import StageLog
from recbole_lea.store.arrays import ArrayStore
from recbole_lea.store.files import (
    DONE,
    MANIFEST,
    ReadOnly,
    clear_errors_at,
    read_array,
    read_record,
    write_record,
)

logger = logging.getLogger(__name__)

# Stages that end in files; the others fill an ArrayStore.
FILES = {"items": ("tokens.npy",), "environment": ("adapter.safetensors", "history.json")}


class Cache:
    """The stages of one LE.

    Its methods are called by all processes, in the same order; the main one alone writes.

    Attributes:
        folder: of the dataset; other LEs may share it.
        keys: stage -> key of all that it depends on.
        used: the same for the stages that this run has asked for.

    Args:
        folder: see above.
        keys: see above; they may grow.
        origin: what a stage's record tells about where it comes from.
        log: seconds and memory of the stages that are computed.
    """

    def __init__(
        self,
        folder: Path,
        keys: Mapping[str, str],
        origin: Callable[[str], dict[str, Any]],
        log: StageLog,
    ) -> None:
        self.folder = folder
        self.keys = keys
        self.used: dict[str, str] = {}
        self._origin = origin
        self._log = log
        self._checked: set[str] = set()
        self._main = processes().is_main_process

    def path(self, stage: str) -> Path:
        """The stage's folder."""
        return stage_folder(self.folder, stage, self.keys[stage])

    @contextlib.contextmanager
    def stage(
        self,
        stage: str,
        title: str,
        needs: Callable[[], Any],
        finished: Callable[[], bool] | None = None,
    ) -> Iterator[Path | None]:
        """Yield the stage's folder if there is work to do, None if it is finished.

        Files are checked once, by the main process.

        Args:
            stage: its name.
            title: its name in the log.
            needs: called before the stage's clock starts, so that no stage counts another.
            finished: whether it is; for a stage of ``FILES``, its record says so.

        Raises:
            ReadOnly: there is work to do, and the folder cannot be written to.
        """
        self.used[stage] = self.keys[stage]
        folder = self.path(stage)
        if folder.name in self._checked:
            yield None
            return
        with self._locked(folder) as writable:
            if finished() if finished else self._is_done(stage):
                if stage in FILES and self._main and writable:
                    _tidy(folder, FILES[stage])
                logger.info("%s: reused from %s", title, folder)
                yield None
            elif not writable:
                raise ReadOnly(folder, title)
            else:
                needs()
                logger.info("%s: computing into %s", title, folder)
                with self._log.stage(title):
                    yield folder
        from_main(None)  # nobody goes on before the files are there
        self._checked.add(folder.name)

    def finish(self, stage: str, **more: Any) -> None:
        """Declare a stage of ``FILES`` finished; ``more`` joins its record."""
        if not self._main:
            return
        folder = self.path(stage)
        write_record(folder / DONE, self._origin(stage) | more, FILES[stage])
        _tidy(folder, FILES[stage])

    def filled(
        self,
        stage: str,
        title: str,
        array: str,
        shape: tuple[int, ...],
        dtype: str,
        bounds: Sequence[int],
        needs: Callable[[], Any],
        fill: Callable[[ArrayStore], None],
        given: dict[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """A stage's array, memory-mapped.

        Args:
            stage: its name.
            title: its name in the log.
            array: the array's name.
            shape: of the array.
            dtype: of the array.
            bounds: rows at which its shards start, and the end.
            needs: see ``stage``.
            fill: writes the missing shards.
            given: arrays that are stored beside it.
        """
        folder = self.path(stage)
        store: ArrayStore | None = None

        def finished() -> bool:
            nonlocal store  # opened under the lock: another run may be filling it until then
            arrays = {array: (shape, dtype)}
            store = ArrayStore(folder, arrays, bounds, self.keys[stage], self._origin(stage), given)
            return not store.missing()

        with self.stage(stage, title, needs, finished) as work:
            if work is not None:
                assert store is not None
                fill(store)
        return read_array(folder / f"{array}.npy", mapped=True)

    def stores(self, arrays: set[str], **origin: Any) -> Iterator[ArrayStore]:
        """Finished and unaltered stores of these arrays and origin, in the order of their names."""
        paths = sorted(self.folder.glob(f"*/{MANIFEST}")) if self._main else []
        records = [(path.parent, read_record(path) or {}) for path in paths]
        for folder, record in from_main(records):
            found = record.get("arrays", {})
            if record | origin != record or set(found) != arrays:
                continue
            spec = {name: (tuple(a["shape"]), a["dtype"]) for name, a in found.items()}
            store = ArrayStore(folder, spec, record["bounds"], record["key"])
            if store.intact() and not store.missing():
                yield store

    def keep(self, name: str, save: Callable[[Path], None], lacks: str) -> None:
        """Have a folder that depends on no stage written once.

        Args:
            name: of the folder.
            save: writes it, its record last.
            lacks: its name in the error.

        Raises:
            ReadOnly: it is not there, and cannot be written.
        """
        folder = self.folder / name
        if name not in self._checked:
            with self._locked(folder) as writable:
                if self._main and read_record(folder / DONE) is None:
                    if not writable:
                        raise ReadOnly(folder, lacks)
                    save(folder)
            self._checked.add(name)

    def is_recorded(self, stage: str) -> bool:
        """Whether a stage of ``FILES`` was finished; its files are not read."""
        return from_main((self.path(stage) / DONE).is_file())

    def is_built(self, stage: str) -> bool:
        """Whether a stage (``items``, ``environment``, ``states``) is finished."""
        if stage in FILES:
            return self._is_done(stage)
        record = read_record(self.path(stage) / MANIFEST)
        if record is None:
            return False
        return record.get("key") == self.keys[stage] and all(record["shards"])

    def _is_done(self, stage: str) -> bool:
        if self.path(stage).name in self._checked:
            return True
        return from_main(self._main and self.made(stage) is not None)

    def made(self, stage: str) -> dict[str, Any] | None:
        """The record of a stage of ``FILES``; None unless it is finished and unaltered."""
        record = read_record(self.path(stage) / DONE)
        return record if record and record.get("key") == self.keys[stage] else None

    def _locked(self, folder: Path) -> contextlib.AbstractContextManager[bool]:
        # the main process holds it for all of this run
        return locked(folder) if self._main else contextlib.nullcontext(True)


def stage_folder(folder: Path, stage: str, key: str) -> Path:
    """Where the cache of a dataset holds a stage of that key."""
    return folder / f"{stage}-{key[:16]}"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold a cache folder, made if needed; the operating system frees a killed run's lock.

    Yields:
        Whether it can be written to; one that cannot (a read-only disk, another user's) is read
        without a lock.
    """
    with contextlib.suppress(ReadOnly), clear_errors_at(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        yield False
        return
    lock = FileLock(folder / "lock")
    with clear_errors_at(folder):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("another run is computing %s: waiting for it", folder)
            lock.acquire()
    try:
        for partial in folder.glob("*.partial"):  # of a killed run
            partial.unlink()
        yield True
    finally:
        lock.release()


def _tidy(folder: Path, files: Iterable[str]) -> None:
    """Remove what a finished stage was made from (shards, checkpoints)."""
    for path in folder.iterdir():
        if path.name not in (DONE, "lock", *files) and not path.is_dir():
            path.unlink()
