"""Searches of two tiny trials by RecBole's HyperTuning."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from recbole_lea.arguments import set_given
from recbole_lea.console import console
from recbole_lea.experiments.tune import main, read_space
from recbole_lea.model import MODELS
from recbole_lea.yaml_files import find_config_file
from tests.conftest import tiny_keys

SPACE = "learning_rate choice [0.001,0.02]\n"


@pytest.fixture
def search(tiny_dataset, tiny_llm):
    """Runs a search on the tiny dataset; relative paths as a user gives them."""
    keys = tiny_keys(tiny_llm) | {"epochs": 2, "lea_method": "base", "warmup": "1 steps"}
    Path("tiny.yaml").write_text(yaml.safe_dump(keys | {"dataset": "tiny"}), encoding="utf-8")

    def run(*arguments, space=SPACE):
        Path("space.test").write_text(space, encoding="utf-8")
        set_given(["--model=GRU4RecSA2CLEA", "--config_files=tiny.yaml", *arguments])
        console(main)

    return run


def results(path):
    """Parameters -> lines of the result file."""
    parts = Path(path).read_text().strip().split("\n\n")
    return {part.splitlines()[0]: part for part in parts}


def test_hyperopt_tries_every_choice(search, capsys):
    pytest.importorskip("hyperopt", reason="pip install hyperopt==0.2.5")
    search("--params_file=space.test", "--output_file=out.txt", "--q_weight=0.5")
    found = results("out.txt")
    assert set(found) == {"learning_rate:0.001", "learning_rate:0.02"}
    assert all("Valid result:" in text and "ndcg@10" in text for text in found.values())
    out = capsys.readouterr().out
    assert "best params: {'learning_rate': " in out
    assert len(list(Path("log/GRU4RecSA2CLEA").glob("*/run.json"))) == 2


def test_hyperopt_samples_a_range(search):
    pytest.importorskip("hyperopt", reason="pip install hyperopt==0.2.5")
    space = "learning_rate loguniform -6,-5\nw_ah choice [0.1,0.2]\n"
    search("--params_file=space.test", "--max_evals=2", "--display_file=trials.html", space=space)
    rates = [float(name.split("learning_rate:")[1].split(",")[0])
             for name in results("hyper_example.result")]  # fmt: skip
    assert len(rates) == 2
    assert all(math.exp(-6) < rate < math.exp(-5) for rate in rates)
    assert Path("trials.html").is_file()


def test_a_trial_that_fails_is_left_out(search, monkeypatch, caplog):
    pytest.importorskip("hyperopt", reason="pip install hyperopt==0.2.5")
    import recbole.quick_start as quick_start

    original = quick_start.objective_function

    def trial(config_dict, files):
        if config_dict["learning_rate"] == bad or not bad:
            raise RuntimeError("no such luck")
        return original(config_dict, files)

    monkeypatch.setattr(quick_start, "objective_function", trial)
    bad = 0.02
    search("--params_file=space.test", "--output_file=out.txt", "--display_file=trials.html")
    assert set(results("out.txt")) == {"learning_rate:0.001"}
    assert Path("trials.html").is_file()
    bad = None
    with pytest.raises(SystemExit, match="no trial has finished"):
        search("--params_file=space.test")


@pytest.fixture
def scored(monkeypatch):
    """No trial trains: its score falls from one to the next. Returns the configs of all."""
    pytest.importorskip("hyperopt", reason="pip install hyperopt==0.2.5")
    import recbole.quick_start as quick_start
    from recbole.config import Config

    configs = []

    def objective(config_dict, files):
        configs.append(Config(config_dict=config_dict, config_file_list=files))
        score = 1 / len(configs)
        if interrupted and len(configs) == 2:
            raise KeyboardInterrupt
        return {"model": "GRU4RecSA2CLEA", "best_valid_score": score, "valid_score_bigger": True,
                "best_valid_result": {"x": score}, "test_result": {"x": score}}  # fmt: skip

    interrupted = []
    monkeypatch.setattr(quick_start, "objective_function", objective)
    return SimpleNamespace(all=configs, interrupt=lambda: interrupted.append(True))


@pytest.mark.parametrize("space", ["[[0,10],[0, 5]]", "['[0,10]','[0,5]']"])
def test_a_choice_may_be_a_list(search, scored, capsys, space):
    search("--params_file=space.test", space=f"advantage_clip choice {space}\n")
    assert sorted(config["advantage_clip"] for config in scored.all) == [[0, 5], [0, 10]]
    first = scored.all[0]["advantage_clip"]
    assert f"best params: {{'advantage_clip': {first}}}" in capsys.readouterr().out


def test_a_grid_is_tried_whole_and_an_early_end_is_said(search, scored, caplog):
    points = f"learning_rate choice {[n / 1000 for n in range(1, 15)]}\n"
    search("--params_file=space.test", space=points)
    assert len({config["learning_rate"] for config in scored.all}) == len(scored.all) == 14
    assert "the search ended" not in caplog.text
    scored.all.clear()
    search("--params_file=space.test", "--max_evals=30", space="learning_rate uniform 0.001,0.01\n")
    n = len(scored.all)
    assert 10 <= n < 30
    assert f"the search ended after {n} of 30 trials: it stops after 10 without" in caplog.text


def test_what_has_finished_is_written_also_after_ctrl_c(search, scored):
    scored.interrupt()
    with pytest.raises(SystemExit) as end:
        search("--params_file=space.test", "--output_file=out.txt")
    assert end.value.code == 130
    assert len(results("out.txt")) == 1


@pytest.mark.parametrize("name", MODELS)
def test_each_model_has_a_space_of_its_own_keys(name):
    from recbole.config import Config

    pytest.importorskip("hyperopt", reason="pip install hyperopt==0.2.5")
    path = find_config_file(f"properties/hyper/{name}.test")
    space = read_space(path, Config(name, "ml-100k"))
    assert {"learning_rate", "q_weight", "w_ah", "w_aq"} < set(space)


@pytest.mark.parametrize(
    ("space", "arguments", "message"),
    [
        ("learning_rat choice [1]\n", [], "unknown key `learning_rat`; did you mean `learning_rat"),
        ("w_ah choice [0.1,'x']\n", [], "space.test: `w_ah` is 'x', but has to be a number"),
        (
            "embedding_size quniform 32,64,32\n",
            [],
            r"`embedding_size` is 64.0.*choice alone gives whole numbers",
        ),
        ("dropout_prob loguniform -2,1\n", [], "`dropout_prob` is 1.*, but has to be"),
        ("w_ah uniform 0.1\n", [], "space.test holds no search space"),
        ("w_ah  choice [0.1]\n", [], "one blank between"),
        ("# a note of four words\n", [], "holds no search space"),
        ("\n", [], "holds no search space"),
        (SPACE, ["--learning_rate=0.1"], "searches `learning_rate`, which --learning_rate="),
        ("w_ah uniform 0,1\n", ["--algo", "exhaustive"], "needs choices alone"),
        (SPACE, ["--tool=Ray"], "--tool Ray: the search is by Hyperopt alone"),
    ],
)
def test_a_mistake_is_one_clear_line(search, space, arguments, message):
    pytest.importorskip("hyperopt", reason="pip install hyperopt==0.2.5")
    with pytest.raises(SystemExit, match=message):
        search("--params_file=space.test", *arguments, space=space)


def test_a_missing_package_is_named_with_the_remedy(search, monkeypatch):
    monkeypatch.setitem(sys.modules, "hyperopt", None)
    monkeypatch.setitem(sys.modules, "hyperopt.exceptions", None)
    with pytest.raises(SystemExit, match="package hyperopt: pip install 'recbole_lea.tune.'"):
        search("--params_file=space.test")
