"""`item_embedding_init: le`."""

import numpy as np
import pytest
import torch

from recbole_lea.model.item_embeddings import init_item_embeddings
from tests.model.helpers import build


@pytest.mark.parametrize("model", ["SASRecSA2CLEA", "GRU4RecSNQNLEA"])
@pytest.mark.parametrize("keys", [{"lea_method": "LEASR"}, {"lea_method": "base", "q_weight": 0}])
@pytest.mark.parametrize("std", [None, 0.3])
def test_item_embeddings_start_from_the_item_keys(tiny_config, model, keys, std):
    keys = keys | {"hidden_size": 16, "embedding_size": 16, "item_embedding_std": std}
    built, train, _ = build(tiny_config(model, item_embedding_init="le", **keys))
    random, _, _ = build(tiny_config(model, **keys))
    dataset = train._dataset
    tokens = torch.from_numpy(dataset.lea_item_tokens)
    tokens = tokens - tokens.mean(0)
    copies = [(built, random)]
    if built.twin is not None:
        copies.append((built.twin.backbone, random.twin.backbone))
    for copy_, usual in copies:
        found, drawn = (m.item_embedding.weight.detach() for m in (copy_, usual))
        width = found.shape[1]
        _, s, v = torch.linalg.svd(tokens, full_matrices=False)
        parts = tokens @ v[:width].T  # signs are free: compare the similarities
        own = found[dataset.lea_item_ids]
        factor = (own @ own.T).trace() / (parts @ parts.T).trace()
        torch.testing.assert_close(own @ own.T, parts @ parts.T * factor, rtol=1e-3, atol=1e-5)
        expected = drawn[1:].std() if std is None else torch.tensor(std)
        torch.testing.assert_close(own.std(), expected, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found[0], drawn[0])


def test_item_embeddings_of_many_items_are_their_principal_components():
    """Beyond ten items a dimension by another decomposition, to the same result."""
    tokens = np.random.default_rng(0).standard_normal((400, 6)).astype(np.float32)
    tokens = tokens * np.arange(6, 0, -1, dtype=np.float32) + 1
    backbone = torch.nn.Module()
    backbone.item_embedding = torch.nn.Embedding(401, 3)
    init_item_embeddings([backbone], tokens, torch.arange(1, 401))
    centred = tokens - tokens.mean(0)
    parts = centred @ np.linalg.svd(centred, full_matrices=False)[2][:3].T
    found = backbone.item_embedding.weight[1:].detach().numpy()
    for d in range(3):
        assert abs(np.corrcoef(found[:, d], parts[:, d])[0, 1]) == pytest.approx(1, abs=1e-4)


def test_embeddings_wider_than_the_tokens_allow_are_refused():
    backbone = torch.nn.Module()
    backbone.item_embedding = torch.nn.Embedding(6, 8, padding_idx=0)
    with pytest.raises(ValueError, match="width 8 cannot be made from 5 item tokens of width 32"):
        init_item_embeddings([backbone], np.zeros((5, 32), dtype=np.float32), torch.arange(1, 6))
