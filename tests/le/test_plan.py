"""The plan: what it counts is what runs, and the LE that follows is the one without it."""

import shutil

import numpy as np
import pytest
import torch

from recbole_lea.le import plan, quality
from recbole_lea.le.catalogue import Catalogue
from recbole_lea.le.environment import Environment
from recbole_lea.le.sequences import Sequences
from recbole_lea.le.text import TextEnvironment
from tests.le.helpers import CATALOGUE, pipeline

ALL = ["states", "rewards", "selection", "selection_rewards"]


def test_the_plan_changes_nothing_of_what_follows(settings, tmp_path):
    planned = pipeline(settings(cache_dir=str(tmp_path / "planned")))
    torch.manual_seed(5)
    steps = plan.steps(planned, ALL)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert drawn == torch.rand(1)
    assert all(step.seconds is not None and step.seconds > 0 for step in steps)
    assert not [name for name, _ in planned.llm().model.named_modules() if "lora" in name]
    assert not hasattr(planned.llm().model, "peft_config")
    plain = pipeline(settings())
    np.testing.assert_array_equal(planned.states(), plain.states())
    np.testing.assert_array_equal(planned.rewards(), plain.rewards())


def test_the_rows_that_are_counted_are_those_that_run(settings, monkeypatch):
    monkeypatch.setattr(plan, "_timed", lambda work: 1.0)  # a row takes a second
    le = pipeline(settings(finetune_eval=0))
    le.environment()
    alone = {name: plan.steps(le, [name])[-1].seconds for name in ("states", "rewards")}
    both = sum(step.seconds or 0.0 for step in plan.steps(le, ["states", "rewards"]))
    rows, hidden = [], Environment.hidden

    def counted(self, batch, *more):
        rows.append(sum(row.length / 96 for row in batch.rows if row.ids))
        return hidden(self, batch, *more)

    monkeypatch.setattr(Environment, "hidden", counted)
    for stage in (le.states, le.rewards):
        rows.clear()
        stage()
        assert alone[stage.__name__] == pytest.approx(sum(rows))
        shutil.rmtree(le.cache.path(stage.__name__))
    rows.clear()
    pipeline(settings(finetune_eval=0)).states_and_rewards()
    assert both == pytest.approx(sum(rows))
    assert both < sum(alone.values())


def test_what_the_cache_holds_is_said(settings):
    le = pipeline(settings())
    before = {step.name: str(step) for step in plan.steps(le, ["states"], measured=False)}
    assert before["items"] == "item tokenization: to compute: 12 sentences"
    le.environment()
    steps = plan.steps(pipeline(settings()), ["states"], measured=False)
    assert [step.cached for step in steps] == [True, True, True, False]
    le.states()
    (step,) = plan.steps(pipeline(settings()), ["states"])  # no LLM is loaded
    assert str(step) == "states: cached"


def test_what_has_changed_since_an_older_stage_is_named(settings):
    pipeline(settings()).rewards()

    def reasons(sequences=None, **changes):
        le = pipeline(settings(**changes), *([sequences] if sequences else []))
        steps = plan.steps(le, ["rewards"], measured=False)
        return {step.name: step.why.removeprefix("computed again as ") for step in steps}

    later = "an earlier stage is"
    assert reasons(item_iterations=0) == {
        "items": "lea_item_iterations was 2, is 0", "keys": "", "environment": later,
        "rewards": later,
    }  # fmt: skip
    assert reasons(lora_r=8, finetune_eval=3) == {
        "items": "", "keys": "", "environment": "lea_lora_r was 16, is 8", "rewards": later,
    }  # fmt: skip
    assert reasons(negative_pool=2)["rewards"] == "negative_pool was 1, is 2"
    others = Sequences({"a": ["i00", "i01"], "b": ["i02", "i01", "i03"]}, CATALOGUE)
    assert reasons(others)["environment"] == "other training sequences"
    sentence = "{item} is[ {title}]."
    assert "lea_item_sentence was {item} film" in reasons(item_sentence=sentence)["items"]


def test_examples_show_a_sentence_a_prompt_and_unused_fields(settings):
    texts = {token: {"title": "red", "year": "1995"} for token in CATALOGUE.tokens}
    said = settings(user_prompt="Seen: {history}", max_history=2)
    le = pipeline(said, catalogue=Catalogue(texts))
    sentence, prompt, unused = plan.examples(le)
    assert sentence == "item sentence: [i00] film is titled red."
    assert prompt == "prompt: Seen: [i00] next [i01]"
    assert unused == "fields of .item that no template uses: year"


@pytest.mark.parametrize(
    ("accuracy", "n", "verdict"),
    [
        (0.74, 50, "0.740 +- 0.062 on 50 held-out pairs (popularity 0.710, text 0.700): "
                   "cannot be told apart from popularity"),
        (0.74, 5000, "better than both"),
        (0.60, 5000, "worse than popularity"),
    ],
)  # fmt: skip
def test_an_le_s_worth_is_held_against_what_needs_no_llm(accuracy, n, verdict):
    others = {"popularity_accuracy": 0.71, "text_accuracy": 0.70}
    assert quality.worth({"accuracy": accuracy, "n": n} | others).endswith(verdict)


def test_popularity_counts_all_but_the_pair_itself(settings):
    le = pipeline(settings())
    le.environment()
    sequences = Sequences({"a": ["i00", "i01"], "b": ["i02", "i01"]}, CATALOGUE)
    pairs = [(0, 1), (1, 1)]  # i01 twice, so each has one other place
    text = TextEnvironment(torch.from_numpy(le.item_tokens()), le.settings)
    found = quality.without_llm(sequences, pairs, text, seed=1)
    _, negatives, _ = quality.drawn(sequences, pairs, len(CATALOGUE), 1)
    wanted = [0.5 if item in (0, 2) else 1.0 for item in negatives]
    assert found["popularity_accuracy"] == np.mean(wanted)
    assert set(found) <= set(le.diagnostics())  # of its own held-out pairs


def test_what_needs_no_llm_is_told_before_one_is_trained(settings, monkeypatch):
    monkeypatch.setattr(plan, "FEWEST", 5)
    le = pipeline(settings(item_iterations=0))
    (line,) = plan.without_llm(le)
    le.environment()  # says the same afterwards
    found = le.diagnostics()
    assert line.startswith(
        f"ranked right without an LLM, of {found['n']} held-out pairs: "
        f"popularity {found['popularity_accuracy']:.3f}, text {found['text_accuracy']:.3f}"
    )
    chance = not quality.better_than_chance(found["text_accuracy"], found["n"])
    assert ("chance" in line) == chance
    for other in ({"environment": "text", "selection_by": "state"}, {"item_init": "random"}):
        assert plan.without_llm(pipeline(settings(**other))) == []
    assert plan.without_llm(pipeline(settings(finetune_eval=0))) == []
    monkeypatch.setattr(plan, "LARGEST", 5)
    assert plan.without_llm(le) == []
