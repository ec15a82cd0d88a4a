"""The model's best items for every training transition, from which the LE chooses (section 3.4)."""

from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader
from torch import Tensor

from recbole_lea.engine.processes import collected
from recbole_lea.keys import N_PROCESSES
from recbole_lea.le.sequences import Sequences
from recbole_lea.model.fields import TRANSITION
from recbole_lea.model.recommender import LEARecommender


@torch.no_grad()
def top_items(model: LEARecommender, config: Config, train: Any, k: int = 5) -> np.ndarray:
    """Items in score order for each training transition.

    Args:
        model: scores the items.
        config: with ``exclude_history`` and ``exclude_target``.
        train: the training split, with ``lea_pipeline``.
        k: items wanted; fewer where the exclusions leave fewer.

    Returns:
        LE item indices [n_transitions, k].

    Raises:
        ValueError: ``exclude_history: True`` may leave no item.
    """
    sequences, item_ids = train.lea_pipeline.sequences, train.lea_item_ids
    k, without_history = _how_many(k, config["exclude_history"], sequences, len(item_ids))
    le_index = torch.zeros(int(item_ids.max()) + 1, dtype=torch.int64)
    le_index[item_ids] = torch.arange(len(item_ids))
    found = []
    was_training = model.training
    model.eval()
    for interaction, _, _, target in FullSortEvalDataLoader(config, train, None):
        scores = model.full_sort_predict(interaction.to(config["device"]))  # [B, n_items]
        scores[:, 0] = -torch.inf
        transitions = interaction[TRANSITION].cpu().numpy()
        if without_history:
            _leave_out_histories(scores, sequences, transitions, item_ids)
        if config["exclude_target"]:
            scores[torch.arange(len(target)), target.to(scores.device)] = -torch.inf
        best = scores.topk(k, dim=1).indices.cpu()  # [B, k]
        found.append((transitions, le_index[best].numpy()))
    model.train(was_training)
    result = np.zeros((len(train), k), dtype=np.int64)
    for transitions, top in collected(found) if config[N_PROCESSES] else found:
        result[transitions] = top
    return result


def _how_many(
    k: int, exclude_history: bool | str, sequences: Sequences, n_items: int
) -> tuple[int, bool]:
    """How many items each list can have, and whether the history is left out of them."""
    left = n_items - max(map(len, sequences.items))  # at least, and the next item
    exclude = exclude_history
    if exclude == "auto":
        exclude = left >= k and not sequences.repeats
    k = min(k, left if exclude else n_items - 1)
    if k < 1:
        raise ValueError(
            f"`exclude_history: True`: a history may hold all {n_items} items: set it to auto or "
            "False"
        )
    return k, bool(exclude)


def _leave_out_histories(
    scores: Tensor, sequences: Sequences, transitions: np.ndarray, item_ids: Tensor
) -> None:
    """Whole histories: the model's window may hold their newest part alone."""
    pairs = zip(*sequences.locate(transitions), strict=True)
    histories = [sequences.history(s, t) for s, t in pairs]
    owner = np.repeat(np.arange(len(transitions)), [len(items) for items in histories])
    scores[owner, item_ids[np.concatenate(histories)]] = -torch.inf
