"""Keys that every run of a test's benchmark gets, and synthetic results."""

import numpy as np
import yaml

from recbole_lea.experiments import run, runner
from recbole_lea.experiments.plan import table
from recbole_lea.experiments.report import Report
from recbole_lea.experiments.runner import Outcome
from recbole_lea.experiments.statistics import Users
from tests.conftest import tiny_keys

METRICS = [f"{name}@{k}" for name in ("hit", "ndcg", "mrr") for k in (5, 10, 20)]
CODE = {"commit": "c" * 40, "clean": True, "fingerprint": "f"}


def tiny_yaml(llm, folder, **changes):
    """A YAML file with the keys of the tiny dataset."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_keys(llm) | changes), encoding="utf-8")
    return str(path)


def in_process(monkeypatch):
    """Let runs be done in this process, with quick statistics; returns those that are started."""
    monkeypatch.setattr("recbole_lea.experiments.statistics.PERMUTATIONS", 99)
    monkeypatch.setattr("recbole_lea.experiments.statistics.BOOTSTRAPS", 99)
    started = []

    def execute(runs, jobs):
        started.extend(runs)
        for own in runs:
            own.finished.add(*run.execute(own.spec, own.folder))
        return []

    monkeypatch.setattr(runner, "execute", execute)
    return started


def run_json(values, **changes):
    """What a finished test leaves, with the metrics all at ``values``."""
    content = {
        "kind": "test", "model": "SASRecSA2CLEA", "seed": 1, "seconds": 60.0, "device": "cpu",
        "threads": 1, "code": CODE, "versions": {"python": "3.11", "torch": "2"},
        "config": {"valid_metric": "NDCG@10", "valid_metric_bigger": True, "epochs": 3,
                   "eval_step": 1, "lea_method": "base", "lea_llm": "wheel:x"},
        "fingerprints": {"llm": "l"},
        "stages": {"training": {"seconds": 50.0, "peak_memory_mb": 900.0}},
        "data": {"users": 40, "items": 20, "training transitions": 100, "validation rows": 40,
                 "test rows": 40, "test users": 40},
        "le": {"code": CODE}, "best_valid_score": 0.1, "best_is_warmup": False,
        "valid_curve": [[0, 0.05], [1, 0.1], [2, 0.09]],
        "test_result": dict.fromkeys(METRICS, values),
    }  # fmt: skip
    return content | changes


def outcome(method, means, seed=0, **changes):
    """An outcome with one test a mean, and users that scatter around it."""
    rng = np.random.default_rng(seed)
    tokens, rows = np.array([f"u{i:03}" for i in range(60)]), np.ones(60, dtype=int)
    records, users = {}, {}
    for number, mean in enumerate(means, 1):
        values = np.clip(mean + rng.normal(0, 0.05, 60), 0, 1)
        records[number] = run_json(float(values.mean()), seed=number, **changes)
        users[number] = {metric: Users(tokens, rows, values) for metric in METRICS}
    chosen = {"learning_rate": 0.001}
    trial = run_json(0.1, kind="trial", **changes)
    return Outcome(method, [(chosen, trial)], chosen, records, users)


def table_4():
    """Table 4: LER far better than SA2C, LEA alike, LEAR worse."""
    methods = {method.name: method for method in table(4)}
    means = {"RecBole": 0.30, "SA2C": 0.30, "LER": 0.45, "LEA": 0.30, "LEAR": 0.2}
    return [
        outcome(methods[name], [mean + d for d in (0.01, 0.0, -0.01, 0.005, -0.005)], seed)
        for seed, (name, mean) in enumerate(means.items())
    ]


def report(outcomes, **changes):
    keys = {"name": "table4", "dataset": "industrial", "command": "make it", "outcomes": outcomes,
            "les": [], "left_out": {}, "n_seeds": 5} | changes  # fmt: skip
    return Report(**keys)
