"""The LE's stages and their cache."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from recbole_lea.le import answers, quality, selection, stages
from recbole_lea.le import item_tokens as tokenization
from recbole_lea.le import pipeline as pipeline_module
from recbole_lea.le.catalogue import Catalogue
from recbole_lea.le.environment import Environment
from recbole_lea.le.pipeline import Pipeline
from recbole_lea.le.selection import choose
from recbole_lea.le.sequences import Sequences, sample_negatives
from recbole_lea.le.settings import LESettings
from recbole_lea.store.arrays import ArrayStore
from tests.conftest import ROOT
from tests.le.helpers import CATALOGUE, SEQUENCES, computed, pipeline


def test_each_stage_runs_once(settings, log):
    first = pipeline(settings())
    feedback = first.precomputed(want_states=True, want_rewards=True)
    stages = ["item tokenization", "item keys", "LE fine-tuning", "states and rewards"]
    assert computed(log) == stages
    states, rewards = np.array(feedback.states), np.array(feedback.rewards)
    again = pipeline(settings()).precomputed(want_states=True, want_rewards=True)
    assert computed(log) == []
    np.testing.assert_array_equal(again.states, states)
    np.testing.assert_array_equal(again.rewards, rewards)


@pytest.mark.parametrize(
    ("change", "recomputed"),
    [
        ({"item_lr": 0.01}, ["item tokenization", "LE fine-tuning", "states and rewards"]),
        ({"finetune_lr": 0.01}, ["LE fine-tuning", "states and rewards"]),
        ({"action_prompt_item_last": " that {item}"}, ["LE fine-tuning", "states and rewards"]),
        ({"prompt_items": "title"}, ["LE fine-tuning", "states and rewards"]),
        ({"title": "the {title}"}, []),
        ({"negative_pool": 3}, ["rewards"]),
        ({"finetune_eval": 5}, []),
        ({"reward_scale": "raw"}, []),
        ({"selection_prompt": " In the list {list}:"}, []),
        ({"batch_rows": 2}, []),
    ],
)
def test_a_changed_key_recomputes_only_what_depends_on_it(settings, log, change, recomputed):
    pipeline(settings()).precomputed(want_states=True, want_rewards=True)
    computed(log)
    pipeline(settings(**change)).precomputed(want_states=True, want_rewards=True)
    assert computed(log) == recomputed


ITEMS, LE = {"items", "environment", "states", "rewards"}, {"environment", "states", "rewards"}
# field -> settings beside it, another value, and the stages that are then others
KEYS = {
    "environment": ({"item_iterations": 0, "selection_by": "state"}, "text", LE | {"keys"}),
    "item_sentence": ({}, "{item} is a film[ titled {title}].", ITEMS | {"keys"}),
    "item_init": ({}, "random", ITEMS), "item_iterations": ({}, 3, ITEMS),
    "item_lr": ({}, 0.5, ITEMS), "item_patience": ({}, 9, ITEMS),
    "item_max_tokens": ({}, 9, ITEMS | {"keys"}),
    "prompt_items": ({}, "title", LE), "title": ({"prompt_items": "title"}, "the {title}", LE),
    "user_prompt": ({}, "Bought: {history}", LE), "reward_prompt": ({}, "paper", LE),
    "action_prompt": ({"reward_prompt": "paper"}, " Is it {item}?", LE),
    "action_prompt_item_last": ({}, " the {item}", LE),
    "selection_prompt": ({}, " In {list}:", set()), "selection_suffix": ({}, " of", set()),
    "selection_labels": ({}, ("one", "two", "three", "four", "five"), set()),
    "max_history": ({}, 3, LE), "history_hop": ({}, 3, LE),
    "finetune_fraction": ({}, 0.4, LE), "finetune_epochs": ({}, 2, LE),
    "finetune_batch_size": ({}, 9, LE), "finetune_negatives": ({}, 2, LE),
    "finetune_lr": ({}, 0.5, LE), "finetune_warmup": ({}, 9, LE),
    "finetune_schedule": ({}, "constant", LE), "finetune_clip": ({}, 9.0, LE),
    "negative_distribution": ({}, "popularity", LE), "finetune_eval": ({}, 9, set()),
    "lora_r": ({}, 3, LE), "lora_alpha": ({}, 9, LE), "lora_dropout": ({}, 0.5, LE),
    "lora_targets": ({}, ("q_proj",), LE),
    "state_loss": ({}, "pairwise", LE), "state_weight": ({}, 0.0, LE),
    "state_input": ({"reward_head": "none"}, "items", LE),
    "state_keys": ({}, "tokens", LE | {"keys"}),
    "state_head": ({}, "none", LE), "reward_head": ({}, "none", LE),
    "seed": ({}, 9, LE), "negative_pool": ({}, 3, {"rewards"}),
    "state_dim": ({"state_dim": 4}, 5, {"projection"}),
    "compile": ({}, True, set()), "row_length": ({}, 99, set()), "batch_rows": ({}, 9, set()),
    "shuffle": ({}, True, set()), "selection_by": ({}, "reward", set()),
    "selection_calibration": ({}, "none", set()), "reward_scale": ({}, "raw", set()),
}  # fmt: skip
# the LLM's own tests have these; the last one is where the keys are looked up
ELSEWHERE = {"allow_no_text", "llm", "llm_dtype", "llm_options", "cache_dir"}


@pytest.mark.parametrize(
    "field", sorted({field.name for field in dataclasses.fields(LESettings)} - ELSEWHERE)
)
def test_every_setting_is_in_the_keys_of_what_depends_on_it(settings, field):
    beside, value, expected = KEYS[field]
    one, other = (pipeline(settings(**beside | own)).keys for own in ({}, {field: value}))
    assert {stage for stage in one if one[stage] != other.get(stage)} == expected


def test_random_item_tokens_are_those_of_their_seed(settings):
    keys = [pipeline(settings(item_init="random", seed=seed)).keys["items"] for seed in (1, 2)]
    assert keys[0] != keys[1]


def test_keys_of_a_selection(settings, monkeypatch):
    def nothing(self, stage):
        self.cache.table[stage.name] = stage
        return np.zeros(stage.layout().shape, dtype=np.float32)

    monkeypatch.setattr(Pipeline, "array", nothing)
    lists = np.tile(np.arange(5), (SEQUENCES.n_transitions, 1))

    def keys(lists=lists, **changes):
        p = pipeline(settings(**changes))
        p.select(lists, want_rewards=True)
        return p.keys["selection"], p.keys["selection_rewards"]

    one = keys()
    assert one == keys(max_history=settings().max_history)
    for changes in ({"lists": lists + 1}, {"finetune_lr": 0.5}):
        assert all(a != b for a, b in zip(one, keys(**changes), strict=True)), changes
    labels = ("one", "two", "three", "four", "five")
    for changes in ({"selection_prompt": " In {list}:"}, {"selection_labels": labels}):
        other = keys(**changes)
        assert other[0] != one[0] and other[1] == one[1]  # the same items were chosen


def test_other_sequences_or_texts_are_another_le(settings):
    keys = pipeline(settings()).keys
    fewer = {u: [CATALOGUE.tokens[i] for i in items[:2]]
             for u, items in zip(SEQUENCES.users, SEQUENCES.items, strict=True)}  # fmt: skip
    other = pipeline(settings(), Sequences(fewer, CATALOGUE)).keys
    assert other["items"] == keys["items"]
    assert other["environment"] != keys["environment"]
    texts = Catalogue({token: {"title": "moon"} for token in CATALOGUE.tokens})
    assert pipeline(settings(), catalogue=texts).keys["items"] != keys["items"]


@pytest.mark.parametrize(
    "changes",
    [{}, {"prompt_items": "title"}, {"state_input": "items", "reward_head": "none"},
     {"negative_pool": 3}, {"environment": "text", "selection_by": "state"}],
)  # fmt: skip
def test_one_pass_gives_the_states_and_rewards_of_two(settings, monkeypatch, changes):
    monkeypatch.setattr(answers, "SHARD", 5)
    le = pipeline(settings(**changes))
    two = [np.array(le.states()), np.array(le.rewards())]
    for stage in ("states", "rewards"):
        shutil.rmtree(le.cache.path(stage))
    one = pipeline(settings(**changes)).precomputed(want_states=True, want_rewards=True)
    for found, expected in zip((one.states, one.rewards), two, strict=True):
        rounding = max(1e-4, float(np.finfo(found.dtype).eps))  # states are float16
        np.testing.assert_allclose(found, expected, rtol=rounding, atol=1e-5)


@pytest.mark.parametrize("built", ["states", "rewards", "projection"])
def test_what_is_there_is_not_computed_again_for_the_other(settings, log, built):
    s = settings(state_dim=4) if built == "projection" else settings()
    le = pipeline(s)
    (le.rewards if built == "rewards" else le.states)()
    if built == "projection":
        shutil.rmtree(le.cache.path("states"))
    computed(log)
    pipeline(s).precomputed(want_states=True, want_rewards=True)
    assert computed(log) == ["states" if built == "rewards" else "rewards"]


@pytest.mark.parametrize("stages", ["rewards", "states_and_rewards"])
def test_stages_resume_after_a_kill_with_the_same_result(settings, tmp_path, monkeypatch, stages):
    def feedback(le):
        getattr(le, stages)()
        return [np.array(le.rewards()), np.array(le.states())]

    monkeypatch.setattr(answers, "SHARD", 5)
    whole = feedback(pipeline(settings(cache_dir=str(tmp_path / "whole"))))
    killed = pipeline(settings(cache_dir=str(tmp_path / "killed")))
    killed.environment()

    class Killed(Exception):
        pass

    write, calls = ArrayStore.write, []

    def write_and_die(self, shard, values):
        write(self, shard, values)
        calls.append((self.folder.name, shard))
        if len(calls) == 3:  # with both, between the states of a shard and its rewards
            raise Killed

    monkeypatch.setattr(ArrayStore, "write", write_and_die)
    with pytest.raises(Killed):
        feedback(killed)
    monkeypatch.setattr(
        ArrayStore, "write", lambda *a: (calls.append((a[0].folder.name, a[1])), write(*a))
    )
    resumed = feedback(pipeline(settings(cache_dir=str(tmp_path / "killed"))))
    assert len(set(calls)) == len(calls) > 6  # every shard once
    for found, expected in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("changes", [{}, {"reward_scale": "sigmoid"}])
def test_rewards_are_scaled_as_asked(settings, changes):
    """Live rewards by a sample's mean and deviation, the precomputed ones by those of all."""
    p = pipeline(settings(**changes))
    scores, rows = np.array(p.rewards()), np.arange(SEQUENCES.n_transitions)
    found = p.precomputed(want_states=False, want_rewards=True)
    live = p.live(want_states=False, want_rewards=True)
    mean, deviation = scores.mean(), scores.std()
    assert live.scale.mean == pytest.approx(mean, abs=deviation / 10)
    assert live.scale.deviation == pytest.approx(deviation, rel=0.1)
    scales = ((found, mean, deviation), (live, live.scale.mean, live.scale.deviation))
    for feedback, center, width in scales:
        expected = 1 / (1 + np.exp(-scores)) if changes else (scores - center) / width
        feedback.augment(np.zeros(len(rows), dtype=np.int64), scores[:, 1])
        seen = feedback.lookup(rows)
        close = {"rtol": 1e-4, "atol": 1e-5}
        np.testing.assert_allclose(seen["reward"], expected[:, 0], **close)
        np.testing.assert_allclose(seen["augmented_reward"], expected[:, 1], **close)
        if feedback is found:  # a live negative is drawn anew
            np.testing.assert_allclose(seen["negative_reward"], expected[:, 1], **close)


def test_a_control_has_the_feedback_of_the_same_other_transitions_each_time(settings):
    def others(made, live=False, **changes):
        p = pipeline(settings(shuffle=made, **changes))
        make = p.live if live else p.precomputed
        return make(want_states=False, want_rewards=True).others

    first = others(True)
    rows = np.arange(SEQUENCES.n_transitions)
    assert sorted(first) == rows.tolist() and (first != rows).mean() > 0.8
    np.testing.assert_array_equal(others(True), first)
    np.testing.assert_array_equal(others(True, live=True), first)
    assert (others(True, seed=8) != first).any()
    assert others(False) is None


def test_rewards_belong_to_their_transition_and_negative(settings):
    s = settings(negative_pool=2)
    p = pipeline(s)
    rewards, env = p.rewards(), p.environment()
    negatives = sample_negatives(SEQUENCES, 12, 2, s.seed)
    k = int(SEQUENCES.transition_starts[4]) + 2  # sequence 4, t = 3
    history = SEQUENCES.history(4, 3)
    actions = [SEQUENCES.action(4, 3), *negatives[k]]
    alone = [env.answer([[env.prompts.reward(history, a)]], env.reward_of)[0] for a in actions]
    np.testing.assert_allclose(rewards[k], alone, rtol=1e-4, atol=1e-6)


def test_selection_is_one_of_the_list_and_cached_by_its_contents(settings, log):
    p = pipeline(settings())
    rng = np.random.default_rng(0)
    candidates = np.stack([rng.permutation(12)[:5] for _ in range(SEQUENCES.n_transitions)])
    chosen, scores = p.select(candidates, want_rewards=True)
    assert (candidates == chosen[:, None]).any(1).all()
    truth = np.concatenate([items[1:] for items in SEQUENCES.items])
    listed = np.mean([item in row for item, row in zip(truth, candidates, strict=True)])
    assert p.measured["true_item_listed"] == pytest.approx(listed)
    assert p.measured["true_item_chosen"] == pytest.approx(np.mean(chosen == truth))
    assert 0 < np.mean(chosen == truth) < listed < 1
    assert np.isfinite(scores).all()
    assert computed(log)[-2:] == ["augmentation", "rewards of the chosen actions"]
    p.select(candidates, want_rewards=True)
    assert computed(log) == []
    p.select(candidates[:, ::-1], want_rewards=False)
    assert computed(log) == ["augmentation"]


def test_selection_is_calibrated_as_asked(settings):
    rng, chosen = np.random.default_rng(0), {}
    candidates = np.stack([rng.permutation(12)[:5] for _ in range(SEQUENCES.n_transitions)])
    for calibration in ("prior", "none"):
        p = pipeline(settings(selection_calibration=calibration))
        chosen[calibration], _ = p.select(candidates, want_rewards=False)
        scores = np.load(p.cache.path("selection") / "label_scores.npy")
        expected, _ = choose(scores, candidates, calibration)
        np.testing.assert_array_equal(chosen[calibration], expected)
    assert (chosen["prior"] != chosen["none"]).any()


def test_selection_by_reward_is_the_listed_item_with_the_highest(settings, log):
    rng = np.random.default_rng(0)
    candidates = np.stack([rng.permutation(12)[:5] for _ in range(SEQUENCES.n_transitions)])
    pipeline(settings()).select(candidates, want_rewards=True)
    computed(log)
    p = pipeline(settings(selection_by="reward"))
    chosen, scores = p.select(candidates, want_rewards=True)
    assert computed(log) == ["augmentation"]  # not the answers to the prompt, and nothing more
    env, first = p.environment(), int(SEQUENCES.transition_starts[7])
    for k, t in enumerate(range(1, len(SEQUENCES.items[7])), first):
        prompts = [[env.prompts.reward(SEQUENCES.history(7, t), a)] for a in candidates[k]]
        alone = env.answer(prompts, env.reward_of)
        assert scores[k] == pytest.approx(alone.max(), rel=1e-4)
        (position,) = np.flatnonzero(
            candidates[k] == chosen[k]
        )  # items of one text have one reward
        assert alone[position] == pytest.approx(alone.max(), rel=1e-4)


def test_rewards_that_the_cache_holds_are_not_computed_again(settings, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    lists = np.stack([rng.permutation(12)[:5] for _ in range(SEQUENCES.n_transitions)])
    alone = pipeline(settings(selection_by="reward", cache_dir=str(tmp_path / "alone")))
    _, expected = alone.select(lists[:, 1:], want_rewards=True)

    p = pipeline(settings(selection_by="reward", negative_pool=2))
    logged = p.rewards()
    answer, asked = p.environment().answer, []

    def counting(groups, *more):
        groups = list(groups)
        asked.extend(len(group) for group in groups)
        return answer(groups, *more)

    monkeypatch.setattr(p.environment(), "answer", counting)
    p.select(lists[:, :4], want_rewards=True)
    positives = np.concatenate([items[1:] for items in SEQUENCES.items])
    judged = np.concatenate([positives[:, None], p.negatives], axis=1)
    new = (lists[:, :4, None] != judged[:, None]).all(2)
    assert sum(asked) == new.sum() < new.size
    asked.clear()
    _, found = p.select(lists[:, 1:], want_rewards=True)
    assert sum(asked) == (lists[:, 4, None] != judged).all(1).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(stages.known_rewards(p, judged), logged)


def test_rewards_of_another_le_or_of_an_altered_file_are_not_reused(settings):
    p = pipeline(settings())
    p.rewards()
    judged = np.concatenate([items[1:] for items in SEQUENCES.items])[:, None]
    assert np.isfinite(stages.known_rewards(p, judged)).all()
    other = pipeline(settings(finetune_lr=0.01))
    assert np.isnan(stages.known_rewards(other, judged)).all()
    path = p.cache.path("rewards") / "rewards.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 64
    path.write_bytes(content)
    assert np.isnan(stages.known_rewards(p, judged)).all()
    path.write_bytes(content[:-1])
    assert np.isnan(stages.known_rewards(p, judged)).all()
    assert path.read_bytes() == content[:-1]  # another stage's file is left to that stage


def test_rewards_of_other_choices_from_the_same_lists_are_not_reused(settings, monkeypatch):
    """As where states come out of another machine, and so round to another nearest item."""
    rewards = pipeline(settings()).rewards()
    logged = np.concatenate([items[1:] for items in SEQUENCES.items])
    own = pipeline(settings(selection_by="state"))
    candidates = np.stack([logged, own.negatives[:, 0]], axis=1)
    for column in (0, 1):
        chosen = np.ascontiguousarray(candidates[:, column])
        monkeypatch.setattr(selection, "choose", lambda *_: (chosen, np.ones(2) / 2))  # noqa: B023
        _, scores = pipeline(settings(selection_by="state")).select(candidates, want_rewards=True)
        np.testing.assert_array_equal(scores, rewards[:, column])


def test_selection_whose_rewards_are_all_known_needs_no_llm(settings, monkeypatch):
    pipeline(settings()).rewards()
    p = pipeline(settings(selection_by="reward"))
    monkeypatch.setattr(p, "llm", None)
    logged = np.concatenate([items[1:] for items in SEQUENCES.items])
    candidates = np.stack([logged, p.negatives[:, 0]], axis=1)
    chosen, scores = p.select(candidates, want_rewards=True)
    rewards = p.rewards()
    np.testing.assert_array_equal(scores, rewards.max(1))
    np.testing.assert_array_equal(chosen, np.where(rewards.argmax(1), *candidates.T[::-1]))


@pytest.mark.parametrize("head", ["residual", "none"])
def test_selection_by_state_is_the_listed_item_nearest_to_the_state(settings, head, log):
    rng = np.random.default_rng(0)
    candidates = np.stack([rng.permutation(12)[:5] for _ in range(SEQUENCES.n_transitions)])
    p = pipeline(settings(selection_by="state", state_head=head))
    chosen, scores = p.select(candidates, want_rewards=True)
    assert computed(log) == [
        "item tokenization", "item keys", "LE fine-tuning", "states",
        "rewards of the chosen actions",
    ]  # fmt: skip
    env, first = p.environment(), int(SEQUENCES.transition_starts[7])
    for k, t in enumerate(range(1, len(SEQUENCES.items[7])), first):
        history = SEQUENCES.history(7, t)
        state = torch.from_numpy(env.answer([[env.prompts.state(history)]], env.state_of))
        near = env.state_scores(state)[0, candidates[k]].detach().numpy()
        near[candidates[k] == history[-1]] = -np.inf
        (position,) = np.flatnonzero(candidates[k] == chosen[k])
        assert near[position] == pytest.approx(near.max(), rel=1e-2)  # states are kept in 16 bits
        alone = env.answer([[env.prompts.reward(history, int(chosen[k]))]], env.reward_of)
        assert scores[k] == pytest.approx(alone[0], rel=1e-4)


def test_state_dim_stores_a_projection(settings):
    full = pipeline(settings()).states()
    small = pipeline(settings(state_dim=4)).states()
    assert small.shape == (len(full), 4)
    centred = np.asarray(full, np.float64) - np.asarray(full, np.float64).mean(0)
    kept = np.linalg.svd(centred, compute_uv=False)[:4] ** 2
    np.testing.assert_allclose((np.asarray(small, np.float64) ** 2).sum(), kept.sum(), rtol=1e-2)


def test_a_state_dim_beyond_the_llm_is_refused_before_the_work(settings, log):
    with pytest.raises(ValueError, match="state_dim is 33, but .* of width 32 allow at most"):
        pipeline(settings(state_dim=33)).states()
    assert computed(log) == []
    pipeline(settings()).item_tokens()
    with pytest.raises(ValueError, match="state_dim is 33"):
        pipeline(settings(state_dim=33)).states()


def test_with_titles_in_the_prompts_another_title_is_another_le(settings):
    keys = settings(prompt_items="title")
    first = pipeline(keys)
    assert np.isfinite(first.rewards()).all()
    # the same words in the item sentence, so the same item tokens
    texts = {t: {"title": x["title"], "a": x["title"]} for t, x in zip(
        CATALOGUE.tokens, CATALOGUE.texts, strict=True)}  # fmt: skip
    texts["i03"]["a"] = "moon"
    changed = pipeline(settings(prompt_items="title", title="{a}"), catalogue=Catalogue(texts))
    assert changed.keys["items"] == first.keys["items"]
    assert changed.keys["environment"] != first.keys["environment"]


def test_items_without_text_are_named_and_kept(settings, log):
    texts = {token: {"title": "red"} for token in CATALOGUE.tokens} | {"i03": {"title": ""}}
    tokens = pipeline(settings(), catalogue=Catalogue(texts)).item_tokens()
    assert "1 of 12 items have no text" in log.text
    assert "i03" in log.text
    assert tokens.shape == (12, 32)
    assert np.abs(tokens[3]).sum() > 0


def test_the_log_names_some_of_many_items_without_text(settings, log, monkeypatch):
    monkeypatch.setattr(pipeline_module, "NAMED", 2)
    nothing = Catalogue({token: {} for token in CATALOGUE.tokens})
    with pytest.raises(ValueError, match=r"not one of the 12 items has a text.*lea_allow_no_text"):
        pipeline(settings(), catalogue=nothing)
    pipeline(settings(allow_no_text=True), catalogue=nothing)
    assert "12 of 12 items have no text" in log.text
    assert "by their token, such as i00, i01" in log.text and "i02" not in log.text


def test_adapter_and_score_head_are_one_safetensors_file(settings):
    from safetensors import safe_open

    p = pipeline(settings())
    p.environment()
    path = next(p.cache.folder.glob("environment-*/adapter.safetensors"))
    with safe_open(path, framework="np") as file:
        names = list(file.keys())
    assert "score_head.weight" in names
    assert any("lora_A" in name for name in names)
    assert json.loads((path.parent / "done.json").read_text())["key"] == p.keys["environment"]


def test_a_useless_reward_model_is_warned_about_in_every_run(settings, log, monkeypatch):
    finetune = pipeline_module.finetune

    def useless(*arguments):
        history = finetune(*arguments)
        history[-1]["accuracy"] = 0.5
        return history

    monkeypatch.setattr(pipeline_module, "finetune", useless)
    lists = np.tile(np.arange(5), (SEQUENCES.n_transitions, 1))
    asked = [
        Pipeline.environment, Pipeline.environment, Pipeline.states, Pipeline.rewards,
        lambda p: p.precomputed(want_states=False, want_rewards=True),
        lambda p: p.precomputed(want_states=True, want_rewards=True),
        lambda p: p.live(want_states=False, want_rewards=True),
        lambda p: p.select(lists, want_rewards=False),
    ]  # fmt: skip
    for ask in asked:
        ask(pipeline(settings()))
        assert log.text.count("no better than chance (held-out accuracy 0.500") == 1
        log.clear()


def test_runs_that_differ_in_the_seed_alone_share_the_le(defaults, settings):
    from recbole_lea.le import LESettings

    values = defaults | {"lea_llm": settings().llm, "lea_llm_dtype": "float32"}

    def keys(**changes):
        made = LESettings.from_config(values | changes)
        return Pipeline(made, CATALOGUE, SEQUENCES, "x").keys

    assert keys(seed=1) == keys(seed=2)
    assert keys(lea_seed=1)["environment"] != keys(lea_seed=2)["environment"]
    assert keys(lea_seed=1)["items"] == keys(lea_seed=2)["items"]


def test_a_setting_that_is_missing_is_named(defaults):
    from recbole_lea.le import LESettings

    del defaults["lea_lora_r"]
    with pytest.raises(KeyError, match="lea_lora_r"):
        LESettings.from_config(defaults)


def readme_example(llm):
    """README's example of the LE, with the tests' LLM."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    (code,) = [block for block in blocks if "recbole_lea.le import" in block]
    before, call, after = code.partition('LESettings.for_dataset("ml-100k"')
    assert call
    return f"{before}{call}, llm={llm!r}, finetune_fraction=0.5{after}"


def test_the_readme_s_example_runs(tiny_llm):
    scope = {}
    exec(readme_example(tiny_llm), scope)
    assert scope["states"].shape == (7, 32)
    assert scope["rewards"].shape == (4, 2)
    assert scope["le"].settings.title == "{movie_title}"  # of the dataset's YAML file


def test_the_readme_s_example_runs_where_recbole_cannot_be_imported(tiny_llm):
    code = f"""
import sys
sys.modules["recbole"] = None  # importing it fails, and find_spec finds nothing
{readme_example(tiny_llm)}
print(states.shape, rewards.shape)
assert sys.modules["recbole"] is None
assert not [name for name in sys.modules if name.startswith("recbole.")]
assert not [name for name in sys.modules if name.startswith("recbole_lea.plugin.")]
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "(7, 32) (4, 2)"


def test_a_dataset_without_yaml_file_is_an_error():
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        LESettings.for_dataset("nowhere")


def test_item_tokens_without_iterations_are_their_start(settings, log, monkeypatch):
    s = settings(item_iterations=0)
    monkeypatch.setattr(Environment, "hidden", None)  # no forward pass
    p = pipeline(s)
    plain = Environment(p.llm(), torch.zeros(2, p.llm().width), s, adapted=False)
    ids, _ = tokenization.sentence_ids(p.sentences, plain, p.llm().tokenizer)
    start = tokenization.initial_tokens(ids, plain)
    np.testing.assert_array_equal(p.item_tokens(), start.numpy())
    assert "mean sentence loss" not in log.text


def test_correlation_of_rewards_with_popularity(settings):
    le = pipeline(settings(negative_pool=2))
    counts = np.bincount(np.concatenate(SEQUENCES.items), minlength=len(CATALOGUE))
    positive = np.zeros((SEQUENCES.n_transitions, 1))
    popular = np.hstack([positive, counts[le.negatives]])
    assert quality.popularity_correlation(le, popular) == pytest.approx(1)
    assert quality.popularity_correlation(le, -popular) == pytest.approx(-1)
    assert quality.popularity_correlation(le, np.zeros_like(popular)) is None
    le.precomputed(want_states=False, want_rewards=True)
    assert le.diagnostics()["reward_popularity"] == quality.popularity_correlation(le, le.rewards())


def test_correlation_of_many_rewards_is_that_of_a_sample(settings, monkeypatch):
    le = pipeline(settings(negative_pool=2))
    n = SEQUENCES.n_transitions
    rewards = np.random.default_rng(0).standard_normal((n, 3))
    seen = []
    monkeypatch.setattr(
        quality,
        "spearmanr",
        lambda a, b, axis: seen.append((a, b)) or spearmanr(a, b, axis),
    )
    quality.popularity_correlation(le, rewards)
    monkeypatch.setattr(quality, "CORRELATED", 20)
    quality.popularity_correlation(le, rewards)
    assert [a.shape for a, _ in seen] == [(n, 2), (10, 2)]
    pairs = set(zip(*(values.ravel().tolist() for values in seen[0]), strict=True))
    assert pairs.issuperset(zip(*(values.ravel().tolist() for values in seen[1]), strict=True))
