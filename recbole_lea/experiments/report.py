"""What finished runs say: the rows of a table or figure, and whether they are final."""

import csv
import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_lea.experiments.runner import Outcome
from recbole_lea.experiments.statistics import average, compare, holm
from recbole_lea.store.files import write_json
from recbole_lea.yaml_files import properties_folder

Paper = Mapping[tuple[str, str, str, str], float]
Record = dict[str, Any]

# A comparison that cannot be made
NONE = dict.fromkeys(("relative_gain", "interval", "seed_gains", "p_seeds", "p_users"))


def paper_name(metric: str) -> str:
    """RecBole's ``hit@10`` to the paper's ``HR@10``."""
    return metric.upper().replace("HIT@", "HR@")


def paper_values(number: int, dataset: str) -> Paper:
    """(backbone, framework, method, metric) -> the paper's value in a table."""
    path = properties_folder() / "paper_results.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return {
            (row["backbone"], row["framework"], row["method"], row["metric"]): float(row["value"])
            for row in csv.DictReader(file)
            if row["table"] == str(number) and row["dataset"] == dataset
        }


def table_rows(outcomes: Sequence[Outcome], paper: Paper) -> list[dict[str, Any]]:
    """One row for each method and metric.

    Args:
        outcomes: of all methods, in the table's order; those without a finished test get no row.
        paper: see ``paper_values``.

    Returns:
        Rows with backbone, framework, method, metric, mean, std (over seeds, n - 1), values (by
        seed), seeds, paper, baseline, relative_gain, interval, seed_gains (by seed),
        p_seeds, p_users (both after Holm's correction) and p_value, their maximum: small only
        if both tests agree. ``over_recbole`` has the same against RecBole's own class.
    """
    done = {outcome.method.label: outcome for outcome in outcomes if outcome.records}
    rows = []
    for metric in _records(list(done.values())[:1])[0]["test_result"] if done else ():
        own = [_row(outcome, done, metric, paper) for outcome in done.values()]
        _correct(own, comparisons(outcomes))
        _correct([row["over_recbole"] for row in own], comparisons(outcomes, recbole=True))
        rows += own
    return rows


def comparisons(outcomes: Iterable[Outcome], recbole: bool = False) -> int:
    """How many the table plans: with each method's baseline, or with RecBole's own class."""
    methods = [outcome.method for outcome in outcomes]
    if not recbole:
        return sum(method.baseline is not None for method in methods)
    stock = {method.backbone for method in methods if method.stock}
    return sum(method.backbone in stock and not method.stock for method in methods)


def _correct(compared: Sequence[dict[str, Any]], n: int) -> None:
    for name in ("p_seeds", "p_users"):
        for row, p in zip(compared, holm([row[name] for row in compared], n), strict=True):
            row[name] = p
    for row in compared:
        p_values = [row["p_seeds"], row["p_users"]]
        row["p_value"] = None if None in p_values else max(p_values)


def _row(
    outcome: Outcome, done: Mapping[str, Outcome], metric: str, paper: Paper
) -> dict[str, Any]:
    method, seeds = outcome.method, sorted(outcome.records)
    values = _values(outcome, metric, seeds)
    stock = None if method.stock else done.get(f"{method.backbone} RecBole")
    return {
        "backbone": method.backbone, "framework": method.framework, "method": method.name,
        "label": method.label, "metric": paper_name(metric), "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "values": values, "seeds": seeds,
        "paper": paper.get((method.backbone, method.framework, method.name, paper_name(metric))),
        "baseline": method.baseline_label,
        **_compared(outcome, done.get(method.baseline_label or ""), metric),
        "over_recbole": dict(_compared(outcome, stock, metric)),
    }  # fmt: skip


def _compared(outcome: Outcome, base: Outcome | None, metric: str) -> dict[str, Any]:
    common = sorted(set(outcome.records) & set(base.records)) if base else []
    if base is None or not common:
        return NONE
    users = [average([o.users[seed][metric] for seed in common]) for o in (outcome, base)]
    pair = [_values(o, metric, common) for o in (outcome, base)]
    return compare(pair[0], pair[1], users[0], users[1])


def _values(outcome: Outcome, metric: str, seeds: Sequence[int]) -> list[float]:
    return [outcome.records[seed]["test_result"][metric] for seed in seeds]


def not_final(outcomes: Sequence[Outcome], les: Sequence[Record], n_seeds: int) -> list[str]:
    """Why the results are not final; empty if they are.

    Runs are compared with each other, never with the code that reports them: a finished table
    stays tied to the commits of its runs.

    Args:
        outcomes: of all methods that can be run.
        les: records of the LEs.
        n_seeds: reported seeds.
    """
    by_backbone = _by_backbone(outcomes)
    records = [*les, *(record for own in by_backbone.values() for record in own)]
    codes = [record["code"] for record in records]
    known = all(code["commit"] is not None for code in codes)
    missing = [outcome.method.label for outcome in outcomes if len(outcome.records) < n_seeds]
    le_codes = [record["le"].get("code") or {} for record in les]
    llms = {(r["config"]["lea_llm"], own) for r in records if (own := r["fingerprints"]["llm"])}
    versions, devices = (
        {json.dumps(record[name], sort_keys=True) for record in records}
        for name in ("versions", "device")
    )
    reasons = [
        (missing, f"runs are missing: {', '.join(missing)}"),
        (not all(code.get("clean") for code in le_codes),
         "an LE was trained by code that was not committed, or not recorded"),
        (not known, "runs were made outside a git checkout: their commit is not known"),
        (known and not all(code["clean"] for code in codes),
         "runs were made from uncommitted code"),
        (len(llms) > len({name for name, _ in llms}),
         "runs used different LLMs, or other dtypes, under one name"),
        *((len({record["code"]["fingerprint"] for record in own}) > 1,  # compared with each other
           f"runs of {backbone} were made by different versions of the training code "
           "(--rerun-old repeats the older ones)") for backbone, own in by_backbone.items()),
        (len(versions) > 1, "runs were made with different versions of Python or of packages"),
        (len(devices) > 1, "runs were made on different devices"),
        (n_seeds < 3, f"{n_seeds} seeds are too few for a deviation"),
    ]  # fmt: skip
    return [reason for holds, reason in reasons if holds]


def _records(outcomes: Iterable[Outcome]) -> list[Record]:
    return [record for outcome in outcomes for record in outcome.records.values()]


def _by_backbone(outcomes: Iterable[Outcome]) -> dict[str, list[Record]]:
    """Backbone -> records of its tests and trials."""
    found: dict[str, list[Record]] = {}
    for outcome in outcomes:
        own = [*outcome.records.values(), *(record for _, record in outcome.trials)]
        found.setdefault(outcome.method.backbone, []).extend(own)
    return {backbone: records for backbone, records in found.items() if records}


@dataclasses.dataclass
class Report:
    """The report of one table or figure."""

    name: str  # such as "table2"
    dataset: str
    command: str  # that makes it
    outcomes: Sequence[Outcome]  # of all methods that can be run
    les: Sequence[Record]  # of the LEs
    left_out: Mapping[str, str]  # label -> reason of the methods that cannot be run
    n_seeds: int  # reported

    def __post_init__(self) -> None:
        kind, number = self.name[:-1], int(self.name[-1])
        self.title = f"{kind.capitalize()} {number}"
        paper = paper_values(number, self.dataset) if kind == "table" else {}
        self.rows = table_rows(self.outcomes, paper)
        self.reasons = not_final(self.outcomes, self.les, self.n_seeds)
        self.done = [outcome for outcome in self.outcomes if outcome.records]
        self.records = _records(self.done)

    @property
    def metric(self) -> str:
        """The metric of the validation, which the claims are about."""
        return paper_name(self.records[0]["config"]["valid_metric"])

    @property
    def main_rows(self) -> list[dict[str, Any]]:
        """The rows of that metric."""
        return [row for row in self.rows if row["metric"] == self.metric]

    @property
    def commits(self) -> str:
        """By which commits each backbone's runs were made."""
        found: dict[str, list[str]] = {}
        for backbone, records in _by_backbone(self.done).items():
            commits = sorted({str(record["code"]["commit"]) for record in records})
            found.setdefault(", ".join(commits), []).append(backbone)
        if len(found) == 1:
            return f"Commit {next(iter(found))}"
        return "Commit " + "; ".join(f"{made} ({', '.join(of)})" for made, of in found.items())

    def write(self, folder: Path) -> None:
        """Write ``NAME.json`` and ``NAME-runs.json`` into the folder of the dataset's results."""
        search = {}
        for own in self.outcomes:
            trials = [(keys, trial["best_valid_score"]) for keys, trial in own.trials]
            search[own.method.label] = {"trials": trials, "chosen": own.chosen}
        about = {
            "command": self.command, "commits": self.commits, "reasons_not_final": self.reasons,
            "metric": self.metric, "left_out": dict(self.left_out), "search": search,
        }  # fmt: skip
        write_json(folder / f"{self.name}.json", self.rows)
        write_json(folder / f"{self.name}-runs.json", about)
