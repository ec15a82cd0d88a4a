"""The plan compares what the paper compares, and gives every method the same search."""

import csv

import pytest
import yaml

from recbole_lea.experiments.plan import Search, figure, method, over_recbole, table
from recbole_lea.model import MODELS
from recbole_lea.yaml_files import properties_folder

SEARCH = properties_folder() / "benchmark.yaml"


def search_file(tmp_path, **changes):
    content = yaml.safe_load(open(SEARCH, encoding="utf-8")) | changes
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_rows_are_the_paper_s_and_recbole_s_own(number):
    path = properties_folder() / "paper_results.csv"
    with path.open(encoding="utf-8") as file:
        paper = {
            (row["backbone"], row["framework"], row["method"])
            for row in csv.DictReader(file)
            if row["table"] == str(number)
        }
    rows = table(number)
    keys = [(row.backbone, row.framework, row.name) for row in rows]
    assert {key for key in keys if key[2] != "RecBole"} == paper
    assert len(set(keys)) == len(keys) == len({row.label for row in rows})
    assert {key[0] for key in keys if key[2] == "RecBole"} == {key[0] for key in paper}
    assert all(row.model in MODELS for row in rows)


@pytest.mark.parametrize("number", [2, 3, 4, 5, 6])
def test_a_baseline_comes_before_what_is_compared_with_it(number):
    seen = set()
    for row in table(number):
        assert row.baseline is None or row.baseline in seen
        seen.add(row.label)
    assert any(row.baseline for row in table(number))


def test_le_embeddings_are_compared_with_the_same_method_without():
    rows = {row.label: row for row in table(6)}
    new = [row for row in rows.values() if "item_embedding_init" in row.le_wants]
    assert len(new) == len({row.label for row in new}) == 6
    for row in new:
        without = rows[row.baseline]
        assert row.keys == {**without.keys, "item_embedding_init": "le"}
        assert (row.model, row.framework) == (without.model, without.framework)
    assert rows["SASRec Normal with LE embeddings"].baseline == "SASRec Normal"
    assert rows["GRU4Rec SNQN LEASR with LE embeddings"].baseline == "GRU4Rec SNQN LEASR"


def test_controls_are_compared_with_what_they_shuffle():
    rows = {row.label: row for row in table(7)}
    for label in ("SASRec SA2C LEASR", "SASRec SA2C LES", "SASRec SNQN LEASR"):
        twin = rows[f"{label} shuffled"]
        assert twin.baseline == label
        assert twin.keys == {**rows[label].keys, "lea_shuffle": True}


def test_methods_are_what_the_paper_calls_them():
    rows = {row.label: row for row in [*table(2), *table(3), *table(4), *table(5)]}
    assert rows["SASRec SA2C"].switches.needs_le is False
    assert rows["SASRec Normal"].keys["q_weight"] == 0
    assert rows["SASRec sv"].keys["q_weight"] == 0
    augmentation = {label: row.switches.augmentation for label, row in rows.items()}
    assert augmentation["SASRec sv"] == augmentation["SASRec SA2C sv"] == "supervised"
    assert augmentation["SASRec SA2C q"] == "Q"
    assert rows["SASRec SA2C sv+q"].keys == rows["SASRec SA2C LEA"].keys
    assert rows["GRU4Rec SA2C LES'"].switches.state == "LE"
    assert rows["SASRec SNQN LEASR"].baseline == "SASRec SNQN"
    assert rows["SASRec SA2C"].model == "SASRecSA2CLEA"
    assert rows["SASRec RecBole"].stock


def test_every_method_gets_the_same_search():
    search = Search.read(SEARCH)
    rows = table(2)
    first = search.points(rows[0])
    common = ("learning_rate", "hidden_dropout_prob")
    assert len({tuple(point[key] for key in common) for point in first}) == search.trials
    for row in rows:
        points = search.points(row)
        assert len(points) == search.trials
        dropout = "dropout_prob" if row.backbone == "GRU4Rec" else "hidden_dropout_prob"
        for own, other in zip(points, first, strict=True):
            assert own["learning_rate"] == other["learning_rate"]
            assert own[dropout] == other["hidden_dropout_prob"]
    of = {row.label: set(search.points(row)[0]) for row in [*rows, *table(3)]}
    plain = {"learning_rate", "hidden_dropout_prob", "attn_dropout_prob"}
    assert of["SASRec RecBole"] == of["SASRec Normal"] == plain
    assert of["SASRec sv"] == plain | {"w_ah"}
    assert of["SASRec SA2C"] == plain | {"q_weight"}
    assert of["SASRec SA2C q"] == plain | {"q_weight", "w_aq"}
    assert of["GRU4Rec SA2C LEASR"] == {
        "learning_rate", "dropout_prob", "q_weight", "w_ah", "w_aq"
    }  # fmt: skip


def test_a_loss_weight_takes_its_values_equally_often(tmp_path):
    search = Search.read(search_file(tmp_path, trials=6))
    leasr = next(row for row in table(2) if row.label == "SASRec SA2C LEASR")
    values = [point["w_ah"] for point in search.points(leasr)]
    assert sorted(values) == [0.05, 0.05, 0.1, 0.1, 0.2, 0.2]


def test_the_search_follows_its_seed(tmp_path):
    row = table(4)[0]
    points = Search.read(SEARCH).points(row)
    assert points == Search.read(SEARCH).points(row)
    assert points != Search.read(search_file(tmp_path, tuning_seed=7)).points(row)


@pytest.mark.parametrize(
    ("changes", "fixed", "message"),
    [
        ({"trials": 17}, [], "only 16 combinations"),
        ({}, ["learning_rate"], "only 4 combinations"),
        ({"grid": {"hidden_size": [64]}}, [], "unknown key hidden_size"),
        ({"extra": 1}, [], "exactly the keys"),
        (
            {"grid": {"learning_rate": [1, 2], "dropout": {"SASRec": [1, 2, 3, 4]}}},
            [],
            "no values of dropout for GRU4Rec",
        ),
        (
            {"grid": {"dropout": {"SASRec": [0.1], "GRU4Rec": [0.1]}, "learning_rate": [0.1]}},
            [],
            "1 combinations for SASRec",
        ),
        ({"trials": 0}, [], "trials is 0"),
    ],
)
def test_a_wrong_search_is_refused(tmp_path, changes, fixed, message):
    with pytest.raises(ValueError, match=message):
        Search.read(search_file(tmp_path, **changes), fixed)


def test_a_search_needs_no_sweeps_and_fits_other_backbones(tmp_path):
    path = tmp_path / "search.yaml"
    grid = {"learning_rate": [0.1, 0.2], "dropout": [0.3]}
    content = {"trials": 2, "tuning_seed": 1, "grid": grid}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    points = Search.read(path, backbones=["Caser"]).points(method("Caser", "SA2C", "LEAR"))
    assert sorted(point["learning_rate"] for point in points) == [0.1, 0.2]
    assert {point["dropout_prob"] for point in points} == {0.3}
    with pytest.raises(ValueError, match="NARM has no dropout: take it out"):
        Search.read(path, backbones=["NARM"])
    assert Search().points(method("Caser", "SA2C", "LEAR")) == [{}]  # no search: one point


def test_the_family_over_recbole_counts_each_method_once():
    rows = [row for number in range(2, 8) for row in table(number)]
    assert over_recbole() == len({row.label for row in rows if not row.stock}) - 1  # sv+q is LEA


def test_a_grid_may_be_each_backbone_s_own(tmp_path):
    grid = {"learning_rate": {"SASRec": [0.1, 0.2], "GRU4Rec": [0.3, 0.4]}, "dropout": [0.5]}
    search = Search.read(search_file(tmp_path, trials=2, grid=grid))
    found = {
        row.backbone: sorted(point["learning_rate"] for point in search.points(row))
        for row in table(2)
    }
    assert found == grid["learning_rate"]


def test_a_key_given_for_all_runs_leaves_the_search(tmp_path):
    search = Search.read(search_file(tmp_path, trials=4), ["hidden_dropout_prob", "w_ah"])
    leasr = next(row for row in table(2) if row.label == "SASRec SA2C LEASR")
    assert set(search.points(leasr)[0]) == {"learning_rate", "q_weight", "w_aq"}


def test_figure_4_sweeps_both_weights():
    sweeps = Search.read(SEARCH).sweeps
    points = figure(4, sweeps)
    assert points[0].label == "SASRec SA2C"
    for key in ("w_ah", "w_aq"):
        assert [p.changes[key] for p in points if key in p.changes] == sweeps[key]
    assert {p.baseline for p in points[1:]} == {"SASRec SA2C"}


def test_figure_5_has_fractions_and_ablations():
    sweeps = Search.read(SEARCH).sweeps
    points = {p.name: p for p in figure(5, sweeps)}
    fractions = [p.changes.get("lea_finetune_fraction") for p in points.values()]
    assert [f for f in fractions if f] == [0.05, 0.1, 0.2, 0.5, 1.0]
    assert points["LES -SM"].changes == {"lea_state_weight": 0.0}
    assert points["LES -SM"].baseline == points["LES"].label
    assert points["LEASR -IT"].changes == {"lea_prompt_items": "title"}
    assert "other_llm" in points["LEASR other LLM"].missing
    named = {p.name: p for p in figure(5, {**sweeps, "other_llm": "/models/x"})}
    assert named["LEASR other LLM"].missing is None
    assert named["LEASR other LLM"].changes == {"lea_llm": "/models/x"}
