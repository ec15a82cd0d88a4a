"""What a reader gets: a page for each table, and one for all."""

import dataclasses
import json
from pathlib import Path

import pytest

from recbole_lea.experiments import markdown
from tests.experiments.helpers import report, run_json, table_4


@pytest.fixture
def outcomes():
    return table_4()


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
    assert "[Table 4 on industrial](industrial/table4.md) (final):" in text and "make it" in text
