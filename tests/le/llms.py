"""Tiny random LLMs of several architectures and kinds of tokenizers, as folders."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.conftest import TEXTS

WIDTHS = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,  # so that attention matters
}
WINDOW = {"sliding_window": 6}
ALTERNATING = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
ARCHITECTURES = {
    "llama": {},
    "mistral": WINDOW,
    "qwen2": ALTERNATING | {"use_sliding_window": True},
    "gpt2": {"n_positions": 128},
    "gemma": {"head_dim": 8},
    "gemma2": ALTERNATING | {"head_dim": 8, "final_logit_softcapping": 0.5},
    "gemma3_text": ALTERNATING | {"head_dim": 8},
}


def byte_level():
    """As GPT-2's, with a token for each byte; no special tokens but the end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def sentencepiece():
    """As Llama 2's and Gemma's: a mark for the space before every word, and a first token."""
    words = sorted({word for text in TEXTS for word in text.split()})
    letters = sorted({letter for word in words for letter in word} | set("▁:.,0123456789"))
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(f"▁{word}", -5.0) for word in words] + [(letter, -9.0) for letter in letters]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


TOKENIZERS = {"byte_level": byte_level, "sentencepiece": sentencepiece}


def make_llm(folder, architecture="llama", tokenizer="byte_level", **changes):
    """Write an LLM; returns the folder's name. Neither tokenizer has a pad token."""
    made = TOKENIZERS[tokenizer]()
    assert made.pad_token is None
    made.save_pretrained(folder)
    special = {"vocab_size": len(made), "pad_token_id": None, "eos_token_id": made.eos_token_id}
    keys = WIDTHS | special | ARCHITECTURES.get(architecture, {}) | changes
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **keys)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)
