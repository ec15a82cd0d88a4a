"""What runs say, and whether it is final."""

import dataclasses
import json

import numpy as np
import pytest

from recbole_lea.experiments import markdown
from recbole_lea.experiments.plan import over_recbole, table
from recbole_lea.experiments.report import not_final, paper_values, table_rows
from tests.experiments.helpers import CODE, METRICS, outcome, report, run_json, table_4


@pytest.fixture
def outcomes():
    return table_4()


def test_rows_are_means_over_seeds_beside_the_paper_s(outcomes):
    rows = report(outcomes).rows
    assert len(rows) == 5 * len(METRICS)
    ler = next(r for r in rows if (r["method"], r["metric"]) == ("LER", "HR@10"))
    values = [record["test_result"]["hit@10"] for record in outcomes[2].records.values()]
    assert ler["values"] == values
    assert ler["mean"] == pytest.approx(np.mean(values))
    assert ler["std"] == pytest.approx(np.std(values, ddof=1))
    assert (ler["backbone"], ler["framework"], ler["baseline"]) == ("SASRec", "SA2C", "SASRec SA2C")
    assert ler["paper"] == 0.1219
    base = next(r for r in rows if (r["method"], r["metric"]) == ("SA2C", "HR@10"))
    assert ler["relative_gain"] == pytest.approx(ler["mean"] / base["mean"] - 1)
    assert ler["interval"][0] < ler["relative_gain"] < ler["interval"][1]
    assert ler["seed_gains"][0] == pytest.approx(ler["values"][0] / base["values"][0] - 1)
    assert base["relative_gain"] is None and base["p_value"] is None
    assert json.loads(json.dumps(rows)) == rows


def test_p_values_need_both_tests_and_are_corrected(outcomes):
    rows = {r["method"]: r for r in report(outcomes).rows if r["metric"] == "NDCG@10"}
    for row in rows.values():
        if row["relative_gain"] is not None:
            assert row["p_value"] == max(row["p_seeds"], row["p_users"])
    assert rows["LER"]["p_value"] < 0.01 and rows["LEAR"]["p_value"] < 0.01
    assert rows["LEA"]["p_value"] > 0.05
    lines = markdown.page(report(outcomes), []).splitlines()
    starred = {name: [r for r in lines if r.startswith(f"| SASRec SA2C {name} |") and "\\*" in r]
               for name in ("LER", "LEA")}  # fmt: skip
    assert starred["LER"] and not starred["LEA"]
    alone = {r["method"]: r for r in table_rows(outcomes[:3], {}, 4) if r["metric"] == "NDCG@10"}
    # three comparisons instead of one; the user test's p is the least there is for both
    assert rows["LER"]["p_users"] == pytest.approx(3 * alone["LER"]["p_users"])


def test_comparisons_still_to_be_made_count(outcomes):
    made = report([*outcomes[:3], *(dataclasses.replace(o, records={}) for o in outcomes[3:])])
    rows = {r["method"]: r for r in report(outcomes).rows if r["metric"] == "NDCG@10"}
    early = {r["method"]: r for r in made.rows if r["metric"] == "NDCG@10"}
    assert early["LER"]["p_users"] == rows["LER"]["p_users"]  # 3 planned, of which it is the first
    assert early["LER"]["p_seeds"] == rows["LER"]["p_seeds"]


def test_every_method_is_compared_with_recbole_s_own_class(outcomes):
    made = report(outcomes)
    rows = {r["method"]: r for r in made.rows if r["metric"] == "NDCG@10"}
    found = rows["LER"]["over_recbole"]
    assert found["relative_gain"] == pytest.approx(
        rows["LER"]["mean"] / rows["RecBole"]["mean"] - 1
    )
    assert rows["RecBole"]["over_recbole"]["relative_gain"] is None
    # three comparisons with the method's own baseline, of which it is the first
    assert found["p_users"] == pytest.approx(rows["LER"]["p_users"] / 3 * over_recbole())
    text = markdown.page(made, []).partition("over RecBole's own class")[2]
    assert "| SASRec SA2C LER | +" in text and "| SASRec RecBole |" not in text.split("##")[0]


def test_over_recbole_s_own_class_a_comparison_has_one_p_in_all_tables(outcomes):
    alone = report([outcomes[0], outcomes[2]], name="table7")
    for metric in ("NDCG@10", "HR@5"):
        one, other = (
            next(r for r in made.rows if (r["method"], r["metric"]) == ("LER", metric))
            for made in (alone, report(outcomes))
        )
        assert one["over_recbole"] == other["over_recbole"]
        assert one["over_recbole"]["p_value"] < 0.05


def test_a_comparison_s_family_is_what_was_asked_for(outcomes):
    rows = {r["method"]: r for r in report(outcomes, name="comparison").rows[:5]}
    assert rows["LER"]["over_recbole"]["p_users"] == pytest.approx(4 / 3 * rows["LER"]["p_users"])


def test_a_comparison_needs_no_commit_to_be_final(outcomes):
    for own in outcomes:
        for record in (*own.records.values(), own.trials[0][1]):
            record["code"] = CODE | {"commit": None, "clean": False}
    les = [run_json(0.1, le={}, code=CODE | {"commit": None})]
    assert len(report(outcomes, les=les).reasons) == 2
    assert report(outcomes, les=les, name="comparison").reasons == []
    text = markdown.page(report(outcomes, name="comparison"), [])
    assert "# Comparison on industrial\n\nFinal. Commit not known." in text


def test_one_seed_has_no_deviation_and_no_significance(outcomes):
    short = [
        dataclasses.replace(o, records={1: o.records[1]}, users={1: o.users[1]}) for o in outcomes
    ]
    row = next(r for r in report(short, n_seeds=1).rows if r["method"] == "LER")
    assert row["std"] is None and row["p_seeds"] is None and row["p_value"] is None
    assert row["p_users"] < 0.01


def test_only_common_seeds_are_compared(outcomes):
    sa2c = outcomes[1]
    for seed in (4, 5):
        del sa2c.records[seed], sa2c.users[seed]
    row = next(r for r in report(outcomes).rows if r["method"] == "LER")
    assert row["seeds"] == [1, 2, 3, 4, 5] and len(row["seed_gains"]) == 3


def test_the_paper_s_values_are_read():
    assert paper_values(2, "lfm")["SASRec", "SA2C", "LEASR", "NDCG@10"] == 0.3011
    assert paper_values(5, "industrial") == {}


def test_clean_and_complete_runs_of_one_commit_are_final(outcomes):
    assert not_final(outcomes, [run_json(0.1)], 5) == []
    assert "Final. Commit " + CODE["commit"] in markdown.page(report(outcomes), [])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"code": CODE | {"clean": False}}, "uncommitted code"),
        ({"code": CODE | {"commit": None}}, "outside a git checkout"),
        ({"versions": {"python": "3.11", "torch": "3"}}, "versions of Python or of packages"),
        ({"device": "H200"}, "different devices"),
        ({"fingerprints": {"llm": "m"}}, "different LLMs, or other dtypes, under one name"),
    ],
)
def test_what_keeps_results_from_being_final(outcomes, change, reason):
    outcomes[2].records[3] |= change
    (found,) = not_final(outcomes, [], 5)
    assert reason in found
    assert "**Not final**: " + found in markdown.page(report(outcomes), [])
    outcomes[2].records[3] |= run_json(0.1)
    assert len(not_final(outcomes, [run_json(0.1, **change)], 5)) == 1  # an LE's run as well
    outcomes[2].trials[0][1].update(change)  # and a trial, which has chosen the keys
    assert not_final(outcomes, [], 5) == [found]


def test_one_backbone_s_runs_of_different_training_code_are_not_final(outcomes):
    other = CODE | {"commit": "d" * 40, "fingerprint": "g"}
    outcomes[2].records[3]["code"] = other
    (found,) = not_final(outcomes, [], 5)
    assert "runs of SASRec were made by different versions of the training code" in found
    outcomes[2].records[3]["code"] = CODE
    outcomes[2].trials[0][1]["code"] = other  # a trial has chosen the keys
    assert not_final(outcomes, [], 5) == [found]


def test_backbones_may_be_of_different_training_code(outcomes):
    other = CODE | {"commit": "d" * 40, "fingerprint": "g"}
    rows = {method.label: method for method in table(2)}
    others = [outcome(rows["GRU4Rec SA2C"], [0.1] * 5, 9, code=other)]
    assert not_final([*outcomes, *others], [run_json(0.1)], 5) == []
    text = markdown.page(report([*outcomes, *others]), [])
    assert f"Commit {CODE['commit']} (SASRec); {other['commit']} (GRU4Rec)." in text


@pytest.mark.parametrize("le", [{}, {"code": None}, {"code": CODE | {"clean": False}}])
def test_an_le_of_unknown_code_is_not_final(outcomes, le):
    (found,) = not_final(outcomes, [run_json(0.1, le=le)], 5)
    assert "LE was trained by code" in found


def test_another_commit_with_the_same_training_code_is_final(outcomes):
    outcomes[2].records[3]["code"] = CODE | {"commit": "d" * 40}
    assert not_final(outcomes, [], 5) == []
    assert "d" * 40 in markdown.page(report(outcomes), [])


def test_missing_runs_are_not_final(outcomes):
    del outcomes[2].records[3]
    (reason,) = not_final(outcomes, [], 5)
    assert reason == "runs are missing: SASRec SA2C LER"
    outcomes[2].records.clear()
    made = report(outcomes)
    assert "LER" not in {row["method"] for row in made.rows}
    assert made.reasons


def test_two_seeds_are_not_final(outcomes):
    assert "too few" in not_final(outcomes, [], 2)[0]
