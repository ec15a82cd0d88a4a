"""The reports have their fields; what they measure is not judged here."""

import json

from recbole_lea.engine import llm as engine
from recbole_lea.experiments import speed


def test_report(tiny_config, monkeypatch):
    # compiling takes minutes: test_environment.py does it
    monkeypatch.setattr(engine, "compile_layers", lambda model: None)
    report = speed.run(tiny_config(lea_method="base"), users=4)
    assert set(report) == set(speed.LLM_PASSES)
    for stage in report.values():
        assert stage["tokens"] > 0 and stage["share"] > 0
    assert json.dumps(report)
