"""The losses that adapt the LLM (paper section 3.2)."""

import math

import torch.nn.functional as F
from torch import Tensor


def reward_loss(positive: Tensor, negative: Tensor) -> Tensor:
    r"""Reward model loss, Eq. 1: :math:`-\log\sigma(r^+ - r^-)`, per pair.

    Args:
        positive: reward of the next item [B, 1].
        negative: rewards of the K sampled items [B, K].

    Returns:
        Loss [B, K].
    """
    return -F.logsigmoid(positive - negative)


def state_pairwise_loss(states: Tensor, table: Tensor, items: Tensor, batch: Tensor) -> Tensor:
    r"""State model loss, Eq. 2: :math:`-\frac1B\sum_j \log\sigma(s\cdot a^+ - s\cdot a^j)`.

    The sum runs over the batch's actions, the row's own positive included as in the paper
    (a constant :math:`\log 2`). Another row with the same item would add more of that
    constant; such duplicates are left out (deviation 18).

    Args:
        states: s [N, d].
        table: item tokens [n_items, d].
        items: ids of the rows' next items [N].
        batch: ids of the next items of the whole batch [B].

    Returns:
        Loss [N].
    """
    scores = states @ table[batch].T  # [N, B]
    own = (states * table[items]).sum(-1, keepdim=True)  # [N, 1]
    terms = -F.logsigmoid(own - scores)  # [N, B]
    same = items[:, None] == batch[None, :]  # [N, B]
    return (terms.masked_fill(same, 0.0).sum(1) + math.log(2)) / len(batch)


def state_softmax_loss(states: Tensor, table: Tensor, items: Tensor) -> Tensor:
    r"""Alternative to Eq. 2: :math:`-\log\mathrm{softmax}(s E^\top)_{a^+}` over all items.

    Args:
        states: s [B, d].
        table: every item token [n_items, d].
        items: ids of the next items [B].

    Returns:
        Loss [B].
    """
    return F.cross_entropy(states @ table.T, items, reduction="none")


def selection_loss(scores: Tensor, places: Tensor) -> Tensor:
    """Joint loss of the positive-action model (deviation 15): the next item's label among all.

    Args:
        scores: log-probabilities of the label words [B, k].
        places: where the next item stands in each list [B].

    Returns:
        Loss [B].
    """
    return F.cross_entropy(scores, places, reduction="none")


def sentence_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Next-token loss of item tokenization, per predicted token [N, V], [N] -> [N]."""
    return F.cross_entropy(logits.float(), targets, reduction="none")
