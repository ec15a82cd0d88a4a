"""A packed batch through the LLM: attention masks, positions, and proof that the LLM obeys them."""

import contextlib
import sys
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
# LLM of Mistral-7B's shapes has 0.04). A mask that is not obeyed gives 0.2 and more.
TOLERANCE, TOLERANCE_IN_16_BITS = 1e-3, 0.1

KINDS = {"full_attention", "sliding_attention", "chunked_attention"}

REMEDY = "use an LLM of another architecture, such as Llama, Mistral, Qwen, Gemma or GPT-2"


def last_hidden(
    decoder: Any, embedded: Tensor, batch: PackedBatch, layer: int | None = None
) -> Tensor:
    """Last hidden states [B, L, d] of a batch's embeddings [B, L, d], on the decoder's last device.

    With a ``layer``, those behind the first so many layers instead, before the last norm.

    Raises a ValueError if a prompt is longer than the LLM reads.
    """
    longest, limit = int(batch.positions.max()) + 1, position_limit(decoder.config)
    if longest > limit:
        raise ValueError(
            f"a prompt has {longest} tokens, but this LLM reads at most {limit}: lower "
            "lea_max_history or lea_item_max_tokens, or shorten the prompts"
        )
    found = decoder(
        inputs_embeds=embedded,
        attention_mask=attention_masks(decoder.config, batch, embedded),
        position_ids=torch.from_numpy(batch.positions).to(embedded.device),
        use_cache=False,
        output_hidden_states=layer is not None,
    )
    return found.last_hidden_state if layer is None else found.hidden_states[layer]


def attention_masks(config: Any, batch: PackedBatch, like: Tensor) -> Tensor | dict[str, Tensor]:
    """Ancestor masks as additive biases [B, 1, L, L], which every attention kernel takes.

    Layers that see a window of the newest tokens take a given mask as it is. Where a prompt is
    longer, theirs has the ancestors less than a window away *in the prompt*, not in the row.
    ``config`` is the decoder's; with several ``layer_types`` there, the result has a mask for each.
    ``like`` is a tensor of the biases' dtype and device.
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
    """Tokens of the longest prompt that an LLM reads, packed, as it reads that prompt alone.

    Further positions have no embeddings, were never trained, or depend on the longest prompt.
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
    """Make sure that a causal LM gives packed prompts what each gets by a call of its own.

    Raises a ValueError with the reason if it does not, or if its numbers are not finite.
    """
    unknown = sorted(set(getattr(model.get_decoder().config, "layer_types", None) or []) - KINDS)
    if unknown:
        raise ValueError(
            f"it cannot read prompts that share a row: its layers of the kind {unknown[0]!r} have "
            f"no attention mask; {REMEDY}"
        )
    try:
        packed, alone, logits = _computed_in_both_ways(model)
    except Exception as error:  # noqa: BLE001 - whatever an architecture makes of a mask [B, 1, L, L]
        if out_of_memory(error):
            raise
        raise ValueError(
            f"it cannot read prompts that share a row: {type(model).__name__} takes no attention "
            f"mask of four dimensions ({type(error).__name__}: {error}); {REMEDY}"
        ) from error
    if not torch.isfinite(alone).all():
        raise ValueError(
            f"it gives numbers that are not finite in {model.dtype}: set lea_llm_dtype to bfloat16 "
            "or float32; if it is that already, its weights are damaged"
        )
    tolerance = TOLERANCE if model.dtype == torch.float32 else TOLERANCE_IN_16_BITS
    for found, expected, reason in (
        (packed, alone, "it does not follow the mask or the positions, or is no causal model"),
        (next_word_logits(model, alone), logits, "it changes what its LM head gives"),
    ):
        found, expected = found.float(), expected.to(found.device).float()
        # of the middle prompt: rounding may send a word to another expert
        difference = ((found - expected).norm(dim=1) / expected.norm(dim=1)).median().item()
        if not difference <= tolerance:
            raise ValueError(
                "prompts that share a row would get other results than alone (relative difference "
                f"{difference:.2g}): {reason}; {REMEDY}"
            )


def _computed_in_both_ways(model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Three prompts at both ends of a row in which all share a prefix, and each by itself.

    A sliding window is narrowed for it, so that it matters. Returns the last hidden states [3, d]
    in that row, and by the ordinary Hugging Face call; the logits [3, vocab_size] of the latter.
    """
    decoder, words = model.get_decoder(), model.get_input_embeddings()
    ids = np.random.default_rng(0).integers(0, words.num_embeddings, CHECKED_ROW).tolist()
    prompts = [ids[:SHARED] + ids[i : i + OWN] for i in range(SHARED, CHECKED_ROW, OWN)]
    measured = [0, -2, -1]

    def alone(part: Any) -> list[Any]:
        rows = [torch.tensor([prompts[i]], device=model.device) for i in measured]
        return [part(input_ids=row, use_cache=False) for row in rows]

    with contextlib.ExitStack() as stack:
        if window := getattr(decoder.config, "sliding_window", None):
            stack.callback(setattr, decoder.config, "sliding_window", window)
            decoder.config.sliding_window = min(window, 5)
        hidden = torch.cat([output.last_hidden_state[:, -1] for output in alone(decoder)])
        logits = torch.cat([output.logits[:, -1] for output in alone(model)])
        (batch,) = pack([prompts], CHECKED_ROW, batch_rows=1)
        embedded = words(torch.from_numpy(batch.ids).to(model.device))
        packed = last_hidden(decoder, embedded, batch).flatten(0, 1)[batch.ends]  # [N, d]
    return packed[measured], hidden, logits
