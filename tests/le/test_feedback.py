"""Feedback rows, the choice among the top-5, and reward scales."""

import numpy as np
import pytest
import torch

from recbole_lea.le import feedback
from recbole_lea.le.feedback import (
    LiveFeedback,
    PrecomputedFeedback,
    RewardScale,
    choose,
    shard_bounds,
)
from recbole_lea.le.sequences import Sequences
from recbole_lea.store.arrays import pieces
from tests.le.helpers import CATALOGUE, SEQUENCES, environment, needs_smaps, resident


def planted(**more):
    """State k holds k; the reward of transition k is k, of its j-th negative 100 k + j."""
    n = SEQUENCES.n_transitions
    states = np.repeat(np.arange(SEQUENCES.n_states, dtype=np.float16)[:, None], 3, axis=1)
    rewards = np.array([[k, 100 * k, 100 * k + 1] for k in range(n)], dtype=np.float32)
    negatives = np.array([[k % 12, (k + 1) % 12] for k in range(n)])
    options = {
        "sequences": SEQUENCES,
        "n_items": 12,
        "seed": 0,
        "scale": RewardScale("raw"),
        "state_dim": 3,
    } | more
    return PrecomputedFeedback(states, rewards, negatives, **options)


def test_lookup_finds_each_transition_s_own_rows():
    feedback = planted()
    rows = np.arange(SEQUENCES.n_transitions)
    found = feedback.lookup(rows)
    k = 0
    for s, items in enumerate(SEQUENCES.items):
        for t in range(1, len(items)):
            prefix = SEQUENCES.state_starts[s] + t - 1
            assert found["state"][k, 0] == prefix
            assert found["next_state"][k, 0] == prefix + 1
            assert found["reward"][k] == k
            drawn = int(found["negative_reward"][k]) - 100 * k
            assert found["negative"][k] == (k + drawn) % 12
            k += 1


def test_shuffled_feedback_is_that_of_other_transitions():
    feedback, rows = planted(shuffle=True), np.arange(SEQUENCES.n_transitions)
    lists = (rows[:, None] + np.arange(5)) % 12
    place = rows % 5
    feedback.augment(lists[rows, place], rows.astype(np.float32), lists)
    found = feedback.lookup(rows)
    order = found["reward"].long()
    assert sorted(order.tolist()) == rows.tolist()
    assert (order.numpy() != rows).mean() > 0.8
    plain = planted().lookup(order.numpy())
    for name in ("state", "next_state", "reward"):
        assert torch.equal(found[name], plain[name])
    assert torch.equal(found["augmented_reward"], order.float())
    # the model's own list stays, the LE's choice from it is lost
    assert found["augmented"].tolist() == lists[rows, place[order.numpy()]].tolist()
    assert torch.equal(feedback.lookup(rows)["state"], found["state"])
    own = [SEQUENCES.action(s, t) for s, t in feedback._pairs(rows)]
    draws = np.array([feedback.lookup(rows)["negative"].numpy() for _ in range(20)])
    assert (draws != own).all()


def test_every_negative_of_the_pool_is_drawn():
    feedback = planted()
    drawn = {int(feedback.lookup(np.array([3]))["negative_reward"][0]) for _ in range(60)}
    assert drawn == {300, 301}


def test_augmented_actions_join_the_lookup():
    feedback = planted()
    n = SEQUENCES.n_transitions
    assert "augmented" not in feedback.lookup(np.array([0]))
    feedback.augment(np.arange(n) % 12, np.arange(n) * 0.5)
    found = feedback.lookup(np.array([5, 2]))
    assert found["augmented"].tolist() == [5, 2]
    assert found["augmented_reward"].tolist() == [2.5, 1.0]


def test_reward_scales():
    scores = np.array([[1.0, 3.0], [5.0, 7.0]])
    values = torch.tensor([4.0, 4.0 + 5**0.5])
    torch.testing.assert_close(
        RewardScale.fit("standardize", scores)(values), torch.tensor([0.0, 1.0])
    )
    torch.testing.assert_close(RewardScale.fit("raw", scores)(values), values)
    torch.testing.assert_close(RewardScale.fit("sigmoid", scores)(values), values.sigmoid())


def test_calibration_takes_out_a_label_s_head_start():
    # label 0 always scores 5 higher; row 0 prefers position 1, row 1 position 0 beyond that
    scores = np.array([[5.0, 1.0], [6.0, 0.0]])
    candidates = np.array([[10, 11], [20, 21]])
    chosen, share = choose(scores, candidates, "prior")
    assert chosen.tolist() == [11, 20]
    assert share.tolist() == [0.5, 0.5]
    chosen, share = choose(scores, candidates, "none")
    assert chosen.tolist() == [10, 20]
    assert share.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("calibration", ["prior", "none"])
def test_many_choices_are_made_in_pieces(monkeypatch, calibration):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((100, 5)).astype(np.float32) + np.arange(5, dtype=np.float32)
    candidates = rng.integers(0, 50, (100, 5))
    sizes = []

    def seven_rows(array):
        for part in pieces(array, rows=7):
            sizes.append(len(part))
            yield part

    monkeypatch.setattr(feedback, "pieces", seven_rows)
    chosen, share = choose(scores, candidates, calibration)
    position = (scores - (calibration == "prior") * scores.mean(0)).argmax(1)
    assert chosen.tolist() == candidates[np.arange(100), position].tolist()
    assert share.tolist() == (np.bincount(position, minlength=5) / 100).tolist()
    assert max(sizes) == 7


def test_shards_cover_all_sequences():
    many = Sequences({f"u{i:04}": ["i00"] * (1 + i % 9) for i in range(900)}, CATALOGUE)
    bounds = shard_bounds(many)
    assert bounds[0] == 0
    assert bounds[-1] == 900
    sizes = np.diff(many.transition_starts[bounds])
    assert len(sizes) == 4
    assert (sizes[:-1] >= 1024).all()
    assert (sizes < 1024 + 9).all()


def test_shards_are_not_more_than_their_most(monkeypatch):
    monkeypatch.setattr(feedback, "SHARD", 1)
    monkeypatch.setattr(feedback, "SHARDS", 5)
    many = Sequences({f"u{i:04}": ["i00"] * (1 + i % 9) for i in range(90)}, CATALOGUE)
    bounds = shard_bounds(many)
    assert len(bounds) - 1 <= 5
    assert (bounds[0], bounds[-1]) == (0, 90)
    assert np.diff(many.transition_starts[bounds]).max() < 360 / 5 + 9


@pytest.mark.parametrize(("state_input", "reward_head"), [("items", "none"), ("prompt", "state")])
def test_live_feedback_equals_the_model_asked_directly(settings, state_input, reward_head):
    env = environment(settings(state_input=state_input, reward_head=reward_head))
    live = LiveFeedback(
        env, sequences=SEQUENCES, n_items=12, seed=0, scale=RewardScale("raw"), state_dim=32
    )
    found = live.lookup(np.array([9, 0]))
    for row, k in enumerate([9, 0]):
        s, t = (int(part[0]) for part in live.sequences.locate(np.array([k])))
        assert found["negative"][row] != SEQUENCES.action(s, t)
        prompts = [
            env.prompts.reward(SEQUENCES.history(s, t), SEQUENCES.action(s, t)),
            env.prompts.reward(SEQUENCES.history(s, t), int(found["negative"][row])),
        ]
        rewards = env.read([prompts], env.reward_of)
        np.testing.assert_allclose(found["reward"][row], rewards[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found["negative_reward"][row], rewards[1], rtol=1e-4, atol=1e-6)
        for name, length in (("state", t), ("next_state", t + 1)):
            prompt = env.prompts.state(SEQUENCES.history(s, length))
            alone = env.read([[prompt]], env.state_of)
            np.testing.assert_allclose(found[name][row], alone[0], rtol=1e-3, atol=1e-5)


def test_a_live_scale_is_that_of_positives_and_negatives_together(settings, monkeypatch):
    live = LiveFeedback(
        environment(settings()), sequences=SEQUENCES, n_items=12, seed=0, scale=None, state_dim=None
    )
    scores = torch.full((4,), 3.0), torch.full((4,), 1.0), None
    monkeypatch.setattr(live, "_rewards", lambda rows: scores)
    live.fit_scale("standardize")
    assert (live.scale.mean, live.scale.deviation) == (2.0, 1.0)


@needs_smaps
def test_what_was_looked_up_does_not_stay_in_memory(tmp_path):
    path = tmp_path / "states.npy"
    np.save(path, np.zeros((SEQUENCES.n_states, 4096), dtype=np.float16))
    states = np.load(path, mmap_mode="r")
    feedback = PrecomputedFeedback(
        states, None, None, sequences=SEQUENCES, n_items=2, seed=0, scale=None, state_dim=4096
    )
    feedback.lookup(np.arange(SEQUENCES.n_transitions))
    assert resident(path) == 0
    states.sum()
    assert resident(path) >= 256
