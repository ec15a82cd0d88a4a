"""Starts the runs of a table or figure, those that are not finished yet, and reads them back."""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recbole.config import Config

from recbole_lea.engine.versions import code_version
from recbole_lea.experiments.finished import FinishedRuns
from recbole_lea.experiments.plan import Method, Search
from recbole_lea.experiments.run import Spec
from recbole_lea.experiments.statistics import Users
from recbole_lea.le import LESettings
from recbole_lea.store.cache import stage_folder
from recbole_lea.store.files import write_json

logger = logging.getLogger(__name__)

CHILD = (sys.executable, "-m", "recbole_lea.experiments.run")

POLL = 0.1  # seconds between two looks at the processes

# Keys of a run that builds nothing of the LE; ``Method.le_wants`` adds to them.
NOTHING = {
    "lea_method": "base", "lea_state": "hidden", "lea_reward": "constant",
    "lea_augmentation": "none",
}  # fmt: skip


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

    def written(self) -> dict[str, Any] | None:
        """Its record as it is written down."""
        return self.finished.records().get(self.name)

    def record(self) -> dict[str, Any] | None:
        """Its record; None while it is not finished, or if a default has changed since."""
        content = self.written()
        if content is None:
            return None
        known = content["config"]
        same = all(known.get(key, value) == value for key, value in self.values.items())
        return content if same else None


@dataclasses.dataclass
class Outcome:
    """What there is of one method."""

    method: Method
    trials: list[tuple[dict[str, Any], dict[str, Any]]]  # keys and record of each finished one
    chosen: dict[str, Any] | None  # keys of the best trial; None while trials are missing
    records: dict[int, dict[str, Any]]  # seed -> record of the finished tests
    users: dict[int, dict[str, Users]]  # seed -> metric -> values by test user


@dataclasses.dataclass
class Benchmark:
    """The runs of one table or figure on one dataset.

    The process has to let RecBole read ``arguments`` (``recbole_lea.arguments.set_given``).

    Raises:
        ValueError: a reported seed is the tuning seed, or ``only`` names no row of the table.
    """

    dataset: str
    methods: Sequence[Method]  # the rows
    search: Search  # grid and trials
    seeds: Sequence[int]  # of the reported runs
    results: Path  # folder of all results
    config_files: tuple[str, ...] = ()  # of all runs
    arguments: tuple[str, ...] = ()  # --key=value of all runs
    jobs: int = 1  # runs at a time
    rerun_old: bool = False  # repeat finished runs whose training code was another
    only: Sequence[str] = ()  # labels of the rows to run now; empty for all

    def __post_init__(self) -> None:
        seed = self.search.tuning_seed
        if seed in self.seeds:
            raise ValueError(
                f"the tuning seed {seed} is among the reported seeds: what was chosen on it would "
                "be reported as found; change tuning_seed"
            )
        labels = [method.label for method in self.methods]
        for name in self.only:
            if name not in labels:
                raise ValueError(f"no row is called {name!r}; there are: {', '.join(labels)}")
        self.folder = self.results / self.dataset
        self.finished = FinishedRuns(self.folder)
        self.possible = [method for method in self.methods if method.missing is None]
        self.wanted = [m for m in self.possible if not self.only or m.label in self.only]
        self.code = code_version()["fingerprint"]
        config = self._le_spec({}).config()
        self.cache = Path(config["lea_cache_dir"]) / self.dataset
        self.data = data_fingerprint(config)
        self._identities: dict[str, tuple[str, dict[str, Any]]] = {}

    def _spec(self, kind: str, method: Method, keys: Mapping[str, Any], seed: int) -> Spec:
        return Spec(
            kind, method.model, method.stock, self.dataset, seed, {**method.keys, **keys},
            self.config_files, self.arguments, method.label,
        )  # fmt: skip

    def _le_spec(self, keys: dict[str, Any]) -> Spec:
        return Spec(
            "le", "SASRecSA2CLEA", False, self.dataset, self.search.tuning_seed, keys,
            self.config_files, self.arguments, "LE",
        )  # fmt: skip

    def _run(self, spec: Spec) -> Run:
        own = json.dumps([spec.kind, spec.model, spec.stock, spec.seed, spec.keys])
        if own not in self._identities:  # RecBole takes its time to make a config
            self._identities[own] = spec.identity(self.data)
        key, values = self._identities[own]
        name = f"{spec.kind}-{'RecBole-' * spec.stock}{spec.model}-{key[:12]}"
        return Run(spec, self.folder / "runs" / name, values, self.finished)

    def trials(self, method: Method) -> list[Run]:
        """The method's search; without anything to choose from, none."""
        points = self.search.points(method)
        specs = [self._spec("trial", method, p, self.search.tuning_seed) for p in points]
        return [self._run(spec) for spec in specs] if len(specs) > 1 else []

    def chosen(self, method: Method) -> dict[str, Any] | None:
        """Keys of the best trial on validation; None while one is missing."""
        points = self.search.points(method)
        records: list[Any] = [run.record() for run in self.trials(method)]
        if None in records:
            return None
        if not records:
            return points[0]
        sign = 1 if records[0]["config"]["valid_metric_bigger"] else -1
        return points[int(np.argmax([sign * r["best_valid_score"] for r in records]))]

    def tests(self, method: Method) -> list[Run]:
        """One run a seed with the chosen keys; empty while they are not chosen."""
        chosen = self.chosen(method)
        if chosen is None:
            return []
        keys = chosen | dict(method.changes)
        return [self._run(self._spec("test", method, keys, seed)) for seed in self.seeds]

    def environments(self) -> list[Run]:
        """One run for each LE, which builds all that the methods want of it."""
        return [run for run, _ in self._environments]

    def unbuilt(self) -> list[Run]:
        """The LEs to be built.

        A finished one too, if its cache is not here (a fresh clone has the records alone) and a
        method that needs it has runs to do.
        """

        def needed(methods: list[Method]) -> bool:
            runs = (self.trials(method) + self.tests(method) for method in methods)
            return any(map(self.pending, runs))

        return [
            run
            for run, methods in self._environments
            if not self._is_done(run) or (not self._in_cache(run) and needed(methods))
        ]

    def _in_cache(self, run: Run) -> bool:
        record: Any = run.record()
        stages = record["fingerprints"]["feedback"].items()
        return all(stage_folder(self.cache, *stage).is_dir() for stage in stages)

    @functools.cached_property
    def _environments(self) -> list[tuple[Run, list[Method]]]:
        """Each LE's run, and the methods that need it."""
        wants: dict[str, dict[str, Any]] = {}
        needing: dict[str, list[Method]] = {}
        for method in self.wanted:
            if not method.le_wants:
                continue
            for changes in ({}, dict(method.changes)):  # the trials' LE and the tests'
                config = self._spec("le", method, changes, 0).config()
                settings = LESettings.from_config(config.final_config_dict)
                settings = dataclasses.replace(settings, shuffle=False)  # the same LE, read askew
                key = json.dumps(dataclasses.asdict(settings), sort_keys=True)
                needing.setdefault(key, []).append(method)
                start = {k: v for k, v in changes.items() if k.startswith("lea_")}
                wants.setdefault(key, NOTHING | start).update(method.le_wants)
        return [(self._run(self._le_spec(want)), needing[key]) for key, want in wants.items()]

    def pending(self, runs: Iterable[Run]) -> list[Run]:
        """The runs to be done, each once."""
        once: dict[Path, Run] = {}
        for run in runs:
            once.setdefault(run.folder, run)
        return [run for run in once.values() if not self._is_done(run)]

    def _is_done(self, run: Run) -> bool:
        content = run.record()
        return content is not None and not (
            self.rerun_old and content["code"]["fingerprint"] != self.code
        )

    def run(self) -> list[Run]:
        """Do all that is missing: the LEs, then the trials, then the tests.

        Returns:
            The runs that failed.
        """
        failed = self._phase("LE", self.environments(), self.unbuilt())
        if failed:
            return failed
        trials = [run for method in self.wanted for run in self.trials(method)]
        failed = self._phase("trial", trials, self.pending(trials))
        tests = [run for method in self.wanted for run in self.tests(method)]
        return failed + self._phase("test", tests, self.pending(tests))

    def _phase(self, title: str, runs: list[Run], pending: list[Run]) -> list[Run]:
        total = len({run.folder for run in runs})
        if total:
            logger.info("%s: %d of %d runs are finished", title, total - len(pending), total)
        # an LE gets the whole machine
        return execute(pending, 1 if title == "LE" else self.jobs) if pending else []

    def outcomes(self) -> list[Outcome]:
        """What the finished runs say, in the order of the methods."""
        found = []
        for method in self.possible:
            trials = [run.record() for run in self.trials(method)]
            points = zip(self.search.points(method), trials, strict=False)
            tests = {run.spec.seed: run for run in self.tests(method) if run.record()}
            found.append(Outcome(
                method,
                [(point, record) for point, record in points if record],
                self.chosen(method),
                {seed: record for seed, run in tests.items() if (record := run.record())},
                {seed: self.finished.users(run.name) for seed, run in tests.items()},
            ))  # fmt: skip
        return found

    def plan(self) -> str:
        """What there is to do (``--dry-run``)."""
        width = max(len(method.label) for method in self.methods) + 2
        counts = f"{len(self.unbuilt())} of {len(self.environments())}"
        lines = [f"  {'LE':<{width}}{counts}"]
        for method in self.methods:
            if method.missing:
                lines.append(f"  {method.label:<{width}}left out: {method.missing}")
            elif method in self.wanted:
                trials, tests = self.trials(method), self.tests(method)
                left = len(self.pending(tests)) if tests else len(self.seeds)
                lines.append(
                    f"  {method.label:<{width}}trials {len(self.pending(trials))} of "
                    f"{len(trials)}, tests {left} of {len(self.seeds)}"
                )
        return "\n".join(lines)


def data_fingerprint(config: Config) -> str:
    """Hex digest of the dataset's files.

    Raises:
        FileNotFoundError: one is not there; the message says how to make it.
    """
    digest = hashlib.sha256()
    name = config["dataset"]
    for suffix in ("inter", "item"):
        path = Path(config["data_path"]) / f"{name}.{suffix}"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist; give --data_path=FOLDER with {name}/ in it"
                + (f", or make it by: {config['lea_prepare']}" if config["lea_prepare"] else "")
            )
        digest.update(path.read_bytes())
    return digest.hexdigest()


def execute(runs: Sequence[Run], jobs: int, child: Sequence[str] = CHILD) -> list[Run]:
    """Do runs, each in a process of its own.

    Args:
        runs: not finished.
        jobs: processes at a time; they share the processor's cores.
        child: command that takes a run's folder.

    Returns:
        The runs that failed; the others go on.
    """
    jobs = min(jobs, len(runs))
    waiting, failed, start = list(reversed(runs)), [], time.monotonic()
    running: dict[subprocess.Popen, tuple[Run, dict[str, Any] | None]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop()
                before = run.written()
                running[_started(run, jobs, child)] = (run, before)
            time.sleep(POLL)
            for process in [process for process in running if process.poll() is not None]:
                run, before = running.pop(process)
                if process.returncode or run.written() == before:
                    failed.append(run)
                    _report_failure(run)
                done = len(runs) - len(waiting) - len(running)
                left = (time.monotonic() - start) / done * (len(runs) - done)
                logger.info(
                    "%d of %d: %s; about %s left", done, len(runs), run.name, duration(left)
                )
    finally:
        for process in running:
            process.terminate()
    return failed


def _started(run: Run, jobs: int, child: Sequence[str]) -> subprocess.Popen:
    run.folder.mkdir(parents=True, exist_ok=True)
    again = run.written() is not None
    write_json(run.folder / "spec.json", dataclasses.asdict(run.spec) | {"again": again})
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with (run.folder / "run.log").open("wb") as log:
        return subprocess.Popen([*child, str(run.folder)], stdout=log, stderr=log, env=environment)


def _report_failure(run: Run) -> None:
    log = run.folder / "run.log"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    logger.error("failed: %s\n  %s", log, lines[-1] if lines else "(it wrote nothing)")


def duration(seconds: float) -> str:
    """Such as "3 h 20 min"."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
