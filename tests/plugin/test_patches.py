"""What a plain `import recbole_lea` makes of RecBole."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.trainer import HyperTuning, Trainer
from recbole.utils import get_model, get_trainer

from recbole_lea.keys import built_in_types
from recbole_lea.model import MODELS, SASRecSA2CLEA
from recbole_lea.plugin import patches
from recbole_lea.plugin.checkpoints import restored_config
from recbole_lea.plugin.quick_start import prepare
from recbole_lea.plugin.trainer import LEATrainer
from tests.conftest import Payload, tiny_keys


@pytest.mark.parametrize("name", MODELS)
def test_models_and_their_trainer_are_found(tiny_config, name):
    assert get_model(name) is MODELS[name]
    config = tiny_config(name, lea_method="base")
    loaders = data_preparation(config, create_dataset(config))
    model = MODELS[name](config, loaders[0]._dataset)
    assert type(Trainer(config, model)) is LEATrainer
    assert type(get_trainer(model.type, name)(config, model)) is LEATrainer
    own = type("Own", (LEATrainer,), {})
    assert type(own(config, model)) is own
    with pytest.raises(ValueError, match="Other knows neither .* derive it from .*LEATrainer"):
        type("Other", (Trainer,), {})(config, model)


class Mine(SASRecSA2CLEA):
    """A user's own: other states in both copies, and a layer."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.own = torch.nn.Linear(config["hidden_size"], config["hidden_size"])

    def forward(self, item_seq, item_seq_len):
        hidden = super().forward(item_seq, item_seq_len)
        return self.own(hidden) if hasattr(self, "own") else hidden


def test_a_class_derived_from_ours_trains_as_ours(tiny_dataset, tiny_llm, log):
    keys = tiny_keys(tiny_llm) | {"lea_method": "LEAR"}
    result = run_recbole(Mine, "tiny", config_dict=keys)
    assert 0 <= result["test_result"]["ndcg@10"] <= 1
    assert "warm-up ends" in log.text and "Mine" in log.text
    config, model, *_ = load_data_and_model(str(next(Path("saved").glob("Mine-*.pth"))))
    assert type(model) is Mine and config["n_layers"] == 2
    parts = {name for name, _ in model.named_parameters() if "own." in name}
    assert parts == {
        f"{copy}own.{n}" for copy in ("", "twin.backbone.") for n in ("weight", "bias")
    }


def test_a_class_cannot_be_called_as_one_of_ours():
    with pytest.raises(ValueError, match="class SASRecSA2CLEA: call yours something else"):
        Config(type("SASRecSA2CLEA", (SASRecSA2CLEA,), {}), "ml-100k")


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
        "topk": [3, 4],
        "valid_metric": "NDCG@3",
        "learning_rate": 0.5,
        "train_neg_sample_args": None,
        "eval_args": {"split": {"LS": "test_only"}, "order": "TO", "mode": "uni5"},
    }
    config = Config(name, "tiny", config_dict=keys)
    saved = built_in_types(config.final_config_dict) | {"device": "cuda:7"}
    again = restored_config(saved)
    assert again.final_config_dict == config.final_config_dict
    monkeypatch.setattr(sys, "argv", ["x", "--data_path=elsewhere", "--topk=[3]"])
    again = restored_config(saved)
    assert (again["data_path"], again["topk"]) == ("elsewhere/tiny", [3])
    assert again["learning_rate"] == 0.5


def test_plain_makes_built_in_types():
    value = built_in_types({"a": (1, 2.5, None), "b": {3}, "c": torch.device("cpu"), "d": True})
    assert value == {"a": [1, 2.5, None], "b": [3], "c": "cpu", "d": True}


def test_import_alone_is_enough_in_a_fresh_process(tiny_dataset, tiny_llm):
    keys = tiny_keys(tiny_llm) | {"epochs": 1, "lea_method": "LER"}
    code = (
        "import sys, recbole_lea\n"
        "assert 'recbole_lea.serve.recommend' not in sys.modules\n"
        "from recbole.quick_start import run_recbole\n"
        f"result = run_recbole(model='SASRecSA2CLEA', dataset='tiny', config_dict={keys!r})\n"
        "assert 'hit@10' in result['test_result'], result\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_importing_leaves_the_choice_of_the_gpu_to_recbole():
    """peft imports bitsandbytes where that is installed, which starts CUDA with all GPUs."""
    code = (
        "import recbole_lea.plugin.quick_start, sys\n"
        "print({'peft', 'bitsandbytes'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("visible", [None, "2,3"])
@pytest.mark.parametrize("launched", [False, True])
def test_gpu_id_chooses_unless_a_launcher_has(tiny_config, monkeypatch, launched, visible):
    """RecBole hides all but that one; accelerate's processes have taken theirs, and keep it."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if launched:
        monkeypatch.setenv("LOCAL_RANK", "1")
    seen = []
    monkeypatch.setattr(
        patches, "processes", lambda: seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
    )
    tiny_config(gpu_id="5")
    assert seen == ([visible] if launched else [])
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == (visible if launched else "5")


def fresh(code):
    """Run code in a process of its own; its output."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_le_needs_no_recbole():
    """It imports none where there is one, and can be built on a machine that has none."""
    loaded = "assert not [m for m in sys.modules if m.split('.')[0] == 'recbole']\n"
    fresh("import sys, recbole_lea.le\n" + loaded)
    fresh(
        "import importlib.abc, sys\n"
        "class Without(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'recbole':\n"
        "            raise ModuleNotFoundError(name, name='recbole')\n"
        "sys.meta_path.insert(0, Without())\n"
        "import recbole_lea.le\n" + loaded + "try:\n"
        "    import recbole_lea.plugin\n"
        "except ModuleNotFoundError as error:\n"
        "    assert 'pip install --no-deps recbole==1.2.1' in str(error)\n"
    )


@pytest.mark.parametrize(
    "first",
    [
        "import recbole_lea, recbole.quick_start",
        "import recbole.quick_start, recbole_lea",
        "from recbole_lea.model import SASRecSA2CLEA",
        "import recbole_lea.plugin.dataset",
        f"import pickle; pickle.loads({pickle.dumps(SASRecSA2CLEA)!r})",
    ],
)
def test_whatever_is_imported_first_recbole_knows_our_models(first):
    fresh(
        f"{first}\n"
        "import recbole.trainer\n"
        "from recbole.utils import get_model\n"
        "assert get_model('SASRecSA2CLEA').__module__ == 'recbole_lea.model'\n"
        "assert recbole.trainer.Trainer.__new__ is not object.__new__\n"
    )


def test_every_change_has_a_reason_and_is_made():
    for change in (*patches.PROTECTION, *patches.TODAYS_VERSIONS, *patches.LEA):
        assert change.why
        assert hasattr(change.owner, change.name)


def test_a_stock_model_trains_and_measures_as_without_us(tiny_dataset):
    """README: what `import recbole_lea` does to RecBole's own models."""
    keys = {
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "epochs": 3, "gpu_id": "",
        "train_neg_sample_args": None, "show_progress": False, "metric_decimal_place": 12,
    }  # fmt: skip
    code = (
        "from recbole.config import Config\n"
        "from recbole.data import create_dataset, data_preparation\n"
        "from recbole.utils import get_model, get_trainer, init_logger, init_seed\n"
        f"config = Config('SASRec', 'tiny', config_dict={keys!r})\n"
        "init_seed(config['seed'], True)\n"
        "init_logger(config)\n"
        "assert config['log_file'] is None\n"
        "dataset = create_dataset(config)\n"
        "loaders = data_preparation(config, dataset)\n"
        "model = get_model('SASRec')(config, loaders[0]._dataset)\n"
        "trainer = get_trainer(config['MODEL_TYPE'], 'SASRec')(config, model)\n"
        "best = trainer.fit(*loaders[:2], verbose=False, saved=False)\n"
        "test = trainer.evaluate(loaders[2], load_best_model=False)\n"
        "print(type(dataset), type(trainer), trainer.train_loss_dict, best, test)\n"
    )
    assert fresh("import recbole_lea\n" + code) == fresh(code)


def test_neither_ray_nor_numpy_1_is_needed(tiny_dataset):
    """As on Python 3.12 and newer. A Ray without ``ray.tune`` may be there for another package."""
    config = {
        "model": "SASRec", "dataset": "tiny", "epochs": 1, "train_neg_sample_args": None,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "show_progress": False,
    }  # fmt: skip
    code = (
        "import sys, types, numpy as np, scipy.stats, sklearn.utils\n"
        "sys.modules['ray'] = ray = types.ModuleType('ray')\n"
        "for name in ('float_', 'complex_', 'unicode_'): vars(np).pop(name, None)\n"
        "import recbole_lea\n"
        "assert sys.modules['ray'] is ray\n"
        "from recbole.quick_start import objective_function\n"
        f"result = objective_function({config!r})\n"
        "assert 'ndcg@10' in result['best_valid_result'], result\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


METRICS = (
    "averagepopularity", "gauc", "giniindex", "hit", "itemcoverage", "map", "mrr", "ndcg",
    "precision", "recall", "shannonentropy", "tailpercentage",
)  # fmt: skip


def test_every_ranking_metric_can_be_computed(tiny_config):
    """RecBole fails with those that need counts of items."""
    config = tiny_config(lea_method="base", metrics=list(METRICS), epochs=1)
    trainer, loaders = prepare(config)
    trainer.fit(*loaders[:2], verbose=False)
    result = trainer.evaluate(loaders[2])
    assert {name.partition("@")[0] for name in result} == set(METRICS)


def test_run_hyper_s_objective_function(tiny_dataset, tiny_llm, monkeypatch):
    import recbole.quick_start.quick_start as quick_start

    monkeypatch.setattr(quick_start.tune, "report", lambda **metrics: None)
    config = tiny_keys(tiny_llm) | {"model": "GRU4RecSNQNLEA", "dataset": "tiny", "w_ah": 0.5}
    result = quick_start.objective_function(config, None, saved=True)
    assert result["model"] == "GRU4RecSNQNLEA"
    assert "ndcg@10" in result["best_valid_result"]


PAYLOAD = "__import__('pathlib').Path('ran').touch()"


@pytest.mark.parametrize("model", ["SASRecSA2CLEA", "SASRec"])
@pytest.mark.parametrize("key", ["epochs", "lea_llm", "own_key"])
def test_values_are_never_run(model, key, monkeypatch):
    """RecBole runs them through ``eval``."""
    common = {"train_neg_sample_args": None}

    def value(argv=(), **given):
        monkeypatch.setattr(sys, "argv", ["x", *argv])
        try:
            return Config(model, "ml-100k", config_dict=common, **given)[key]
        except ValueError as error:
            assert f"`{key}` is" in str(error)
            return PAYLOAD

    assert value([f"--{key}={PAYLOAD}"]) == PAYLOAD
    common[key] = PAYLOAD
    assert value() == PAYLOAD
    del common[key]
    for text in (PAYLOAD, f"!!python/object/apply:eval [{PAYLOAD!r}]", "!!python/name:os.system"):
        Path("c.yaml").write_text(f"{key}: {text}\n")
        if text == PAYLOAD:
            assert value(config_file_list=["c.yaml"]) == PAYLOAD
        else:
            with pytest.raises(ValueError, match="c.yaml: not YAML with plain values"):
                Config(model, "ml-100k", ["c.yaml"])
    assert not Path("ran").exists()


def test_choices_of_a_hyperparameter_file_are_never_run(monkeypatch):
    hyperopt = SimpleNamespace(hp=SimpleNamespace(choice=lambda name, values: values))
    monkeypatch.setitem(sys.modules, "hyperopt", hyperopt)
    Path("h.test").write_text(f"epochs choice [{PAYLOAD}]\n")
    with pytest.raises(ValueError, match="malformed"):
        HyperTuning._build_space_from_file("h.test")
    Path("h.test").write_text("hidden_size choice [32, 64]\n")
    assert HyperTuning._build_space_from_file("h.test") == {"hidden_size": [32, 64]}
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("5", 5), ("-0.5", -0.5), ("1_000", 1000), ("[5, 10]", [5, 10]),
        ("{'a': [1, None]}", {"a": [1, None]}), ("(1, 2)", (1, 2)), ("0,1", (0, 1)), ("None", None),
        ("~", None), ("true", True), ("False", False), ("'quoted'", "quoted"), ("LEA", "LEA"),
        ("LES'", "LES'"), ("a=b", "a=b"), ("--x=1", "--x=1"), ("a, b", "a, b"), ("007", "007"),
        ("", ""), ("[", "["), ("{1, 2}", "{1, 2}"), ("print", "print"), ("2*3", "2*3"),
        ("(" * 500, "(" * 500), ("9" * 5000, "9" * 5000),
    ],
)  # fmt: skip
def test_values_of_the_command_line(text, value, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", f"--own_key={text}"])
    found = Config("SASRecSA2CLEA", "ml-100k", config_dict={"own_too": text})
    assert found["own_key"] == found["own_too"] == value
    assert type(found["own_key"]) is type(value)


def test_a_text_stays_a_text(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--lea_note=1, 2", "--lea_cache_dir=2024"])
    config = Config("SASRecSA2CLEA", "ml-100k")
    assert (config["lea_note"], config["lea_cache_dir"]) == ("1, 2", "2024")


def test_a_key_given_twice_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--epochs=1", "--epochs=2"])
    with pytest.raises(ValueError, match="`epochs` is given twice"):
        Config("SASRecSA2CLEA", "ml-100k")


@pytest.mark.parametrize("text", ["- 1", "5", "a: [", "\x00", "1: 2", "a: \xff"])
def test_a_file_that_holds_no_keys_is_named(text):
    Path("c.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="c.yaml: "):
        Config("SASRecSA2CLEA", "ml-100k", ["c.yaml"])


def test_an_empty_file_and_its_numbers_are_read():
    Path("a.yaml").write_text("# nothing\n")
    Path("b.yaml").write_text("a: 1e-3\nb: 1E5\nc: -.5e+2\nd: 1e\ne: 1.5\nf: 3\n")
    config = Config("SASRecSA2CLEA", "ml-100k", ["a.yaml", "b.yaml"])
    assert [config[key] for key in "abcdef"] == [1e-3, 1e5, -50.0, "1e", 1.5, 3]


@pytest.mark.parametrize("model", ["SASRecSA2CLEA", "SASRec"])
def test_saved_datasets_and_loaders_are_never_unpickled(tiny_config, tiny_dataset, model):
    """In the folder where RecBole looks unasked, and where the keys say."""
    config = tiny_config()
    if model == "SASRec":
        config = Config("SASRec", "tiny", config_dict={
            "train_neg_sample_args": None, "load_col": config["load_col"]
        })  # fmt: skip
    Path("saved").mkdir()
    for name in ("saved/tiny-LEADataset.pth", "saved/tiny-SequentialDataset.pth", "elsewhere.pth"):
        Path(name).write_bytes(pickle.dumps(Payload()))
    config["dataset_save_path"] = "elsewhere.pth"
    for file in ("elsewhere.pth", "saved/tiny-SequentialDataset.pth"):
        if model == "SASRec":  # ours does not even look
            with pytest.raises(ValueError, match=rf"{file}: .*pickles, which can run any code"):
                create_dataset(config)
        config["dataset_save_path"] = None
    Path("saved/tiny-SequentialDataset.pth").unlink()
    dataset = create_dataset(config)
    file = Path(f"saved/tiny-for-{model}-dataloader.pth")
    file.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match=rf"{file}: .*pickles, which can run any code"):
        data_preparation(config, dataset)
    assert not Path("ran").exists()
    pickle.loads(file.read_bytes())
    assert Path("ran").exists()  # so the payload works


@pytest.mark.parametrize("model", ["SASRecSA2CLEA", "SASRec"])
@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: {"state_dict": {}, "config": p}])
def test_a_checkpoint_is_never_unpickled(tiny_config, tiny_dataset, model, wrap):
    config = tiny_config(lea_method="base")
    loaders = data_preparation(config, create_dataset(config))
    if model == "SASRec":
        config = Config("SASRec", "tiny", config_dict={"train_neg_sample_args": None})
    kind = get_trainer(config["MODEL_TYPE"], model)
    assert issubclass(kind, Trainer)
    trainer = kind(config, get_model(model)(config, loaders[0]._dataset))
    torch.save(wrap(Payload()), "zip.pth")
    Path("raw.pth").write_bytes(pickle.dumps(wrap(Payload())))
    Path("empty.pth").touch()
    for file in ("zip.pth", "raw.pth", "empty.pth"):
        with pytest.raises(ValueError, match=f"{file}: no checkpoint of tensors"):
            trainer.resume_checkpoint(file)
        with pytest.raises(ValueError, match=f"{file}: no checkpoint of tensors"):
            trainer.evaluate(loaders[2], model_file=file)
        with pytest.raises(ValueError, match=f"{file}: no checkpoint of tensors"):
            load_data_and_model(file)
    assert not Path("ran").exists()
