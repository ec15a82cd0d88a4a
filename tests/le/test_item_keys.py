import numpy as np
import pytest
import torch

from recbole_lea.engine.attention import last_hidden
from recbole_lea.engine.packing import pack
from recbole_lea.le.item_keys import DEPTH, SHARD, item_keys, key_bounds
from tests.le.helpers import environment, pipeline


def keys_of(env, ids):
    found = dict(item_keys(ids, iter, env, list(range(len(key_bounds(len(ids))) - 1))))
    return np.concatenate([found[shard] for shard in sorted(found)])


@pytest.fixture
def env(settings):
    return environment(settings(), adapted=False)


def test_a_key_is_the_mean_of_an_inner_layer_over_all_words_but_the_first(env):
    ids = [[5, 9, env.vocab_size + 3, 7], [5, 9, 8, 6, 2]]  # an item's own id is no word
    config = env.decoder.config
    layer = round(DEPTH * config.num_hidden_layers)
    assert 0 < layer <= config.num_hidden_layers
    for row, key in zip([[5, 9, 7], [5, 9, 8, 6, 2]], keys_of(env, ids), strict=True):
        out = env.decoder(torch.tensor([row]), output_hidden_states=True).hidden_states[layer]
        np.testing.assert_allclose(key, out[0, 1:].mean(0).detach(), rtol=1e-4, atol=1e-5)


def test_a_sentence_of_one_word_has_a_key(env):
    alone, one = keys_of(env, [[5]]), env.decoder(torch.tensor([[5]]), output_hidden_states=True)
    layer = round(DEPTH * env.decoder.config.num_hidden_layers)
    np.testing.assert_allclose(alone[0], one.hidden_states[layer][0, 0].detach(), rtol=1e-4)


def test_keys_do_not_depend_on_what_shares_a_row(env):
    rng = np.random.default_rng(0)
    ids = [rng.integers(2, 20, rng.integers(1, 12)).tolist() for _ in range(SHARD + 5)]
    found = keys_of(env, ids)
    assert found.shape[0] == SHARD + 5
    np.testing.assert_allclose(found[-1:], keys_of(env, ids[-1:]), rtol=1e-4, atol=1e-5)


def test_without_a_layer_the_last_states_are_given(env):
    (batch,) = pack([[[5, 9, 7]]], env.settings.row_length, batch_rows=1)
    embedded = env.embed(torch.from_numpy(batch.ids), env.item_tokens)
    inner, last = (last_hidden(env.decoder, embedded, batch, layer) for layer in (1, None))
    assert inner.shape == last.shape and not torch.allclose(inner, last)


def test_the_states_are_compared_with_them(settings):
    hidden, tokens = pipeline(settings()), pipeline(settings(state_keys="tokens"))
    assert not np.allclose(hidden.item_keys(), hidden.item_tokens())
    np.testing.assert_array_equal(tokens.item_keys(), tokens.item_tokens())
    head = hidden.adapted.state_head
    expected = type(head)(torch.from_numpy(hidden.item_keys())).keys
    torch.testing.assert_close(head.keys, expected)
    assert not torch.allclose(head.keys, tokens.adapted.state_head.keys)
