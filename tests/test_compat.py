"""What a plain `import recbole_lea` makes of RecBole."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recbole.config import Config
from recbole.quick_start import run_recbole
from recbole.utils import get_model, get_trainer

from recbole_lea.compat import plain, restored_config
from recbole_lea.model import MODELS, SASRecSA2CLEA
from recbole_lea.trainer import LEATrainer
from tests.conftest import tiny_keys


@pytest.mark.parametrize("name", MODELS)
def test_models_and_trainers_are_found_by_name(name):
    assert get_model(name) is MODELS[name]
    assert get_trainer(MODELS[name].type, name) is LEATrainer


def test_config_by_class_name_file_and_command_line(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text("lea_method: LEAR\nw_ah: 0.3\n")
    monkeypatch.setattr(sys, "argv", ["x", "--w_aq=0.5", "--lea_method=LEAS'R"])
    config = Config(SASRecSA2CLEA, "ml-100k", ["c.yaml"], {"gamma": 0.9})
    assert config["model"] == "SASRecSA2CLEA"
    assert (config["w_ah"], config["w_aq"], config["gamma"]) == (0.3, 0.5, 0.9)
    assert config["lea_method"] == "LEAS'R"
    assert "films" in config["lea_user_prompt"]


def test_mistyped_model_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean `SASRecSA2CLEA`"):
        Config(model="SASRecS2ACLEA", dataset="ml-100k")
    with pytest.raises(ValueError, match="did you mean `SASRec`"):
        Config(model="SASRek", dataset="ml-100k")


def test_a_missing_optional_package_stays_recbole_s_own_error():
    with pytest.raises((ModuleNotFoundError, AttributeError), match="lightgbm|LightGBM"):
        get_model("LightGBM")


def test_mistyped_key_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean `lea_llm`"):
        Config("SASRecSA2CLEA", "ml-100k", config_dict={"lea_lm": "x"})


def test_stock_models_know_nothing_of_our_keys():
    config = Config("SASRec", "ml-100k", config_dict={"train_neg_sample_args": None})
    assert "lea_method" not in config
    assert config["transform"] is None


def test_anomaly_detection_is_off():
    assert not torch.is_anomaly_enabled()


def test_stock_model_s_checkpoint_can_be_read_again(tiny_dataset):
    """torch >= 2.6 refuses RecBole's own pickled Config."""
    result = run_recbole(
        "SASRec",
        "tiny",
        config_dict={
            "train_neg_sample_args": None, "epochs": 1, "show_progress": False,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        },
    )  # fmt: skip
    assert result["test_result"]
    checkpoint = torch.load(next(Path("saved").glob("SASRec-*.pth")), weights_only=True)
    assert checkpoint["config"]["model"] == "SASRec"


@pytest.mark.parametrize("name", ["SASRecSA2CLEA", "SASRec"])
def test_a_config_is_restored_from_plain_types(tiny_dataset, name, monkeypatch):
    keys = {
        "topk": [3],
        "learning_rate": 0.5,
        "train_neg_sample_args": None,
        "eval_args": {"split": {"LS": "test_only"}, "order": "TO", "mode": "uni5"},
    }
    config = Config(name, "tiny", config_dict=keys)
    saved = plain(config.final_config_dict) | {"device": "cuda:7"}
    again = restored_config(saved)
    assert again.final_config_dict == config.final_config_dict
    monkeypatch.setattr(sys, "argv", ["x", "--data_path=elsewhere", "--topk=[4]"])
    again = restored_config(saved)
    assert (again["data_path"], again["topk"]) == ("elsewhere/tiny", [4])
    assert again["learning_rate"] == 0.5


def test_plain_makes_built_in_types():
    value = plain({"a": (1, 2.5, None), "b": {3}, "c": torch.device("cpu"), "d": True})
    assert value == {"a": [1, 2.5, None], "b": [3], "c": "cpu", "d": True}


def test_import_alone_is_enough_in_a_fresh_process(tiny_dataset, tiny_llm):
    keys = tiny_keys(tiny_llm) | {"epochs": 1, "lea_method": "LER"}
    code = (
        "import sys, recbole_lea\n"
        "assert 'recbole_lea.serve' not in sys.modules\n"
        "from recbole.quick_start import run_recbole\n"
        f"result = run_recbole(model='SASRecSA2CLEA', dataset='tiny', config_dict={keys!r})\n"
        "assert 'hit@10' in result['test_result'], result\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_le_needs_no_recbole(tmp_path):
    """The LE can be built on a machine that has none."""
    (tmp_path / "recbole").mkdir()
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda n, *a: None if n == 'recbole' else find(n, *a)\n"
        "import recbole_lea.le\n"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'recbole']\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_run_hyper_s_objective_function(tiny_dataset, tiny_llm, monkeypatch):
    import recbole.quick_start.quick_start as quick_start

    monkeypatch.setattr(quick_start.tune, "report", lambda **metrics: None)
    config = tiny_keys(tiny_llm) | {"model": "GRU4RecSNQNLEA", "dataset": "tiny", "w_ah": 0.5}
    result = quick_start.objective_function(config, None, saved=True)
    assert result["model"] == "GRU4RecSNQNLEA"
    assert "ndcg@10" in result["best_valid_result"]


def test_saved_dataset_and_loaders_are_reused(tiny_dataset, tiny_llm, caplog):
    caplog.set_level("INFO")
    keys = tiny_keys(tiny_llm) | {"save_dataset": True, "save_dataloaders": True, "epochs": 3}
    results = [run_recbole("SASRecSA2CLEA", "tiny", config_dict=dict(keys)) for _ in range(3)]
    assert "Load filtered dataset from" in caplog.text
    assert "Load split dataloaders from" in caplog.text
    # the first run differs: RecBole takes the shuffling generator away from loaders it saves
    assert results[1]["test_result"] == results[2]["test_result"]
    caplog.clear()
    run_recbole("SASRecSA2CLEA", "tiny", config_dict=keys | {"lea_newest": 5})
    assert "Load filtered dataset from" not in caplog.text
    assert "Load split dataloaders from" not in caplog.text
