"""Item keys: what the LE's states are compared with (Eq. 2), as the LLM has read each item's text.

An item token is what the LLM *reads* in an item's place. What it has *understood* of the item's
sentence is in its hidden states, and tells better which items go together (deviation 67).
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recbole_lea.engine.memory import within_memory
from recbole_lea.engine.packing import PackedBatch, pack
from recbole_lea.le.environment import Environment

# Share of the decoder's layers below the hidden states that are taken.
DEPTH = 0.8

# Items a shard: what a kill can lose.
SHARD = 256


def key_bounds(n_items: int) -> list[int]:
    """Items at which the shards start, and the end."""
    return [*range(0, n_items, SHARD), n_items]


def item_keys(
    ids: list[list[int]], bar: Callable[..., tqdm], environment: Environment, missing: list[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Shards and the keys of their items: [n, d] each, float32.

    ``ids`` are the token ids of each item's sentence; those of items themselves are left out.
    """
    edges = key_bounds(len(ids))
    for shard in bar(missing):
        own = ids[edges[shard] : edges[shard + 1]]
        words = [[token for token in row if token < environment.vocab_size] for row in own]
        yield shard, _keys(environment, words)


@within_memory()
@torch.inference_mode()
def _keys(environment: Environment, words: list[list[int]]) -> np.ndarray:
    settings, found = (
        environment.settings,
        np.empty((len(words), environment.score_head.in_features), "float32"),
    )
    layer = round(DEPTH * environment.decoder.config.num_hidden_layers)
    groups = ([row] for row in words)
    for batch in pack(groups, settings.row_length, settings.batch_rows):
        found[batch.prompts] = pooled(batch, environment.hidden(batch, layer=layer)).cpu().numpy()
    return found


def pooled(batch: PackedBatch, hidden: Tensor) -> Tensor:
    """Mean of the hidden states [B * L, d] along each prompt of a batch: [N, d], float32.

    The first word is left out: LLMs make it the place that words look at which look at nothing,
    and its states are many times longer than others.
    """
    rows, columns = np.divmod(batch.ends, batch.ids.shape[1])
    seen = batch.mask[rows, 0, columns]  # [N, L]
    later = seen & (batch.positions[rows] > 0)
    seen = np.where(later.any(1, keepdims=True), later, seen)
    weights = torch.from_numpy(seen / seen.sum(1, keepdims=True)).to(hidden.device).float()
    states = hidden.view(*batch.ids.shape, -1)[torch.from_numpy(rows).to(hidden.device)].float()
    return (weights[:, :, None] * states).sum(1)  # [N, L, d] -> [N, d]
