import random

import pytest
import yaml
from recbole.config import Config

from recbole_lea import keys, yaml_files
from recbole_lea.methods import METHODS
from recbole_lea.model import MODELS
from recbole_lea.plugin import checks


def test_every_default_has_a_rule_and_passes_it(defaults):
    assert set(keys.RULES) <= set(defaults)
    assert set(defaults) <= {*keys.RULES, *keys.RECBOLE_RULES, "load_col"}
    checks.validate(defaults, defaults)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lea_method", "LEASSR"),
        ("gamma", 1.5),
        ("negative_pool", 0),
        ("negative_pool", True),
        ("q_max_chunk", 1),
        ("advantage_clip", [10, 0]),
        ("warmup", "ten epochs"),
        ("warmup", 5),
        ("lea_finetune_fraction", 0),
        ("lea_selection_labels", ["one", "two"]),
        ("state_dim", 0),
        ("transform", "lea_fedback"),
        ("lea_selection_labels", ["one", "two", "two", "four", "five"]),
        ("lea_selection_labels", ["one", "two", " ", "four", "five"]),
        ("lea_llm_options", {"trust_remote_code": True}),
        ("lea_llm_options", {"weights_only": False}),
        ("lea_llm", ""),
        ("lea_cache_dir", "a\0b"),
        ("lea_user_prompt", "The user has watched films."),
        ("lea_action_prompt", "{item} or {other}"),
        ("lea_selection_prompt", "{list} and {list}"),
        ("lea_item_sentence", "[{item} film is titled {title}]."),
        ("lea_item_sentence", "{item} film[ is titled {title}."),
        ("lea_item_sentence", "{title} is {item}"),
        ("lea_prompt_items", "titles"),
    ],
)
def test_bad_value_is_named(defaults, key, value):
    with pytest.raises(ValueError, match=f"`{key}`|`{key}: "):
        checks.validate(defaults | {key: value}, [key])


def test_unknown_key_suggests_the_nearest(defaults):
    with pytest.raises(ValueError, match="`lea_metod`; did you mean `lea_method`"):
        checks.validate(defaults, ["lea_metod"])


@pytest.mark.parametrize(
    ("model", "keys", "message"),
    [
        ("SASRecSNQNLEA", {"lea_method": "LES'"}, "SNQN"),
        ("SASRecSA2CLEA", {"q_weight": 0, "lea_augmentation": "Q"}, "lea_augmentation: Q"),
        ("SASRecSA2CLEA", {"lea_method": "base", "lea_stop_after": "feedback"}, "uses nothing of"),
        ("SASRecSA2CLEA", {"transform": None}, "`transform` is None"),
        ("SASRecSA2CLEA", {"lea_stop_after": "items", "transform": None}, "`transform` is None"),
        ("SASRecSA2CLEA", {"transform": "lea_live", "state_dim": 8}, "`state_dim` needs all"),
        ("SASRecSA2CLEA", {"hidden_size": 64, "n_heads": 3}, "multiple of `n_heads`"),
        ("SASRecSA2CLEA", {"lea_reward_prompt": "item_last", "lea_action_prompt_item_last":
                           "{item} next"}, "`lea_action_prompt_item_last` has to end"),
        ("SASRecSA2CLEA", {"worker": 2}, "`worker` is 2, but has to be left out"),
        ("SASRecSA2CLEA", {"benchmark_filename": ["a", "b", "c"]}, "`benchmark_filename`"),
        ("SASRecSA2CLEA", {"save_dataset": True}, "`save_dataset` is True.*pickles"),
        ("SASRecSA2CLEA", {"dataloaders_save_path": "x.pth"}, "`dataloaders_save_path`.*pickles"),
        ("SASRecSA2CLEA", {"topk": [5]}, "`valid_metric` is 'NDCG@10'.*such as hit@5"),
        ("SASRecSA2CLEA", {"metrics": ["Hit"]}, "`valid_metric`"),
        ("SASRecSA2CLEA", {"metrics": ["AUC"]}, r"has to be one of `metrics` \(auc\)"),
        ("SASRecSA2CLEA", {"metrics": 5}, "`metrics` is"),
        ("SASRecSA2CLEA", {"eval_args": {"split": {"RS": [8, 1, 1]}}}, "`eval_args`.*order: TO"),
        ("SASRecSA2CLEA", {"eval_args": "full"}, "`eval_args` is 'full'"),
        ("SASRecSA2CLEA", {"eval_args": {"split": {"LS": "test_only"}, "order": "TO",
                                         "group_by": None}}, "needs `group_by: user`"),
        ("SASRecSA2CLEA", {"eval_protocol": "paper", "eval_args": {
            "split": {"LS": "valid_and_test"}, "order": "TO"}}, "`eval_protocol: paper`"),
        ("SASRecSA2CLEA", {"lea_compare": True, "eval_args": {
            "split": {"LS": "valid_only"}, "order": "TO"}}, "`lea_compare`.*without a test part"),
        ("SASRecSA2CLEA", {"lea_compare": True, "eval_args": {
            "split": {"RS": [9, 1, 0]}, "order": "TO"}}, "`lea_compare`.*without a test part"),
        ("SASRecSA2CLEA", {"loss_type": "BPR"}, "`loss_type` is 'BPR'"),
        ("GRU4RecSNQNLEA", {"train_neg_sample_args": {"sample_num": 1}}, "`train_neg_sample_args`"),
        ("SASRecSA2CLEA", {"learner": "sparse_adam"}, "`learner` is 'sparse_adam'.*adamw"),
        ("SASRecSA2CLEA", {"learner": "adm"}, "`learner` is 'adm'"),
        ("SASRecSA2CLEA", {"weight_decay": -1}, "`weight_decay` is -1"),
        ("SASRecSA2CLEA", {"clip_grad_norm": {"max": 5}}, "`clip_grad_norm`.*max_norm: N"),
        ("SASRecSA2CLEA", {"clip_grad_norm": {"max_norm": "5"}}, "`clip_grad_norm`.*max_norm: N"),
        ("SASRecSA2CLEA", {"clip_grad_norm": 5}, "`clip_grad_norm`.*max_norm: N"),
        ("SASRecSA2CLEA", {"hidden_act": "gleu"}, "`hidden_act` is 'gleu'.*gelu"),
        ("GRU4RecSA2CLEA", {"num_layers": 0}, "`num_layers` is 0"),
        ("SASRecSA2CLEA", {"metric_decimal_place": 1.5}, "`metric_decimal_place` is 1.5"),
        ("SASRecSA2CLEA", {"state": "loud"}, "`state` is 'loud'"),
        ("GRU4RecSNQNLEA", {"lea_method": "LES", 5: 1}, "`5` is no key"),
    ],
)  # fmt: skip
def test_contradictions_end_before_anything_is_loaded(model, keys, message):
    with pytest.raises(ValueError, match=message):
        Config(model, "ml-100k", config_dict=keys)


def test_wandb_is_asked_for_before_it_is_missed(monkeypatch):
    given = {"log_wandb": True}
    monkeypatch.setattr(keys.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="`log_wandb` is True.*pip install wandb"):
        keys.check_values(given, given)
    monkeypatch.setattr(keys.importlib.util, "find_spec", lambda name: name == "wandb")
    keys.check_values(given, given)


def test_right_training_keys_pass():
    given = {"learner": "AdamW", "clip_grad_norm": {"max_norm": 5, "norm_type": 2}, "state": "INFO"}
    config = Config("SASRecSA2CLEA", "ml-100k", config_dict=given)
    assert config["clip_grad_norm"] == given["clip_grad_norm"]


def test_a_file_for_several_models_may_hold_other_backbones_keys():
    config = Config("GRU4RecSNQNLEA", "ml-100k", config_dict={"n_heads": 3})
    assert config["hidden_size"] == 128


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [("learning_rte", "learning_rate"), ("q_weigth", "q_weight"), ("toppk", "topk"),
     ("neagtive_pool", "negative_pool"), ("n_head", "n_heads")],
)  # fmt: skip
def test_keys_that_nobody_reads_are_named(mistyped, meant, caplog):
    given = {mistyped: 1, "epochs": 2, "warmup": "1 epochs", "reg_weight": None}
    Config("SASRecSA2CLEA", "ml-100k", config_dict=given)
    assert [r.message for r in caplog.records] == [
        f"unknown key `{mistyped}`: neither RecBole nor recbole_lea reads it; did you mean "
        f"`{meant}`?"
    ]


ODD = [
    None, True, False, 0, 1, -1, 2, 10**30, 0.5, -0.0, 1e-300, float("nan"), float("inf"), "", " ",
    "0", "None", "true", "LE", "both", "[]", "a" * 1000, "a\0b", "{item}", "[{x}", "\u202e", [],
    [1], ["a"], [None], [[1]], [float("nan"), 1], {}, {"a": 1}, {1: 2}, {"RS": [1, 0, 0]}, (1, 2),
    b"x", 1j, {1}, object(), print,
]  # fmt: skip


def right_value(rng, key, old):
    """A value that may be right for the key."""
    choices = {
        "lea_method": list(METHODS), "lea_state": ["hidden", "LE", "both", None],
        "lea_reward": ["constant", "LE", None], "q_weight": [0, 1, 0.5], "topk": [5, [1, 10], [3]],
        "lea_augmentation": ["none", "supervised", "Q", "both", None], "state_dim": [None, 4],
        "transform": ["lea_live", "lea_feedback", None], "valid_metric": ["MRR@10", "Hit@5"],
        "lea_stop_after": ["items", "feedback", None], "eval_protocol": ["paper", "leave_one_out"],
        "n_heads": [1, 2, 3], "hidden_size": [12, 64], "metrics": ["Hit", ["MRR", "NDCG", "GAUC"]],
        "lea_reward_prompt": ["paper", "item_last"],
        "eval_args": [{"split": {"RS": [8, 1, 1]}, "order": "TO", "group_by": None, "mode": "full"},
                      {"split": {"LS": "valid_only"}, "order": "TO", "mode": {"valid": "uni5"}},
                      {"order": "TO"}],
    }  # fmt: skip
    return rng.choice(choices.get(key, [old]))


def test_a_thousand_random_configs_are_valid_or_end_in_one_error_that_names_a_key(defaults):
    rng = random.Random(20)
    names = sorted({*keys.RULES, *keys.RECBOLE_RULES, *keys.REFUSED})
    defaults |= Config("SASRecSA2CLEA", "ml-100k").internal_config_dict
    outcomes = {"valid": 0, "refused": 0}
    for _ in range(1000):
        model = rng.choice(list(MODELS))
        given = {}
        for key in rng.sample(names, rng.randint(1, 6)):
            odd = rng.random() < 0.25
            given[key] = rng.choice(ODD) if odd else right_value(rng, key, defaults.get(key))
        if rng.random() < 0.1:  # a mistyped key
            key = rng.choice(names)
            given[key[1:]] = 1
        try:
            config = Config(model, rng.choice(["ml-100k", "other"]), config_dict=dict(given))
        except ValueError as error:
            outcomes["refused"] += 1
            assert "\n" not in str(error) or any("\n" in str(v) for v in given.values())
            named = [key for key in (*names, *map(str, given)) if key in str(error)]
            assert named, (given, error)
        else:
            outcomes["valid"] += 1
            assert config["model"] == model
    assert min(outcomes.values()) > 200, outcomes


def test_warmup_in_steps_and_epochs():
    assert keys.warmup_updates("3 epochs", 7) == 21
    assert keys.warmup_updates("1 epoch", 7) == 7
    assert keys.warmup_updates("15000 steps", 7) == 15000


def test_config_file_is_found_here_or_in_the_package(tmp_path):
    assert yaml_files.find_config_file("properties/quick.yaml").endswith("quick.yaml")
    (tmp_path / "properties").mkdir()
    (tmp_path / "properties" / "quick.yaml").write_text("epochs: 1")
    assert yaml_files.find_config_file("properties/quick.yaml") == "properties/quick.yaml"
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        yaml_files.find_config_file("nowhere.yaml")


@pytest.mark.parametrize("name", MODELS)
def test_the_backbone_s_defaults_are_recbole_s(name):
    stock = Config(
        model=name[: -len("SNQNLEA")], dataset="ml-100k",
        config_dict={"train_neg_sample_args": None},
    )  # fmt: skip
    path = yaml_files.properties_folder() / "model" / f"{name}.yaml"
    ours = Config(model=name, dataset="ml-100k")
    for key in yaml.safe_load(path.read_text(encoding="utf-8")):
        assert ours[key] == stock[key], key


@pytest.mark.parametrize(
    "path", sorted(yaml_files.properties_folder().rglob("*.yaml")), ids=lambda p: p.stem
)
def test_every_property_file_is_valid(path, defaults):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    checks.validate(defaults | content, content)
