"""Disturbs the LE's build and the training in every way we know. Not part of pytest.

From the project's root: ``python tests/faults.py --seed 1`` (``--only NAME``; ``--quick`` for few
cases). A small LE on a random LLM is built in child processes with all stages, and a small model
trained; something goes wrong at a random moment; a second run finishes. Every stored byte must
then equal that of an undisturbed run, and no finished shard, epoch or stage be computed again: the
calls that write shards and epochs are watched, and the inode of each finished stage's record stays.
The script prints the table of ``docs/robustness.md``, and ends with 1 if anything failed.
"""

import argparse
import collections
import contextlib
import io
import json
import logging
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from unittest import mock

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if __name__ == "__main__":
    quiet = {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"} | quiet
from recbole_lea.le import stages  # noqa: E402
from recbole_lea.serve.checkpoint import Checkpoint  # noqa: E402
from recbole_lea.store import files as store  # noqa: E402
from recbole_lea.store.files import DiskFull, ReadOnly  # noqa: E402
from tests import disturb  # noqa: E402
from tests.conftest import tiny_keys, write_tiny_dataset, write_tiny_llm  # noqa: E402
from tests.disturb import build_the_rest, child, ended, le, same, tree  # noqa: E402

KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
# how a child says that it met them
CODES = {KILL: -KILL, TERM: 128 + TERM, INT: 128 + INT}


class Bench:
    """Undisturbed runs to compare with, made when first asked for, and room for disturbed ones.

    Args:
        place: an empty folder.
        llm: the tiny LLM.
    """

    def __init__(self, place: Path, llm: str) -> None:
        self.place = place
        self.llm = llm
        self._number = 0

    def new(self, name: str = "run") -> Path:
        """A path of its own."""
        self._number += 1
        return self.place / f"{name}{self._number}"

    def le(self, cache: Path) -> list:
        """The LE's settings for a cache."""
        return le(self.llm, cache)

    @property
    def whole(self) -> Path:
        """A cache whose build was never disturbed."""
        folder = self.place / "whole"
        if not folder.exists():
            queue = disturb.CONTEXT.Queue()
            counted = child(disturb.build_and_count, self.le(folder), queue)
            self._n_writes = queue.get(timeout=600)
            assert ended(counted) == 0
        return folder

    @property
    def n_writes(self) -> int:
        """How often that build wrote to its cache."""
        assert self.whole
        return self._n_writes

    def copy(self) -> Path:
        """A copy of it."""
        return Path(shutil.copytree(self.whole, self.new()))

    def repair(self, cache: Path) -> tuple[list[str], str]:
        """Build on a complete but disturbed cache; its bytes are the undisturbed ones again.

        Returns:
            The stages that computed something, and the log's warnings.
        """
        with logged() as log, disturb.watched_work() as (shards, epochs):
            disturb.build(self.le(cache))
        same(cache, self.whole)
        work = {name.split("-")[0] for name, _ in shards} | ({"environment"} if epochs else set())
        return sorted(work), log.getvalue()

    def keys(self, folder: Path) -> dict:
        """Config of a training in a folder, on one LE for all."""
        if not (self.place / "dataset").exists():
            write_tiny_dataset(self.place)
        folder.mkdir(exist_ok=True)
        return tiny_keys(self.llm) | {
            "epochs": 8, "warmup": "2 epochs", "data_path": str(self.place / "dataset"),
            "lea_cache_dir": str(self.place / "trained_cache"),
            "checkpoint_dir": str(folder / "saved"),
        }  # fmt: skip

    def train(self, folder: Path, **more) -> tuple | None:
        """A training in a child; what it came to, or None where it ended early."""
        queue = disturb.CONTEXT.Queue()
        keys = self.keys(folder) | more.pop("keys", {})
        self.process = child(disturb.train, folder, keys, queue, **more)
        while self.process.is_alive() and queue.empty():
            time.sleep(0.02)
        outcome = None if queue.empty() and ended(self.process) else queue.get(timeout=10)
        self.code = ended(self.process)
        return outcome

    @property
    def trained(self) -> tuple:
        """An undisturbed training."""
        if not (self.place / "reference").exists():
            self._trained = self.train(self.place / "reference")
            assert self._trained is not None, "the undisturbed training failed"
        return self._trained


@contextlib.contextmanager
def logged():
    """The warnings of files and arrays; that a run waits for another one is none."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    loggers = [logging.getLogger(f"recbole_lea.store.{name}") for name in ("files", "arrays")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield text
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def equal(outcome: tuple, reference: tuple) -> None:
    """Hold a training's last weights, best score and test result against another's."""
    for name, ours, theirs in zip(("weights", "score", "result"), outcome, reference, strict=False):
        assert ours == theirs, f"the training's {name} differs"


def forge(path: Path, **changes) -> None:
    """Change a record and its checksum."""
    record = json.loads(path.read_text(encoding="utf-8")) | changes
    del record["sha256"]
    record["sha256"] = store.record_checksum(record)
    path.write_text(json.dumps(record), encoding="utf-8")


def records(cache: Path) -> list[Path]:
    """The records of all stages."""
    return sorted(path for name in (store.DONE, store.MANIFEST) for path in cache.rglob(name))


def files_of(cache: Path) -> list[Path]:
    """Every file, the locks too."""
    return sorted(path for path in cache.rglob("*") if path.is_file())


def without(contents: dict[str, bytes], *names: str) -> dict[str, bytes]:
    """A tree without some names."""
    return {path: content for path, content in contents.items() if Path(path).name not in names}


def mounting() -> None:
    """Leave a fault out where disks cannot be made."""
    if not disturb.may_mount():
        raise NotHere("making a disk needs the rights to mount it")


class NotHere(Exception):
    """This fault cannot be made on this machine."""


def struck_builds(bench: Bench, rng: random.Random, cases: int, number: int) -> str:
    """Builds that meet a signal at a random write or shortly after, and go on."""
    strikes = kept = computed = lost = 0
    slowest, whole = 0.0, bench.whole
    while strikes < cases:
        cache, log = bench.new("cut"), bench.new("log")
        most, before = bench.n_writes, strikes
        while strikes < cases:
            delay = rng.choice([0, rng.random() * 0.05])
            struck = bench.new("struck")
            at = (rng.randint(1, most), delay, number, struck, log)
            process = child(disturb.build_and_die, bench.le(cache), *at)
            while process.is_alive() and not struck.exists():
                time.sleep(0.02)
            start = time.perf_counter()
            code = ended(process)
            if code == 0:
                assert delay or not struck.exists(), "the signal was swallowed"
                break
            assert code == CODES[number], f"exit code {code}: {log.read_text()}"
            slowest = max(slowest, time.perf_counter() - start)
            strikes += 1
            if rng.random() < 0.5:
                break
            most = bench.n_writes // 4  # struck again on what is left
        old, new = build_the_rest(bench.le(cache))
        kept, computed = kept + old, computed + new
        same(cache, whole)
        text = log.read_text()
        lost += text.count("Exception ignored in")  # by Python, within a finalizer
        assert text.count("Traceback") <= text.count("Exception ignored in"), text
        said = text.count("stopped: the same command goes on with what the cache holds\n")
        assert said == (0 if number == KILL else strikes - before), text
        shutil.rmtree(cache)
    how = f"ends within {slowest:.1f} s in one line, exit code {128 + number}; "
    if lost:
        how += f"{lost} swallowed by Python within a finalizer, met a second later; "
    return cases, (
        f"{'' if number == KILL else how}every byte as undisturbed; of {kept:,} shards and epochs "
        "finished before the last run, 0 were computed again"
    )


def kill(bench: Bench, rng: random.Random, cases: int):
    """`kill -9` at a random write to the cache or up to 50 ms later, half of them once more"""
    return struck_builds(bench, rng, cases, KILL)


def terminate(bench: Bench, rng: random.Random, cases: int):
    """SIGTERM, likewise"""
    return struck_builds(bench, rng, cases, TERM)


def interrupt(bench: Bench, rng: random.Random, cases: int):
    """Ctrl-C (SIGINT), likewise"""
    return struck_builds(bench, rng, cases, INT)


def full_disk(bench: Bench, rng: random.Random, cases: int):
    """a full disk: each stage meets some 5 kB of room, twice as much when tried again"""
    mounting()
    failures: collections.Counter = collections.Counter()

    with disturb.small_disk(bench.new("disk"), 2**20) as disk:
        while failures.total() < cases:
            tries: collections.Counter = collections.Counter()
            stages = []

            def leave_little(stage, stages=stages, tries=tries):
                stages.append(stage)
                disturb.leave(disk, rng.randint(4096, 6000) << tries[stage])

            while True:
                try:
                    disturb.build(bench.le(disk / "cache"), leave_little)
                    break
                except DiskFull as error:
                    what = r"no space left in .*cache/tiny.*lea_cache_dir"
                    assert re.search(what, str(error)), error
                    tries[stages[-1]] += 1
            assert set(tries) == set(stages), f"{set(stages) - set(tries)} met no full disk"
            same(disk / "cache", bench.whole)
            failures += tries
            shutil.rmtree(disk / "cache")
    return failures.total(), (
        "one error with folder and remedy, in every stage; then every byte as undisturbed"
    )


def read_only(bench: Bench, rng: random.Random, cases: int):
    """a cache on a read-only mount: complete; without one stage; with one file damaged"""
    mounting()
    n = 1
    cache = bench.copy()
    with disturb.read_only(cache, bench.new("shown")) as shown, disturb.watched_work() as work:
        disturb.build(bench.le(shown))
    assert work == ([], []), "something was computed"
    for stage in sorted(path for path in (cache / "tiny").iterdir() if path.is_dir()):
        for damaged in rng.sample(sorted(stage.glob("*.*")), min(cases, 2)) + [None]:
            cache = bench.copy()
            if damaged is None:
                shutil.rmtree(cache / "tiny" / stage.name)
            else:
                path = cache / "tiny" / stage.name / damaged.name
                path.write_bytes(disturb.cut(path.read_bytes(), rng))
            left = tree(cache)
            with (
                disturb.read_only(cache, bench.new("shown")) as shown,
                disturb.watched_work() as work,
            ):
                try:
                    disturb.build(bench.le(shown))
                    raise AssertionError(f"{stage.name} is not missed")
                except ReadOnly as error:
                    assert stage.name in str(error) and "lea_cache_dir" in str(error), error
            assert work == ([], []) and tree(cache) == left
            bench.repair(cache)
            n += 1
    return n, (
        "complete: works, nothing is written; else one error that names the folder and the remedy, "
        "before anything is computed; writable again, every byte as undisturbed"
    )


def clock(bench: Bench, rng: random.Random, cases: int):
    """the clock jumps back at every look at it, by up to a year; files dated up to 2090"""
    for _ in range(cases):
        cache = bench.new()
        at = rng.randint(1, bench.n_writes)
        process = child(disturb.build_back_in_time, bench.le(cache), rng.random(), at)
        assert ended(process) == -KILL
        for path in files_of(cache):
            os.utime(path, (rng.uniform(0, 3.8e9), rng.uniform(0, 3.8e9)))
        build_the_rest(bench.le(cache))
        for path in files_of(cache):
            os.utime(path, (rng.uniform(0, 3.8e9), rng.uniform(0, 3.8e9)))
        assert bench.repair(cache) == ([], "")
    return cases, "killed on the way: every byte as undisturbed; nothing was computed twice"


def together(bench: Bench, rng: random.Random, cases: int):
    """three builds at once on one cache, one of them killed at a random write"""
    for _ in range(cases):
        cache = bench.new()
        at = (rng.randint(1, bench.n_writes // 2), 0)
        builds = [child(disturb.build, bench.le(cache)) for _ in range(2)]
        killed = child(disturb.build_and_die, bench.le(cache), *at)
        assert [ended(build) for build in builds] == [0, 0]
        assert ended(killed) in (0, -KILL)
        same(cache, bench.whole)
        repaired = bench.repair(cache)
        assert repaired == ([], ""), repaired
        shutil.rmtree(cache)
    return cases, "the others wait or take over; every byte as undisturbed"


def copied(bench: Bench, rng: random.Random, cases: int):
    """a cache copied to another folder: other dates, foreign lock files, LLM elsewhere or absent"""
    for case in range(cases):
        cache = bench.copy()
        for path in files_of(cache):
            if path.name == "lock":
                path.write_text(f"{rng.randint(1, 99999)}\notherhost\n/home/other/lea_cache\n")
            os.utime(path, (rng.uniform(0, 3.8e9), rng.uniform(0, 3.8e9)))
        for folder in [path for path in (cache / "tiny").glob("*/") if path.is_dir()]:
            (folder / "@eaDir").mkdir()  # as some file servers leave behind
        llm = bench.new("llm")
        if case % 2:  # the same LLM under another path
            shutil.copytree(bench.llm, llm)
        else:
            path = cache / "tiny" / "llm.json"
            known = json.loads(path.read_text())["known"]
            forge(path, known=[entry | {"llm": str(llm)} for entry in known])
        with disturb.watched_work() as work:
            disturb.build(le(str(llm), cache), without_llm=case % 2 == 0)
        assert work == ([], []), "something was computed"
        assert without(tree(cache), "llm.json") == without(tree(bench.whole), "llm.json")
    return cases, "used as it is; nothing was computed or changed"


def other_version(bench: Bench, rng: random.Random, cases: int):
    """a cache by other package versions; by another `FORMAT` of files, all or some; of stages"""
    whole = tree(bench.whole)
    for case in range(cases):
        cache = bench.copy()
        paths = records(cache)
        kind = case % 3
        if kind == 0:
            for path in paths:
                forge(path, versions={"python": "2.7", "torch": "9.9", "recbole_lea": "99"})
            left = tree(cache)
            with disturb.watched_work() as work:
                disturb.build(bench.le(cache))
            assert work == ([], []) and tree(cache) == left
        elif kind == 1:
            for path in paths if case == 1 else rng.sample(paths, 3):
                forge(path, format=rng.choice([1, 3, "2", None]))
            _, log = bench.repair(cache)
            assert "of another version: ignored" in log
        else:
            with mock.patch.object(stages, "FORMAT", rng.choice([1, 3])):
                disturb.build(bench.le(cache))
            both = tree(cache)
            assert len(both) > len(whole) and both.items() >= whole.items()
            with disturb.watched_work() as work:
                disturb.build(bench.le(cache))
            assert work == ([], []) and tree(cache) == both
    return (
        cases,
        "other packages: used; other file format: a warning, computed again; stages that compute "
        "something else: both stand side by side",
    )


def damage(bench: Bench, rng: random.Random, cases: int):
    """each file of the cache, one at a time: a bit flipped, cut to half, emptied, deleted"""
    kinds = {
        **{f"flip {i}": disturb.flip for i in range(cases)},
        "half": lambda content, rng: content[: len(content) // 2],
        "empty": lambda content, rng: b"",
        "deleted": None,
    }
    n, noticed = 0, 0
    for name in sorted(tree(bench.whole)):
        for kind, change in kinds.items():
            cache = bench.copy()
            path = cache / name
            if change is None:
                path.unlink()
            else:
                path.write_bytes(change(path.read_bytes(), rng))
            stage = Path(name).parent.name.split("-")[0]
            work, log = bench.repair(cache)
            assert change is None or str(path.parent) in log, f"{name} {kind}: no word in the log"
            assert set(work) <= {stage}, f"{name} {kind}: {work} computed again"
            n += 1
            noticed += bool(log)
            shutil.rmtree(cache)
    return n, (
        f"each is noticed and named in the log ({n - noticed} deleted records are not: they look "
        "unfinished); only its own stage is computed again; every byte as undisturbed"
    )


def links(bench: Bench, rng: random.Random, cases: int):
    """each file of the cache as a link to a sound or altered one; links and `..` in records"""
    n = 0
    outside = bench.new("outside")
    outside.mkdir()
    (outside / "x").write_bytes(b"precious")
    for name in sorted(tree(bench.whole)):
        cache, target = bench.copy(), outside / f"{n}"
        path = cache / name
        content = path.read_bytes()
        target.write_bytes(rng.choice([content, disturb.flip(content, rng)]))
        kept = target.read_bytes()
        path.unlink()
        path.symlink_to(target)
        bench.repair(cache)
        assert target.read_bytes() == kept, f"{name}: written through the link"
        n += 1
        shutil.rmtree(cache)
    inside = [path.relative_to(bench.whole) for path in records(bench.whole)]
    for name in inside:
        for bad in rng.sample(["../x", str(outside / "x"), "..", "a/../../x"], cases):
            cache = bench.copy()
            digest = store.file_checksum(outside / "x")
            forge(cache / name, files={bad: digest})
            _, log = bench.repair(cache)
            assert "which is not beside it: ignored" in log, log
            n += 1
            shutil.rmtree(cache)
    assert (outside / "x").read_bytes() == b"precious"
    return (
        n,
        "nothing outside is written, or read without its checksum; every byte as undisturbed",
    )


def killed_training(bench: Bench, rng: random.Random, cases: int):
    """a training that meets any of the three signals in an epoch or a save, and is resumed"""
    reference, strikes, resumed = bench.trained, 0, 0
    while strikes < cases:
        folder, log = bench.new("training"), bench.new("log")
        while True:
            # each struck run has left one checkpoint, or was too short for it: the newest
            made = sorted((folder / "saved").glob("*.pth"), key=os.path.getmtime)
            for path in made:
                Checkpoint.read(path)  # never half of one
            resumed += bool(made)
            delay, number = rng.choice([0, rng.random() * 0.3]), rng.choice([KILL, TERM, INT])
            at = (rng.randrange(8), None) if rng.random() < 0.5 else (None, rng.randint(1, 8))
            if strikes >= cases:
                number, at = None, (None, None)
            strike = (number, *at, delay)
            path = made[-1] if made else None
            outcome = bench.train(folder, resume=path, strike=strike, log=log)
            if bench.code == 0:
                break
            assert bench.code == CODES[number], f"exit code {bench.code}: {log.read_text()}"
            strikes += 1
        equal(outcome, reference)
        text = log.read_text()
        assert text.count("Traceback") <= text.count("Exception ignored in"), text
    return cases, (
        f"resumed {resumed} times, else begun again as nothing was saved yet: last weights, best "
        "score and test result are bit for bit the undisturbed ones; no half checkpoint"
    )


def resumed_twice(bench: Bench, rng: random.Random, cases: int):
    """a finished training resumed, and that once more with more epochs"""
    folder = bench.new("training")
    keys = {"epochs": 3, "lea_method": "base"}
    at_end = bench.train(folder, keys=keys)
    (path,) = (folder / "saved").glob("*.pth")
    epoch = torch.load(path, weights_only=True)["epoch"]
    for epochs in (epoch + 1, epoch + 1):
        bench.train(folder, keys=keys | {"epochs": epochs}, resume=path)
        assert torch.load(path, weights_only=True)["epoch"] == epoch, (
            "the checkpoint forgot its epoch"
        )
    assert at_end
    return 2, "keeps its epoch and its model"


def damaged_checkpoint(bench: Bench, rng: random.Random, cases: int):
    """a training's checkpoint: bits flipped, cut anywhere, emptied; read, resumed and tested"""
    path = Path(bench.trained[3])
    whole, content = Checkpoint.read(path), path.read_bytes()
    broken = bench.new("broken")
    outcomes: collections.Counter = collections.Counter()
    for case in range(cases):
        change = (disturb.flip, disturb.flip, disturb.flip, disturb.cut)[case % 4]
        broken.write_bytes(b"" if case == 3 else change(content, rng))
        try:
            loaded = torch.load(broken, weights_only=True)["state_dict"]
            alike = all(torch.equal(loaded[name], value) for name, value in whole.state.items())
            outcomes["torch alike" if alike else "torch other"] += 1
        except Exception:
            outcomes["torch refuses"] += 1
        try:
            read = Checkpoint.read(broken)
        except ValueError as error:
            assert str(broken) in str(error)
            outcomes["refused"] += 1
            continue
        assert read.config == whole.config and read.item_tokens == whole.item_tokens
        for name, value in whole.state.items():
            assert torch.equal(read.state[name], value), f"{name} differs"
        outcomes["harmless"] += 1
    folder, log = bench.new("training"), bench.new("log")
    at = content.index(b"\0" * 64, len(content) // 2)  # Adam's moments have runs of zeros
    broken.write_bytes(content[:at] + b"\1" + content[at + 1 :])
    assert bench.train(folder, resume=broken, log=log) is None
    last = log.read_text().splitlines()[-1]
    assert last.startswith(f"error: {broken} is damaged"), last
    return cases + 1, (
        f"{outcomes['refused']} refused in one line, {outcomes['harmless']} in padding or dates "
        f"read as the whole one; torch alone reads {outcomes['torch other']} as other weights"
    )


def training_disk(bench: Bench, rng: random.Random, cases: int):
    """no room for the second checkpoint; `checkpoint_dir` or the complete cache read-only"""
    mounting()
    reference = bench.trained
    size = Path(reference[3]).stat().st_size
    for _ in range(cases):
        folder, log = bench.new("training"), bench.new("log")
        with disturb.small_disk(bench.new("disk"), 3 * size) as disk:
            disturb.leave(disk, int(size * rng.uniform(1.2, 1.8)))
            keys = {"checkpoint_dir": str(disk / "saved")}
            assert bench.train(folder, keys=keys, log=log) is None and bench.code == 1
            lines = log.read_text().splitlines()
            assert lines[-1].startswith("error: no space left in") and "Traceback" not in str(lines)
            (path,) = (disk / "saved").iterdir()
            Checkpoint.read(path)
    folder, log = bench.new("training"), bench.new("log")
    (folder / "models").mkdir(parents=True)
    with disturb.read_only(folder / "models", bench.new("shown")) as shown:
        keys = {"checkpoint_dir": str(shown)}
        assert bench.train(folder, keys=keys, log=log) is None and bench.code == 1
    assert "cannot be written to" in log.read_text().splitlines()[-1]
    with disturb.read_only(bench.place / "trained_cache", bench.new("shown")) as shown:
        equal(bench.train(bench.new("training"), keys={"lea_cache_dir": str(shown)}), reference)
        keys = {"lea_cache_dir": str(shown), "seed": 5}  # another model, another top-5
        log = bench.new("log")
        assert bench.train(bench.new("training"), keys=keys, log=log) is None and bench.code == 1
    assert "error: the cache lacks augmentation, and " in log.read_text().splitlines()[-1]
    return cases + 3, (
        "one error line, the first checkpoint is whole; a complete cache trains read-only with the "
        "undisturbed result, one without the augmentation is one error line"
    )


def same_second(bench: Bench, rng: random.Random, cases: int):
    """trainings in one folder at the same second by the clock, at once and one after the other"""
    reference = bench.trained
    folder = bench.new("training")
    keys = bench.keys(folder)
    queue = disturb.CONTEXT.Queue()
    runs = [child(disturb.train, folder, keys, queue, stopped=True) for _ in range(2)]
    outcomes = [queue.get(timeout=600) for _ in runs]
    assert [ended(run) for run in runs] == [0, 0]
    kept = {path: path.read_bytes() for path in (folder / "saved").iterdir()}
    outcomes.append(bench.train(folder, stopped=True))
    for outcome in outcomes:
        equal(outcome, reference)
    assert len({outcome[3] for outcome in outcomes}) == 3
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert len(list(folder.rglob("run.json"))) == 3
    return 3, "each keeps its own checkpoint and run.json; results as undisturbed"


# fault: cases in full and in quick
FAULTS = {
    kill: (25, 4), terminate: (10, 2), interrupt: (15, 3), full_disk: (30, 20), read_only: (2, 0),
    clock: (4, 1), together: (3, 1), copied: (4, 2), other_version: (6, 3), damage: (1, 1),
    links: (1, 1), killed_training: (10, 2), resumed_twice: (1, 1), damaged_checkpoint: (300, 40),
    training_disk: (2, 1), same_second: (1, 1),
}  # fmt: skip


def run(function, bench: Bench, seed: int, cases: int) -> tuple[str, bool]:
    """One fault; its row of the table, and whether all was well."""
    start, well = time.perf_counter(), True
    try:
        n, happened = function(bench, random.Random(f"{function.__name__} {seed}"), cases)
    except NotHere as error:
        n, happened = 0, f"not tried: {error}"
    except Exception as error:
        traceback.print_exc()
        n, happened, well = 0, f"FAILED: {error}", False
    name = function.__name__
    print(f"{name}: {time.perf_counter() - start:.0f} s, {happened}", flush=True)
    again = f"`python tests/faults.py --only {name}`"
    return f"| {function.__doc__} | {n:,} | {happened} | {again} |", well


def main() -> int:
    """Parse the command line, disturb, and print the table."""
    names = [function.__name__ for function in FAULTS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the random moments")
    parser.add_argument("--only", choices=names, nargs="+", default=names, help="these alone")
    parser.add_argument("--quick", action="store_true", help="few cases of each")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    place = Path(tempfile.mkdtemp(prefix="faults"))
    llm = place / "llm"
    llm.mkdir()
    bench = Bench(place, write_tiny_llm(llm))
    chosen = [f for f in FAULTS if f.__name__ in options.only]
    rows = [run(f, bench, options.seed, FAULTS[f][options.quick]) for f in chosen]
    print("\n| tried | cases | what happened | again |\n|---|---|---|---|")
    print("\n".join(row for row, _ in rows))
    well = all(well for _, well in rows)
    if well:
        shutil.rmtree(place)
    else:
        print(f"what was left is in {place}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
