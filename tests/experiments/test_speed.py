"""The reports have their fields; what they measure is not judged here."""

import json

import pytest

from recbole_lea.engine import llm as engine
from recbole_lea.experiments import speed
from recbole_lea.methods import METHODS
from recbole_lea.model import MODELS
from tests.le.helpers import environment


def test_flops_are_two_per_weight(settings):
    env = environment(settings(), adapted=False)
    layers = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    assert speed.flops_per_token(env.llm) == 2 * layers


def test_report(tiny_config, monkeypatch):
    # compiling takes minutes: test_environment.py does it
    monkeypatch.setattr(engine, "compile_layers", lambda model: None)
    report = speed.run(tiny_config(lea_method="base"), users=4)
    assert set(report["llm"]) == set(speed.LLM_PASSES)
    for stage in report["llm"].values():
        assert stage["tokens"] > 0 and stage["share"] > 0
    assert list(report["train_step_ratio"]) == list(MODELS)
    assert json.dumps(report)


def test_training_ratios_are_of_the_costliest_method(tiny_config, monkeypatch):
    original, measured = speed.training_step, []

    def step(model):
        measured.append(model)
        return original(model)

    monkeypatch.setattr(speed, "training_step", step)
    monkeypatch.setattr(speed, "RATIOS", 1)
    assert list(speed.training_ratios(tiny_config(lea_method="LER"), state_dim=8)) == list(MODELS)
    ours, stock = measured[::2], measured[1::2]
    assert {m.switches for m in ours} == {METHODS["LEASR"]}
    assert all(m.warmed_up and m.q_head.norm.normalized_shape == (8,) for m in ours)
    assert [type(m).__name__ for m in stock] == ["SASRec", "SASRec", "GRU4Rec", "GRU4Rec"]


def test_every_stage_under_load_is_reported(tiny_dataset, tiny_llm, monkeypatch):
    monkeypatch.setattr(speed, "tiny_llm", lambda folder, tokenizer_of: folder.symlink_to(tiny_llm))
    stages = speed.load("", items=60, transitions=400)
    assert {"item tokenization", "LE fine-tuning", "states", "rewards", "training steps",
            "rewards of the chosen actions", "ranking"} <= set(stages)  # fmt: skip
    assert all(stage["peak_memory_mb"] > 0 for stage in stages.values())


def test_too_few_interactions_for_the_items_are_an_error():
    with pytest.raises(ValueError, match="--items 100 --transitions 50"):
        speed.load("", items=100, transitions=50)


def test_every_item_occurs(tmp_path):
    speed.generate(tmp_path / "some", items=60, transitions=50)
    rows = (tmp_path / "some" / "some.inter").read_text().splitlines()[1:]
    assert len(rows) == 5 * 13
    assert len({row.split("\t")[1] for row in rows}) == 60
    assert len((tmp_path / "some" / "some.item").read_text().splitlines()) == 61
