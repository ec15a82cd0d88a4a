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
    """Draw gains, sweeps if there are any, and learning curves; returns the PNG files' names."""
    pictures = {}
    gains = [row for row in report.main_rows if row["relative_gain"] is not None]
    if gains:
        pictures["gains"] = gains_figure(gains, f"{report.title}, {report.dataset}")
    for key, label in SWEEPS.items():
        if any(key in outcome.method.changes for outcome in report.done):
            pictures[key] = sweep_figure(report, key, label)
    pictures["curves"] = curves_figure(report)
    for name, figure in pictures.items():
        figure.savefig(folder / f"{report.name}-{name}.png", dpi=150)
    return [f"{report.name}-{name}.png" for name in pictures]


def gains_figure(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """Relative gain of each row: interval over users as a bar, each seed as a dot."""
    figure = Figure(figsize=(8, 1.6 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        if row["interval"]:
            axes.plot(row["interval"], [place, place], color="C0", linewidth=6, alpha=0.35,
                      solid_capstyle="butt", label="95 % interval over test users")  # fmt: skip
        seeds = [gain for gain in row["seed_gains"] if gain is not None]
        axes.plot(seeds, [place] * len(seeds), "o", color="0.35", markersize=3, label="one seed")
        axes.plot(row["relative_gain"], place, "|", color="C0", markersize=13,
                  markeredgewidth=2.5, label="mean")  # fmt: skip
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
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4,
                  frameon=False, fontsize=9)  # fmt: skip


def sweep_figure(report: Report, key: str, label: str) -> Figure:
    """Test metric over the values of one key, with the method without the LE as a line."""
    values = {o.method.label: o.method.changes.get(key) for o in report.done}
    rows = [row for row in report.main_rows if values[row["label"]] is not None]
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(
        range(len(rows)), [row["mean"] for row in rows], [row["std"] or 0 for row in rows],
        marker="o", capsize=4, color="C0", label="LEASR, mean and deviation over seeds",
    )  # fmt: skip
    for row in report.main_rows:
        if row["label"] == rows[0]["baseline"]:
            axes.axhline(row["mean"], color="C1", linestyle="--", label=row["label"])
            if row["std"]:
                low, high = row["mean"] - row["std"], row["mean"] + row["std"]
                axes.axhspan(low, high, color="C1", alpha=0.12, linewidth=0)
    form = ".0%" if key == "lea_finetune_fraction" else "g"
    axes.set_xticks(range(len(rows)), [format(values[row["label"]], form) for row in rows])
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
        framework = [] if method.framework == "none" else [method.framework]
        title = ", ".join([method.backbone, *framework, *method.changes])
        panels.setdefault(title, []).append(outcome)
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.9 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey="row")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, outcomes) in zip(grid.flat, panels.items(), strict=False):
        axes.set_title(title, fontsize=10)
        _curves(axes, outcomes)
    for axes in grid[:, 0]:
        axes.set_ylabel(f"validation {report.metric}")
    figure.suptitle(f"{report.title}, {report.dataset}: one line a seed", fontsize=11)
    return figure


def _curves(axes: Axes, outcomes: Sequence[Any]) -> None:
    for number, outcome in enumerate(outcomes):
        label = outcome.method.name
        for _, record in sorted(outcome.records.items()):
            epochs, scores = zip(*record["valid_curve"], strict=True)
            axes.plot(epochs, scores, color=f"C{number}", linewidth=1, alpha=0.75, label=label)
            label = None
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    steps = next(iter(outcomes[0].records.values()))["config"].get("lea_valid_steps")
    axes.set_xlabel(f"validation, every {steps} steps" if steps else "epoch")
    axes.grid(alpha=0.3)
    # below, where it hides no line
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
