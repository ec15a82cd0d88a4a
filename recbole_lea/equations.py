"""The equations of the paper's section 3 in its order, one small function each; torch only.

Eq. 6, the expected return, is the objective that Q-learning pursues; it has no code of its own.
Most functions return one value per transition (and action); the caller weighs and averages. Item 0
is RecBole's padding, never an action.
"""

import math
from collections.abc import Callable, Iterable

import torch
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


def supervised_loss(logits: Tensor, actions: Tensor) -> Tensor:
    r"""Eq. 8, :math:`\mathcal L_h`, and with the LE's choice Eq. 14, :math:`\mathcal L_{ah}`.

    Cross-entropy of the supervised head's scores [B, n_items] and actions [B, k] -> [B, k].
    """
    return -F.log_softmax(logits, dim=1).gather(1, actions)


def double_q_value(online: Iterable[Tensor], target: Callable[[Tensor], Tensor]) -> Tensor:
    r"""Algorithm 1, lines 9 and 14: :math:`Q'(s, \arg\max_a Q(s, a))`, without gradient.

    Args:
        online: Q of the copy that is updated; it picks the action. Pieces of [B, n_items] in the
            order of the items, [B, n] each, the first of two or more; a generator holds one.
        target: Q' of the other copy at the same states: actions [B, 1] -> values [B, 1]; it is
            asked for the picked actions alone.

    Returns:
        Value [B].
    """
    pieces = iter(online)
    q = next(pieces).detach()
    offset = q.shape[1]
    value, best = q[:, 1:].max(dim=1, keepdim=True)  # [B, 1]
    best = best + 1
    for q in pieces:
        piece_value, piece_best = q.detach().max(dim=1, keepdim=True)
        better = piece_value > value
        value = torch.where(better, piece_value, value)
        best = torch.where(better, piece_best + offset, best)
        offset += q.shape[1]
    return target(best).detach().squeeze(1)


def td_loss(q: Tensor, reward: Tensor, next_value: Tensor, gamma: float, td_scale: float) -> Tensor:
    r"""Squared TD error :math:`c\,(r + \gamma V - Q(s, a))^2`.

    Eq. 10 with the positive action and V of s_{t+1}; Eq. 11 with the negative action and V of
    s_t, as a negative action does not change the state; Eq. 15 with the LE's choice and V of
    s_{t+1}. c is ``td_scale`` (deviation 2). At the end of a session there is no s_{t+1}:
    the caller gives 0 as its V (deviation 6).

    Args:
        q: Q(s_t, a) of the updated copy [B].
        reward: [B].
        next_value: V [B], see ``double_q_value``.
        gamma: discount.
        td_scale: factor of the squared error.

    Returns:
        Loss [B].
    """
    target = reward + gamma * next_value
    return td_scale * (target.detach() - q).square()


def advantage(q_positive: Tensor, q_negative: Tensor, clip: tuple[float, float]) -> Tensor:
    r"""Eq. 12: :math:`A = (Q(s, a^+) - Q(s, a^-)) / 2`, clipped and without gradient.

    Args:
        q_positive: Q(s_t, a^+) [B].
        q_negative: Q(s_t, a^-) [B].
        clip: lowest and highest advantage (deviation 9).

    Returns:
        Advantage [B].
    """
    return ((q_positive - q_negative).detach() / 2).clamp(*clip)
