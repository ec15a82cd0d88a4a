"""A packed batch through the LLM: attention masks, positions, and proof that the LLM obeys them."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_lea.engine.memory import out_of_memory
from recbole_lea.engine.packing import PackedBatch, pack

# Tokens of the row on which ``check_packing`` compares: more than the windows of architectures
# that build their own masks by column. Of each prompt of 48 tokens, the row's prompts share 40.
CHECKED_ROW, SHARED, OWN = 320, 40, 8

# Largest relative difference that rounding explains, in float32 and in 16 bits (on an H200 a random
# LLM of Mistral-7B's shapes has 0.04). A mask that is not obeyed, or a window of 256 columns, which
# hides what is shared from the row's end, gives 0.2 and more.
TOLERANCE = {torch.float32: 1e-3}
LOW_PRECISION_TOLERANCE = 0.1

KINDS = {"full_attention", "sliding_attention", "chunked_attention"}

OTHERS = "use an LLM of another architecture, such as Llama, Mistral, Qwen, Gemma or GPT-2"


def last_hidden(decoder: Any, embedded: Tensor, batch: PackedBatch) -> Tensor:
    """Last hidden state of every token of a packed batch.

    Args:
        decoder: a Hugging Face decoder.
        embedded: the batch's embeddings [B, L, d].
        batch: its masks and positions.

    Returns:
        [B, L, d], on the device that the decoder ends on.

    Raises:
        ValueError: a prompt is longer than the LLM reads.
    """
    longest, limit = int(batch.positions.max()) + 1, position_limit(decoder.config)
    if longest > limit:
        raise ValueError(
            f"a prompt has {longest} tokens, but this LLM reads at most {limit}: lower "
            "lea_max_history or lea_item_max_tokens, or shorten the prompts"
        )
    return decoder(
        inputs_embeds=embedded,
        attention_mask=attention_masks(decoder.config, batch, embedded),
        position_ids=torch.from_numpy(batch.positions).to(embedded.device),
        use_cache=False,
    ).last_hidden_state


def attention_masks(config: Any, batch: PackedBatch, like: Tensor) -> Tensor | dict[str, Tensor]:
    """Ancestor masks as additive biases [B, 1, L, L], which every attention kernel takes.

    A mask that is given is used as it is, also by the layers that see only a window of the
    newest tokens. So where a prompt is longer than the window, these get a mask of their own:
    the ancestors that are less than a window away *in the prompt*, not in the row.

    Args:
        config: the decoder's.
        batch: the rows.
        like: a tensor of the biases' dtype and device.

    Returns:
        One mask for all layers, or one for each of the config's ``layer_types``.
    """

    def bias(visible: np.ndarray) -> Tensor:
        hidden = ~torch.from_numpy(visible).to(like.device)
        zeros = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
        return zeros.masked_fill_(hidden, torch.finfo(like.dtype).min)

    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    if not window or batch.positions.max() < window or "sliding_attention" not in kinds:
        return bias(batch.mask)
    distance = batch.positions[:, None, :, None] - batch.positions[:, None, None, :]
    windowed = bias(batch.mask & (distance < window))
    if kinds == {"sliding_attention"}:
        return windowed
    return {"full_attention": bias(batch.mask), "sliding_attention": windowed}


def position_limit(config: Any) -> int:
    """Tokens of the longest prompt that an LLM reads as it reads that prompt alone.

    Beyond it there are no embeddings of the positions, they were never trained, or they depend on
    the longest prompt of the batch.
    """
    limits = [getattr(config, n, None) for n in ("max_position_embeddings", "attention_chunk_size")]
    rotary = getattr(config, "rope_parameters", None) or {}
    if rotary.get("rope_type") in ("dynamic", "longrope"):
        limits.append(rotary.get("original_max_position_embeddings"))
    return min((limit for limit in limits if limit), default=sys.maxsize)


def next_word_logits(model: Any, hidden: Tensor) -> Tensor:
    """LM head as the causal LM itself applies it: [N, d] -> [N, vocab_size], in its dtype."""
    logits = model.get_output_embeddings()(hidden.to(model.dtype))
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


@torch.inference_mode()
def check_packing(model: Any) -> None:
    """Make sure that packed prompts get what each gets alone, by the plain Hugging Face call.

    Prompts at both ends of a row, where all share a prefix, are compared with the same prompts in
    rows of their own, and these with the plain call. A sliding window is narrowed for it, so that
    it matters.

    Args:
        model: a causal LM.

    Raises:
        ValueError: they do not, or the LLM gives numbers that are not finite; with the reason.
    """
    decoder, words = model.get_decoder(), model.get_input_embeddings()
    device = model.device
    unknown = sorted(set(getattr(decoder.config, "layer_types", None) or []) - KINDS)
    if unknown:
        raise ValueError(
            f"it cannot read prompts that share a row: its layers of the kind {unknown[0]!r} have "
            f"no attention mask; {OTHERS}"
        )
    rng = np.random.default_rng(0)

    def ids(n: int) -> list[int]:
        return rng.integers(0, words.num_embeddings, n).tolist()

    def packed(prompts: list[list[int]]) -> Tensor:
        (batch,) = pack([prompts], CHECKED_ROW, batch_rows=1)
        hidden = last_hidden(decoder, words(torch.from_numpy(batch.ids).to(device)), batch)
        return hidden.flatten(0, 1)[batch.reads]  # [N, d]

    common = ids(SHARED)
    group = [common + ids(OWN) for _ in range((CHECKED_ROW - SHARED) // OWN)]
    measured = [0, len(group) - 2, len(group) - 1]
    plain = [torch.tensor([group[i]], device=device) for i in measured]
    try:
        with _narrow_window(decoder.config):
            ends = [decoder(input_ids=p, use_cache=False).last_hidden_state[:, -1] for p in plain]
            plain_logits = [model(input_ids=p, use_cache=False).logits[:, -1] for p in plain]
            together = packed(group)[measured]
            apart = torch.cat([packed([group[i]]) for i in measured])
    except Exception as error:  # noqa: BLE001 - whatever an architecture makes of a mask [B, 1, L, L]
        if out_of_memory(error):
            raise
        raise ValueError(
            f"it cannot read prompts that share a row: {type(model).__name__} takes no attention "
            f"mask of four dimensions ({type(error).__name__}: {error}); {OTHERS}"
        ) from error
    alone, logits = torch.cat(ends), torch.cat(plain_logits)
    if not torch.isfinite(alone).all():
        raise ValueError(
            f"it gives numbers that are not finite in {model.dtype}: set lea_llm_dtype to bfloat16 "
            "or float32; if it is that already, its weights are damaged"
        )
    tolerance = TOLERANCE.get(model.dtype, LOW_PRECISION_TOLERANCE)
    for what, found, expected in (
        ("its attention does not follow the mask or the positions", together, apart),
        ("it is no causal model, or takes other masks or positions", apart, alone),
        ("it changes what its LM head gives", next_word_logits(model, apart), logits),
    ):
        found, expected = found.float(), expected.to(found.device).float()
        # of the middle prompt: rounding may send a word to another expert
        difference = float(((found - expected).norm(dim=1) / expected.norm(dim=1)).median())
        if not difference <= tolerance:
            raise ValueError(
                f"prompts that share a row would get other results than alone (relative difference "
                f"{difference:.2g}): {what}; {OTHERS}"
            )


@contextlib.contextmanager
def _narrow_window(config: Any) -> Iterator[None]:
    window = getattr(config, "sliding_window", None)
    if not window:
        yield
        return
    config.sliding_window = min(window, 5)
    try:
        yield
    finally:
        config.sliding_window = window
