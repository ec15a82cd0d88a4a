"""``lea_environment: text``: states and rewards by hand, and a whole run without an LLM pass."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recbole_lea.le.environment import Environment
from recbole_lea.le.heads import evened
from recbole_lea.le.item_tokens import tfidf
from recbole_lea.le.text import DECAY, TextEnvironment


@pytest.fixture
def text(settings):
    tokens = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    return TextEnvironment(tokens, settings(max_history=3))


def test_state_is_the_recency_weighted_mean_of_the_window(text):
    keys = F.normalize(evened(text.item_tokens), dim=-1)
    state = text.answer([[text.state([7, 8, 1, 2])], [text.state([5])]], text.state_of)
    mean = keys[2] + DECAY * keys[1] + DECAY**2 * keys[8]
    expected = torch.stack([F.normalize(mean, dim=0), keys[5]]) * math.sqrt(4)
    np.testing.assert_allclose(state, expected, rtol=1e-5)


def test_reward_is_the_cosine_to_the_state(text):
    state = torch.from_numpy(text.answer([[text.state([1, 2])]], text.state_of))
    rewards = text.answer([[text.reward([1, 2], a) for a in (3, 0)]], text.reward_of)
    np.testing.assert_allclose(rewards, text.state_scores(state)[0, [3, 0]], rtol=1e-5)


@pytest.mark.parametrize("selection_by", ["state", "reward"])
def test_every_part_of_a_run_without_an_llm_pass(tiny_config, tmp_path, monkeypatch, selection_by):
    from recbole_lea.plugin.quick_start import prepare

    def refuse(*args):
        raise AssertionError("the LLM was asked")

    monkeypatch.setattr(Environment, "hidden", refuse)
    keys = {"lea_environment": "text", "selection_by": selection_by, "lea_item_iterations": 5}
    config = tiny_config(
        lea_method="LEASR", epochs=2, warmup="1 epochs", lea_cache_dir=str(tmp_path), **keys
    )
    trainer, (train, valid, _) = prepare(config)
    trainer.fit(train, valid, saved=False, show_progress=False)
    assert trainer.model.warmed_up
    assert train._dataset.lea_feedback.augmented is not None
    assert 0 <= train._dataset.lea_pipeline.diagnostics()["accuracy"] <= 1


def test_without_any_llm_items_are_the_tf_idf_of_their_texts(tiny_config, tmp_path):
    from recbole_lea.plugin.quick_start import prepare

    keys = {"lea_environment": "text", "lea_item_init": "tfidf", "selection_by": "state"}
    config = tiny_config(
        lea_method="LEASR", epochs=2, warmup="1 epochs", lea_cache_dir=str(tmp_path),
        lea_llm=str(tmp_path / "nothing"), **keys,
    )  # fmt: skip
    trainer, (train, valid, _) = prepare(config)
    trainer.fit(train, valid, saved=False, show_progress=False)
    assert trainer.model.warmed_up
    pipeline = train._dataset.lea_pipeline
    assert 0 <= pipeline.diagnostics()["accuracy"] <= 1
    with pytest.raises(FileNotFoundError, match="tfidf uses none"):
        pipeline.llm()


def test_tf_idf_tells_like_texts_from_others():
    texts = ["{item} is red wine", "{item} is dry red wine", "{item} is a blue car", "{item} a car"]
    vectors = F.normalize(torch.from_numpy(tfidf(texts, seed=0)), dim=1)
    near = vectors @ vectors.T
    assert near[0, 1] > near[0, 2] and near[2, 3] > near[1, 3]


def test_an_llm_cannot_read_tf_idf(settings):
    with pytest.raises(ValueError, match="lea_item_init: tfidf"):
        settings(environment="llm", item_init="tfidf")


def test_a_label_cannot_be_asked_for(settings):
    with pytest.raises(ValueError, match="selection_by"):
        settings(environment="text", selection_by="label")
