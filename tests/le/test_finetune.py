"""Fine-tuning: what is learned from, what is measured, and going on after a kill."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recbole_lea.le import finetune as ft
from recbole_lea.le import quality
from recbole_lea.le.catalogue import Catalogue
from recbole_lea.le.environment import trained_state
from recbole_lea.le.heads import evened
from recbole_lea.le.quality import better_than_chance
from recbole_lea.le.sequences import Sequences, popular_except, uniform_except
from tests.le.helpers import CATALOGUE, SEQUENCES, environment


def test_learned_and_measured_sequences_are_apart(settings):
    many = Sequences({f"u{i}": ["i00", "i01", "i02"] for i in range(100)}, CATALOGUE)
    learned, measured = ft.split_sequences(many, settings(finetune_fraction=0.1))
    assert len(learned) == 10
    assert len(measured) == 10  # finetune_eval 20 transitions of 2 each
    assert not set(learned) & set(measured)
    learned, measured = ft.split_sequences(many, settings(finetune_fraction=1.0))
    assert len(learned) == 90
    assert measured
    assert not set(learned) & set(measured)


def test_no_transition_to_learn_from_is_an_error(settings):
    with pytest.raises(ValueError, match="two items"):
        ft.split_sequences(Sequences({"u": ["i00"]}, CATALOGUE), settings())


def test_batches_cover_every_transition_once():
    rng = np.random.default_rng(0)
    batches = ft.epoch_batches(SEQUENCES, [1, 4, 7], 6, rng)
    pairs = [pair for batch in batches for pair in batch]
    assert sorted(pairs) == [(s, t) for s in (1, 4, 7) for t in range(1, len(SEQUENCES.items[s]))]
    assert {len(batch) for batch in batches[:-1]} == {6}


@pytest.mark.parametrize(
    ("reward_head", "distribution"),
    [("state", "uniform"), ("none", "uniform"), ("none", "popularity")],
)
@pytest.mark.parametrize("state_loss", ["softmax", "pairwise"])
def test_a_step_has_the_gradient_of_single_prompts(settings, state_loss, reward_head, distribution):
    """Some targets are the same item; the transitions are packed into three batches."""
    s = settings(
        finetune_negatives=3, state_weight=0.7, finetune_clip=None, row_length=20, batch_rows=1,
        state_loss=state_loss, reward_head=reward_head, negative_distribution=distribution,
    )  # fmt: skip
    env = environment(s)
    torch.nn.init.normal_(env.state_head.weight, std=0.1)
    parameters = {name: p for name, p in env.named_parameters() if p.requires_grad}
    batch = [(5, 3), (2, 1), (7, 4), (7, 6), (4, 2), (6, 5)]
    optimizer = torch.optim.SGD(parameters.values(), lr=0)
    losses = ft._train_step(env, optimizer, SEQUENCES, batch, np.random.default_rng(0))
    found = {name: p.grad for name, p in parameters.items()}

    def last_hidden(prompt):
        embedded = env.embed(torch.tensor([prompt]), env.item_tokens)
        return env.decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state[:, -1]

    positives = np.array([SEQUENCES.action(s, t) for s, t in batch])
    draw, known = {"uniform": (uniform_except, 12), "popularity": (popular_except, SEQUENCES)}[
        distribution
    ]
    negatives = draw(np.random.default_rng(0), positives[:, None], known, (len(batch), 3))
    parts = []
    for pair, *actions in zip(batch, positives, *negatives.T, strict=True):
        history, positive = SEQUENCES.history(*pair), actions[0]
        hidden = last_hidden(env.prompts.state(history))
        near = env.state_scores(env.state_head(hidden, torch.tensor([history[::-1].tolist()])))[0]
        prompts = [env.prompts.reward(history, action) for action in actions]
        rewards = torch.cat([env.score_head(last_hidden(prompt))[0] for prompt in prompts])
        rewards = rewards + near[actions] * (reward_head == "state")
        state = -near.log_softmax(0)[positive]
        if state_loss == "pairwise":
            others = near[positives[positives != positive]]
            state = (math.log(2) - F.logsigmoid(near[positive] - others).sum()) / len(batch)
        right = (rewards[0] > rewards[1:]).float().mean()
        parts.append(torch.stack([-F.logsigmoid(rewards[0] - rewards[1:]).mean(), state, right]))
    means = torch.stack(parts).mean(0)
    assert losses == pytest.approx(means.tolist(), rel=1e-4)
    expected = torch.autograd.grad(means[0] + 0.7 * means[1], list(parameters.values()))
    for (name, gradient), plain in zip(found.items(), expected, strict=True):
        assert (gradient - plain).norm() <= 1e-3 * plain.norm() + 1e-6, name


def test_each_step_has_its_learning_rate_and_a_clipped_gradient(settings, tmp_path, monkeypatch):
    s = settings(
        finetune_epochs=2, finetune_batch_size=2, finetune_lr=0.01, finetune_warmup=3,
        finetune_clip=0.5, finetune_eval=0,
    )  # fmt: skip
    step, rates, norms, batches = ft._train_step, [], [], []

    def recorded(env, optimizer, *rest):
        batches.append(rest[1])
        losses = step(env, optimizer, *rest)
        rates.append(optimizer.param_groups[0]["lr"])
        gradients = [p.grad.flatten() for p in env.parameters() if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))
        return losses

    monkeypatch.setattr(ft, "_train_step", recorded)
    ft.finetune(environment(s), SEQUENCES, tmp_path, progress_bar=False)
    n = len(rates)
    assert batches[: n // 2] != batches[n // 2 :]  # each epoch has an order of its own
    assert rates == [0.01 * ft._schedule(i, n, s) for i in range(n)]
    assert rates[0] < rates[2] == 0.01 > rates[-1]
    assert max(norms) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("state_loss", ["softmax", "pairwise"])
def test_reward_model_learns_a_preference(settings, tmp_path, state_loss):
    """Even items follow, odd items never do: the reward model must find that out."""
    items = Catalogue({f"i{n:02}": {"title": "red" if n % 2 else "blue"} for n in range(12)})
    rng = np.random.default_rng(0)
    users = {f"u{u}": [f"i{2 * rng.integers(6):02}" for _ in range(6)] for u in range(24)}
    sequences = Sequences(users, items)
    s = settings(
        finetune_epochs=20, finetune_lr=0.003, finetune_fraction=0.6, state_loss=state_loss,
        finetune_eval=60, finetune_warmup=2,
    )  # fmt: skip
    history = ft.finetune(environment(s), sequences, tmp_path, progress_bar=False)
    assert history[-1]["reward_loss"] < history[0]["reward_loss"]
    assert history[-1]["state_loss"] < history[0]["state_loss"]
    assert better_than_chance(history[-1]["accuracy"], history[-1]["n"])


def test_resumed_equals_uninterrupted(settings, tmp_path):
    s = settings(finetune_epochs=3, finetune_lr=0.01, lora_dropout=0.1)
    folders = [tmp_path / "whole", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
    whole = environment(s)
    expected = ft.finetune(whole, SEQUENCES, folders[0], progress_bar=False)

    class Killed(Exception):
        pass

    def kill_after_first_epoch(*args):
        save(*args)
        raise Killed

    save, ft._save_checkpoint = ft._save_checkpoint, kill_after_first_epoch
    try:
        with pytest.raises(Killed):
            ft.finetune(environment(s), SEQUENCES, folders[1], progress_bar=False)
    finally:
        ft._save_checkpoint = save
    resumed = environment(s)
    history = ft.finetune(resumed, SEQUENCES, folders[1], progress_bar=False)
    assert history == expected
    for name, tensor in trained_state(whole).items():
        assert torch.equal(tensor, trained_state(resumed)[name]), name


def test_chance_is_judged_with_its_standard_error():
    assert not better_than_chance(0.6, 20)  # noise
    assert better_than_chance(0.6, 500)


@pytest.mark.parametrize("state_head", ["recency", "none"])
def test_evaluation_is_that_of_plain_readings(settings, state_head):
    env = environment(settings(state_head=state_head))
    tokens = env.item_tokens
    if state_head == "recency":
        tokens = F.normalize(evened(tokens), dim=1)
    pairs = [(s, t) for s in range(3, 8) for t in range(1, len(SEQUENCES.items[s]))]
    positives = np.array([SEQUENCES.action(s, t) for s, t in pairs])
    rng = np.random.default_rng([0, 3])
    uniform = uniform_except(rng, positives, 12, positives.shape)
    popular = popular_except(rng, positives, SEQUENCES, positives.shape)
    margin, popular_margin, rank = [], [], []
    for (s, t), *actions in zip(pairs, positives, uniform, popular, strict=True):
        history = SEQUENCES.history(s, t)
        prompts = [[env.prompts.reward(history, action)] for action in actions]
        rewards = env.answer(prompts, env.reward_of)
        margin.append(rewards[0] - rewards[1])
        popular_margin.append(rewards[0] - rewards[2])
        scores = tokens.numpy() @ env.answer([[env.prompts.state(history)]], env.state_of)[0]
        rank.append(int((scores > scores[actions[0]]).sum()))
    found = quality.evaluate(env, SEQUENCES, pairs, seed=0)
    assert found["n"] == len(pairs)
    assert 0 < found["accuracy"] == np.mean(np.array(margin) > 0) < 1
    assert 0 < found["popular_accuracy"] == np.mean(np.array(popular_margin) > 0) < 1
    assert found["margin"] == pytest.approx(np.mean(margin), rel=1e-3)
    assert 0 < found["hit_10"] == np.mean([r < 10 for r in rank]) < 1
    ndcg = np.mean([1 / math.log2(r + 2) if r < 10 else 0 for r in rank])
    assert found["ndcg_10"] == pytest.approx(ndcg)


def test_evaluation_holds_the_scores_of_a_few_states_alone(settings, monkeypatch):
    env, sizes = environment(settings()), []
    pairs = [(s, t) for s in range(len(SEQUENCES)) for t in range(1, len(SEQUENCES.items[s]))]
    whole = quality.evaluate(env, SEQUENCES, pairs, seed=0)
    scores = env.state_scores
    monkeypatch.setattr(env, "state_scores", lambda s: (sizes.append(len(s)), scores(s))[1])
    monkeypatch.setattr(quality, "RANKED", 3)
    assert quality.evaluate(env, SEQUENCES, pairs, seed=0) == whole
    assert sum(sizes) == len(pairs)
    assert max(sizes) == 3


def test_schedule_warms_up_and_falls_to_zero(settings):
    s = settings(finetune_warmup=10, finetune_schedule="cosine")
    factors = [ft._schedule(step, 100, s) for step in range(100)]
    assert factors[0] == 0.1
    assert factors[9] == 1.0
    assert factors[-1] < 0.001
    constant = settings(finetune_warmup=10, finetune_schedule="constant")
    assert ft._schedule(99, 100, constant) == 1.0


def test_infinite_loss_is_an_error(settings, tmp_path):
    s = settings()
    env = environment(s)
    env.item_tokens[3] = torch.nan
    with pytest.raises(ValueError, match="lea_finetune_lr"):
        ft.finetune(env, SEQUENCES, tmp_path, progress_bar=False)
