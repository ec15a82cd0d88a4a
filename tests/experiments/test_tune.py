"""Searches of two tiny trials by RecBole's HyperTuning and by Ray."""

import math
import re
import sys
from pathlib import Path

import pytest
import yaml

from recbole_lea.arguments import set_given
from recbole_lea.console import console
from recbole_lea.experiments.tune import check_space, main, read_space
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


def test_ray_spreads_the_trials(search, capsys):
    pytest.importorskip("pyarrow", reason="pip install pyarrow")
    search("--params_file=space.test", "--output_file=out.txt", "--tool=Ray", "--q_weight=0.5")
    assert set(results("out.txt")) == {"learning_rate:0.001", "learning_rate:0.02"}
    out = capsys.readouterr().out
    scores = {name: float(re.search(r"Valid result:.*?ndcg@10 : ([\d.]+)", text, re.DOTALL)[1])
              for name, text in results("out.txt").items()}  # fmt: skip
    (best,) = re.findall(r"best params: \{'learning_rate': ([\d.]+)\}", out)
    assert scores[f"learning_rate:{best}"] == max(scores.values())
    assert "best valid result: {'hit@5'" in out
    saved = list(Path("ray_log").glob("*/*/saved/*.pth"))
    assert len(saved) == 2
    assert len({path.parent for path in saved}) == 2
    import torch

    config = torch.load(saved[0], weights_only=True)["config"]
    assert config["q_weight"] == 0.5
    assert "node-ip-address" not in config


@pytest.mark.parametrize("name", MODELS)
def test_each_model_has_a_space_of_its_own_keys(name):
    from recbole.config import Config
    from recbole.trainer import HyperTuning

    path = find_config_file(f"properties/hyper/{name}.test")
    space = read_space(path)
    check_space(space, path, Config(name, "ml-100k"))
    assert {"learning_rate", "q_weight", "w_ah", "w_aq"} < set(space)
    pytest.importorskip("hyperopt", reason="pip install hyperopt==0.2.5")
    assert set(HyperTuning._build_space_from_file(path)) == set(space)


@pytest.mark.parametrize(
    ("space", "arguments", "message"),
    [
        ("learning_rat choice [1]\n", [], "unknown key `learning_rat`; did you mean `learning_rat"),
        ("w_ah choice [0.1,'x']\n", [], "space.test: `w_ah` is 'x', but has to be a number"),
        (
            "embedding_size quniform 32,64,32\n",
            [],
            "`embedding_size` is 32.0.*quniform gives no whole",
        ),
        ("dropout_prob loguniform -2,1\n", [], "`dropout_prob` is 2.718.*, but has to be"),
        ("w_ah uniform 0.1\n", [], "space.test, line 1: 'w_ah uniform 0.1' is not"),
        ("w_ah  choice [0.1]\n", [], "one blank between"),
        ("# a note of four words\n", [], "line 1: '# a note"),
        ("\n", [], "holds no search space"),
        (SPACE, ["--learning_rate=0.1"], "searches `learning_rate`, which --learning_rate="),
        ("w_ah uniform 0,1\n", ["--algo", "exhaustive"], "needs choices alone"),
        ("w_ah uniform 0,1\n", ["--tool", "Ray", "--algo", "bayes"], "bayes is Hyperopt's"),
    ],
)
def test_a_mistake_is_one_clear_line(search, monkeypatch, space, arguments, message):
    for package in ("hyperopt", "pyarrow"):  # what is asked for here needs neither
        monkeypatch.setitem(sys.modules, package, sys)
    with pytest.raises(SystemExit, match=message):
        search("--params_file=space.test", *arguments, space=space)


@pytest.mark.parametrize(("tool", "package"), [("Hyperopt", "hyperopt"), ("Ray", "ray")])
def test_a_missing_package_is_named_with_the_remedy(search, monkeypatch, tool, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match=f"package {package}: pip install 'recbole_lea.tune.'"):
        search("--params_file=space.test", f"--tool={tool}")
