"""Fine-tuning: what is learned from, what is measured, and going on after a kill."""

import dataclasses

import numpy as np
import pytest
import torch

from recbole_lea.le import finetune as ft
from recbole_lea.le.catalogue import Catalogue
from recbole_lea.le.sequences import Sequences
from recbole_lea.le.state import evened
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
    history = ft.finetune(environment(s), sequences, s, tmp_path, progress_bar=False)
    assert history[-1]["reward_loss"] < history[0]["reward_loss"]
    assert history[-1]["state_loss"] < history[0]["state_loss"]
    assert ft.evaluation_of(history[-1]).better_than_chance


def test_lists_hold_the_next_item_once_at_any_place():
    rng, positives = np.random.default_rng(0), np.arange(300) % 12
    lists = ft.selection_lists(rng, positives, 12, 5)
    assert all(len(set(row)) == 5 for row in lists.tolist())
    places = (lists == positives[:, None]).argmax(1)
    assert (lists[np.arange(300), places] == positives).all()
    assert np.bincount(places, minlength=5).min() > 40
    assert set(lists.ravel().tolist()) == set(range(12))
    assert set(ft.selection_lists(rng, positives, 12, 12)[0].tolist()) == set(range(12))


def test_the_joint_loss_teaches_the_selection_prompt(settings, tmp_path):
    """Even items follow, odd ones never do: of two, an odd one is never the answer."""
    items = Catalogue({f"i{n:02}": {"title": "red" if n % 2 else "blue"} for n in range(12)})
    rng = np.random.default_rng(0)
    users = {f"u{u}": [f"i{2 * rng.integers(6):02}" for _ in range(6)] for u in range(40)}
    sequences = Sequences(users, items)
    keys = {"finetune_epochs": 15, "finetune_lr": 0.003, "finetune_fraction": 0.6, "max_history": 1,
            "finetune_eval": 80, "finetune_warmup": 2, "selection_labels": ("first", "second"),
            "selection_prompt": " of {list}", "lora_targets": "all-linear",
            "lora_r": 32, "lora_alpha": 64}  # fmt: skip
    right = []
    for weight in (1.0, 0.0):
        s = settings(selection_weight=weight, **keys)
        env = environment(s)
        folder = tmp_path / str(weight)
        folder.mkdir()
        history = ft.finetune(env, sequences, s, folder, progress_bar=False)
        assert ("selection_accuracy" in history[-1]) == (weight > 0)
        _, measured = ft.split_sequences(sequences, s)
        pairs = [(m, t) for m in measured for t in range(1, 6)][:80]
        right.append(ft.selection_accuracy(env, sequences, pairs, s))
        if weight:
            assert history[-1]["selection_accuracy"] == right[0]
    assert right[0] > 0.65 > right[1]


@pytest.mark.parametrize("selection_weight", [0.0, 0.5])
def test_resumed_equals_uninterrupted(settings, tmp_path, selection_weight):
    s = settings(
        finetune_epochs=3, finetune_lr=0.01, lora_dropout=0.1, selection_weight=selection_weight
    )
    folders = [tmp_path / "whole", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
    whole = environment(s)
    expected = ft.finetune(whole, SEQUENCES, s, folders[0], progress_bar=False)

    class Killed(Exception):
        pass

    def kill_after_first_epoch(*args):
        save(*args)
        raise Killed

    save, ft._save_checkpoint = ft._save_checkpoint, kill_after_first_epoch
    try:
        with pytest.raises(Killed):
            ft.finetune(environment(s), SEQUENCES, s, folders[1], progress_bar=False)
    finally:
        ft._save_checkpoint = save
    resumed = environment(s)
    history = ft.finetune(resumed, SEQUENCES, s, folders[1], progress_bar=False)
    assert history == expected
    for name, tensor in whole.trained_state().items():
        assert torch.equal(tensor, resumed.trained_state()[name]), name


def test_chance_is_judged_with_its_standard_error():
    one = ft.Evaluation(accuracy=0.6, margin=0.1, hit_10=0, ndcg_10=0, n=20)
    assert not one.better_than_chance  # 0.6 of 20 is noise
    assert dataclasses.replace(one, n=500).better_than_chance


@pytest.mark.parametrize("state_head", ["residual", "none"])
def test_evaluation_ranks_over_all_items(settings, state_head):
    env = environment(settings(state_head=state_head))
    state = env.read([[env.prompts.state(SEQUENCES.history(5, 3))]], env.state_of)[0]
    tokens = env.item_tokens
    if state_head == "residual":
        tokens = torch.nn.functional.normalize(evened(tokens), dim=1)
    scores = tokens.numpy() @ state
    rank = int((scores > scores[SEQUENCES.action(5, 3)]).sum())
    found = ft.evaluate(env, SEQUENCES, [(5, 3)], seed=0)
    assert found.hit_10 == float(rank < 10)
    assert found.ndcg_10 == pytest.approx(1 / np.log2(rank + 2) if rank < 10 else 0)


def test_evaluation_holds_the_scores_of_a_few_states_alone(settings, monkeypatch):
    env, sizes = environment(settings()), []
    pairs = [(s, t) for s in range(len(SEQUENCES)) for t in range(1, len(SEQUENCES.items[s]))]
    whole = ft.evaluate(env, SEQUENCES, pairs, seed=0)
    scores = env.state_scores
    monkeypatch.setattr(env, "state_scores", lambda s: (sizes.append(len(s)), scores(s))[1])
    monkeypatch.setattr(ft, "RANKED", 3)
    assert ft.evaluate(env, SEQUENCES, pairs, seed=0) == whole
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
        ft.finetune(env, SEQUENCES, s, tmp_path, progress_bar=False)
