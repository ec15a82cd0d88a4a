"""The pictures of a report, drawn without a display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from recbole_lea.experiments.report import Report

# Figures 4 and 5a: the changed key and its axis label
SWEEPS = {
    "w_ah": "weight of the supervised augmentation loss, w_ah",
    "w_aq": "weight of the Q augmentation loss, w_aq",
    "lea_finetune_fraction": "share of the training sequences that the LE is trained on",
}


def draw(report: Report, folder: Path) -> list[str]:
    """Draw a report's pictures as PNG files.

    Args:
        report: with at least one finished test.
        folder: where the files go.

    Returns:
        File names: gains, sweeps where the report has them, learning curves.
    """
    pictures = {}
    gains = [row for row in report.of_metric(report.metric) if row["relative_gain"] is not None]
    if gains:
        pictures["gains"] = gains_figure(gains, f"{report.title}, {report.dataset}")
    for key, label in SWEEPS.items():
        points = [o for o in report.done if key in o.method.changes]
        if points:
            pictures[key] = sweep_figure(report, key, label)
    pictures["curves"] = curves_figure(report)
    names = []
    for name, figure in pictures.items():
        names.append(f"{report.name}-{name}.png")
        figure.savefig(folder / names[-1], dpi=150)
    return names


def gains_figure(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """Relative gain of each row: interval over users as a bar, each seed as a dot."""
    figure = Figure(figsize=(8, 1.6 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        gain = row["relative_gain"]
        if row["interval"]:
            low, high = row["interval"]
            axes.plot([low, high], [place, place], color="C0", linewidth=6, alpha=0.35,
                      solid_capstyle="butt", label="95 % interval over test users")  # fmt: skip
        seeds = [gain for gain in row["seed_gains"] if gain is not None]
        axes.plot(seeds, [place] * len(seeds), "o", color="0.35", markersize=3, label="one seed")
        axes.plot(gain, place, "|", color="C0", markersize=13, markeredgewidth=2.5, label="mean")
    axes.axvline(0, color="0.6", linewidth=1)
    names = [f"{row['label']} vs. {row['baseline']}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.set_xlabel(f"gain in test {rows[0]['metric']} over the baseline")
    axes.grid(axis="x", alpha=0.3)
    figure.suptitle(title, fontsize=11)
    _legend(figure, axes)
    return figure


def _legend(figure: Figure, axes: Axes) -> None:
    """One entry for each label, below the axes."""
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False,
        fontsize=9,
    )  # fmt: skip


def sweep_figure(report: Report, key: str, label: str) -> Figure:
    """Test metric over the values of one key, with the method without the LE as a line."""
    values = {o.method.label: o.method.changes.get(key) for o in report.done}
    rows = [row for row in report.of_metric(report.metric) if values[row["label"]] is not None]
    places = range(len(rows))
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(
        places, [row["mean"] for row in rows], [row["std"] or 0 for row in rows], marker="o",
        capsize=4, color="C0", label="LEASR, mean and deviation over seeds",
    )  # fmt: skip
    for row in report.of_metric(report.metric):
        if row["label"] == rows[0]["baseline"]:
            axes.axhline(row["mean"], color="C1", linestyle="--", label=row["label"])
            if row["std"]:
                low, high = row["mean"] - row["std"], row["mean"] + row["std"]
                axes.axhspan(low, high, color="C1", alpha=0.12, linewidth=0)
    texts = [values[row["label"]] for row in rows]
    percent = key == "lea_finetune_fraction"
    axes.set_xticks(places, [f"{v:.0%}" if percent else f"{v:g}" for v in texts])
    axes.set_xlabel(label)
    axes.set_ylabel(f"test {report.metric}")
    axes.grid(alpha=0.3)
    axes.set_title(f"{report.title}, {report.dataset}", fontsize=11)
    _legend(figure, axes)
    return figure


def curves_figure(report: Report) -> Figure:
    """Validation metric over epochs, a panel for each backbone, framework and changed key."""
    panels: dict[str, list] = {}
    for outcome in report.done:
        method = outcome.method
        parts = [method.backbone, *method.changes]
        if method.framework != "none":
            parts.insert(1, method.framework)
        panels.setdefault(", ".join(parts), []).append(outcome)
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.9 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey="row")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, outcomes) in zip(grid.flat, panels.items(), strict=False):
        for number, outcome in enumerate(outcomes):
            for i, seed in enumerate(sorted(outcome.records)):
                record = outcome.records[seed]
                epochs, scores = zip(*record["valid_curve"], strict=True)
                axes.plot(
                    epochs, scores, color=f"C{number}", linewidth=1, alpha=0.75,
                    label=outcome.method.name if i == 0 else None,
                )  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        steps = _records_steps(outcomes[0])
        axes.set_xlabel(f"validation, every {steps} steps" if steps else "epoch")
        axes.grid(alpha=0.3)
        # below, where it hides no line
        axes.legend(
            fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False
        )
    for axes in grid[:, 0]:
        axes.set_ylabel(f"validation {report.metric}")
    figure.suptitle(f"{report.title}, {report.dataset}: one line a seed", fontsize=11)
    return figure


def _records_steps(outcome: Any) -> int | None:
    return next(iter(outcome.records.values()))["config"].get("lea_valid_steps")
