"""The speed report has its fields; what they measure is not judged here."""

import json

import numpy as np
import pytest
import torch

from recbole_lea.experiments import speed
from tests.le.helpers import SEQUENCES, environment


@pytest.mark.parametrize("changes", speed.TEMPLATES.values(), ids=speed.TEMPLATES)
def test_padded_rewards_equal_packed_ones(settings, changes):
    env = environment(settings(**changes))
    torch.nn.init.normal_(env.state_head.weight)
    prompts = [env.prompts.reward(SEQUENCES.history(s, t), 3) for s in (2, 6) for t in range(1, 4)]
    rewards = speed.padded_rewards(env, prompts)
    packed = env.answer([[prompt] for prompt in prompts], env.reward_of)
    np.testing.assert_allclose(rewards, packed, rtol=1e-4, atol=1e-6)


def test_flops_are_two_per_weight(settings):
    env = environment(settings(), adapted=False)
    layers = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    assert speed.flops_per_token(env.llm) == 2 * layers


def test_same_ranking_counts_pairs():
    assert speed.same_ranking(np.array([1.0, 2, 3]), np.array([1.0, 2, 3.5])) == 1
    assert speed.same_ranking(np.array([1.0, 2, 3]), np.array([1.0, 3, 2])) == pytest.approx(2 / 3)


@pytest.fixture
def compiled(monkeypatch):
    """Models whose layers were to be compiled, which takes minutes: test_environment.py does it."""
    models = []
    monkeypatch.setattr(speed, "compile_layers", models.append)
    return models


def test_report(tiny_config, compiled):
    report = speed.run(tiny_config(lea_method="base"), rows=12)
    assert len(compiled) == 2 * len(speed.TEMPLATES)  # for fine-tuning and for feedback
    assert min(report["rows"].values()) >= 12
    for name in ("feedback_speedup", "feedback_token_ratio", "finetune_speedup", "utilisation"):
        assert set(report[name]) == {"paper", "item_last"}
        assert all(value > 0 for value in report[name].values())
    assert report["feedback_token_ratio"]["item_last"] > 1
    assert set(report["pool_of_10_ratio"]) == {"paper", "item_last"}
    assert 0 < report["option_token_ratio"]["state_input: prompt"]["finetune"] < 1
    assert len(report["train_step_ratio"]) == len(report["inference_ratio"]) == 4
    assert max(report["max_abs_diff"].values()) < 1e-3
    assert min(report["same_ranking"].values()) > 0.99
    assert json.dumps(report)
