"""What a reader gets: rows, Markdown, and whether the results are final."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from recbole_lea.experiments import markdown
from recbole_lea.experiments.plan import table
from recbole_lea.experiments.report import Report, not_final, paper_values, table_rows
from tests.experiments.helpers import CODE, METRICS, outcome, run_json


@pytest.fixture
def outcomes():
    """Table 4: LER far better than SA2C, LEA alike, LEAR worse."""
    methods = {method.name: method for method in table(4)}
    means = {"RecBole": 0.30, "SA2C": 0.30, "LER": 0.45, "LEA": 0.30, "LEAR": 0.2}
    return [
        outcome(methods[name], [mean + d for d in (0.01, 0.0, -0.01, 0.005, -0.005)], seed)
        for seed, (name, mean) in enumerate(means.items())
    ]


def report(outcomes, **changes):
    keys = {"name": "table4", "dataset": "industrial", "command": "make it", "outcomes": outcomes,
            "les": [], "left_out": {}, "n_seeds": 5} | changes  # fmt: skip
    return Report(**keys)


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
    alone = {r["method"]: r for r in table_rows(outcomes[:3], {}) if r["metric"] == "NDCG@10"}
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
    # four comparisons here, three with the method's own baseline
    assert found["p_users"] == pytest.approx(rows["LER"]["p_users"] * 4 / 3)
    text = markdown.page(made, []).partition("over RecBole's own class")[2]
    assert "| SASRec SA2C LER | +" in text and "| SASRec RecBole |" not in text.split("##")[0]


def test_settings_that_differ_from_the_shipped_ones_are_said(outcomes):
    outcomes[0].records[1]["config"] |= {"transform": None}  # RecBole's own class
    outcomes[1].records[1]["config"] |= {"state_dim": 64, "w_ah": 0.1, "weight_decay": 0.01}
    outcomes[1].records[1]["config"] |= {"train_neg_sample_args": {"distribution": "none"}}
    text = markdown.page(report(outcomes), [])
    assert "| state_dim | `64` (shipped: `None`) |" in text
    assert "| weight_decay | `0.01` (shipped: `0.0`) |" in text  # RecBole's own key
    assert "w_ah" not in text and "| transform |" not in text and "| train_neg" not in text


def test_no_trial_is_said(outcomes):
    none = [dataclasses.replace(o, trials=[]) for o in outcomes]
    assert "| SASRec SA2C LER | none |" in markdown.page(report(none), [])


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


def test_markdown_has_what_a_reader_needs(outcomes):
    le = run_json(
        0.1,
        le={"accuracy": 0.812, "hit_10": 0.055, "n": 500, "reward_popularity": -0.25},
        stages={"LE fine-tuning": {"seconds": 3600.0, "peak_memory_mb": 2100.0}},
        config={"lea_llm": "wheel:x", "lea_finetune_fraction": 0.1, "lea_state_weight": 0.3,
                "lea_prompt_items": "token"},
    )  # fmt: skip
    titles = le | {"config": le["config"] | {"lea_prompt_items": "title"}}
    for record in outcomes[3].records.values():
        record["le"] = {"positions_chosen": [0.3, 0.1, 0.2, 0.2, 0.2],
                        "true_item_listed": 0.4, "true_item_chosen": 0.123}  # fmt: skip
        record["best_is_warmup"] = True
        if record["seed"] > 2:
            record["config"] = record["config"] | {"epochs": 4, "eval_step": 1 + record["seed"] % 2}
        record["cold"] = {"below": 5, "rows": 1234, "result": {"hit@10": 0.0123 + record["seed"]}}
    made = report(outcomes, les=[le, titles], left_out={"SASRec X": "no reason"})
    text = markdown.page(made, ["table4-gains.png"])
    assert "![](table4-gains.png)" in text and "make it" in text
    line = next(r for r in text.splitlines() if r.startswith("| SASRec SA2C LER | **0."))
    own = next(r for r in made.rows if (r["method"], r["metric"]) == ("LER", "NDCG@10"))
    assert f"**{own['mean']:.4f}** ± {own['std']:.4f} (0.0928)" in line
    assert "+10.2 %" in text  # the paper's own gain of LER: .0928 / .0842
    assert "learning_rate 0.001" in text
    assert "state weight 0.3 | 0.812 | 0.055 | 500 | -0.250" in text
    assert "state weight 0.3, titles in the prompts | 0.812" in text
    assert "0.30 0.10 0.20 0.20 0.20 | 0.400 | 0.123" in text
    assert "5 of 5 | 4 of 5" in text  # seed 4 would have been measured once more
    assert "LE fine-tuning 3600 s, 2,100 MB | 1 h 0 min" in text
    assert "| SASRec SA2C LER | training 50 s, 900 MB | " in text  # of six runs, each
    assert "1,234 test rows whose item is seen fewer than 5 times in training" in text
    cold = next(r for r in text.splitlines() if "3.0123 ± 1.5811" in r)
    assert cold.startswith(f"| {outcomes[3].method.label} |")
    assert "SASRec X: no reason" in text
    assert "ttest_rel" in text and "Holm" in text
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("| ")]
        assert len({line.count("|") for line in lines}) <= 1


def test_files_and_overview(outcomes):
    folder = Path("results/industrial")
    folder.mkdir(parents=True)
    made = report(outcomes, left_out={"SASRec X": "no reason"})
    made.write(folder)
    markdown.write(made, folder, [])
    assert json.loads((folder / "table4.json").read_text()) == made.rows
    about = json.loads((folder / "table4-runs.json").read_text())
    assert about["search"]["SASRec SA2C LER"]["chosen"] == {"learning_rate": 0.001}
    assert (folder / "table4.md").read_text() == markdown.page(made, [])
    text = Path("results/README.md").read_text()
    assert text == markdown.overview(Path("results"))
    assert "## industrial" in text and "(industrial/table4.md)" in text and "final" in text
    lines = {line.split(":")[0]: line for line in text.splitlines() if line.startswith("- ")}
    assert "LER (+" in lines["- better than its baseline"]
    assert "LEAR (-" in lines["- worse than its baseline"]
    assert "LEA (" in lines["- no significant difference"]
    assert "SASRec X" in lines["- left out"]
    assert "RecBole's own SASRec" in lines["- highest"]
    assert f"- Commit {CODE['commit']}" in text
    assert "make it" in text
