"""The pictures exist, and no label lies on another."""

import dataclasses
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from recbole_lea.experiments.plan import figure, table
from recbole_lea.experiments.plots import curves_figure, draw, gains_figure, sweep_figure
from recbole_lea.experiments.report import Report
from tests.experiments.helpers import outcome

SWEEPS = {"w_ah": [0.01, 0.1, 1.0], "w_aq": [0.001, 0.1],
          "lea_finetune_fraction": [0.05, 0.1, 1.0], "other_llm": None}  # fmt: skip


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("recbole_lea.experiments.statistics.PERMUTATIONS", 99)
    monkeypatch.setattr("recbole_lea.experiments.statistics.BOOTSTRAPS", 99)


def report(name):
    kind, number = name[:-1], int(name[-1])
    methods = table(number) if kind == "table" else figure(number, SWEEPS)
    methods = [method for method in methods if not method.missing]
    outcomes = [
        outcome(method, [0.30 + i / 100, 0.31, 0.29], seed=i) for i, method in enumerate(methods)
    ]
    return Report(name, "industrial", "make it", outcomes, [], {}, 3)


def labels_overlap(drawn):
    """Whether two tick labels of an axis, or two axes' labels, lie on each other."""
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    for axes in drawn.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [t for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
            texts = [t.label1 for t in ticks] + [axis.label]
            shown = [text for text in texts if text.get_visible() and text.get_text()]
            boxes = [text.get_window_extent() for text in shown]
            for i, box in enumerate(boxes):
                if any(box.overlaps(other) for other in boxes[:i]):
                    return True
    return False


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("table2", ["gains", "curves"]),
        ("figure4", ["gains", "w_ah", "w_aq", "curves"]),
        ("figure5", ["gains", "lea_finetune_fraction", "curves"]),
    ],
)
def test_each_report_gets_its_pictures(name, files):
    folder = Path("pictures")
    folder.mkdir()
    names = draw(report(name), folder)
    assert names == [f"{name}-{file}.png" for file in files]
    for file in names:
        assert (folder / file).read_bytes().startswith(b"\x89PNG")


def test_labels_do_not_overlap():
    made = report("table2")
    gains = [row for row in made.main_rows if row["relative_gain"] is not None]
    for drawn in (gains_figure(gains, "x"), curves_figure(made)):
        assert not labels_overlap(drawn)
    for key in ("w_ah", "w_aq"):
        assert not labels_overlap(sweep_figure(report("figure4"), key, "weight"))


def test_gains_show_mean_seeds_and_interval():
    made = report("table4")
    rows = [row for row in made.main_rows if row["relative_gain"] is not None]
    axes = gains_figure(rows, "x").axes[0]
    drawn = [line.get_xdata() for line in axes.lines]
    for row in rows:
        assert any(list(data) == row["interval"] for data in drawn)
        assert any(list(data) == row["seed_gains"] for data in drawn)
        assert any(list(data) == [row["relative_gain"]] for data in drawn)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [f"{row['label']} vs. {row['baseline']}" for row in rows]


def test_a_sweep_shows_its_values_in_order_and_the_baseline():
    made = report("figure4")
    axes = sweep_figure(made, "w_ah", "weight").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.01", "0.1", "1"]
    means = {row["label"]: row["mean"] for row in made.main_rows}
    points, base = axes.lines[0].get_ydata(), axes.lines[-1].get_ydata()
    assert list(points) == [means[f"SASRec SA2C LEASR w_ah={v}"] for v in ("0.01", "0.1", "1")]
    assert set(base) == {means["SASRec SA2C"]}


def test_curves_have_a_panel_for_each_framework_and_a_line_a_seed():
    made = report("table2")
    panels = [axes for axes in curves_figure(made).axes if axes.get_visible()]
    assert len(panels) == 6
    assert sum(len(axes.lines) for axes in panels) == 3 * len(made.done)
    steps = dataclasses.replace(made.outcomes[0])
    steps.records[1]["config"]["lea_valid_steps"] = 500
    assert panels[0].get_xlabel() == "epoch"
    assert "500 steps" in curves_figure(made).axes[0].get_xlabel()
