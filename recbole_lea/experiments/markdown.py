"""Reports as Markdown: a page for each table and figure, and ``results/README.md``.

The page's text is ``properties/report.md``.
"""

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recbole.config import Config

from recbole_lea.experiments.report import Report, comparisons, paper_name
from recbole_lea.experiments.run import lasting
from recbole_lea.store.files import read_json, write_bytes
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

# Keys whose values RecBole writes in another way than they are given, and those of every benchmark.
NOT_CHANGES = {
    "load_col", "eval_args", "train_neg_sample_args", "seed", "metric_decimal_place"
}  # fmt: skip


def page(report: Report, pictures: Sequence[str]) -> str:
    """The report of a table or figure.

    Args:
        report: with at least one finished test.
        pictures: file names beside the page.
    """
    text = (properties_folder() / "report.md").read_text(encoding="utf-8")
    notes = dict(re.findall(r"<!-- (\w+): (.*) -->\n", text))
    cold_note, cold = _cold(report)
    values = {
        "title": report.title, "dataset": report.dataset, "commits": report.commits,
        "state": f"**Not final**: {'; '.join(report.reasons)}." if report.reasons else "Final.",
        "command": report.command, "pictures": "\n\n".join(f"![]({name})" for name in pictures),
        "metric": report.metric, "planned": comparisons(report.outcomes),
        "seeds": report.n_seeds, "freedom": report.n_seeds - 1,
        "results": _results(report), "about": notes.get(report.name, ""),
        "paper": notes["paper"] if any(row["paper"] for row in report.rows) else "",
        "cold_note": cold_note, "cold": cold,
        "gains": _gains(report), "over_recbole": _over_recbole(report), "search": _search(report),
        "les": _les(report), "choices": _choices(report), "cost": _cost(report),
        "data": _data(report.records[0]), "setting": _setting(report),
        "left_out": "\n".join(f"- {label}: {why}" for label, why in report.left_out.items()),
    }  # fmt: skip
    head, *sections = re.split(r"(?m)^(?=## )", re.sub("<!--.*-->\n", "", text))
    for section in sections:  # one without its tables is left out
        if any(values[name] for name in re.findall(r"(?m)^{(\w+)}$", section)):
            head += section
    return re.sub(r"\n{3,}", "\n\n", head.format(**values)).rstrip() + "\n"


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table of rows, heading -> cell; nothing without rows."""
    header = list(rows[0]) if rows else []
    lines = [header, ["---"] * len(header), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) if rows else ""


def _results(report: Report) -> str:
    best: dict[tuple[str, str], float] = {}
    for row in report.rows:
        key = (row["backbone"], row["metric"])
        best[key] = max(best.get(key, -1.0), row["mean"])
    lines: dict[str, dict[str, str]] = {}
    for row in report.rows:
        bold = "**" * (row["mean"] == best[row["backbone"], row["metric"]])
        paper = "" if row["paper"] is None else f" ({row['paper']:.4f})"
        few = len(row["seeds"]) < report.n_seeds
        label = row["label"] + f" (seeds {', '.join(map(str, row['seeds']))} alone)" * few
        text = f"{bold}{row['mean']:.4f}{bold}{_spread(row['values'])}{paper}"
        lines.setdefault(label, {"method": label})[row["metric"]] = text
    return table(list(lines.values()))


def _cold(report: Report) -> tuple[str, str]:
    """Note and table of the test rows whose item is rare in training; empty without any."""
    note, lines = "", []
    for outcome in report.done:
        cold = [record["cold"] for record in outcome.records.values() if "cold" in record]
        if not cold or not cold[0]["rows"]:
            continue
        note = (
            f"{cold[0]['rows']:,} test rows whose item is seen fewer than {cold[0]['below']} "
            "times in training."
        )
        line = {"method": outcome.method.label}
        for metric in cold[0]["result"]:
            values = [own["result"][metric] for own in cold]
            line[paper_name(metric)] = f"{statistics.fmean(values):.4f}{_spread(values)}"
        lines.append(line)
    return note, table(lines)


def _gains(report: Report) -> str:
    paper = {row["label"]: row["paper"] for row in report.main_rows}
    lines = []
    for row in report.main_rows:
        if row["relative_gain"] is not None:
            base = paper.get(row["baseline"])
            theirs = {"paper's gain": _percent(row["paper"] / base - 1 if base else None)}
            names = {"method": row["label"], "baseline": row["baseline"]}
            lines.append(names | _gain(row) | theirs | _p_values(row))
    return table(lines)


def _over_recbole(report: Report) -> str:
    found = [(row["label"], row["over_recbole"]) for row in report.main_rows]
    return table([
        {"method": label} | _gain(over) | _p_values(over)
        for label, over in found
        if over["relative_gain"] is not None
    ])  # fmt: skip


def _gain(found: Mapping[str, Any]) -> dict[str, str]:
    low, high = found["interval"] or (None, None)
    mark = " \\*" if found["p_value"] is not None and found["p_value"] < SIGNIFICANT else ""
    return {
        "gain": _percent(found["relative_gain"]) + mark,
        "95 % interval": f"{_percent(low)} to {_percent(high)}",
    }


def _p_values(found: Mapping[str, Any]) -> dict[str, str]:
    values = {"p (seeds)": found["p_seeds"], "p (users)": found["p_users"]}
    return {
        name: "< 0.001" if p is not None and p < 0.001 else _number(p) for name, p in values.items()
    }


def _search(report: Report) -> str:
    lines = []
    for outcome in report.done:
        scores = [trial["best_valid_score"] for _, trial in outcome.trials]
        spread = f"{max(scores):.4f} ({min(scores):.4f} to {max(scores):.4f})" if scores else ""
        tests = outcome.records.values()
        lines.append({
            "method": outcome.method.label,
            "trials": str(len(scores) or "none"),
            "chosen": ", ".join(f"{k} {value:g}" for k, value in (outcome.chosen or {}).items()),
            f"validation {report.metric} (range)": spread,
            "best in warm-up": f"{sum(t['best_is_warmup'] for t in tests)} of {len(tests)}",
            "ended by `epochs`": f"{sum(map(_ended_by_epochs, tests))} of {len(tests)}",
        })  # fmt: skip
    return table(lines)


def _ended_by_epochs(record: dict[str, Any]) -> bool:
    """Whether ``epochs`` ended the training (at the same time as the patience, perhaps)."""
    epochs, step = record["config"]["epochs"], record["config"]["eval_step"]
    return record["valid_curve"][-1][0] + 1 + step > epochs


def _les(report: Report) -> str:
    lines = []
    for record in report.les:
        le, config = record["le"], record["config"]
        titles = ", titles in the prompts" * (config.get("lea_prompt_items") == "title")
        share, weight = config["lea_finetune_fraction"], config["lea_state_weight"]
        own = f"{share:.0%} of the sequences, state weight {weight:g}{titles}"
        lines.append({
            "LE": f"{config['lea_llm']}, {own}",
            "reward accuracy": _number(le.get("accuracy")),
            "state hit@10": _number(le.get("hit_10")),
            "held-out transitions": str(le.get("n", "")),
            "reward and popularity (Spearman)": _number(le.get("reward_popularity")),
            "commit": str((le.get("code") or {}).get("commit")),
        })  # fmt: skip
    return table(lines)


def _choices(report: Report) -> str:
    """What the LE chose for augmentation; empty where no method has it."""
    names = ("positions_chosen", "true_item_listed", "true_item_chosen")
    lines = []
    for outcome in report.done:
        les = [record["le"] for record in outcome.records.values()]
        if names[0] in les[0]:
            positions, listed, chosen = (np.mean([le[k] for le in les], axis=0) for k in names)
            lines.append({
                "augmentation": outcome.method.label,
                "share of positions chosen": " ".join(f"{share:.2f}" for share in positions),
                "true next item listed": _number(listed),
                "true next item chosen": _number(chosen),
            })  # fmt: skip
    return table(lines)


def _cost(report: Report) -> str:
    """Seconds and memory of each stage, and the sum, averaged over a method's runs."""
    lines = []
    runs = [("LE", [record]) for record in report.les]
    runs += [(outcome.method.label, list(outcome.records.values())) for outcome in report.done]
    for label, records in runs:
        parts, total = [], 0.0
        for name in dict.fromkeys(name for record in records for name in record["stages"]):
            entries = [record["stages"][name] for record in records if name in record["stages"]]
            seconds = sum(entry["seconds"] for entry in entries) / len(records)
            memory = max(entry["peak_memory_mb"] for entry in entries)
            gpu = max(entry.get("peak_gpu_memory_mb", 0.0) for entry in entries)
            total += seconds
            on_gpu = f", GPU {gpu:,.0f} MB" if gpu else ""
            parts.append(f"{name} {seconds:.0f} s, {memory:,.0f} MB{on_gpu}")
        stages = "seconds, peak memory of each stage (mean of the runs)"
        lines.append({"": label, stages: "; ".join(parts), "sum": _duration(total)})
    return table(lines)


def _duration(seconds: float) -> str:
    """Such as "3 h 20 min"."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _data(record: dict[str, Any]) -> str:
    counts = ", ".join(f"{n:,} {name}" for name, n in record["data"].items())
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    device = f"Device: {record['device']}, {record['threads']} threads a run."
    return f"Data: {counts}. {versions}. {device}"


def _setting(report: Report) -> str:
    """What every report says, and keys that our models have other than shipped, RecBole's too.

    Left out are those that make the method and those that every benchmark sets.
    """
    # RecBole's own class lacks our keys
    most = max((own["config"] for own in report.records), key=len)
    changed: dict[str, set[str]] = {}
    for outcome in report.done:
        method = outcome.method
        if method.stock:
            continue
        defaults = lasting(Config(method.model, report.dataset).internal_config_dict)
        own = {*method.keys, *method.changes, *(outcome.chosen or {}), *SETTINGS}
        config = next(iter(outcome.records.values()))["config"]
        for key in (defaults.keys() & config.keys()) - own - NOT_CHANGES:
            if config[key] != defaults[key]:
                value = f"`{config[key]}` (shipped: `{defaults[key]}`)"
                changed.setdefault(key, set()).add(value)
    said = [(key, f"`{most[key]}`") for key in SETTINGS if key in most]
    said += [(key, ", ".join(sorted(values))) for key, values in sorted(changed.items())]
    return table([{"key": key, "value": value} for key, value in said])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f} %"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _spread(values: Sequence[float]) -> str:
    return f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""


def overview(results: Path) -> str:
    """``results/README.md``: all reports, whether they are final, and the commands behind them."""
    parts = ["# Results", "Each report gives all figures, the search, cost and setting."]
    for path in sorted(results.glob("*/*-runs.json")):
        about, folder, name = read_json(path), path.parent.name, path.stem.removesuffix("-runs")
        reasons = "; ".join(about["reasons_not_final"])
        state = f"**not final**: {reasons}" if reasons else "final"
        title = f"{name[:-1].capitalize()} {name[-1]} on {folder}"
        parts.append(f"[{title}]({folder}/{name}.md) ({state}):")
        parts.append(f"```bash\n{about['command']}\n```")
    return "\n\n".join(parts) + "\n"


def write(report: Report, folder: Path, pictures: Sequence[str]) -> None:
    """Write the report's page beside its pictures, and ``README.md`` above."""
    write_bytes(folder / f"{report.name}.md", page(report, pictures).encode())
    write_bytes(folder.parent / "README.md", overview(folder.parent).encode())
