"""Methods side by side on one's own data."""

import json
from pathlib import Path

import pytest

from recbole_lea.arguments import set_given
from recbole_lea.console import console
from recbole_lea.experiments import compare
from tests.experiments.helpers import in_process, tiny_yaml


@pytest.fixture
def call(tiny_dataset, tiny_llm, tmp_path, monkeypatch):
    """The command line in this process; its runs as well."""
    started = in_process(monkeypatch)
    config = tiny_yaml(tiny_llm, tmp_path, epochs=1)

    def command(*arguments):
        started.clear()
        set_given(["--dataset", "tiny", "--config_files", config, *arguments])
        with pytest.raises(SystemExit) as end:
            console(compare.main)
        return end.value.code, list(started)

    return command


def test_methods_side_by_side(call, log):
    asked = ["--methods", "base,LER", "--seeds", "2", "--q_weight=0.5"]
    code, started = call(*asked)
    assert code == 0
    tests = {(own.spec.method, own.spec.seed) for own in started if own.spec.kind == "test"}
    labels = ("SASRec RecBole", "SASRec SA2C base", "SASRec SA2C LER")
    assert tests == {(label, seed) for label in labels for seed in (1, 2)}
    assert {own.spec.kind for own in started} == {"le", "test"}
    assert started[-1].record()["config"]["q_weight"] == 0.5
    lines = [line.split("  ")[0] for line in log.messages[-1].splitlines()]
    assert lines[1:4] == list(labels)
    assert "NDCG@10" in log.messages[-1].splitlines()[0] and "±" in log.messages[-1]
    assert log.messages[-1].endswith("report: results/tiny/comparison.md")
    folder = Path("results/tiny")
    text = (folder / "comparison.md").read_text(encoding="utf-8")
    assert "**Not final**: 2 seeds are too few" in text
    assert "python -m recbole_lea.compare --dataset tiny" in text
    assert "| SASRec SA2C LER | SASRec SA2C base |" in text
    for name in ("gains", "curves"):
        assert f"![](comparison-{name}.png)" in text
        assert (folder / f"comparison-{name}.png").is_file()
    assert len((folder / "runs.jsonl").read_text().splitlines()) == 7
    # fewer methods: what else is finished does not count
    code, started = call("--methods", "LER", "--seeds", "1", "--q_weight=0.5")
    assert (code, started) == (0, [])
    rows = json.loads((folder / "comparison.json").read_text())
    assert {row["method"] for row in rows} == {"RecBole", "LER"}
    assert all(row["baseline"] is None for row in rows)


def test_further_rows_have_the_keys_of_their_file(call, tmp_path):
    file = tmp_path / "rows.yaml"
    file.write_text(
        "no Q: {lea_method: base, q_weight: 0}\n"
        "twin, LE start: {lea_method: LER, lea_environment: text, selection_by: state, "
        "item_embedding_init: le}\n"
    )
    asked = ["--methods", "base", "--seeds", "1", f"--rows={file}", "--lea_item_iterations=0"]
    code, started = call(*asked, "--hidden_size=16", "--embedding_size=16")
    assert code == 0
    (le,) = (own for own in started if own.spec.kind == "le")
    assert le.spec.keys["lea_environment"] == "text"
    tests = {own.spec.method: own.spec.keys for own in started if own.spec.kind == "test"}
    assert list(tests)[-2:] == ["SASRec SA2C no Q", "SASRec SA2C twin, LE start"]
    assert tests["SASRec SA2C no Q"] == {"lea_method": "base", "q_weight": 0}
    file.write_text("no keys: LEAR\n")
    assert "the row 'no keys' needs keys" in call(*asked)[0]


def test_each_model_has_recbole_s_own_class_once():
    found = compare.rows(["CaserSNQNLEA", "CaserSA2CLEA"], ["LEAR", "base", "Normal", "RecBole"])
    assert [(row.label, row.baseline) for row in found] == [
        ("Caser RecBole", None), ("Caser Normal", None),
        ("Caser SNQN LEAR", "Caser SNQN base"), ("Caser SNQN base", "Caser Normal"),
        ("Caser SA2C LEAR", "Caser SA2C base"), ("Caser SA2C base", "Caser Normal"),
    ]  # fmt: skip
    assert [row.model for row in found if row.name == "base"] == ["CaserSNQNLEA", "CaserSA2CLEA"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "base,LEARS"], "unknown method LEARS; did you mean `LEA"),
        (["--models", "SASRec"], "SASRec is none of recbole_lea, such as SASRecSA2CLEA"),
        (["--models", "SASRekSA2CLEA"], "unknown model `SASRekSA2CLEA`; did you mean `SASRecSA2"),
        (["--models", "BERT4RecSA2CLEA"], "BERT4Rec cannot be a backbone"),
        (["--models", "SASRecSNQNLEA", "--methods", "LES'"], "cannot be used with SNQN"),
        (["--lea_method=LEAR"], "--lea_method cannot be given for all runs of comparison"),
        (["--search", "no.yaml"], "no.yaml: not found"),
        (["--config_files", "other.yaml"], "lea_reward in --config_files would make other methods"),
    ],
)
def test_a_mistake_is_one_line(call, arguments, message):
    Path("other.yaml").write_text("lea_reward: constant\n", encoding="utf-8")
    code, started = call(*arguments)
    assert code.startswith("error: ") and message in code
    assert not started
