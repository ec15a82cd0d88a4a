"""An LE's stages in a cache folder: ``Cache.run`` reuses, resumes, computes and checks any."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
    read_record,
    write_record,
)

logger = logging.getLogger(__name__)


class Layout(NamedTuple):
    """How a stage's array lies on disk."""

    shape: tuple[int, ...]
    dtype: str
    bounds: Sequence[int]  # rows at which its shards start, and the end
    beside: Mapping[str, np.ndarray] = {}  # known beforehand, stored beside it


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of an LE: it ends in files, or in an array that is filled shard by shard.

    ``needs`` is called before the stage's clock starts. What it gives is handed to ``compute``:
    with the folder, which that fills, returning what joins the record; or with the missing shards,
    each of which that yields with its values.
    """

    name: str  # with the key, the name of its folder
    title: str  # its name in the log
    made_of: Mapping[str, Any]  # all that it depends on
    needs: Callable[[], Any]
    compute: Callable[[Any, Any], Any]
    files: tuple[str, ...] = ()
    array: str = ""  # its name
    layout: Callable[[], Layout] | None = None  # asked for when it runs: a width may take the LLM

    @functools.cached_property
    def key(self) -> str:
        """Hex digest of all that the stage depends on."""
        text = json.dumps(self.made_of, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


class Cache:
    """The stages of one LE; all processes call its methods in the same order, the main one writes.

    Other LEs of the dataset may share the ``folder``. A stage that is run joins the ``table``, and
    its record tells what ``origin`` says of it. ``log`` gets seconds and memory.
    """

    def __init__(self, folder: Path, table: dict[str, Stage], origin: Any, log: StageLog) -> None:
        self.folder, self.table, self._origin, self._log = folder, table, origin, log
        self.used: dict[str, str] = {}  # stage -> key of the stages that this run has asked for
        self.places: dict[str, str] = {}  # stage -> such as "stage 2 of 6, ", for the log
        self._checked: set[str] = set()
        self._main = processes().is_main_process

    def path(self, stage: str) -> Path:
        """The stage's folder."""
        return self.folder / f"{stage}-{self.table[stage].key[:16]}"

    def run(self, stage: Stage) -> Path:
        """A stage's folder, which is reused, or computed as far as it lacks something.

        Raises ``ReadOnly`` if there is work to do, and the folder cannot be written to.
        """
        self.table[stage.name] = stage
        self.used[stage.name] = stage.key
        folder = self.path(stage.name)
        if folder.name in self._checked:
            return folder
        with held(folder) as writable:
            # under the lock: until then, another run may fill it
            store = self.store(stage) if stage.layout is not None else None
            done = self.is_built(stage.name) if store is None else not store.missing()
            if done:
                place = self.places.get(stage.name, "")
                logger.info("%s%s: reused from %s", place, stage.title, folder)
            elif not writable:
                raise ReadOnly(folder, stage.title)
            else:
                self._compute(stage, store, folder)
            if stage.files and self._main and writable:
                for path in folder.iterdir():  # shards and checkpoints that it was made from
                    if path.name not in (DONE, "lock", *stage.files) and not path.is_dir():
                        path.unlink()
        from_main(None)  # nobody goes on before the files are there
        self._checked.add(folder.name)
        return folder

    def _compute(self, stage: Stage, store: ArrayStore | None, folder: Path) -> None:
        needed = stage.needs()
        place = self.places.get(stage.name, "")
        logger.info("%s%s: computing into %s", place, stage.title, folder)
        with self._log.stage(stage.title):
            if store is not None:
                for shard, values in stage.compute(needed, store.missing()):
                    store.write(shard, {stage.array: values})
                return
            record = stage.compute(needed, folder)
            if self._main:
                write_record(folder / DONE, self._origin(stage.name) | record, stage.files)

    def store(self, stage: Stage) -> ArrayStore:
        """What a stage with an array has on disk, under its lock."""
        assert stage.layout is not None
        shape, dtype, bounds, beside = stage.layout()
        folder, arrays = self.path(stage.name), {stage.array: (shape, dtype)}
        return ArrayStore(folder, arrays, bounds, stage.key, self._origin(stage.name), beside)

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
            if not store.missing():
                yield store

    def keep(self, name: str, save: Callable[[Path], None], lacks: str) -> None:
        """Have a folder that depends on no stage; ``save`` writes it, its record last.

        Raises ``ReadOnly``, which calls it ``lacks``, if it is not there and cannot be written.
        """
        folder = self.folder / name
        if name in self._checked:
            return
        with held(folder) as writable:
            if self._main and read_record(folder / DONE) is None:
                if not writable:
                    raise ReadOnly(folder, lacks)
                save(folder)
        self._checked.add(name)

    def is_built(self, stage: str) -> bool:
        """Whether a stage is finished; files, unlike an array, are held against their checksums."""
        checked = self.path(stage).name in self._checked
        return checked or from_main(self._main and self.made(stage) is not None)

    def left(self, stage: str) -> float:
        """The share of an array's shards that a stage lacks; 1 for a stage with files."""
        manifest = self.path(stage) / MANIFEST
        record = (read_record(manifest) if self.table[stage].layout else None) or {}
        shards = record.get("shards") if record.get("key") == self.table[stage].key else None
        return 1 - sum(map(bool, shards)) / len(shards) if shards else 1.0

    def made(self, stage: str) -> dict[str, Any] | None:
        """The record of a stage; None unless it is finished."""
        name = MANIFEST if self.table[stage].layout else DONE
        record = read_record(self.path(stage) / name) or {}
        finished = record.get("key") == self.table[stage].key and all(record.get("shards", ()))
        return record if finished else None


@contextlib.contextmanager
def held(folder: Path) -> Iterator[bool]:
    """The main process holds a cache folder, made if needed, for all processes of this run.

    The operating system frees a killed run's lock. Yields whether the folder can be written to; one
    that cannot is read without a lock.
    """
    if not processes().is_main_process:
        yield True
        return
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
        os.utime(folder / "lock")  # when it was last used
        for partial in folder.glob("*.partial"):  # of a killed run
            partial.unlink()
        yield True
    finally:
        lock.release()
