"""The losses of SNQN, SA2C and LEA (paper sections 3.3 and 3.4), one function per equation.

All return one value per transition (and action); the caller weighs and averages. Item 0 is
RecBole's padding, never an action.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


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
