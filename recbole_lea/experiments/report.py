"""Finished runs to ``tableN.json``, ``tableN.md`` and ``results/README.md``."""

import csv
import dataclasses
import itertools
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recbole.config import Config

from recbole_lea.experiments.run import lasting
from recbole_lea.experiments.runner import Outcome, duration
from recbole_lea.experiments.statistics import average, compare, holm
from recbole_lea.store.files import write_bytes, write_json
from recbole_lea.yaml_files import properties_folder

SIGNIFICANT = 0.05

# Said in every report, beside what differs from the shipped defaults.
SETTINGS = (
    "eval_protocol", "lea_split_seed", "MAX_ITEM_LIST_LENGTH", "train_batch_size", "epochs",
    "stopping_step", "lea_valid_steps", "warmup", "learner", "lea_output_head", "lea_llm",
    "lea_llm_dtype", "lea_seed", "lea_reward_prompt", "lea_item_iterations",
    "lea_finetune_fraction", "lea_finetune_epochs", "reward_scale", "selection_by",
    "selection_calibration",
)  # fmt: skip

TESTS = (
    "p (seeds): paired t-test over seeds (`scipy.stats.ttest_rel`). p (users): paired permutation "
    "test over test users (`scipy.stats.permutation_test`, signs flipped, 9,999 resamples), each "
    "user's metric averaged over seeds. Both are two-sided and, by Holm's method, corrected for "
    "the {n} comparisons that the table plans, made or not, metric by metric. \\* marks a row "
    "where both are below 0.05: seeds alone say nothing about other users, users alone nothing of "
    "other seeds. The interval is a 95 % bootstrap over test users. Seeds are those of the "
    "recommender: all share one LE and one split of the users, so nothing here speaks of others. "
    "With {seeds} seeds (fewer where a row names them) the t-test has {freedom} degrees of freedom "
    "and takes differences between seeds for normal; it can show large and steady gains, not "
    "small ones."
)

# Keys whose values RecBole writes in another way than they are given, and those of every benchmark.
NOT_CHANGES = {
    "load_col", "eval_args", "train_neg_sample_args", "seed", "metric_decimal_place"
}  # fmt: skip

PAPER_NOTE = (
    "In brackets the paper's figure on its own data, which are not these: compare gains and "
    "orderings. Several of its rows, baselines among them, break a bound that HR and NDCG at 5 "
    "and 10 have to keep, and its Table 4 differs from its Table 2 in cells that should be equal."
)

ABOUT = {
    "table3": "sv: the LE's choice joins the supervised loss; q: the Q loss; sv+q: both, which is "
    "LEA. Without a Q head, Normal can only have sv.",
    "table6": "Not in the paper. LE embeddings: item embeddings start from the LE's item tokens; "
    "the baseline is the same method without.",
    "table7": "Not in the paper: a control. Shuffled: every transition has the LE's states and "
    "rewards of another one, and from its own top-5 the place that the LE chose in the other's; "
    "the baseline is the same method with the LE's feedback in its place. What the shuffled rows "
    "say of the LE's choice below is from before the shuffling.",
    "figure5": "-IT: item titles in the prompt instead of item tokens; -SM: without the state "
    "loss (shown, as in the paper, by LES).",
}


def paper_name(metric: str) -> str:
    """RecBole's ``hit@10`` to the paper's ``HR@10``."""
    return metric.upper().replace("HIT@", "HR@")


def paper_values(number: int, dataset: str) -> dict[tuple[str, str, str, str], float]:
    """(backbone, framework, method, metric) -> the paper's value in a table."""
    path = properties_folder() / "paper_results.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return {
            (row["backbone"], row["framework"], row["method"], row["metric"]): float(row["value"])
            for row in csv.DictReader(file)
            if row["table"] == str(number) and row["dataset"] == dataset
        }


def table_rows(
    outcomes: Sequence[Outcome], paper: Mapping[tuple[str, str, str, str], float]
) -> list[dict[str, Any]]:
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
    by_label = {outcome.method.label: outcome for outcome in outcomes if outcome.records}
    rows = []
    for metric in _metrics(by_label.values()):
        own = [_row(outcome, by_label, metric, paper) for outcome in by_label.values()]
        _correct(own, comparisons(outcomes))
        _correct([row["over_recbole"] for row in own], comparisons(outcomes, recbole=True))
        rows += own
    return rows


def comparisons(outcomes: Iterable[Outcome], recbole: bool = False) -> int:
    """How many the table plans: with each method's baseline, or with RecBole's own class."""
    methods = [outcome.method for outcome in outcomes]
    stock = {method.backbone for method in methods if method.stock}
    if recbole:
        return sum(method.backbone in stock and not method.stock for method in methods)
    return sum(method.baseline is not None for method in methods)


def _correct(compared: Sequence[dict[str, Any]], n: int) -> None:
    for name in ("p_seeds", "p_users"):
        for row, p in zip(compared, holm([row[name] for row in compared], n), strict=True):
            row[name] = p
    for row in compared:
        p_values = [row["p_seeds"], row["p_users"]]
        row["p_value"] = None if None in p_values else max(p_values)


def _metrics(outcomes: Iterable[Outcome]) -> list[str]:
    for outcome in outcomes:
        return list(next(iter(outcome.records.values()))["test_result"])
    return []


def _row(outcome: Outcome, by_label: Mapping[str, Outcome], metric: str, paper) -> dict[str, Any]:
    method, seeds = outcome.method, sorted(outcome.records)
    values = _values(outcome, metric, seeds)
    key = (method.backbone, method.framework, method.name, paper_name(metric))
    row = {
        "backbone": method.backbone,
        "framework": method.framework,
        "method": method.name,
        "label": method.label,
        "metric": paper_name(metric),
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
        "seeds": seeds,
        "paper": paper.get(key),
        "baseline": method.baseline_label,
    }
    stock = None if method.stock else by_label.get(f"{method.backbone} RecBole")
    return row | _compared(outcome, by_label.get(method.baseline_label or ""), metric) | {
        "over_recbole": _compared(outcome, stock, metric)
    }  # fmt: skip


def _compared(outcome: Outcome, base: Outcome | None, metric: str) -> dict[str, Any]:
    row = dict.fromkeys(("relative_gain", "interval", "seed_gains", "p_seeds", "p_users"))
    common = sorted(set(outcome.records) & set(base.records)) if base else []
    if base is None or not common:
        return row
    users = [average([o.users[seed][metric] for seed in common]) for o in (outcome, base)]
    pair = [_values(o, metric, common) for o in (outcome, base)]
    found = compare(pair[0], pair[1], users[0], users[1])
    return {
        "seed_gains": [
            own / other - 1 if other else None for own, other in zip(*pair, strict=True)
        ],
        "relative_gain": found.gain,
        "interval": None if found.low is None else [found.low, found.high],
        "p_seeds": found.p_seeds,
        "p_users": found.p_users,
    }  # fmt: skip


def _values(outcome: Outcome, metric: str, seeds: Sequence[int]) -> list[float]:
    return [outcome.records[seed]["test_result"][metric] for seed in seeds]


def not_final(outcomes: Sequence[Outcome], les: Sequence[dict], n_seeds: int) -> list[str]:
    """Why the results are not final; empty if they are.

    Args:
        outcomes: of all methods that can be run.
        les: ``run.json`` of the LEs.
        n_seeds: reported seeds.
    """
    reasons = []
    missing = [outcome.method.label for outcome in outcomes if len(outcome.records) < n_seeds]
    if missing:
        reasons.append(f"runs are missing: {', '.join(missing)}")
    by_backbone = _by_backbone(outcomes)
    records = [*les, *itertools.chain(*by_backbone.values())]
    codes = [record["code"] for record in records]
    if any(not (record["le"].get("code") or {}).get("clean", False) for record in les):
        reasons.append("an LE was trained by code that was not committed, or not recorded")
    if any(code["commit"] is None for code in codes):
        reasons.append("runs were made outside a git checkout: their commit is not known")
    elif not all(code["clean"] for code in codes):
        reasons.append("runs were made from uncommitted code")
    if any(len(used) > 1 for used in _llms(records).values()):
        reasons.append("runs used different LLMs, or other dtypes, under one name")
    for backbone, own in by_backbone.items():  # nothing is compared between them
        if len({record["code"]["fingerprint"] for record in own}) > 1:
            reasons.append(
                f"runs of {backbone} were made by different versions of the training code "
                "(--rerun-old repeats the older ones)"
            )
    if len({json.dumps(record["versions"], sort_keys=True) for record in records}) > 1:
        reasons.append("runs were made with different versions of Python or of packages")
    if len({record["device"] for record in records}) > 1:
        reasons.append("runs were made on different devices")
    if n_seeds < 3:
        reasons.append(f"{n_seeds} seeds are too few for a deviation")
    return reasons


def _llms(records: Iterable[dict[str, Any]]) -> dict[str, set[str]]:
    """``lea_llm`` -> fingerprints of what it stood for."""
    found: dict[str, set[str]] = {}
    for record in records:
        if own := record["fingerprints"]["llm"]:
            found.setdefault(record["config"]["lea_llm"], set()).add(own)
    return found


def _records(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    return [record for outcome in outcomes for record in outcome.records.values()]


def _by_backbone(outcomes: Iterable[Outcome]) -> dict[str, list[dict[str, Any]]]:
    """Backbone -> ``run.json`` of its tests and trials."""
    found: dict[str, list[dict[str, Any]]] = {}
    for outcome in outcomes:
        own = [*outcome.records.values(), *(record for _, record in outcome.trials)]
        found.setdefault(outcome.method.backbone, []).extend(own)
    return {backbone: records for backbone, records in found.items() if records}


def _commits(outcomes: Iterable[Outcome]) -> str:
    """By which commits each backbone's runs were made."""
    found: dict[str, list[str]] = {}
    for backbone, records in _by_backbone(outcomes).items():
        commits = sorted({str(record["code"]["commit"]) for record in records})
        found.setdefault(", ".join(commits), []).append(backbone)
    if len(found) == 1:
        return f"Commit {next(iter(found))}"
    return "Commit " + "; ".join(f"{commits} ({', '.join(of)})" for commits, of in found.items())


@dataclasses.dataclass
class Report:
    """The report of one table or figure.

    Attributes:
        name: such as ``table2``.
        dataset: its name.
        command: that makes it.
        outcomes: of all methods that can be run.
        les: ``run.json`` of the LEs.
        left_out: label -> reason of the methods that cannot be run.
        n_seeds: reported seeds.
        rows: see ``table_rows``.
        reasons: see ``not_final``.
    """

    name: str
    dataset: str
    command: str
    outcomes: Sequence[Outcome]
    les: Sequence[dict[str, Any]]
    left_out: Mapping[str, str]
    n_seeds: int
    rows: list[dict[str, Any]] = dataclasses.field(init=False)
    reasons: list[str] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        kind, number = self.name[:-1], int(self.name[-1])
        paper = paper_values(number, self.dataset) if kind == "table" else {}
        self.rows = table_rows(self.outcomes, paper)
        self.reasons = not_final(self.outcomes, self.les, self.n_seeds)
        self.done = [outcome for outcome in self.outcomes if outcome.records]

    @property
    def title(self) -> str:
        """Such as "Table 2"."""
        return f"{self.name[:-1].capitalize()} {self.name[-1]}"

    @property
    def metric(self) -> str:
        """The metric of the validation, which the claims are about."""
        return paper_name(_records(self.done)[0]["config"]["valid_metric"])

    def of_metric(self, metric: str) -> list[dict[str, Any]]:
        """The rows of one metric."""
        return [row for row in self.rows if row["metric"] == metric]

    def write(self, folder: Path, pictures: Sequence[str]) -> None:
        """Write ``NAME.json``, ``NAME-runs.json`` and ``NAME.md``.

        Args:
            folder: of the dataset's results.
            pictures: file names beside the report.
        """
        write_json(folder / f"{self.name}.json", self.rows)
        write_json(folder / f"{self.name}-runs.json", {
            "command": self.command,
            "commits": _commits(self.done),
            "reasons_not_final": self.reasons,
            "metric": self.metric,
            "left_out": dict(self.left_out),
            "search": {
                outcome.method.label: {
                    "trials": [(keys, trial["best_valid_score"]) for keys, trial in outcome.trials],
                    "chosen": outcome.chosen,
                }
                for outcome in self.outcomes
            },
        })  # fmt: skip
        write_bytes(folder / f"{self.name}.md", self.markdown(pictures).encode())

    def markdown(self, pictures: Sequence[str]) -> str:
        """The report as Markdown."""
        planned = comparisons(self.outcomes)
        tests = TESTS.format(n=planned, seeds=self.n_seeds, freedom=self.n_seeds - 1)
        over_recbole, cold = self._over_recbole(), self._cold()
        state = "**Not final**: " + "; ".join(self.reasons) + "." if self.reasons else "Final."
        parts = [
            f"# {self.title} on {self.dataset}",
            f"{state} {_commits(self.done)}. Made by",
            f"```bash\n{self.command}\n```",
            *[f"![]({name})" for name in pictures],
            "## Test results",
            f"Mean ± standard deviation over {self.n_seeds} seeds; HR@k is RecBole's Hit@k. "
            "RecBole is its own class; Normal is ours with the RL part off, which with a tied "
            "output head has to give the same. Bold: highest of its backbone.",
            self._results(),
            ABOUT.get(self.name, ""),
            PAPER_NOTE if any(row["paper"] for row in self.rows) else "",
            "## Cold items" if cold else "",
            cold,
            f"## Gains in {self.metric} over each method's own baseline",
            self._gains(),
            tests,
            "## The same over RecBole's own class" if over_recbole else "",
            over_recbole,
            "## Search",
            "On validation alone, with a seed that is not reported; the same number of trials for "
            "every method. Where there is one point to choose from, there are none. Last: tests "
            "whose best validation was before the end of the warm-up, so "
            "that the model tested has seen neither the advantage nor the augmentation; and tests "
            "that `epochs` ended before early stopping did, so that they might have gone on.",
            self._search(),
            "## LE" if self.les else "",
            self._le(),
            "## Cost",
            "What these runs computed. What the LE's cache held already is not in it: of two "
            "methods that ask for the same rewards, the first one pays.",
            self._cost(),
            "## Setting",
            self._setting(),
        ]
        if self.left_out:
            lines = [f"- {label}: {reason}" for label, reason in self.left_out.items()]
            parts += ["## Left out", "\n".join(lines)]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _results(self) -> str:
        metrics = list(dict.fromkeys(row["metric"] for row in self.rows))
        best: dict[tuple[str, str], float] = {}
        for row in self.rows:
            key = (row["backbone"], row["metric"])
            best[key] = max(best.get(key, -1.0), row["mean"])
        cells: dict[str, dict[str, str]] = {}
        for row in self.rows:
            text = f"{row['mean']:.4f}"
            if row["mean"] == best[row["backbone"], row["metric"]]:
                text = f"**{text}**"
            if row["std"] is not None:
                text += f" ± {row['std']:.4f}"
            if row["paper"] is not None:
                text += f" ({row['paper']:.4f})"
            label = row["label"]
            if len(row["seeds"]) < self.n_seeds:
                label += f" (seeds {', '.join(map(str, row['seeds']))} alone)"
            cells.setdefault(label, {})[row["metric"]] = text
        return _table(
            ["method", *metrics],
            [[label, *(of[metric] for metric in metrics)] for label, of in cells.items()],
        )

    def _cold(self) -> str:
        """Test rows whose item is rare in training; empty where no run has them."""
        about, header, lines = "", [], []
        for outcome in self.done:
            cold = [record["cold"] for record in outcome.records.values() if "cold" in record]
            if not cold or not cold[0]["rows"]:
                continue
            about = (
                f"{cold[0]['rows']:,} test rows whose item is seen fewer than {cold[0]['below']} "
                "times in training."
            )
            header = ["method", *map(paper_name, cold[0]["result"])]
            cells = []
            for metric in cold[0]["result"]:
                values = [c["result"][metric] for c in cold]
                spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
                cells.append(f"{statistics.fmean(values):.4f}{spread}")
            lines.append([outcome.method.label, *cells])
        return f"{about}\n\n{_table(header, lines)}" if lines else ""

    def _gains(self) -> str:
        rows = self.of_metric(self.metric)
        paper = {row["label"]: row["paper"] for row in rows}
        lines = []
        for row in rows:
            if row["relative_gain"] is None:
                continue
            base = paper.get(row["baseline"])
            theirs = row["paper"] / base - 1 if base and row["paper"] else None
            gain, interval, *p_values = _comparison(row)
            lines.append(
                [row["label"], row["baseline"], gain, interval, _percent(theirs), *p_values]
            )
        header = ["method", "baseline", "gain", "95 % interval", "paper's gain", "p (seeds)",
                  "p (users)"]  # fmt: skip
        return _table(header, lines)

    def _over_recbole(self) -> str:
        lines = [
            [row["label"], *_comparison(row["over_recbole"])]
            for row in self.of_metric(self.metric)
            if row["over_recbole"]["relative_gain"] is not None
        ]
        header = ["method", "gain", "95 % interval", "p (seeds)", "p (users)"]
        return _table(header, lines) if lines else ""

    def _search(self) -> str:
        lines = []
        for outcome in self.done:
            chosen = ", ".join(f"{key} {value:g}" for key, value in (outcome.chosen or {}).items())
            scores = [trial["best_valid_score"] for _, trial in outcome.trials]
            spread = f"{max(scores):.4f} ({min(scores):.4f} to {max(scores):.4f})" if scores else ""
            tests = outcome.records.values()
            warm = sum(record["best_is_warmup"] for record in tests)
            cut = sum(_ended_by_epochs(record) for record in tests)
            lines.append([
                outcome.method.label, str(len(scores) or "none"), chosen, spread,
                *(f"{n} of {len(tests)}" for n in (warm, cut)),
            ])  # fmt: skip
        header = ["method", "trials", "chosen", f"validation {self.metric} (range)",
                  "best in warm-up", "ended by `epochs`"]  # fmt: skip
        return _table(header, lines)

    def _le(self) -> str:
        lines = []
        for record in self.les:
            le, config = record["le"], record["config"]
            titles = ", titles in the prompts" * (config.get("lea_prompt_items") == "title")
            lines.append([
                f"{config['lea_llm']}, {config['lea_finetune_fraction']:.0%} of the sequences, "
                f"state weight {config['lea_state_weight']:g}{titles}",
                _number(le.get("accuracy")), _number(le.get("hit_10")), str(le.get("n", "")),
                _number(le.get("reward_popularity")), str((le.get("code") or {}).get("commit")),
            ])  # fmt: skip
        header = ["LE", "reward accuracy", "state hit@10", "held-out transitions",
                  "reward and popularity (Spearman)", "commit"]  # fmt: skip
        text = _table(header, lines) if lines else ""
        chosen = []
        for outcome in self.done:
            les = [record["le"] for record in outcome.records.values()]
            if "positions_chosen" not in les[0]:
                continue
            shares = np.mean([le["positions_chosen"] for le in les], axis=0)
            chosen.append([
                outcome.method.label, " ".join(f"{share:.2f}" for share in shares),
                *(_number(statistics.fmean(le[f"true_item_{what}"] for le in les))
                  for what in ("listed", "chosen")),
            ])  # fmt: skip
        if chosen:
            header = ["augmentation", "share of positions chosen", "true next item listed",
                      "true next item chosen"]  # fmt: skip
            text += "\n\n" + _table(header, chosen)
        return text

    def _cost(self) -> str:
        lines = [["LE", *_stages([record])] for record in self.les]
        lines += [[o.method.label, *_stages(list(o.records.values()))] for o in self.done]
        return _table(["", "seconds, peak memory of each stage (mean of the runs)", "sum"], lines)

    def _setting(self) -> str:
        record = _records(self.done)[0]
        # Plain RecBole's config lacks our keys
        config = max((r["config"] for r in _records(self.done)), key=len)
        lines = [[key, f"`{config[key]}`"] for key in SETTINGS if key in config]
        lines += [[key, text] for key, text in self._changed().items()]
        counts = ", ".join(f"{n:,} {name}" for name, n in record["data"].items())
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        return "\n\n".join([
            f"Data: {counts}. {versions}. Device: {record['device']}, {record['threads']} threads "
            "a run.",
            _table(["key", "value"], lines),
        ])  # fmt: skip

    def _changed(self) -> dict[str, str]:
        """What our models have other than shipped, RecBole's keys too; what makes the method, and
        what every benchmark sets, left out."""
        found: dict[str, set[str]] = {}
        for outcome in (outcome for outcome in self.done if not outcome.method.stock):
            shipped = Config(outcome.method.model, self.dataset).internal_config_dict
            defaults = lasting(shipped)
            own = {
                *outcome.method.keys,
                *outcome.method.changes,
                *(outcome.chosen or {}),
                *SETTINGS,
            }
            config = next(iter(outcome.records.values()))["config"]
            for key in sorted((defaults.keys() & config.keys()) - own - NOT_CHANGES):
                if config[key] != defaults[key]:
                    value = f"`{config[key]}` (shipped: `{defaults[key]}`)"
                    found.setdefault(key, set()).add(value)
        return {key: ", ".join(sorted(values)) for key, values in sorted(found.items())}


def _ended_by_epochs(record: dict[str, Any]) -> bool:
    """Whether ``epochs`` ended the training (at the same time as the patience, perhaps)."""
    epochs, step = record["config"]["epochs"], record["config"]["eval_step"]
    return record["valid_curve"][-1][0] + 1 + step > epochs


def _stages(records: list[dict[str, Any]]) -> list[str]:
    """Seconds and memory of each stage, and the sum, averaged over runs."""
    parts, total = [], 0.0
    for name in dict.fromkeys(name for record in records for name in record["stages"]):
        entries = [record["stages"][name] for record in records if name in record["stages"]]
        seconds = sum(entry["seconds"] for entry in entries) / len(records)
        memory = max(entry["peak_memory_mb"] for entry in entries)
        gpu = max(entry.get("peak_gpu_memory_mb", 0.0) for entry in entries)
        total += seconds
        text = f"{name} {seconds:.0f} s, {memory:,.0f} MB"
        parts.append(text + (f", GPU {gpu:,.0f} MB" if gpu else ""))
    return ["; ".join(parts), duration(total)]


def _table(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _comparison(found: Mapping[str, Any]) -> list[str]:
    """Cells of what ``_compared`` found: gain, interval and the two p-values."""
    low, high = found["interval"] or (None, None)
    mark = " \\*" if found["p_value"] is not None and found["p_value"] < SIGNIFICANT else ""
    return [
        _percent(found["relative_gain"]) + mark, f"{_percent(low)} to {_percent(high)}",
        _p_value(found["p_seeds"]), _p_value(found["p_users"]),
    ]  # fmt: skip


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f} %"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _p_value(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else _number(value)


def write_overview(results: Path) -> None:
    """Write ``results/README.md``."""
    write_bytes(results / "README.md", overview(results).encode())


def overview(results: Path) -> str:
    """``results/README.md``: what was found, what was not, and how to make it again.

    Args:
        results: with one folder a dataset, each with ``NAME.json`` and ``NAME-runs.json``.
    """
    parts = [
        "# Results",
        "Every method, baselines first, got the same search on validation, or none; then it was "
        "trained with each reported seed. A gain is over the method's own baseline; it counts as "
        "significant if it holds over seeds and over test users, after correction for the number "
        f"of comparisons (p < {SIGNIFICANT}). Each report gives all figures, the search, the LE's "
        "quality, cost and setting; finished runs (`runs/`) are not repeated.",
    ]
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        found = sorted(folder.glob("*-runs.json"))
        if found:
            parts.append(f"## {folder.name}")
        for path in found:
            about = json.loads(path.read_text(encoding="utf-8"))
            name = path.stem.removesuffix("-runs")
            rows = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            rows = [row for row in rows if row["metric"] == about["metric"]]
            parts += _summary(f"{folder.name}/{name}.md", name, rows, about)
    return "\n\n".join(parts) + "\n"


def _summary(link: str, name: str, rows: list[dict[str, Any]], about: dict[str, Any]) -> list[str]:
    compared = [row for row in rows if row["relative_gain"] is not None]
    sure = [row for row in compared if (row["p_value"] or 1.0) < SIGNIFICANT]
    better = [row for row in sure if row["relative_gain"] > 0]
    worse = [row for row in sure if row["relative_gain"] < 0]
    rest = [row for row in compared if row not in sure and row["p_value"] is not None]
    untested = [row for row in compared if row["p_value"] is None]
    state = "**not final**: " + "; ".join(about["reasons_not_final"])
    lines = [
        f"**[{name[:-1].capitalize()} {name[-1]}]({link})** "
        f"({state if about['reasons_not_final'] else 'final'}), {about['metric']}:",
        *_named("better than its baseline", better),
        *_named("worse than its baseline", worse),
        *_named("no significant difference", rest),
        *_named("not tested, as there is one seed", untested),
    ]
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        own = [row for row in rows if row["backbone"] == backbone]
        top = max(own, key=lambda row: row["mean"])
        plain = next((row for row in own if row["method"] == "RecBole"), None)
        beside = f"; RecBole's own {backbone}: {plain['mean']:.4f}" if plain else ""
        lines.append(f"- highest: {top['label']} {top['mean']:.4f}{beside}")
    if about.get("commits"):  # an earlier version's report has none
        lines.append(f"- {about['commits']}")
    if about["left_out"]:
        lines.append(f"- left out: {', '.join(about['left_out'])}")
    return ["\n".join(lines), f"```bash\n{about['command']}\n```"]


def _named(what: str, rows: list[dict[str, Any]]) -> list[str]:
    names = [f"{row['label']} ({_percent(row['relative_gain'])})" for row in rows]
    return [f"- {what}: {', '.join(names)}"] if names else []
