"""The reports have their fields; what they measure is not judged here."""

import json

from recbole_lea.engine import llm as engine
from recbole_lea.experiments import speed
from recbole_lea.methods import METHODS
from recbole_lea.model import MODELS


def test_report(tiny_config, monkeypatch):
    # compiling takes minutes: test_environment.py does it
    monkeypatch.setattr(engine, "compile_layers", lambda model: None)
    steps, step = [], speed.training_step
    monkeypatch.setattr(speed, "training_step", lambda model: (steps.append(model), step(model))[1])
    report = speed.run(tiny_config(lea_method="base"), users=4)
    assert set(report["llm"]) == set(speed.LLM_PASSES)
    for stage in report["llm"].values():
        assert stage["tokens"] > 0 and stage["share"] > 0
    assert list(report["training step"]) == list(MODELS)
    assert all(ratio > 0 for ratio in report["training step"].values())
    assert json.dumps(report)
    ours, plain = steps[::2], steps[1::2]
    assert [type(model) for model in ours] == list(MODELS.values())
    assert all(m.switches == METHODS["LEASR"] and m.warmed_up for m in ours)
    assert [type(m).__name__ for m in plain] == ["SASRec", "SASRec", "GRU4Rec", "GRU4Rec"]
