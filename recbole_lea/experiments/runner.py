"""Starts the runs of a table or figure, those that are not finished yet, and reads them back."""

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole.config import Config

from recbole_lea.experiments.finished import FinishedRuns
from recbole_lea.experiments.plan import Method, Search
from recbole_lea.experiments.run import Spec, estimate
from recbole_lea.experiments.statistics import Users
from recbole_lea.le import LESettings
from recbole_lea.le.settings import BARE_KEYS
from recbole_lea.store.files import write_json

logger = logging.getLogger(__name__)

CHILD = (sys.executable, "-m", "recbole_lea.experiments.run")

# What the runs are made for that build an LE, and keys of one that builds nothing of it.
LE = Method("SASRec", "SA2C", "LE", {})
NOTHING = {
    "lea_method": "base", "lea_state": "hidden", "lea_reward": "constant",
    "lea_augmentation": "none",
}  # fmt: skip
# Keys that say what the recommender makes of the LE, and change nothing of it.
RECOMMENDER = {"lea_shuffle", "lea_advantage", "lea_output_head"}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run and where its results are."""

    spec: Spec
    folder: Path  # where it works; called like the run
    values: Mapping[str, Any]  # of all config keys, as ``Spec.identity`` gives them
    finished: FinishedRuns  # where it is written down in the end

    @property
    def name(self) -> str:
        """What it is called among the finished runs."""
        return self.folder.name

    def record(self) -> dict[str, Any] | None:
        """Its record; None while it is not finished, or if a default has changed since."""
        content = self.finished.records().get(self.name)
        return content if content and self.like(content) else None

    def like(self, content: Mapping[str, Any], free: Collection[str] = ()) -> bool:
        """Whether a record has this run's keys, as far as it knew them; the ``free`` may differ."""
        asked = {key: value for key, value in self.values.items() if key not in free}
        return all(content["config"].get(key, value) == value for key, value in asked.items())


@dataclasses.dataclass
class Outcome:
    """What there is of one method so far."""

    method: Method
    trials: list[tuple[dict[str, Any], dict[str, Any]]]  # keys and record of each finished one
    chosen: dict[str, Any] | None  # keys of the best trial; None while trials are missing
    records: dict[int, dict[str, Any]]  # seed -> record of the finished tests
    users: dict[int, dict[str, Users]]  # seed -> metric -> values by test user


@dataclasses.dataclass
class Benchmark:
    """The runs of one table or figure on one dataset.

    The process has to let RecBole read ``arguments`` (``recbole_lea.arguments.set_given``).
    Raises a ValueError if a reported seed is the tuning seed, or ``only`` names no row of the
    table, and a FileNotFoundError if the dataset is not there.
    """

    dataset: str
    methods: Sequence[Method]  # the rows
    search: Search  # grid and trials
    seeds: Sequence[int]  # of the reported runs
    results: Path  # folder of all results
    config_files: tuple[str, ...] = ()  # of all runs
    arguments: tuple[str, ...] = ()  # --key=value of all runs
    jobs: int = 1  # runs at a time
    only: Sequence[str] = ()  # labels of the rows to run now; empty for all

    def __post_init__(self) -> None:
        seed = self.search.tuning_seed
        if seed in self.seeds:
            raise ValueError(
                f"the tuning seed {seed} is among the reported seeds: what was chosen on it would "
                "be reported as found; change tuning_seed"
            )
        labels = [method.label for method in self.methods]
        if unknown := [name for name in self.only if name not in labels]:
            raise ValueError(f"no row is called {unknown[0]!r}; there are: {', '.join(labels)}")
        self.folder = self.results / self.dataset
        self.finished = FinishedRuns(self.folder)
        self.possible = [method for method in self.methods if method.missing is None]
        self.wanted = [m for m in self.possible if not self.only or m.label in self.only]
        self.data = data_fingerprint(self._spec("le", LE, {}, seed).config())
        self._identities: dict[str, tuple[str, dict[str, Any]]] = {}

    def _spec(self, kind: str, method: Method, keys: Mapping[str, Any], seed: int) -> Spec:
        return Spec(
            kind, method.model, method.stock, self.dataset, seed, {**method.keys, **keys},
            self.config_files, self.arguments, method.label,
        )  # fmt: skip

    def _run(self, kind: str, method: Method, keys: Mapping[str, Any], seed: int) -> Run:
        spec = self._spec(kind, method, keys, seed)
        own = json.dumps([kind, spec.model, spec.stock, seed, spec.keys])
        if own not in self._identities:  # RecBole takes its time to make a config
            self._identities[own] = spec.identity(self.data)
        key, values = self._identities[own]
        name = f"{kind}-{'RecBole-' * spec.stock}{spec.model}-{key[:12]}"
        return Run(spec, self.folder / "runs" / name, values, self.finished)

    def trials(self, method: Method) -> list[Run]:
        """The method's search; without anything to choose from, none."""
        points, seed = self.search.points(method), self.search.tuning_seed
        return [self._run("trial", method, p, seed) for p in points] if len(points) > 1 else []

    def chosen(self, method: Method) -> dict[str, Any] | None:
        """Keys of the best trial on validation; None while one is missing."""
        points = self.search.points(method)
        records: list[Any] = [run.record() for run in self.trials(method)]
        if None in records or not records:
            return None if records else points[0]
        best = max if records[0]["config"]["valid_metric_bigger"] else min
        scores = [record["best_valid_score"] for record in records]
        return points[scores.index(best(scores))]

    def tests(self, method: Method) -> list[Run]:
        """One run a seed with the chosen keys; empty while they are not chosen."""
        if (chosen := self.chosen(method)) is None:
            return []
        keys = chosen | dict(method.changes)
        return [self._run("test", method, keys, seed) for seed in self.seeds]

    @functools.cached_property
    def environments(self) -> list[Run]:
        """One run for each LE, which builds all that the methods want of it."""
        wants: dict[str, dict[str, Any]] = {}
        seed = self.search.tuning_seed
        for method in (method for method in self.wanted if method.le_wants):
            for changes in ({}, dict(method.changes)):  # the trials' LE and the tests'
                config = self._spec("le", method, changes, seed).config()
                settings = LESettings.from_config(config.final_config_dict)
                settings = dataclasses.replace(settings, shuffle=False)  # the same LE, read askew
                key = json.dumps(dataclasses.asdict(settings), sort_keys=True)
                own = {**method.keys, **changes}.items()
                start = {k: v for k, v in own if k not in RECOMMENDER and of_le(k)}
                wants.setdefault(key, start | NOTHING).update(method.le_wants)
        return [self._run("le", LE, want, seed) for want in wants.values()]

    def pending(self, runs: Iterable[Run]) -> list[Run]:
        """The runs to be done, each once."""
        once: dict[Path, Run] = {}
        for run in runs:
            once.setdefault(run.folder, run)
        return [run for run in once.values() if run.record() is None]

    def phases(self) -> Iterator[list[Run]]:
        """What is missing: the LEs, then the trials, then the tests, which follow from them."""
        yield self.pending(self.environments)
        for runs_of in (self.trials, self.tests):
            yield self.pending(run for method in self.wanted for run in runs_of(method))

    def forecast(self) -> Iterator[tuple[Run, float]]:
        """The runs to be done, as far as known, and the seconds that each will take here.

        An LE that has a record, but is no longer in the cache, is built again: it is one of them.
        """
        pending, *others = self.phases()
        for run in self.environments if pending or any(others) else []:
            seconds = estimate(run.spec)
            if seconds or run in pending:
                yield run, seconds
        rows: dict[str, float] = {}  # a trial takes as long as a test
        for run in itertools.chain(*others):
            row = run.spec.method
            rows[row] = rows.get(row) or self._recorded(run) or estimate(run.spec)
            yield run, rows[row]

    def _recorded(self, run: Run) -> float:
        """Median seconds of a row's finished runs, with any seed and searched values; 0 if none."""
        row, free = run.spec.method, {"seed", *run.spec.keys}
        records = [r for r in self.finished.records().values() if r.get("method") == row]
        return statistics.median([r["seconds"] for r in records if run.like(r, free)] or [0.0])

    def run(self) -> list[Run]:
        """Do all that is missing; returns the runs that failed."""
        phases = self.phases()
        failed = execute(next(phases), 1)  # an LE gets the whole machine
        for runs in () if failed else phases:
            failed += execute(runs, self.jobs)
        return failed

    def outcomes(self) -> list[Outcome]:
        """What the finished runs say, in the order of the methods."""
        found = []
        for method in self.possible:
            trials = zip(self.search.points(method), self.trials(method), strict=False)
            searched = [(point, record) for point, run in trials if (record := run.record())]
            runs = {run.spec.seed: run for run in self.tests(method)}
            tests = {seed: record for seed, run in runs.items() if (record := run.record())}
            users = {seed: self.finished.users(runs[seed].name) for seed in tests}
            found.append(Outcome(method, searched, self.chosen(method), tests, users))
        return found


def of_le(key: str) -> bool:
    """Whether a key is one of the LE's."""
    return key.startswith("lea_") or key in BARE_KEYS


def data_fingerprint(config: Config) -> str:
    """Hex digest of the dataset's files; a FileNotFoundError says how to make a missing one."""
    digest = hashlib.sha256()
    for suffix in ("inter", "item"):
        path = Path(config["data_path"]) / f"{config['dataset']}.{suffix}"
        if not path.is_file():
            make = f", or make it by: {config['lea_prepare']}" if config["lea_prepare"] else ""
            raise FileNotFoundError(f"{path} does not exist; give --data_path=FOLDER{make}")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def execute(runs: Sequence[Run], jobs: int, child: Sequence[str] = CHILD) -> list[Run]:
    """Do runs, each in a process of its own: ``child``, a command that takes a run's folder.

    ``jobs`` processes at a time share the processor's cores. Returns the runs that failed.
    """
    waiting, failed = list(runs), []
    running: dict[subprocess.Popen, Run] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[_started(run, min(jobs, len(runs)), child)] = run
            time.sleep(0.1)
            for process in [process for process in running if process.poll() is not None]:
                run = running.pop(process)
                if process.returncode:
                    failed.append(run)
                    log = run.folder / "run.log"
                    last = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")[-1]
                    logger.error("failed: %s\n  %s", log, last or "(no output)")
                done = len(runs) - len(waiting) - len(running)
                logger.info("%d of %d: %s", done, len(runs), run.name)
    finally:
        for process in running:
            process.terminate()
    return failed


def _started(run: Run, jobs: int, child: Sequence[str]) -> subprocess.Popen:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json(run.folder / "spec.json", dataclasses.asdict(run.spec))
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with (run.folder / "run.log").open("wb") as log:
        return subprocess.Popen([*child, str(run.folder)], stdout=log, stderr=log, env=environment)
