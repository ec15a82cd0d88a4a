"""Reports as Markdown: a page for each table and figure, and ``results/README.md``."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recbole.config import Config

from recbole_lea.experiments.report import Report, comparisons, paper_name
from recbole_lea.experiments.run import lasting
from recbole_lea.experiments.runner import duration
from recbole_lea.store.files import write_bytes

SIGNIFICANT = 0.05

# Said in every report, beside what differs from the shipped defaults.
SETTINGS = (
    "eval_protocol", "lea_split_seed", "MAX_ITEM_LIST_LENGTH", "train_batch_size", "epochs",
    "stopping_step", "lea_valid_steps", "warmup", "learner", "lea_output_head", "lea_llm",
    "lea_llm_dtype", "lea_seed", "lea_reward_prompt", "lea_item_iterations",
    "lea_finetune_fraction", "lea_finetune_epochs", "reward_scale", "selection_by",
    "selection_calibration",
)  # fmt: skip

# Keys whose values RecBole writes in another way than they are given, and those of every benchmark.
NOT_CHANGES = {
    "load_col", "eval_args", "train_neg_sample_args", "seed", "metric_decimal_place"
}  # fmt: skip

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
RESULTS_NOTE = (
    "Mean ± standard deviation over {seeds} seeds; HR@k is RecBole's Hit@k. RecBole is its own "
    "class; Normal is ours with the RL part off, which with a tied output head has to give the "
    "same. Bold: highest of its backbone."
)
PAPER_NOTE = (
    "In brackets the paper's figure on its own data, which are not these: compare gains and "
    "orderings. Several of its rows, baselines among them, break a bound that HR and NDCG at 5 "
    "and 10 have to keep, and its Table 4 differs from its Table 2 in cells that should be equal."
)
SEARCH_NOTE = (
    "On validation alone, with a seed that is not reported; the same number of trials for every "
    "method. Where there is one point to choose from, there are none. Last: tests whose best "
    "validation was before the end of the warm-up, so that the model tested has seen neither the "
    "advantage nor the augmentation; and tests that `epochs` ended before early stopping did, so "
    "that they might have gone on."
)
COST_NOTE = (
    "What these runs computed. What the LE's cache held already is not in it: of two methods that "
    "ask for the same rewards, the first one pays."
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


def page(report: Report, pictures: Sequence[str]) -> str:
    """The report of a table or figure.

    Args:
        report: with at least one finished test.
        pictures: file names beside the page.
    """
    state = "**Not final**: " + "; ".join(report.reasons) + "." if report.reasons else "Final."
    planned, seeds = comparisons(report.outcomes), report.n_seeds
    left_out = [f"- {label}: {reason}" for label, reason in report.left_out.items()]
    sections = [
        ("## Test results", [
            RESULTS_NOTE.format(seeds=seeds), _results(report), ABOUT.get(report.name, ""),
            PAPER_NOTE if any(row["paper"] for row in report.rows) else "",
        ]),
        ("## Cold items", _cold(report)),
        (f"## Gains in {report.metric} over each method's own baseline", [
            _gains(report), TESTS.format(n=planned, seeds=seeds, freedom=seeds - 1),
        ]),
        ("## The same over RecBole's own class", [_over_recbole(report)]),
        ("## Search", [SEARCH_NOTE, _search(report)]),
        ("## LE", [_les(report), _choices(report)] if report.les else []),
        ("## Cost", [COST_NOTE, _cost(report)]),
        ("## Setting", _setting(report)),
        ("## Left out", ["\n".join(left_out)]),
    ]  # fmt: skip
    parts = [
        f"# {report.title} on {report.dataset}",
        f"{state} {report.commits}. Made by",
        f"```bash\n{report.command}\n```",
        *[f"![]({name})" for name in pictures],
    ]
    for heading, texts in sections:
        texts = [text for text in texts if text]
        parts += [heading, *texts] if texts else []
    return "\n\n".join(parts) + "\n"


def _results(report: Report) -> str:
    best: dict[tuple[str, str], float] = {}
    for row in report.rows:
        key = (row["backbone"], row["metric"])
        best[key] = max(best.get(key, -1.0), row["mean"])
    cells: dict[str, dict[str, str]] = {}
    for row in report.rows:
        text = f"{row['mean']:.4f}"
        if row["mean"] == best[row["backbone"], row["metric"]]:
            text = f"**{text}**"
        if row["std"] is not None:
            text += f" ± {row['std']:.4f}"
        if row["paper"] is not None:
            text += f" ({row['paper']:.4f})"
        label = row["label"]
        if len(row["seeds"]) < report.n_seeds:
            label += f" (seeds {', '.join(map(str, row['seeds']))} alone)"
        cells.setdefault(label, {})[row["metric"]] = text
    metrics = list(dict.fromkeys(row["metric"] for row in report.rows))
    return _table(["method", *metrics], [[label, *of.values()] for label, of in cells.items()])


def _cold(report: Report) -> list[str]:
    """Test rows whose item is rare in training; empty where no run has them."""
    about, header, lines = "", [], []
    for outcome in report.done:
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
    return [about, _table(header, lines)] if lines else []


def _gains(report: Report) -> str:
    rows = report.of_metric(report.metric)
    paper = {row["label"]: row["paper"] for row in rows}
    lines = []
    for row in rows:
        if row["relative_gain"] is None:
            continue
        base = paper.get(row["baseline"])
        theirs = row["paper"] / base - 1 if base and row["paper"] else None
        gain, interval, *p_values = _comparison(row)
        lines.append([row["label"], row["baseline"], gain, interval, _percent(theirs), *p_values])
    header = ["method", "baseline", "gain", "95 % interval", "paper's gain", "p (seeds)",
              "p (users)"]  # fmt: skip
    return _table(header, lines)


def _over_recbole(report: Report) -> str:
    lines = [
        [row["label"], *_comparison(row["over_recbole"])]
        for row in report.of_metric(report.metric)
        if row["over_recbole"]["relative_gain"] is not None
    ]
    header = ["method", "gain", "95 % interval", "p (seeds)", "p (users)"]
    return _table(header, lines) if lines else ""


def _search(report: Report) -> str:
    lines = []
    for outcome in report.done:
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
    header = ["method", "trials", "chosen", f"validation {report.metric} (range)",
              "best in warm-up", "ended by `epochs`"]  # fmt: skip
    return _table(header, lines)


def _ended_by_epochs(record: dict[str, Any]) -> bool:
    """Whether ``epochs`` ended the training (at the same time as the patience, perhaps)."""
    epochs, step = record["config"]["epochs"], record["config"]["eval_step"]
    return record["valid_curve"][-1][0] + 1 + step > epochs


def _les(report: Report) -> str:
    lines = []
    for record in report.les:
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
    return _table(header, lines)


def _choices(report: Report) -> str:
    """What the LE chose for augmentation; empty where no method has it."""
    lines = []
    for outcome in report.done:
        les = [record["le"] for record in outcome.records.values()]
        if "positions_chosen" not in les[0]:
            continue
        shares = np.mean([le["positions_chosen"] for le in les], axis=0)
        lines.append([
            outcome.method.label, " ".join(f"{share:.2f}" for share in shares),
            *(_number(statistics.fmean(le[f"true_item_{what}"] for le in les))
              for what in ("listed", "chosen")),
        ])  # fmt: skip
    header = ["augmentation", "share of positions chosen", "true next item listed",
              "true next item chosen"]  # fmt: skip
    return _table(header, lines) if lines else ""


def _cost(report: Report) -> str:
    lines = [["LE", *_stages([record])] for record in report.les]
    lines += [[o.method.label, *_stages(list(o.records.values()))] for o in report.done]
    return _table(["", "seconds, peak memory of each stage (mean of the runs)", "sum"], lines)


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


def _setting(report: Report) -> list[str]:
    record = report.records[0]
    # RecBole's own class lacks our keys
    config = max((own["config"] for own in report.records), key=len)
    lines = [[key, f"`{config[key]}`"] for key in SETTINGS if key in config]
    lines += [[key, text] for key, text in _changed(report).items()]
    counts = ", ".join(f"{n:,} {name}" for name, n in record["data"].items())
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    device = f"Device: {record['device']}, {record['threads']} threads a run."
    return [f"Data: {counts}. {versions}. {device}", _table(["key", "value"], lines)]


def _changed(report: Report) -> dict[str, str]:
    """Keys that our models have other than shipped, RecBole's too, with both values.

    Left out are those that make the method and those that every benchmark sets.
    """
    found: dict[str, set[str]] = {}
    for outcome in report.done:
        method = outcome.method
        if method.stock:
            continue
        defaults = lasting(Config(method.model, report.dataset).internal_config_dict)
        own = {*method.keys, *method.changes, *(outcome.chosen or {}), *SETTINGS}
        config = next(iter(outcome.records.values()))["config"]
        for key in sorted((defaults.keys() & config.keys()) - own - NOT_CHANGES):
            if config[key] != defaults[key]:
                value = f"`{config[key]}` (shipped: `{defaults[key]}`)"
                found.setdefault(key, set()).add(value)
    return {key: ", ".join(sorted(values)) for key, values in sorted(found.items())}


def _table(header: list[str], lines: Iterable[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _comparison(found: Mapping[str, Any]) -> list[str]:
    """Cells of one comparison: gain, interval and the two p-values."""
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
        "quality, cost and setting; finished runs (`runs.jsonl`) are not repeated.",
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
    reasons = "; ".join(about["reasons_not_final"])
    state = f"**not final**: {reasons}" if reasons else "final"
    lines = [
        f"**[{name[:-1].capitalize()} {name[-1]}]({link})** ({state}), {about['metric']}:",
        *_verdicts(rows),
    ]
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        own = [row for row in rows if row["backbone"] == backbone]
        top = max(own, key=lambda row: row["mean"])
        stock = next((row for row in own if row["method"] == "RecBole"), None)
        beside = f"; RecBole's own {backbone}: {stock['mean']:.4f}" if stock else ""
        lines.append(f"- highest: {top['label']} {top['mean']:.4f}{beside}")
    lines.append(f"- {about['commits']}")
    if about["left_out"]:
        lines.append(f"- left out: {', '.join(about['left_out'])}")
    return ["\n".join(lines), f"```bash\n{about['command']}\n```"]


def _verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each verdict that some comparison has."""
    named: dict[str, list[str]] = {
        "better than its baseline": [], "worse than its baseline": [],
        "no significant difference": [], "not tested, as there is one seed": [],
    }  # fmt: skip
    better, worse, alike, untested = named
    for row in rows:
        gain, p_value = row["relative_gain"], row["p_value"]
        if gain is None:
            continue
        verdict = better if gain > 0 else worse
        if p_value is None or p_value >= SIGNIFICANT or gain == 0:
            verdict = untested if p_value is None else alike
        named[verdict].append(f"{row['label']} ({_percent(gain)})")
    return [f"- {verdict}: {', '.join(names)}" for verdict, names in named.items() if names]


def write(report: Report, folder: Path, pictures: Sequence[str]) -> None:
    """Write the report's page beside its pictures, and ``README.md`` above."""
    write_bytes(folder / f"{report.name}.md", page(report, pictures).encode())
    write_bytes(folder.parent / "README.md", overview(folder.parent).encode())
