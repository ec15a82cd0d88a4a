import pytest
import yaml
from recbole.config import Config

from recbole_lea import config as lea_config
from recbole_lea.model import MODELS


def test_every_default_has_a_rule_and_passes_it(defaults):
    ours = {key for key in defaults if key in lea_config.RULES}
    assert ours == set(lea_config.RULES)
    lea_config.validate(defaults, defaults)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lea_method", "LEASSR"),
        ("gamma", 1.5),
        ("negative_pool", 0),
        ("negative_pool", True),
        ("advantage_clip", [10, 0]),
        ("warmup", "ten epochs"),
        ("warmup", 5),
        ("lea_finetune_fraction", 0),
        ("lea_selection_labels", ["one", "two"]),
        ("state_dim", 0),
        ("transform", "lea_fedback"),
    ],
)
def test_bad_value_is_named(defaults, key, value):
    with pytest.raises(ValueError, match=key):
        lea_config.validate(defaults | {key: value}, [key])


def test_unknown_key_suggests_the_nearest(defaults):
    with pytest.raises(ValueError, match="`lea_metod`; did you mean `lea_method`"):
        lea_config.validate(defaults, ["lea_metod"])


def test_loader_workers_are_refused(defaults):
    with pytest.raises(ValueError, match="`worker` has to be 0"):
        lea_config.validate(defaults | {"worker": 2}, [])


def test_warmup_in_steps_and_epochs():
    assert lea_config.warmup_steps("3 epochs", 7) == 21
    assert lea_config.warmup_steps("1 epoch", 7) == 7
    assert lea_config.warmup_steps("15000 steps", 7) == 15000


def test_config_file_is_found_here_or_in_the_package(tmp_path):
    assert lea_config.find_config_file("properties/quick.yaml").endswith("quick.yaml")
    (tmp_path / "properties").mkdir()
    (tmp_path / "properties" / "quick.yaml").write_text("epochs: 1")
    assert lea_config.find_config_file("properties/quick.yaml") == "properties/quick.yaml"
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        lea_config.find_config_file("nowhere.yaml")


@pytest.mark.parametrize("name", MODELS)
def test_the_backbone_s_defaults_are_recbole_s(name):
    stock = Config(
        model=name[: -len("SNQNLEA")], dataset="ml-100k",
        config_dict={"train_neg_sample_args": None},
    )  # fmt: skip
    path = lea_config.properties_folder() / "model" / f"{name}.yaml"
    ours = Config(model=name, dataset="ml-100k")
    for key in yaml.safe_load(path.read_text(encoding="utf-8")):
        assert ours[key] == stock[key], key


@pytest.mark.parametrize(
    "path", sorted(lea_config.properties_folder().rglob("*.yaml")), ids=lambda p: p.stem
)
def test_every_property_file_is_valid(path, defaults):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    lea_config.validate(defaults | content, content)
