"""LLMs of several architectures, from the item texts to the test of the recommender."""

import numpy as np
import pytest

from tests.le.llms import ARCHITECTURES, make_llm


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_recommender_is_trained_on_it(trained, tmp_path, architecture):
    tokenizer = "sentencepiece" if "gemma" in architecture else "byte_level"
    llm = make_llm(tmp_path / "llm", architecture, tokenizer)
    model = trained(lea_llm=llm, lea_max_history=4)
    assert model.trainer.best_valid_result["ndcg@10"] >= 0
    assert np.isfinite(model.scores.numpy()).all()
    assert model.scores[:, 1:].std() > 0
