"""What finished runs say: the rows of a table or figure, and whether they are final."""

import dataclasses
import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from recbole_lea.experiments.plan import over_recbole
from recbole_lea.experiments.runner import Outcome
from recbole_lea.experiments.statistics import average, bonferroni, compare, holm
from recbole_lea.store.files import write_json
from recbole_lea.yaml_files import properties_folder

Paper = Mapping[tuple[str, str, str, str], float]
Record = dict[str, Any]

# The report of ``python -m recbole_lea.compare``
COMPARISON = "comparison"

# A comparison that cannot be made
NONE = dict.fromkeys(("relative_gain", "interval", "seed_gains", "p_seeds", "p_users"))


def paper_name(metric: str) -> str:
    """RecBole's ``hit@10`` to the paper's ``HR@10``."""
    return metric.upper().replace("HIT@", "HR@")


def title(name: str) -> str:
    """A report's name in words, such as "Table 2"."""
    return re.sub(r"(\d)", r" \1", name).capitalize()


def paper_values(number: int, dataset: str) -> Paper:
    """(backbone, framework, method, metric) -> the paper's value in a table."""
    path = properties_folder() / "paper_results.csv"
    cells = pandas.read_csv(path, float_precision="round_trip")
    own = cells[(cells["table"] == number) & (cells["dataset"] == dataset)]
    return own.set_index(["backbone", "framework", "method", "metric"])["value"].to_dict()


def table_rows(outcomes: Sequence[Outcome], paper: Paper, family: int) -> list[dict[str, Any]]:
    """One row for each method with a finished test and each metric, in the table's order.

    Rows have backbone, framework, method, metric, mean, std (over seeds, n - 1), values (by seed),
    seeds, paper, baseline, relative_gain, interval, seed_gains (by seed), p_seeds, p_users (both
    after Holm's correction) and p_value, their maximum: small only if both tests agree.
    ``over_recbole`` has the same against RecBole's own class, by Bonferroni's correction for a
    ``family`` of so many methods: other tables' runs do not change it.
    """
    done = {outcome.method.label: outcome for outcome in outcomes if outcome.records}
    rows = []
    for metric in _records(done.values())[0]["test_result"] if done else ():
        own = [_row(outcome, done, metric, paper) for outcome in done.values()]
        _correct(own, holm, comparisons(outcomes))
        _correct([row["over_recbole"] for row in own], bonferroni, family)
        rows += own
    return rows


def comparisons(outcomes: Iterable[Outcome]) -> int:
    """How many with a method's own baseline the table plans."""
    return sum(outcome.method.baseline is not None for outcome in outcomes)


def _correct(compared: Sequence[dict[str, Any]], by: Callable[..., Any], n: int) -> None:
    for name in ("p_seeds", "p_users"):
        for row, p in zip(compared, by([row[name] for row in compared], n), strict=True):
            row[name] = p
    for row in compared:
        p_values = [row["p_seeds"], row["p_users"]]
        row["p_value"] = None if None in p_values else max(p_values)


def _row(
    outcome: Outcome, done: Mapping[str, Outcome], metric: str, paper: Paper
) -> dict[str, Any]:
    method, seeds = outcome.method, sorted(outcome.records)
    values = [outcome.records[seed]["test_result"][metric] for seed in seeds]
    stock = None if method.stock else done.get(f"{method.backbone} RecBole")
    return {
        "backbone": method.backbone, "framework": method.framework, "method": method.name,
        "label": method.label, "metric": paper_name(metric), "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "values": values, "seeds": seeds,
        "paper": paper.get((method.backbone, method.framework, method.name, paper_name(metric))),
        "baseline": method.baseline,
        **_compared(outcome, done.get(method.baseline or ""), metric),
        "over_recbole": dict(_compared(outcome, stock, metric)),
    }  # fmt: skip


def _compared(outcome: Outcome, base: Outcome | None, metric: str) -> dict[str, Any]:
    common = sorted(outcome.records.keys() & base.records.keys()) if base else []
    if base is None or not common:
        return NONE
    pair = outcome, base
    users = [average([own.users[seed][metric] for seed in common]) for own in pair]
    values = [[own.records[seed]["test_result"][metric] for seed in common] for own in pair]
    return compare(values[0], values[1], users[0], users[1])


def not_final(
    outcomes: Sequence[Outcome], les: Sequence[Record], n_seeds: int, committed: bool = True
) -> list[str]:
    """Why the results of these methods, LEs and seeds are not final; empty if they are.

    Runs are compared with each other, never with the code that reports them: a finished table
    stays tied to the commits of its runs, which have to be known if ``committed``.
    """
    by_backbone = _by_backbone(outcomes)
    records = [*les, *(record for own in by_backbone.values() for record in own)]
    codes = [record["code"] for record in records]
    known = all(code["commit"] is not None for code in codes)
    missing = [outcome.method.label for outcome in outcomes if len(outcome.records) < n_seeds]
    le_codes = [record["le"].get("code") or {} for record in les]
    llms = {(r["config"]["lea_llm"], own) for r in records if (own := r["fingerprints"]["llm"])}

    def differ(what: str) -> bool:
        return len({json.dumps(record[what], sort_keys=True) for record in records}) > 1

    reasons = {
        f"runs are missing: {', '.join(missing)}": missing,
        "an LE was trained by code that was not committed, or not recorded":
            committed and not all(code.get("clean") for code in le_codes),
        "runs were made outside a git checkout: their commit is not known":
            committed and not known,
        "runs were made from uncommitted code":
            committed and known and not all(code["clean"] for code in codes),
        "runs used different LLMs, or other dtypes, under one name":
            len(llms) > len({name for name, _ in llms}),
        **{f"runs of {backbone} were made by different versions of the training code (a run whose "
           "line is deleted in runs.jsonl is repeated)":
            len({record["code"]["fingerprint"] for record in own}) > 1
            for backbone, own in by_backbone.items()},  # compared with each other
        "runs were made with different versions of Python or of packages": differ("versions"),
        "runs were made on different devices": differ("device"),
        f"{n_seeds} seeds are too few for a deviation": n_seeds < 3,
    }  # fmt: skip
    return [reason for reason, holds in reasons.items() if holds]


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
        self.title = title(self.name)
        if self.name.startswith("table"):
            paper, self.family = paper_values(int(self.name[-1]), self.dataset), over_recbole()
        else:
            paper, self.family = {}, sum(not outcome.method.stock for outcome in self.outcomes)
        self.rows = table_rows(self.outcomes, paper, self.family)
        committed = self.name != COMPARISON
        self.reasons = not_final(self.outcomes, self.les, self.n_seeds, committed)
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
            commits = sorted({record["code"]["commit"] or "not known" for record in records})
            found.setdefault(", ".join(commits), []).append(backbone)
        of = {made: f" ({', '.join(names)})" * (len(found) > 1) for made, names in found.items()}
        return "Commit " + "; ".join(made + names for made, names in of.items())

    def write(self, folder: Path) -> None:
        """Write ``NAME.json`` and ``NAME-runs.json``."""
        about: dict[str, Any] = {
            "command": self.command, "commits": self.commits, "reasons_not_final": self.reasons,
            "metric": self.metric, "left_out": dict(self.left_out), "search": {},
        }  # fmt: skip
        for own in self.outcomes:
            trials = [(keys, trial["best_valid_score"]) for keys, trial in own.trials]
            about["search"][own.method.label] = {"trials": trials, "chosen": own.chosen}
        write_json(folder / f"{self.name}.json", self.rows)
        write_json(folder / f"{self.name}-runs.json", about)
