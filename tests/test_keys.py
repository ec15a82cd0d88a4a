"""What is known of RecBole without importing it is what RecBole has."""

import pytest
from recbole.config import Config

from recbole_lea import keys
from recbole_lea.model import registry


def test_backbones_are_recbole_s():
    assert set(keys.backbones()) == set(registry.stock()) - set(keys.REFUSED_BACKBONES)


@pytest.mark.parametrize("model", ["SASRecSA2CLEA", "GRU4Rec", "CaserSNQNLEA"])
def test_a_model_s_keys_are_those_that_have_a_default(model):
    config = Config(model, "ml-100k", config_dict={"train_neg_sample_args": None})
    own = {key for key in config.internal_config_dict if key != "MODEL_TYPE"}
    assert own <= keys.known_keys(model) <= keys.known_keys()
    assert ("lea_method" in keys.known_keys(model)) == model.endswith("LEA")
    assert "n_heads" not in keys.known_keys(model) or model.startswith("SASRec")


@pytest.mark.parametrize("name", ["dataset/tiny", "tiny/", "/data/tiny", "..", "tiny/tiny.inter"])
def test_a_dataset_is_a_name(name):
    message = f"`dataset` is '{name}', but has to be a name; `data_path` is the folder"
    with pytest.raises(ValueError, match=message):
        Config("SASRec", name)
    keys.check_dataset_name("ml-100k")


def test_a_tilde_is_the_user_s_folder_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = dict.fromkeys(keys.PATH_KEYS, "~/x")
    config = Config("SASRecSA2CLEA", "tiny", config_dict=paths | {"lea_note": "~/x"})
    found = {key: config[key] for key in keys.PATH_KEYS}
    assert found.pop("data_path") == str(tmp_path / "x" / "tiny")
    assert set(found.values()) == {str(tmp_path / "x")}
    assert config["lea_note"] == "~/x"
    stock = Config("SASRec", "tiny", config_dict={"checkpoint_dir": "~/x"})
    assert stock["checkpoint_dir"] == str(tmp_path / "x")
