"""The model classes by name, import and pickle, and their defaults."""

import pickle
import re

import pytest
import yaml
from recbole.config import Config
from recbole.utils import get_model

from recbole_lea.keys import RULES, backbone_keys
from recbole_lea.model import lea_model, registry
from recbole_lea.plugin.quick_start import backbone_config
from recbole_lea.run import main
from tests.conftest import tiny_keys

ACCEPTED = [name for name in registry.stock() if name not in registry.REFUSED]


def test_a_class_is_made_once_and_found_by_name_import_and_pickle():
    from recbole_lea.model import STAMPSA2CLEA

    assert lea_model("STAMPSA2CLEA") is get_model("STAMPSA2CLEA") is STAMPSA2CLEA
    assert pickle.loads(pickle.dumps(STAMPSA2CLEA)) is STAMPSA2CLEA
    assert (STAMPSA2CLEA.rl_loss, STAMPSA2CLEA.backbone_class().__name__) == ("SA2C", "STAMP")
    with pytest.raises(ImportError, match="STAMPLEA"):
        from recbole_lea.model import STAMPLEA  # noqa: F401


@pytest.mark.parametrize("name", ["CasrSNQNLEA", "CaserSNQLEA", "caserSNQNLEA"])
def test_mistyped_names_suggest_the_nearest(name):
    with pytest.raises(ValueError, match="did you mean `CaserSNQNLEA`"):
        Config(name, "ml-100k")


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_defaults_are_recbole_s_and_none_is_a_key_of_ours(name):
    ours = Config(f"{name}SA2CLEA", "ml-100k")
    stock = Config(name, "ml-100k", config_dict={"train_neg_sample_args": None})
    keys = backbone_keys(name)
    assert "loss_type" in keys
    assert {key: ours[key] for key in keys} == {key: stock[key] for key in keys}
    assert not set(keys) & set(RULES)


def test_command_line_and_recbole_s_backbone_beside_it(
    tiny_dataset, tiny_llm, tmp_path, monkeypatch, caplog
):
    keys = tiny_keys(tiny_llm) | {"nv": 2}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(keys), encoding="utf-8")
    arguments = ["--model=CaserSNQNLEA", "--dataset=tiny", "--config_files=tiny.yaml"]
    monkeypatch.setattr("sys.argv", ["run", *arguments, "--lea_compare=True", "--nh=3"])
    caplog.set_level("INFO")
    result = main()
    assert result["test_result"]["hit@10"] >= 0
    assert re.search(r"CaserSNQNLEA \(LEASR\) .*\nCaser, plain ", caplog.text)
    config = Config("CaserSNQNLEA", "tiny", ["tiny.yaml"], {"reg_weight": 0.5})
    stock = backbone_config(config, ["tiny.yaml"])
    assert stock["model"] == "Caser"
    assert (stock["nv"], stock["nh"], stock["reg_weight"]) == (2, 3, 0.5)
