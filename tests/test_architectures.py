"""LLMs of several architectures and tokenizers, from the item texts to the recommender's test."""

from pathlib import Path

import numpy as np
import pytest

from tests.le.llms import ARCHITECTURES, make_llm

# transformers rebuilds the tokenizers of Qwen2 and Gemma in their own way, whatever is in the file
PAIRS = [(name, "sentencepiece" if "gemma" in name else "byte_level") for name in ARCHITECTURES]
PAIRS += [("llama", "sentencepiece"), ("mistral", "sentencepiece")]


@pytest.mark.parametrize(("architecture", "tokenizer"), PAIRS)
def test_a_recommender_is_trained_on_it(trained, tmp_path, architecture, tokenizer):
    llm = make_llm(tmp_path / "llm", architecture, tokenizer)
    model = trained(lea_llm=llm, lea_max_history=4)
    cache = Path(model.config["lea_cache_dir"]) / "tiny"
    for stage in ("items-*/tokens", "states-*/states", "rewards-*/rewards", "selection-*/label*"):
        newest = max(cache.glob(f"{stage}.npy"), key=lambda path: path.stat().st_mtime_ns)
        values = np.load(newest).astype(np.float32)
        assert np.isfinite(values).all()
        assert values.std() > 0
    assert np.isfinite(model.scores.numpy()).all()
    assert model.scores[:, 1:].std() > 0
