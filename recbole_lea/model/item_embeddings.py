"""``item_embedding_init: le``: item embeddings that start from the LE's item tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn


@torch.no_grad()
def init_item_embeddings(
    backbones: Sequence[nn.Module], tokens: np.ndarray, ids: Tensor, std: float | None = None
) -> None:
    """Let item embeddings start from the item keys' principal components.

    They are scaled to the deviation ``std``, by default that of what RecBole has drawn; its padding
    item keeps its own. ``tokens`` [n, d] and RecBole's ``ids`` [n] are by LE item index,
    ``backbones`` copies of one.
    Raises a ValueError if they are wider than the tokens allow.
    """
    tables: list[Any] = [backbone.item_embedding for backbone in backbones]
    width = tables[0].embedding_dim
    if width > min(tokens.shape):
        raise ValueError(
            f"`item_embedding_init: le`: embeddings of width {width} cannot be made from "
            f"{tokens.shape[0]} item tokens of width {tokens.shape[1]}: lower the embedding's width"
        )
    # the full decomposition holds more arrays of the tokens' size: gigabytes at a million items
    solver = "covariance_eigh" if len(tokens) > 10 * tokens.shape[1] else "full"
    components = PCA(width, svd_solver=solver).fit_transform(tokens)  # [n, width]
    for table in tables:
        start, rows = torch.from_numpy(components).to(table.weight), ids.to(table.weight.device)
        table.weight[rows] = start * ((std or table.weight[rows].std()) / start.std())
