"""Item tokenization: only the vectors move, losses fall, items leave."""

import numpy as np
import pytest
import torch

from recbole_lea.engine.packing import pack
from recbole_lea.le import item_tokens as tokenization
from recbole_lea.le.item_tokens import (
    _predicted,
    initial_tokens,
    sentence_ids,
    tokenize_bucket,
)
from recbole_lea.le.prompts import Template
from tests.le.helpers import CATALOGUE, environment, pipeline


def prepared(settings):
    from transformers import AutoTokenizer

    env = environment(settings, adapted=False)
    tokenizer = AutoTokenizer.from_pretrained(settings.llm)
    sentences, _ = CATALOGUE.sentences(settings.item_sentence)
    ids, cut = sentence_ids(sentences, env, tokenizer)
    return env, ids, cut


def test_loss_falls_and_the_llm_stays_as_it_was(settings):
    s = settings(item_iterations=8, item_lr=0.05, item_patience=None)
    env, ids, _ = prepared(s)
    before = {name: p.clone() for name, p in env.llm.named_parameters()}
    start = initial_tokens(ids, env)
    vectors, losses = tokenize_bucket(env, ids, start)
    assert (losses[:, 1] < losses[:, 0]).all()
    assert not np.array_equal(vectors, start.numpy())
    assert all(torch.equal(p, before[name]) for name, p in env.llm.named_parameters())


def test_the_best_vectors_are_kept(settings, monkeypatch):
    """Here the first ones: the loss rises with each step."""
    s = settings(item_iterations=2, item_patience=None)
    env, ids, _ = prepared(s)
    losses = iter([1.0, 2.0, 3.0])

    def rising(environment, ids, table, backward):
        table.grad = torch.ones_like(table)
        return torch.full((len(table),), next(losses))

    monkeypatch.setattr(tokenization, "_losses", rising)
    start = initial_tokens(ids, env)
    vectors, found = tokenize_bucket(env, ids, start)
    np.testing.assert_array_equal(vectors, start)
    assert (found == 1).all() and next(losses, None) is None


def test_first_loss_is_the_plain_language_model_loss(settings):
    s = settings(item_iterations=0)
    env, ids, _ = prepared(s)
    start = initial_tokens(ids, env)
    _, losses = tokenize_bucket(env, ids, start)
    row = torch.tensor([ids[3]])
    with torch.no_grad():
        logits = env.llm(inputs_embeds=env.embed(row, start)).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, row[0, 1:])
    np.testing.assert_allclose(losses[3, 0], expected, rtol=1e-4)


def test_items_leave_when_their_loss_stops_falling(settings, monkeypatch):
    s = settings(item_iterations=50, item_lr=0.0, item_patience=2)
    env, ids, _ = prepared(s)
    losses, asked = tokenization._losses, []
    monkeypatch.setattr(
        tokenization, "_losses", lambda env, rows, *more, **named: (
            asked.append(len(rows)), losses(env, rows, *more, **named)
        )[1]
    )  # fmt: skip
    tokenize_bucket(env, ids, initial_tokens(ids, env))
    assert sum(asked) == 3 * len(ids)  # the first loss, then two that are no lower


def test_one_item_does_not_disturb_another(settings):
    s = settings(item_iterations=3, item_lr=0.05, item_patience=None)
    env, ids, _ = prepared(s)
    start = initial_tokens(ids, env)
    together, _ = tokenize_bucket(env, ids, start)
    single = [[env.vocab_size if t >= env.vocab_size else t for t in ids[4]]]
    apart, _ = tokenize_bucket(env, single, start[4:5])
    np.testing.assert_allclose(together[4], apart[0], atol=1e-4)


def test_long_sentences_are_cut_and_counted(settings):
    _, ids, cut = prepared(settings(item_max_tokens=4))
    assert max(map(len, ids)) == 4
    assert cut == len(ids)


def test_start_vectors_have_the_vocabulary_norm_and_no_common_part(settings):
    s = settings()
    env, ids, _ = prepared(s)
    ids = [row + [5 + i] for i, row in enumerate(ids)]  # no two items alike
    start = initial_tokens(ids, env)
    norm = env.llm.get_input_embeddings().weight.norm(dim=1).mean()
    torch.testing.assert_close(start.norm(dim=1), norm.expand(len(ids)), rtol=1e-4, atol=1e-5)
    assert start.mean(0).norm() < 0.5 * norm
    random = initial_tokens(ids, prepared(settings(item_init="random"))[0])
    assert not torch.allclose(random, start)


def test_random_start_vectors_have_the_vocabulary_s_deviation(settings):
    s = settings(item_init="random")
    env, ids, _ = prepared(s)
    ids = ids * 20
    start = initial_tokens(ids, env)
    deviation = env.llm.get_input_embeddings().weight.std()
    assert float(start.std() / deviation) == pytest.approx(1, rel=0.05)
    assert torch.equal(initial_tokens(ids, env), start)
    other, *_ = prepared(settings(item_init="random", seed=8))
    assert not torch.equal(initial_tokens(ids, other), start)


def test_words_belong_to_the_item_before_them():
    # two items in one row: [item 0] w w, [item 1] w
    batch = next(pack([[[100, 7, 8]], [[101, 9]]], row_length=6, batch_rows=1))
    nodes, owners = _predicted(batch, vocab_size=100)
    assert nodes.tolist() == [1, 2, 4]
    assert owners.tolist() == [0, 0, 1]


def test_sentences_read_together_are_those_read_one_by_one(settings, monkeypatch):
    from transformers import AutoTokenizer

    s = settings()
    env, tokenizer = environment(s, adapted=False), AutoTokenizer.from_pretrained(s.llm)
    sentences = ["{item} is red.", "the {item} film", "{item}, blue", "a {item}is", "{item} star"]
    monkeypatch.setattr(tokenization, "AT_ONCE", 2)
    ids, cut = sentence_ids(sentences, env, tokenizer)
    assert cut == 0
    for i, sentence in enumerate(sentences):
        assert ids[i] == Template(sentence, tokenizer, first=True).fill([env.vocab_size + i])


def test_a_long_text_before_the_item_does_not_push_it_out(settings):
    from transformers import AutoTokenizer

    s = settings(item_max_tokens=5)
    env, tokenizer = environment(s, adapted=False), AutoTokenizer.from_pretrained(s.llm)
    sentences = ["red " * 50 + "{item} is blue.", "{item} is " + "red " * 50, "<eos> {item} is"]
    ids, cut = sentence_ids(sentences, env, tokenizer)
    assert cut == 2
    for i, row in enumerate(ids):
        assert len(row) <= 5
        assert row.index(env.vocab_size + i) < len(row) - 1
        assert tokenizer.eos_token_id not in row


@pytest.mark.parametrize(("limit", "level"), [(5, "WARNING"), (9, None)])
def test_many_cut_sentences_are_a_warning(settings, log, limit, level):
    """Half of the items have a title of two words."""
    pipeline(settings(item_iterations=0, item_max_tokens=limit)).item_tokens()
    said = [r for r in log.records if "item sentences" in r.message]
    assert [r.levelname for r in said] == ([level] if level else [])
    assert all(
        "of 12 item sentences (" in r.message and "%) were cut to 5" in r.message for r in said
    )
