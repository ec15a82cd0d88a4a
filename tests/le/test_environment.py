"""Packed, batched and padded prompts give what each prompt alone gives."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers.utils.quantization_config import QuantizationMethod

from recbole_lea.engine.llm import compile_layers, load_llm
from recbole_lea.engine.packing import pack
from recbole_lea.le.environment import load_trained_state, trained_state
from recbole_lea.store.files import read_tensors
from tests.le.helpers import CATALOGUE, SEQUENCES, environment


def alone(env, prompt):
    """Last hidden state of one prompt, by the plain Hugging Face call."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = env.decoder(inputs_embeds=env.embed(ids, env.item_tokens), use_cache=False)
    return output.last_hidden_state[0, -1]


def all_prompts(env):
    """Rewards, states and selections of short, full and sliding windows."""
    prompts = []
    for s, items in enumerate(SEQUENCES.items):
        for t in range(1, len(items)):
            history = SEQUENCES.history(s, t)
            prompts += [env.prompts.reward(history, a) for a in (items[t], (items[t] + 5) % 12)]
            prompts += [env.prompts.state(history), env.prompts.select(history, [1, 2, 3, 4, 5])]
    return prompts


WINDOWS = {
    "sliding": {"max_history": 4},
    "hopping": {"max_history": 3, "history_hop": 3},
    "state in the prompt": {"max_history": 4, "state_input": "prompt"},
    "paper": {"max_history": 4, "reward_prompt": "paper"},
    "titles": {"max_history": 4, "prompt_items": "title"},
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("window", WINDOWS)
def test_packed_equals_one_prompt_at_a_time(settings, attention, window):
    env = environment(settings(row_length=32, batch_rows=3, **WINDOWS[window]))
    env.decoder.set_attn_implementation(attention)
    prompts = all_prompts(env)
    packed = env.answer([[p] for p in prompts], lambda ends: ends.hidden)
    for prompt, state in zip(prompts, packed, strict=True):
        expected = alone(env, prompt).numpy()
        assert np.abs(state - expected).max() <= 1e-4 * np.abs(expected).max()


def test_titles_are_read_as_plain_words(settings):
    env = environment(settings(prompt_items="title", title="{title} star", max_history=4))
    words = [f"{text['title']} star" for text in CATALOGUE.texts]
    history, action = SEQUENCES.history(7, 6), 3
    listed = " , ".join(words[i] for i in history[-4:])
    text = env.settings.user_prompt.format(history=f"{listed} next {words[action]}")
    ids = load_llm(env.settings.llm, "float32", env.device).tokenizer(text)["input_ids"]
    with torch.inference_mode():
        hidden = env.decoder(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    read = env.answer([[env.prompts.reward(history, action)]], lambda ends: ends.hidden)
    np.testing.assert_allclose(read[0], hidden.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prompt_items", ["token", "title"])
@pytest.mark.parametrize("wording", ["paper", "item_last"])
def test_reward_head_state_adds_how_near_the_action_is_to_the_state(
    settings, wording, prompt_items
):
    keys = {"reward_prompt": wording, "state_input": "prompt", "max_history": 4}
    keys["prompt_items"] = prompt_items
    env = environment(settings(reward_head="state", **keys))
    torch.nn.init.normal_(env.state_head.weight)
    plain = environment(settings(reward_head="none", **keys))
    load_trained_state(plain, trained_state(env))
    history, action = SEQUENCES.history(7, 6), 5
    reward = [[env.prompts.reward(history, action)]]
    state = env.answer([[env.prompts.state(history)]], env.state_of)
    near = env.state_scores(torch.from_numpy(state))[0, action].item()
    expected = plain.answer(reward, plain.reward_of) + near
    assert abs(near) > 0.1
    np.testing.assert_allclose(env.answer(reward, env.reward_of), expected, rtol=1e-4)


def test_reward_head_state_wants_the_state_in_the_prompt(settings):
    with pytest.raises(ValueError, match="lea_reward_head.*lea_state_input: prompt"):
        settings(reward_head="state", state_input="items")


def test_rewards_do_not_depend_on_batch_size_or_row_length(settings):
    rewards = []
    for row_length, batch_rows in ((96, 4), (64, 1), (200, 2)):
        env = environment(settings(row_length=row_length, batch_rows=batch_rows))
        prompts = [[p] for p in all_prompts(env)]
        rewards.append(env.answer(prompts, env.reward_of))
    np.testing.assert_allclose(rewards[1], rewards[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(rewards[2], rewards[0], rtol=1e-4, atol=1e-6)


def test_bfloat16_stays_near_float32_and_ranks_alike(settings):
    exact = environment(settings())
    rough = environment(settings(llm_dtype="bfloat16"))
    prompts = [[p] for p in all_prompts(exact)]
    a, b = exact.answer(prompts, exact.reward_of), rough.answer(prompts, rough.reward_of)
    assert np.abs(a - b).max() < 0.05 * a.std() + 0.02
    apart = np.abs(a[:, None] - a[None, :]) > 0.1 * a.std()
    same = np.sign(a[:, None] - a[None, :]) == np.sign(b[:, None] - b[None, :])
    assert same[apart].mean() > 0.99


def test_shared_prefixes_save_tokens(settings):
    env = environment(settings())
    history = SEQUENCES.history(7, 6)
    group = [env.prompts.reward(history, a) for a in (1, 2)]
    batch = next(pack([group], 96, 1))
    common = len(env.prompts._user_prompt(history)) + len(env.prompts.action.before)
    assert batch.n_tokens == common + 2 * (len(group[0]) - common)


def test_trained_state_survives_saving_bit_for_bit(settings, tmp_path):
    env = environment(settings())
    torch.nn.init.normal_(env.score_head.weight)
    prompts = [[p] for p in all_prompts(env)]
    before = env.answer(prompts, env.reward_of)
    save_file(trained_state(env), tmp_path / "adapter.safetensors")
    other = environment(settings())
    assert not np.array_equal(other.answer(prompts, other.reward_of), before)
    load_trained_state(other, read_tensors(tmp_path / "adapter.safetensors"))
    np.testing.assert_array_equal(other.answer(prompts, other.reward_of), before)


def test_a_saved_le_without_a_tensor_is_refused(settings):
    env = environment(settings())
    state = trained_state(env)
    del state["score_head.bias"]
    with pytest.raises(KeyError, match="score_head.bias"):
        load_trained_state(env, state)


def test_only_adapter_and_heads_are_trained(settings):
    env = environment(settings())
    trained = {name for name, p in env.named_parameters() if p.requires_grad}
    assert trained
    heads = ("score_head.", "state_head.")
    assert all("lora_" in name or name.startswith(heads) for name in trained)


def test_label_scores_are_log_probabilities_of_the_label_words(settings):
    env = environment(settings())
    prompt = env.prompts.select(SEQUENCES.history(3, 2), [0, 1, 2, 3, 4])
    scores = env.answer([[prompt]], env.label_scores_of)[0]
    logits = env.llm.get_output_embeddings()(alone(env, prompt)).detach()
    expected = logits.log_softmax(-1)[env.prompts.labels]
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-4)
    assert len(CATALOGUE) >= 5


def test_pad_and_eos_ids_within_a_prompt_are_ordinary_tokens(settings):
    """No mask is derived from ids: a text that holds them is read like any other."""
    env = environment(settings())
    pad, eos = 1, 2
    plain = env.prompts.state([3, 4, 5])
    for odd in (pad, eos):
        prompt = [*plain[:1], odd, *plain[1:]]
        found = env.answer([[prompt], [plain]], lambda ends: ends.hidden)
        np.testing.assert_allclose(found[0], alone(env, prompt).numpy(), rtol=1e-3, atol=1e-5)
        assert np.abs(found[0] - found[1]).max() > 1e-3


def test_merged_adapter_gives_the_same_rewards(settings):
    env = environment(settings())
    prompts = [[p] for p in all_prompts(env)]
    before = env.answer(prompts, env.reward_of)
    merged = env.merge()
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    np.testing.assert_allclose(merged.answer(prompts, env.reward_of), before, rtol=1e-4, atol=1e-6)


def test_weights_that_peft_cannot_merge_into_are_left_as_they_are(settings):
    env = environment(settings())
    env.llm.get_base_model().quantization_method = QuantizationMethod.GPTQ
    env.merge()
    assert env.adapted and not env.training


def test_adapter_learns_in_float32_under_a_bfloat16_llm(settings):
    env = environment(settings(llm_dtype="bfloat16")).train()
    prompts = all_prompts(env)[:4]
    ends = env.ends(batch := next(pack([prompts], 96, 1)), env.hidden(batch))
    env.reward_of(ends).sum().backward()
    trained = [p for name, p in env.named_parameters() if "lora_" in name]
    assert {p.dtype for p in trained} == {torch.float32}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_compiled_layers_give_the_same_rewards(settings, caplog):
    env = environment(settings())
    prompts = [[p] for p in all_prompts(env)[:12]]
    before = env.answer(prompts, env.reward_of)
    compile_layers(env.llm.base_model.model)
    if "torch.compile does not work here" in caplog.text:
        pytest.skip(caplog.text)
    layers = env.decoder.layers
    assert all(layer._compiled_call_impl is not None for layer in layers)
    np.testing.assert_allclose(env.answer(prompts, env.reward_of), before, rtol=1e-4, atol=1e-6)


def test_after_many_shapes_the_merged_layers_are_still_compiled(settings):
    env = environment(settings())
    graphs = []

    def note(graph, inputs):
        graphs.append(graph)
        return graph

    for layer in env.decoder.layers:
        layer.compile(backend=note, dynamic=False)

    def graphs_of(length):
        before = len(graphs)
        (batch,) = pack([all_prompts(env)[:1]], length, 1)
        with torch.inference_mode():
            env.hidden(batch)
        return len(graphs) - before

    while graphs_of(96 + len(graphs)):  # as in fine-tuning, until torch gives up on new shapes
        pass
    assert graphs_of(300) == 0
    env.merge()
    assert graphs_of(301) > 0


def test_without_a_compiler_the_model_stays_as_it_is(settings, caplog, monkeypatch):
    def refuse(function):
        raise RuntimeError("no C++ compiler\nmore")

    monkeypatch.setattr(torch, "compile", refuse)
    env = environment(settings())
    compile_layers(env.llm.base_model.model)
    assert "does not work here: RuntimeError: no C++ compiler\n" in caplog.text
    assert all(layer._compiled_call_impl is None for layer in env.decoder.layers)
