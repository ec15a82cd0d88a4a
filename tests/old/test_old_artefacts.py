"""What commit fed9a18 wrote is read, and answers as it did then (made by ``make.py``)."""

import hashlib
import itertools
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.config import Config
from safetensors.torch import load_file

from recbole_lea import recommend
from recbole_lea.le import Catalogue, LESettings, Pipeline, Sequences
from recbole_lea.plugin.quick_start import prepare
from recbole_lea.plugin.trainer import LEATrainer
from recbole_lea.serve.checkpoint import Checkpoint
from recbole_lea.serve.export import export

ARCHIVE = Path(__file__).parent / "fed9a18.zip"
MODELS = ["SASRecSA2CLEA", "GRU4RecSNQNLEA", "CaserSA2CLEA"]
SERVED = MODELS[:2]  # Caser needs the user
EXPORTED = "SASRecSA2CLEA-safetensors"

# Where they are others now
DEFAULTS_THEN = {
    "lea_state_keys": "tokens", "lea_state_head": "residual", "lea_finetune_epochs": 3,
    "lea_finetune_negatives": 1, "lea_lora_dropout": 0.0,
}  # fmt: skip

# Of a forward pass on another CPU, and of a training that goes on there. Another draw or another
# formula moves both by more than a thousandth.
ONE_PASS = {"rtol": 1e-6, "atol": 1e-6}
TRAINING = {"rtol": 1e-4, "atol": 1e-5}


class Old:
    """The archive, unpacked in the working directory."""

    def __init__(self):
        self.answers = json.loads(Path("expected.json").read_text(encoding="utf-8"))
        self.arrays = np.load("expected.npz")
        self.cache = Path("lea_cache/tiny")
        self.untouched = self.files()

    def files(self):
        """File of the cache -> checksum; locks are left out."""
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.cache.rglob("*")
            if path.is_file() and path.name != "lock"
        }

    def of(self, name):
        return self.answers["models"][name]

    def array(self, name, what):
        return self.arrays[f"{name}.{what}"]

    def config(self, name):
        return Config(name, "tiny", config_dict=DEFAULTS_THEN | self.of(name)["keys"])

    def pipeline(self, name):
        """The LE of a model's keys, from texts and sequences alone."""
        users = self.answers["sequences"]
        rows = Path("dataset/tiny/tiny.item").read_text(encoding="utf-8").splitlines()[1:]
        texts = {f"i{i}": {} for i in range(20)}
        texts |= {token: {"title": title} for token, title in (row.split("\t") for row in rows)}
        items = Catalogue(texts)
        settings = LESettings.from_config(self.config(name).final_config_dict)
        return Pipeline(settings, items, Sequences(users, items), "tiny", progress_bar=False)


@pytest.fixture
def old():
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall()
    return Old()


def all_reused(log, old):
    """Nothing was computed, and the cache's files are those that were unpacked."""
    reused = {r.getMessage() for r in log.records if ": reused from " in r.getMessage()}
    return reused and "computing into" not in log.text and old.files() == old.untouched


@pytest.mark.parametrize("name", MODELS)
def test_the_cache_holds_every_stage_of_the_le(old, log, name):
    pipeline = old.pipeline(name)
    assert np.array_equal(pipeline.states(), old.array(name, "states"))
    assert np.array_equal(pipeline.rewards(), old.array(name, "rewards"))
    chosen, rewards = pipeline.select(old.array(name, "candidates"), True)
    assert np.array_equal(chosen, old.array(name, "chosen"))
    assert np.array_equal(rewards, old.array(name, "chosen_rewards"))
    pipeline.item_tokens()
    pipeline.environment()
    assert all_reused(log, old)
    stages = old.of(name)["stages"]
    if "projection" in stages:
        del stages["states"]  # the projection was made from them
    for stage, key in stages.items():
        assert f"reused from {old.cache / stage}-{key[:16]}" in log.text


def test_the_cache_is_recognised_without_the_llm(old, log):
    shutil.rmtree("llm")
    pipeline = old.pipeline("GRU4RecSNQNLEA")
    assert np.array_equal(pipeline.states(), old.array("GRU4RecSNQNLEA", "states"))
    assert np.array_equal(pipeline.rewards(), old.array("GRU4RecSNQNLEA", "rewards"))
    assert all_reused(log, old)


def test_rows_of_the_cache_are_found_by_user_and_item(old):
    """By the rules in the docstring of ``store``, without this program."""

    def opened(folder):
        beside = folder.parent / json.loads((folder / "manifest.json").read_text())["sequences"]
        names = [json.loads((beside / f"{name}.json").read_text()) for name in ("users", "items")]
        return *names, np.load(beside / "offsets.npy")

    sequences = old.answers["sequences"]
    for name, folder in (("SASRecSA2CLEA", "states-*"), ("GRU4RecSNQNLEA", "projection-*")):
        (folder,) = old.cache.glob(folder)
        users, _, offsets = opened(folder)
        assert users == sorted(sequences)
        states, expected = np.load(folder / "states.npy"), old.array(name, "states")
        for u, user in enumerate(users):
            own = slice(offsets[u], offsets[u] + len(sequences[user]))
            assert np.array_equal(states[own], expected[own])
        assert len(states) == offsets[-1] == len(expected)
    (folder,) = old.cache.glob("rewards-*")
    users, items, offsets = opened(folder)
    rewards, actions = np.load(folder / "rewards.npy"), np.load(folder / "actions.npy")
    assert np.array_equal(rewards, old.array("SASRecSA2CLEA", "rewards"))
    for u, user in enumerate(users):
        for n in range(1, len(sequences[user])):
            assert items[actions[offsets[u] - u + n - 1, 0]] == sequences[user][n]


@pytest.mark.parametrize("name", MODELS)
def test_a_training_with_the_old_cache_is_the_old_training(old, log, name, monkeypatch):
    """With a warm-up that counts the steps of both copies, as it did then."""
    before, steps = LEATrainer._before_batch, itertools.count()

    def watched(self):
        self.model.updates = next(steps)
        before(self)

    monkeypatch.setattr(LEATrainer, "_before_batch", watched)
    trainer, (train, valid, _) = prepare(old.config(name))
    score, result = trainer.fit(train, valid, verbose=False)
    assert all_reused(log, old)
    same_training(trainer, old, name, score, result, first=0)


@pytest.mark.parametrize("name", MODELS)
def test_a_training_goes_on_from_an_old_checkpoint(old, log, name):
    trainer, (train, valid, test) = prepare(old.config(name))
    trainer.resume_checkpoint(f"{name}.pth")
    score, result = trainer.fit(train, valid, verbose=False)
    assert all_reused(log, old)
    same_training(trainer, old, name, score, result, first=old.of(name)["epoch"] + 1)
    scores = full_sort(trainer, test)
    np.testing.assert_allclose(scores, old.array(name, "end_scores"), **TRAINING)


def same_training(trainer, old, name, score, result, first):
    """Its losses from that epoch on, and its best validation."""
    expected = old.of(name)
    losses = {e: loss for e, loss in expected["losses"].items() if int(e) >= first}
    assert losses
    assert {str(e): v for e, v in trainer.train_loss_dict.items()} == pytest.approx(
        losses, rel=TRAINING["rtol"]
    )
    assert score == expected["best_valid_score"]
    assert result == expected["best_valid_result"]


def full_sort(trainer, test):
    with torch.no_grad():
        return trainer.model.eval().full_sort_predict(test._dataset.inter_feat).numpy()


@pytest.mark.parametrize("name", MODELS)
def test_an_old_checkpoint_is_tested_as_it_was(old, name):
    trainer, loaders = prepare(old.config(name))
    result = trainer.evaluate(loaders[2], model_file=f"{name}.pth")
    assert result == old.of(name)["test_result"]
    scores = full_sort(trainer, loaders[2])
    np.testing.assert_allclose(scores, old.array(name, "scores"), **ONE_PASS)


@pytest.mark.parametrize("name", MODELS)
def test_an_old_checkpoint_says_what_it_is(old, name):
    checkpoint = Checkpoint.read(f"{name}.pth")
    assert checkpoint.config["lea_method"] == "LEASR"
    assert checkpoint.config.items() >= old.of(name)["keys"].items()
    assert sorted(checkpoint.item_tokens[1:]) == sorted(f"i{i}" for i in range(20))
    assert torch.load(f"{name}.pth", weights_only=True)["epoch"] == old.of(name)["epoch"]
    assert checkpoint.q_head() is not None


@pytest.mark.parametrize("file", [*(f"{name}.pth" for name in SERVED), EXPORTED])
def test_old_files_recommend_what_they_did(old, file):
    expected = old.of(file.removesuffix(".pth").removesuffix("-safetensors"))
    made = recommend(file, expected["histories"], k=19)
    for one, before in zip(made, expected["recommended"], strict=True):
        assert one.items == before["items"]
        np.testing.assert_allclose(one.scores, before["scores"], **ONE_PASS)
        assert one.unknown == before["unknown"]


def test_an_old_checkpoint_is_exported_as_it_was(old):
    folder = export("SASRecSA2CLEA.pth", "safetensors", "again")
    tensors, before = (load_file(Path(f, "model.safetensors")) for f in (folder, EXPORTED))
    assert tensors.keys() == before.keys()
    assert all(torch.equal(tensors[name], before[name]) for name in before)
    items, before = (Path(f, "items.json").read_text() for f in (folder, EXPORTED))
    assert items == before
