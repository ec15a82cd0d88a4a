"""Starts the runs of a table or figure, those that are not finished yet, and reads them back."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import logging
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recbole.config import Config

from recbole_lea.engine.versions import code_version
from recbole_lea.experiments.plan import Method, Search
from recbole_lea.experiments.run import Spec
from recbole_lea.experiments.statistics import Users
from recbole_lea.le import LESettings
from recbole_lea.store.cache import stage_folder
from recbole_lea.store.files import write_json

logger = logging.getLogger(__name__)

# With each user's first interaction, which is no row, they are all interactions.
SPLITS = ("training transitions", "validation rows", "test rows")

CHILD = (sys.executable, "-m", "recbole_lea.experiments.run")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run and where its results are.

    Attributes:
        spec: what it is.
        folder: with ``run.json`` once it is finished.
        values: of all config keys, as ``Spec.identity`` gives them.
    """

    spec: Spec
    folder: Path
    values: Mapping[str, Any]

    def record(self) -> dict[str, Any] | None:
        """``run.json``; None while the run is not finished, or if a default has changed since."""
        path = self.folder / "run.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON ({error}): delete {self.folder}") from None
        known = content["config"]
        same = all(known.get(key, value) == value for key, value in self.values.items())
        return content if same else None

    def users(self) -> dict[str, Users]:
        """Each metric by test user."""
        with np.load(self.folder / "users.npz", allow_pickle=False) as file:
            arrays = dict(file)
        tokens, rows = arrays.pop("users"), arrays.pop("rows")
        return {name: Users(tokens, rows, values) for name, values in arrays.items()}


@dataclasses.dataclass
class Outcome:
    """What there is of one method.

    Attributes:
        method: the row.
        trials: keys and ``run.json`` of each finished trial.
        chosen: keys of the best one; None while trials are missing.
        records: seed -> ``run.json`` of the finished tests.
        users: seed -> metric -> values by test user.
    """

    method: Method
    trials: list[tuple[dict[str, Any], dict[str, Any]]]
    chosen: dict[str, Any] | None
    records: dict[int, dict[str, Any]]
    users: dict[int, dict[str, Users]]


@dataclasses.dataclass
class Benchmark:
    """The runs of one table or figure on one dataset.

    The caller's ``sys.argv`` has to hold ``arguments``, which RecBole reads from there.

    Attributes:
        dataset: its name.
        methods: the rows.
        search: grid and trials.
        seeds: of the reported runs.
        results: folder of all results.
        config_files: YAML files of all runs.
        arguments: ``--key=value`` of all runs.
        jobs: runs at a time.
        rerun_old: repeat finished runs whose training code was another.
        only: labels of the rows to run now; empty for all. The report has whatever is finished.

    Raises:
        ValueError: a reported seed is the tuning seed, or ``only`` names no row of the table.
    """

    dataset: str
    methods: Sequence[Method]
    search: Search
    seeds: Sequence[int]
    results: Path
    config_files: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    jobs: int = 1
    rerun_old: bool = False
    only: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.search.tuning_seed in self.seeds:
            raise ValueError(
                f"the tuning seed {self.search.tuning_seed} is among the reported seeds: what was "
                "chosen on it would be reported as found; change tuning_seed"
            )
        labels = [method.label for method in self.methods]
        for name in self.only:
            if name not in labels:
                raise ValueError(f"no row is called {name!r}; there are: {', '.join(labels)}")
        self.folder = self.results / self.dataset
        self._identities: dict[str, tuple[str, dict[str, Any]]] = {}
        self.code = code_version()["fingerprint"]
        config = self._le_spec({}).config()
        self.cache = Path(config["lea_cache_dir"]) / self.dataset
        self.data = self._data_fingerprint(config)

    def _data_fingerprint(self, config: Config) -> str:
        digest = hashlib.sha256()
        for suffix in ("inter", "item"):
            path = Path(config["data_path"]) / f"{self.dataset}.{suffix}"
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path} does not exist; give --data_path=FOLDER with {self.dataset}/ in it"
                    + (f", or make it by: {config['lea_prepare']}" if config["lea_prepare"] else "")
                )
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def _spec(self, kind: str, method: Method, keys: dict[str, Any], seed: int) -> Spec:
        keys = dict(method.keys) | keys
        return Spec(
            kind, method.model, method.stock, self.dataset, seed, keys,
            self.config_files, self.arguments,
        )  # fmt: skip

    def _run(self, spec: Spec) -> Run:
        name = "RecBole-" * spec.stock + spec.model
        own = json.dumps(dataclasses.asdict(spec))
        if own not in self._identities:  # RecBole takes its time to make a config
            self._identities[own] = spec.identity(self.data)
        key, values = self._identities[own]
        return Run(spec, self.folder / "runs" / f"{spec.kind}-{name}-{key[:12]}", values)

    def trials(self, method: Method) -> list[Run]:
        """The method's search."""
        points = self.search.points(method)
        if len(points) == 1:  # nothing to choose from
            return []
        seed = self.search.tuning_seed
        return [self._run(self._spec("trial", method, point, seed)) for point in points]

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
        return [
            run
            for run, methods in self._environments
            if not self._done(run)
            or (not self._in_cache(run) and any(map(self._unfinished, methods)))
        ]

    def _in_cache(self, run: Run) -> bool:
        record = run.record()
        assert record is not None  # asked of finished runs alone
        stages = record["fingerprints"]["feedback"]
        return all(stage_folder(self.cache, *stage).is_dir() for stage in stages.items())

    def _unfinished(self, method: Method) -> list[Run]:
        return self.pending([*self.trials(method), *self.tests(method)])

    @functools.cached_property
    def _environments(self) -> list[tuple[Run, list[Method]]]:
        """Each LE's run, and the methods that need it."""
        wants: dict[str, dict[str, Any]] = {}
        needing: dict[str, list[Method]] = {}
        for method in self._wanted():
            switches = method.switches
            if not switches.needs_le and not method.le_embeddings:
                continue
            for changes in ({}, dict(method.changes)):  # the trials' LE and the tests'
                config = self._spec("le", method, changes, 0).config()
                settings = LESettings.from_config(config.final_config_dict)
                settings = dataclasses.replace(settings, shuffle=False)  # the same LE, read askew
                key = json.dumps(dataclasses.asdict(settings), sort_keys=True)
                needing.setdefault(key, []).append(method)
                le_keys = {k: v for k, v in changes.items() if k.startswith("lea_")}
                want = wants.setdefault(key, {
                    "lea_method": "base", "lea_state": "hidden", "lea_reward": "constant",
                    "lea_augmentation": "none",
                } | le_keys)  # fmt: skip
                want |= {"lea_state": "both"} if switches.le_state else {}
                want |= {"lea_reward": "LE"} if switches.le_reward else {}
                want |= {"lea_augmentation": "both"} if switches.augmented else {}
                want |= {"item_embedding_init": "le"} if method.le_embeddings else {}
        return [(self._run(self._le_spec(want)), needing[key]) for key, want in wants.items()]

    def _le_spec(self, keys: dict[str, Any]) -> Spec:
        return Spec(
            "le", "SASRecSA2CLEA", False, self.dataset, self.search.tuning_seed, keys,
            self.config_files, self.arguments,
        )  # fmt: skip

    def _possible(self) -> list[Method]:
        return [method for method in self.methods if method.missing is None]

    def _wanted(self) -> list[Method]:
        return [m for m in self._possible() if not self.only or m.label in self.only]

    def pending(self, runs: Iterable[Run]) -> list[Run]:
        """The runs to be done, each once."""
        return [run for run in {run.folder: run for run in runs}.values() if not self._done(run)]

    def _done(self, run: Run) -> bool:
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
        methods = self._wanted()
        trials = [run for method in methods for run in self.trials(method)]
        failed = self._phase("trial", trials, self.pending(trials))
        tests = [run for method in methods for run in self.tests(method)]
        return failed + self._phase("test", tests, self.pending(tests))

    def _phase(self, title: str, runs: list[Run], pending: list[Run]) -> list[Run]:
        total = len({run.folder for run in runs})
        if total:
            logger.info("%s: %d of %d runs are finished", title, total - len(pending), total)
        # an LE gets the whole machine
        jobs = 1 if title == "LE" else self.jobs
        return execute(pending, jobs) if pending else []

    def outcomes(self) -> list[Outcome]:
        """What the finished runs say, in the order of the methods."""
        found = []
        for method in self._possible():
            trials = [(run, run.record()) for run in self.trials(method)]
            tests = [(run, run.record()) for run in self.tests(method)]
            points = self.search.points(method)
            found.append(Outcome(
                method,
                [(point, content)
                 for point, (_, content) in zip(points, trials, strict=False) if content],
                self.chosen(method),
                {run.spec.seed: content for run, content in tests if content},
                {run.spec.seed: run.users() for run, content in tests if content},
            ))  # fmt: skip
        return found

    def plan(self) -> str:
        """What there is to do, and how long it may take (``--dry-run``)."""
        rates = finished_rates(self.results)
        size = self._interactions()
        seconds, unknown = 0.0, 0

        def cost(n: int, kind: str) -> str:
            nonlocal seconds, unknown
            if n and kind not in rates:
                unknown += n
            if not n or kind not in rates:
                return ""
            seconds += n * size * rates[kind]
            return f"  about {duration(n * size * rates[kind])}"

        environments = self.environments()
        n = len(self.unbuilt())
        width = max(len(method.label) for method in self.methods) + 2
        lines = [f"  {'LE':<{width}}{n} of {len(environments)}{cost(n, 'le')}"]
        for method in self.methods:
            if method.missing:
                lines.append(f"  {method.label:<{width}}left out: {method.missing}")
                continue
            if self.only and method.label not in self.only:
                continue
            trials, tests = self.trials(method), self.tests(method)
            trials_left = len(self.pending(trials))
            tests_left = len(self.pending(tests)) if tests else len(self.seeds)
            text = f"trials {trials_left} of {len(trials)}, tests {tests_left} of {len(self.seeds)}"
            # a stock run's record has none of our keys
            kind = (
                _cost_kind(method.backbone, {})
                if method.stock
                else _cost_kind(method.model, method.keys)
            )
            lines.append(f"  {method.label:<{width}}{text}{cost(trials_left + tests_left, kind)}")
        total = f"to do: about {duration(seconds / self.jobs)} with {self.jobs} jobs"
        if unknown:
            total += f", and {unknown} runs of kinds of which none has finished yet"
        return "\n".join([*lines, total + " (from finished runs; on this machine it may differ)"])

    def _interactions(self) -> int:
        config = self._spec("trial", self.methods[0], {}, 0).config()
        with (Path(config["data_path"]) / f"{self.dataset}.inter").open("rb") as file:
            return sum(1 for _ in file) - 1


def _cost_kind(model: str, keys: Mapping[str, Any]) -> str:
    """Runs of one kind take about as long as each other."""
    method = [str(keys.get(key)) for key in ("lea_method", "lea_augmentation")]
    return " ".join([model, *method, str(keys.get("q_weight") == 0)])


def finished_rates(results: Path) -> dict[str, float]:
    """Kind of run -> median seconds an interaction of its dataset, over all finished runs."""
    rates: dict[str, list[float]] = {}
    for path in results.glob("*/runs/*/run.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = "le" if content["kind"] == "le" else _cost_kind(content["model"], content["config"])
        data = content["data"]
        size = data["users"] + sum(data[split] for split in SPLITS)
        rates.setdefault(kind, []).append(content["seconds"] / size)
    return {kind: statistics.median(values) for kind, values in rates.items()}


def duration(seconds: float) -> str:
    """Such as "3 h 20 min"."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


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
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    processes: set[subprocess.Popen] = set()
    lock, stopped = threading.Lock(), False

    def one(run: Run) -> bool:
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "run.json").unlink(missing_ok=True)
        write_json(run.folder / "spec.json", dataclasses.asdict(run.spec))
        command = [*child, str(run.folder)]
        with (run.folder / "run.log").open("wb") as log:
            with lock:
                if stopped:
                    return False
                process = subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, env=environment
                )
                processes.add(process)
            code = process.wait()
        return code == 0 and (run.folder / "run.json").is_file()

    failed, start = [], time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(one, run): run for run in runs}
        try:
            for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
                run = futures[future]
                if not future.result():
                    failed.append(run)
                    logger.error("failed: %s\n  %s", run.folder / "run.log", _last_line(run))
                left = (time.monotonic() - start) / done * (len(runs) - done)
                logger.info(
                    "%d of %d: %s; about %s left", done, len(runs), run.folder.name, duration(left)
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            with lock:
                stopped = True
                for process in processes:
                    process.terminate()
            raise
    return failed


def _last_line(run: Run) -> str:
    lines = (run.folder / "run.log").read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "(it wrote nothing)")
