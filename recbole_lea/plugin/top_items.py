"""The model's best items for every training transition, from which the LE chooses (section 3.4)."""

import logging
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader

from recbole_lea.model.fields import TRANSITION
from recbole_lea.model.recommender import LEARecommender

logger = logging.getLogger(__name__)

# Share of the training sequences that may hold an item twice if auto is to leave histories out.
REPEATING = 0.05


@torch.no_grad()
def top_items(model: LEARecommender, config: Config, train: Any, k: int = 5) -> np.ndarray:
    """LE item indices in score order for each transition of the training split [n_transitions, k].

    There are fewer than ``k`` where ``exclude_history`` leaves fewer.

    Raises:
        ValueError: ``exclude_history: True`` may leave no item.
    """
    sequences, item_ids = train.lea_pipeline.sequences, train.lea_item_ids
    left = len(item_ids) - max(map(len, sequences.items))  # at least, and the next item
    without_history = config["exclude_history"]
    if without_history == "auto":
        without_history = left >= k and sequences.repeating <= REPEATING
        logger.info(
            "exclude_history: auto: %.1f %% of the training sequences hold an item twice: the "
            "history's items are %s the top-5", 100 * sequences.repeating,
            "left out of" if without_history else "allowed in",
        )  # fmt: skip
    k = min(k, left if without_history else len(item_ids) - 1)
    if k < 1:
        raise ValueError(
            f"`exclude_history: True`: a history may hold all {len(item_ids)} items: set it to "
            "auto or False"
        )
    le_index = torch.zeros(int(item_ids.max()) + 1, dtype=torch.int64)
    le_index[item_ids] = torch.arange(len(item_ids))
    result = np.zeros((len(train), k), dtype=np.int64)
    was_training = model.training
    model.eval()
    for interaction, *_ in FullSortEvalDataLoader(config, train, None):
        scores = model.full_sort_predict(interaction.to(config["device"]))  # [B, n_items]
        scores[:, 0] = -torch.inf
        transitions = interaction[TRANSITION].cpu().numpy()
        if without_history:  # all of it: the model's window may hold its newest part alone
            pairs = zip(*sequences.locate(transitions), strict=True)
            histories = [sequences.history(s, t) for s, t in pairs]
            owner = np.repeat(np.arange(len(transitions)), [len(items) for items in histories])
            scores[owner, item_ids[np.concatenate(histories)]] = -torch.inf
        result[transitions] = le_index[scores.topk(k, dim=1).indices.cpu()].numpy()
    model.train(was_training)
    return result
