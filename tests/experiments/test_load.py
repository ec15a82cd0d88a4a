"""The load report has its stages; what it measures is not judged here."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from recbole_lea.experiments import load
from recbole_lea.le import answers
from recbole_lea.le import item_tokens as tokenization


@pytest.fixture
def here(monkeypatch, tiny_llm):
    """Each part in this process, with the tests' LLM."""

    def part(command, input, **_):
        return SimpleNamespace(stdout=json.dumps(load.measure(**json.loads(input))))

    monkeypatch.setattr(load, "subprocess", SimpleNamespace(run=part, PIPE=subprocess.PIPE))
    monkeypatch.setitem(load.KEYS, "train_batch_size", 16)
    monkeypatch.setattr(load, "tiny_llm", lambda folder, tokenizer_of: folder.symlink_to(tiny_llm))


def test_every_stage_of_both_is_reported(here, monkeypatch):
    monkeypatch.setattr(tokenization, "BUCKET", 8)
    monkeypatch.setattr(answers, "SHARD", 10)
    asked = []
    for owner, name in ((tokenization, "tokenize_bucket"), (answers, "shards")):
        original = getattr(owner, name)

        def noted(*arguments, original=original, name=name, **named):
            asked.append(name)
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, noted)
    report = load.run("", items=60, transitions=400, steps=2)
    assert set(report) == {"RecBole", "LEA"}
    for stages, models in (
        (report["RecBole"], ("SASRec", "GRU4Rec")),
        (report["LEA"], ("SASRecSA2CLEA", "GRU4RecSNQNLEA")),
    ):
        for model in models:
            assert f"{model}: first step" in stages
            assert f"{model}: 2 more steps" in stages
            assert f"{model}: rank 2 batches" in stages
        assert all(stage["peak_memory_mb"] > 0 for stage in stages.values())
    le = {"item tokenization", "LE fine-tuning", "states", "rewards",
          "rewards of the chosen actions", "a second run: the LE from its cache"}  # fmt: skip
    assert le <= set(report["LEA"])
    # of 8 batches of items the LLM has seen three; of each stage's 40 shards it is asked for three
    assert asked.count("tokenize_bucket") == load.ASKED
    assert asked.count("shards") == 3


def test_too_few_interactions_for_the_items_are_an_error():
    with pytest.raises(ValueError, match="--items 100 --transitions 50"):
        load.run("", items=100, transitions=50)


def test_every_item_occurs(tmp_path):
    load.generate(tmp_path / "some", items=60, transitions=50)
    rows = (tmp_path / "some" / "some.inter").read_text().splitlines()[1:]
    assert len(rows) == 5 * 13
    assert len({row.split("\t")[1] for row in rows}) == 60
    assert len((tmp_path / "some" / "some.item").read_text().splitlines()) == 61
