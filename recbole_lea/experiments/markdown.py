"""Reports as Markdown, by the text in ``properties/report.md``, and ``results/README.md``."""

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from recbole.config import Config

from recbole_lea.experiments.report import Report, comparisons, paper_name, title
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
    """A report with at least one finished test, and ``pictures``, files beside the page."""
    text = (properties_folder() / "report.md").read_text(encoding="utf-8")
    notes = dict(re.findall(r"<!-- (\w+): (.*) -->\n", text))
    (cold_note, cold), first = _cold(report), report.records[0]
    values = {
        "title": report.title, "dataset": report.dataset, "commits": report.commits,
        "state": f"**Not final**: {'; '.join(report.reasons)}." if report.reasons else "Final.",
        "command": report.command, "pictures": "\n\n".join(f"![]({name})" for name in pictures),
        "metric": report.metric, "planned": comparisons(report.outcomes),
        "seeds": report.n_seeds, "freedom": report.n_seeds - 1,
        "results": _results(report), "about": notes.get(report.name, ""),
        "paper": notes["paper"] if any(row["paper"] for row in report.rows) else "",
        "cold_note": cold_note, "cold": cold,
        "gains": _gains(report), "over_recbole": _gains(report, True), "family": report.family,
        "family_of": notes.get(f"{report.name}_family", notes["family"]),
        "search": _search(report), "les": _les(report), "choices": _choices(report),
        "cost": _cost(report),
        "counts": ", ".join(f"{n:,} {name}" for name, n in first["data"].items()),
        "versions": ", ".join(f"{name} {own}" for name, own in first["versions"].items()),
        "device": first["device"], "threads": first["threads"], "setting": _setting(report),
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
    lines: dict[str, dict[str, str]] = {}
    for row in report.rows:
        key = row["backbone"], row["metric"]
        best = max(r["mean"] for r in report.rows if (r["backbone"], r["metric"]) == key)
        bold = "**" * (row["mean"] == best)
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
        if cold and cold[0]["rows"]:
            note = (
                f"{cold[0]['rows']:,} test rows whose item is seen fewer than {cold[0]['below']} "
                "times in training."
            )
            of = {name: [own["result"][name] for own in cold] for name in cold[0]["result"]}
            values = {paper_name(n): f"{np.mean(v):.4f}{_spread(v)}" for n, v in of.items()}
            lines.append({"method": outcome.method.label} | values)
    return note, table(lines)


def _gains(report: Report, over_recbole: bool = False) -> str:
    """The gains over each method's own baseline, or over RecBole's own class."""
    paper = {row["label"]: row["paper"] for row in report.main_rows}
    lines = []
    for row in report.main_rows:
        found = row["over_recbole"] if over_recbole else row
        if found["relative_gain"] is None:
            continue
        low, high = found["interval"] or (None, None)
        line = {"method": row["label"]} | ({} if over_recbole else {"baseline": row["baseline"]})
        line["gain"] = _gain(found).replace("*", "\\*")
        line["95 % interval"] = f"{_percent(low)} to {_percent(high)}"
        if not over_recbole:
            base = paper.get(row["baseline"])
            line["paper's gain"] = _percent(row["paper"] / base - 1 if base else None)
        lines.append(line | {f"p ({of})": _p(found[f"p_{of}"]) for of in ("seeds", "users")})
    return table(lines)


def _gain(found: Mapping[str, Any]) -> str:
    p = found["p_value"]
    return _percent(found["relative_gain"]) + " *" * (p is not None and p < SIGNIFICANT)


def _p(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else _number(value)


def summary(report: Report) -> str:
    """The report's results in the terminal, for the list length of the validation metric."""
    lines: dict[str, dict[str, str]] = {row["label"]: {} for row in report.rows}
    for row in report.rows:
        if row["metric"].partition("@")[2] == report.metric.partition("@")[2]:
            lines[row["label"]][row["metric"]] = f"{row['mean']:.4f}{_spread(row['values'])}"
    for row in report.main_rows:
        over = row["over_recbole"]
        lines[row["label"]] |= {
            "gain": _gain(row), "p": _p(row["p_value"]),
            "over RecBole": _gain(over), "p ": _p(over["p_value"]),
        }  # fmt: skip
    return (
        f"{pandas.DataFrame.from_dict(lines, orient='index').to_string()}\n"
        f"Test results, mean ± deviation over {report.n_seeds} seeds; gains in {report.metric}, "
        "over each method's own baseline and over RecBole's own class. * holds over seeds and over "
        "test users (p is the larger of the two, corrected for all comparisons)."
    )


def _search(report: Report) -> str:
    lines = []
    for outcome in report.done:
        scores = [trial["best_valid_score"] for _, trial in outcome.trials]
        spread = f"{max(scores):.4f} ({min(scores):.4f} to {max(scores):.4f})" if scores else ""
        tests = outcome.records.values()
        ended = [  # perhaps by the patience, at the same time
            test["valid_curve"][-1][0] + 1 + test["config"]["eval_step"] > test["config"]["epochs"]
            for test in tests
        ]
        lines.append({
            "method": outcome.method.label,
            "trials": str(len(scores) or "none"),
            "chosen": ", ".join(f"{k} {value:g}" for k, value in (outcome.chosen or {}).items()),
            f"validation {report.metric} (range)": spread,
            "best in warm-up": f"{sum(t['best_is_warmup'] for t in tests)} of {len(tests)}",
            "ended by `epochs`": f"{sum(ended)} of {len(tests)}",
        })  # fmt: skip
    return table(lines)


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
        # a run that ended before its warm-up was over has asked for none
        les = [own for record in outcome.records.values() if names[0] in (own := record["le"])]
        if les:
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
        hours, minutes = divmod(round(total / 60), 60)
        duration = f"{hours} h " * (hours > 0) + f"{minutes} min"
        lines.append({
            "": label, "seconds, peak memory of each stage (mean of the runs)": "; ".join(parts),
            "sum": duration if total >= 30 else f"{total:.0f} s",
        })  # fmt: skip
    return table(lines)


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
        own = {*method.keys, *method.changes, *(outcome.chosen or {}), *SETTINGS, *NOT_CHANGES}
        config = next(iter(outcome.records.values()))["config"]
        for key in (defaults.keys() & config.keys()) - own:
            if config[key] != defaults[key]:
                value = f"`{config[key]}` (shipped: `{defaults[key]}`)"
                changed.setdefault(key, set()).add(value)
    said = {key: f"`{most[key]}`" for key in SETTINGS if key in most}
    said |= {key: ", ".join(sorted(values)) for key, values in sorted(changed.items())}
    return table([{"key": key, "value": value} for key, value in said.items()])


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
        parts.append(f"[{title(name)} on {folder}]({folder}/{name}.md) ({state}):")
        parts.append(f"```bash\n{about['command']}\n```")
    return "\n\n".join(parts) + "\n"


def write(report: Report, folder: Path, pictures: Sequence[str]) -> None:
    """Write the report's page beside its pictures, and ``README.md`` above."""
    write_bytes(folder / f"{report.name}.md", page(report, pictures).encode())
    write_bytes(folder.parent / "README.md", overview(folder.parent).encode())
