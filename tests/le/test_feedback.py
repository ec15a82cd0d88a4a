"""Feedback rows and reward scales."""

import numpy as np
import pytest
import torch

from recbole_lea.le.feedback import LiveFeedback, PrecomputedFeedback, RewardScale
from tests.le.helpers import SEQUENCES, environment, needs_smaps, resident


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


@pytest.mark.parametrize("shuffle", [False, True])
def test_items_come_in_the_caller_s_numbers(shuffle):
    """The same draws as by LE index; what a checkpoint keeps are LE indices."""
    ids, rows = np.random.default_rng(3).permutation(12) + 5, np.arange(SEQUENCES.n_transitions)
    lists = (rows[:, None] + np.arange(5)) % 12
    told, plain = planted(shuffle=shuffle, item_ids=ids), planted(shuffle=shuffle)
    for feedback in (told, plain):
        feedback.augment(lists[:, 2], rows.astype(np.float32), lists)
    np.testing.assert_array_equal(told.augmented[0], plain.augmented[0])
    for _ in range(3):
        seen, expected = told.lookup(rows), plain.lookup(rows)
        for name, values in expected.items():
            by_id = torch.from_numpy(ids)[values] if values.dtype == torch.int64 else values
            assert torch.equal(seen[name], by_id), name
    restored = planted(shuffle=shuffle, item_ids=ids)
    restored.augment(*told.augmented)
    assert torch.equal(restored.lookup(rows)["augmented"], told.lookup(rows)["augmented"])


def test_live_negatives_come_in_the_caller_s_numbers(settings):
    env, ids, rows = environment(settings()), np.arange(12)[::-1] + 100, np.arange(6)
    options = {"sequences": SEQUENCES, "n_items": 12, "seed": 0, "scale": RewardScale("raw"),
               "state_dim": None}  # fmt: skip
    told, plain = (
        LiveFeedback(env, **options, **more).lookup(rows) for more in ({"item_ids": ids}, {})
    )
    assert told["negative"].tolist() == ids[plain["negative"]].tolist()
    assert torch.equal(told["negative_reward"], plain["negative_reward"])


def test_reward_scales():
    scores = np.array([[1.0, 3.0], [5.0, 7.0]])
    values = torch.tensor([4.0, 4.0 + 5**0.5])
    torch.testing.assert_close(
        RewardScale.fit("standardize", scores)(values), torch.tensor([0.0, 1.0])
    )
    pool = np.c_[scores, scores[:, 1], scores[:, 1]]  # negatives are many, and count as before
    torch.testing.assert_close(
        RewardScale.fit("standardize", pool)(values), torch.tensor([0.0, 1.0])
    )
    torch.testing.assert_close(RewardScale.fit("raw", scores)(values), values)
    torch.testing.assert_close(RewardScale.fit("sigmoid", scores)(values), values.sigmoid())


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
        rewards = env.answer([prompts], env.reward_of)
        np.testing.assert_allclose(found["reward"][row], rewards[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found["negative_reward"][row], rewards[1], rtol=1e-4, atol=1e-6)
        for name, length in (("state", t), ("next_state", t + 1)):
            prompt = env.prompts.state(SEQUENCES.history(s, length))
            alone = env.answer([[prompt]], env.state_of)
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
