"""Packed rows in several architectures: what each prompt alone gives, or a refusal."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from recbole_lea.engine import attention
from recbole_lea.engine.attention import attention_masks, check_packing, position_limit
from recbole_lea.engine.llm import load_llm
from recbole_lea.engine.packing import pack
from recbole_lea.le.environment import PromptEnds
from recbole_lea.le.prompts import label_ids
from tests.le.helpers import SEQUENCES, environment, pipeline
from tests.le.llms import ARCHITECTURES, WIDTHS, make_llm
from tests.le.test_environment import all_prompts

KEYS = {"max_history": 4, "row_length": 128, "batch_rows": 2, "reward_head": "none"}


def alone(env, prompt):
    """Last hidden state and next-word logits of one prompt, by the ordinary Hugging Face call.

    Items are given as rows of the embedding matrix, so that whatever the model does with an
    embedding after the look-up is done here by the model itself.
    """
    ids = torch.tensor([prompt])
    model = env.llm.get_base_model() if env.adapted else env.llm
    matrix, vocab = model.get_input_embeddings().weight, env.vocab_size
    scale = getattr(model.get_input_embeddings(), "embed_scale", torch.tensor(1.0))
    old, added = matrix.data, env.item_tokens / scale
    with torch.inference_mode():
        matrix.data = torch.cat([old, added])
        model.get_input_embeddings().num_embeddings = len(matrix)
        try:
            state = env.decoder(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
            tied = model.get_output_embeddings().weight is matrix
            logits = model(input_ids=ids, use_cache=False).logits[0, -1]
        finally:
            matrix.data = old
            model.get_input_embeddings().num_embeddings = vocab
    return state, logits[:vocab] if tied else logits


def items_of(env, prompt):
    """The item at the end of a prompt and those before it, newest first [1, H]."""
    before = [token - env.vocab_size for token in prompt[-2::-1] if token >= env.vocab_size]
    return torch.tensor([[prompt[-1] - env.vocab_size, *before]])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_packed_equals_one_prompt_at_a_time(settings, tmp_path, architecture, kernel):
    env = environment(settings(llm=make_llm(tmp_path / "llm", architecture), **KEYS))
    if kernel == "sdpa" and not env.decoder._supports_sdpa:
        pytest.skip("has no sdpa")
    env.decoder.set_attn_implementation(kernel)
    torch.nn.init.normal_(env.score_head.weight)
    torch.nn.init.normal_(env.state_head.weight)
    prompts = all_prompts(env)[-40:]
    groups = [[p] for p in prompts]
    hidden = env.answer(groups, lambda ends: ends.hidden)
    rewards, states = env.answer(groups, env.reward_of), env.answer(groups, env.state_of)
    labels = env.answer(groups, env.label_scores_of)
    assert max(map(len, prompts)) > 12  # beyond twice the window
    for i, prompt in enumerate(prompts):
        state, logits = alone(env, prompt)
        ends = PromptEnds(state[None], items_of(env, prompt))
        with torch.inference_mode():
            expected = [
                (hidden[i], state),
                (rewards[i], env.reward_of(ends)[0]),
                (states[i], env.state_of(ends)[0]),
                (labels[i], logits.log_softmax(-1)[env.prompts.labels]),
            ]
        for found, wanted in expected:
            # a reward may be nearly 0: rounding is relative to the numbers that it is summed from
            assert np.abs(found - wanted.numpy()).max() <= 1e-4 * wanted.abs().max() + 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads(settings, tmp_path, tied):
    env = environment(settings(llm=make_llm(tmp_path / "llm", tie_word_embeddings=tied), **KEYS))
    model = env.llm.get_base_model()
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    prompt = env.prompts.select(SEQUENCES.history(3, 2), [0, 1, 2, 3, 4])
    expected = alone(env, prompt)[1].log_softmax(-1)[env.prompts.labels]
    found = env.answer([[prompt]], env.label_scores_of)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_gemma_s_start_vectors_have_the_size_of_embedded_words(settings, tmp_path):
    env = environment(settings(llm=make_llm(tmp_path / "llm", "gemma"), **KEYS), adapted=False)
    embedding = env.llm.get_input_embeddings()
    torch.testing.assert_close(env.words(), embedding.weight * 32**0.5)


REFUSED = {
    "bloom": ({}, "four dimensions"),  # slopes by column
    "mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2}, "does not follow the mask"),
    "falcon": ({"alibi": True}, "four dimensions"),
    "gpt_neo": (  # a window of 256 columns
        {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4},
        "does not follow the mask",
    ),
    "bert": ({}, "(no causal model|LM head)"),
    "mamba": ({}, "no attention mask"),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "'conv' have no attention mask"),
    "rwkv": ({"attention_hidden_size": 32}, "does not follow the mask"),
    "granite": ({"logits_scaling": 8.0}, "LM head"),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_cannot_read_token_trees_is_refused(name, dtype):
    changes, reason = REFUSED[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, vocab_size=150, **(WIDTHS | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    with pytest.raises(ValueError, match=f"(?s)share a row.*{reason}.*use an LLM of another"):
        check_packing(model)


@pytest.mark.parametrize(("share", "refused"), [(0.05, False), (0.5, True)])
def test_rounding_of_many_layers_in_16_bits_is_no_reason(tmp_path, share, refused):
    """On a GPU, Mistral-7B's shapes with random weights differ by 0.04."""
    llm = make_llm(tmp_path / "llm")
    model = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.bfloat16)
    torch.manual_seed(0)
    model.model.norm.register_forward_hook(
        lambda module, inputs, states: states + share / 2**0.5 * torch.randn_like(states)
    )
    with pytest.raises(ValueError, match="does not follow") if refused else nullcontext():
        check_packing(model)


def test_without_the_windowed_mask_it_is_refused(tmp_path, monkeypatch):
    """The check sees a window that prompts are hardly ever longer than."""
    llm = make_llm(tmp_path / "llm", "mistral", sliding_window=4096)
    assert load_llm(llm, "float32", torch.device("cpu")).model.config.sliding_window == 4096

    def unwindowed(config, batch, like):
        return attention_masks(AutoConfig.for_model("llama"), batch, like)

    monkeypatch.setattr(attention, "attention_masks", unwindowed)
    with pytest.raises(ValueError, match=f"lea_llm: {llm}: prompts that share a row"):
        load_llm(llm, "float32", torch.device("cpu"))


def test_a_prompt_longer_than_the_llm_reads_is_an_error(settings, tmp_path):
    env = environment(settings(llm=make_llm(tmp_path / "llm", "gpt2"), **KEYS))
    with pytest.raises(ValueError, match="129 tokens.* at most 128: lower lea_max_history"):
        env.answer([[[5] * 129]], env.reward_of)
    assert env.answer([[[5] * 128]], env.reward_of).shape == (1,)


def test_positions_that_depend_on_the_batch_are_a_limit():
    rope = {"rope_type": "longrope", "rope_theta": 1e4}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    keys = {"max_position_embeddings": 80, "pad_token_id": 0}
    assert position_limit(AutoConfig.for_model("phi3", **keys)) == 80
    keys |= {"original_max_position_embeddings": 40}
    scaled = AutoConfig.for_model("phi3", rope_parameters=rope, **WIDTHS, **keys)
    assert position_limit(scaled) == 40
    assert position_limit(AutoConfig.for_model("llama4_text", attention_chunk_size=30)) == 30


def test_a_window_counts_tokens_of_the_prompt_not_of_the_row():
    (batch,) = pack([[[1, 2, 3, 4], [1, 5, 6, 7]]], row_length=8, batch_rows=1)
    config = AutoConfig.for_model("mistral", sliding_window=3)
    visible = attention_masks(config, batch, torch.zeros(1))[0, 0] == 0
    assert np.flatnonzero(visible[3]).tolist() == [1, 2, 3]
    assert np.flatnonzero(visible[5]).tolist() == [0, 4, 5]  # 1 stands five columns before
    assert np.flatnonzero(visible[6]).tolist() == [4, 5, 6]


@pytest.mark.parametrize("tokenizer", ["byte_level", "sentencepiece"])
def test_label_words_that_share_a_first_token_are_refused(settings, tmp_path, tokenizer):
    llm = make_llm(tmp_path / "llm", "llama", tokenizer)
    read = load_llm(llm, "float32", torch.device("cpu")).tokenizer
    assert len(set(label_ids(read, settings().selection_labels))) == 5
    with pytest.raises(ValueError, match="lea_selection_labels.*'zebra', 'zest'"):
        environment(settings(llm=llm, selection_labels=["zebra", "zest"], **KEYS))


FIT = r"use all-linear or \[c_attn, c_fc, c_proj\]"


@pytest.mark.parametrize(
    ("targets", "problem"),
    [
        (["q_proj"], f"'q_proj' fits nothing of .*{FIT}"),
        (["c_attn", "wte"], f"'wte' fits transformer.wte of .*{FIT}"),
        (["c_fc", "c_pro"], f"'c_pro' fits nothing of .*{FIT}"),
        (["lm_head"], f"'lm_head' fits lm_head of .*{FIT}"),
        (["attn"], f"'attn' fits transformer.h.0.attn of .*{FIT}"),
        ("c_attn", f"'c_attn' fits nothing of .*{FIT}"),
        (".*(", "is no pattern"),
        (["c_attn", "mlp.c_proj"], None), (r".*\.h\.0\..*c_.*", None), ("all-linear", None),
    ],
)  # fmt: skip
def test_lora_targets_outside_of_the_layers_are_refused_before_the_first_stage(
    settings, tmp_path, targets, problem
):
    made = pipeline(settings(llm=make_llm(tmp_path / "llm", "gpt2"), lora_targets=targets, **KEYS))
    if problem is None:
        made.llm()
        return
    with pytest.raises(ValueError, match=f"lea_lora_targets: .*{problem}"):
        made.item_tokens()
    assert not list(made.cache.folder.glob("items-*/tokens.npy"))
