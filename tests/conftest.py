"""A tiny random LLM and a tiny dataset; every test runs in a folder of its own."""

import logging
import os
import sys
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
if "PYTEST_XDIST_WORKER" in os.environ:  # each of two test processes has a core
    os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parent.parent
# tests that start a process of their own do so in another folder
os.environ["PYTHONPATH"] = str(ROOT)
# exact comparisons are of CPUs; test_gpu.py asks for a GPU by RecBole's gpu_id
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402

import recbole_lea  # noqa: E402, F401
from recbole_lea import arguments  # noqa: E402
from recbole_lea.le import LESettings  # noqa: E402
from recbole_lea.yaml_files import properties_folder  # noqa: E402

torch.cuda.is_available()  # from now on CUDA has no GPU here, even if a Config sets the variable

TEXTS = [
    "The user has watched these films in chronological order: Compute the likelihood that be the "
    "next film to be watched based on the watching history. In the list of following 5 films:",
    "first second third fourth fifth is titled released in its genre is red green blue star moon",
]


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return Path("ran").touch, ()


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """RecBole logs into the working directory, reads sys.argv and sets CUDA_VISIBLE_DEVICES."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setattr(arguments, "_given", None)


@pytest.fixture
def log(caplog):
    """What was logged, from INFO on."""
    caplog.set_level(logging.INFO)
    return caplog


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory):
    """Folder of a two-layer Llama with random weights and a word-level tokenizer."""
    return write_tiny_llm(tmp_path_factory.mktemp("tiny-llm"))


def write_tiny_llm(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = sorted({w for text in TEXTS for w in text.split()} | set(":.,") | set("0123456789"))
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<pad>", "<eos>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def defaults():
    """The keys of properties/lea.yaml."""
    return read_defaults()


def read_defaults():
    return yaml.safe_load((properties_folder() / "lea.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def settings(tiny_llm, tmp_path):
    """Factory of LE settings on the tiny LLM in float32."""
    return lambda **changes: tiny_settings(tiny_llm, tmp_path / "cache", **changes)


def tiny_settings(llm, cache, /, **changes):
    values = read_defaults() | {
        "lea_seed": 7,
        "lea_llm": llm,
        "lea_llm_dtype": "float32",
        "lea_cache_dir": str(cache),
        "lea_item_sentence": "{item} film[ is titled {title}].",
        "lea_row_length": 96,
        "lea_item_iterations": 2,
        "lea_finetune_epochs": 1,
        "lea_finetune_negatives": 1,
        "lea_lora_dropout": 0.0,
        "lea_finetune_fraction": 0.5,
        "lea_finetune_eval": 20,
        "selection_by": "label",
    }
    keys = {name if name in values else f"lea_{name}": v for name, v in changes.items()}
    return LESettings.from_config(values | keys)


@pytest.fixture
def tiny_dataset(tmp_path):
    """A folder ``dataset/tiny`` in RecBole's atomic format: 12 users, 20 items."""
    return write_tiny_dataset(tmp_path)


def write_tiny_dataset(place):
    folder = place / "dataset" / "tiny"
    folder.mkdir(parents=True)
    colours = ["red", "green", "blue", "star", "moon"]
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    start = 900_000_000
    for u in range(12):
        # one second apart at today's epochs: float32 could not tell the order
        rows += [f"u{u}\ti{(u * 3 + t * (1 + u % 3)) % 20}\t{start + t}" for t in range(6 + u % 5)]
    (folder / "tiny.inter").write_text("\n".join(rows) + "\n", encoding="utf-8")
    items = ["item_id:token\ttitle:token_seq"]
    items += [f"i{i}\t{colours[i % 5]} {colours[i // 5]}" for i in range(19)]  # i19 has no row
    (folder / "tiny.item").write_text("\n".join(items) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def tiny_config(tiny_dataset, tiny_llm):
    """Factory of RecBole configs on the tiny dataset and the tiny LLM."""
    from recbole.config import Config

    def make(model="SASRecSA2CLEA", **changes):
        return Config(model=model, dataset="tiny", config_dict=tiny_keys(tiny_llm) | changes)

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_llm):
    """Factory of models trained on the tiny dataset, each once: paths do not depend on the test."""
    from recbole.config import Config
    from recbole.utils import init_logger

    from recbole_lea.plugin.quick_start import prepare

    place = tmp_path_factory.mktemp("trained")
    write_tiny_dataset(place)
    made = {}

    def train(model="SASRecSA2CLEA", **changes):
        key = (model, *sorted(changes.items()))
        if key not in made:
            keys = tiny_keys(tiny_llm) | changes
            keys |= {"data_path": str(place / "dataset"), "lea_cache_dir": str(place / "cache")}
            config = Config(model, "tiny", config_dict=keys)
            config["checkpoint_dir"] = str(place / f"saved{len(made)}")
            init_logger(config)
            trainer, loaders = prepare(config)
            trainer.fit(loaders[0], loaders[1], verbose=False)
            trainer.evaluate(loaders[2])
            made[key] = Trained(trainer, loaders)
        return made[key]

    return train


class Trained:
    """A trained model, its checkpoint and its data; ``scores`` are RecBole's of the test rows."""

    def __init__(self, trainer, loaders):
        self.path = Path(trainer.saved_model_file)
        self.config, self.model, self.trainer = trainer.config, trainer.model.eval(), trainer
        self.train, self.valid, self.test = loaders
        self.rows = self.test._dataset.inter_feat
        with torch.no_grad():
            self.scores = self.model.full_sort_predict(self.rows)  # [n_rows, n_items]

    def histories(self):
        """Item tokens of each test row, oldest first."""
        tokens = self.test._dataset.field2id_token["item_id"]
        pairs = zip(self.rows["item_id_list"], self.rows["item_length"], strict=True)
        return [[str(tokens[i]) for i in row[:n]] for row, n in pairs]


def tiny_keys(llm):
    return {
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": 5,
        "epochs": 2,
        "train_batch_size": 16,
        "eval_batch_size": 64,
        "warmup": "2 steps",
        "show_progress": False,
        "gpu_id": "",
        "lea_llm": llm,
        "lea_llm_dtype": "float32",
        "lea_row_length": 96,
        "lea_item_sentence": "{item} film[ is titled {title}].",
        "lea_item_iterations": 1,
        "lea_finetune_epochs": 1,
        "lea_finetune_negatives": 1,
        "lea_lora_dropout": 0.0,
        "lea_finetune_eval": 20,
        "selection_by": "label",
    }
