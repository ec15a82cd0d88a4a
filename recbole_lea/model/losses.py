"""The losses of SNQN, SA2C and LEA (paper sections 3.3 and 3.4), one function per equation.

All return one value per transition [B]; the caller weighs and averages. Item 0 is RecBole's
padding, never an action.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def supervised_loss(logits: Tensor, actions: Tensor) -> Tensor:
    r"""Eq. 8, :math:`\mathcal L_h`, and with the LE's choice Eq. 14, :math:`\mathcal L_{ah}`.

    Cross-entropy of the supervised head's scores [B, n_items] and actions [B].
    """
    return F.cross_entropy(logits, actions, reduction="none")


def double_q_value(online: Tensor, target: Tensor) -> Tensor:
    r"""Algorithm 1, lines 9 and 14: :math:`Q'(s, \arg\max_a Q(s, a))`, without gradient.

    Args:
        online: Q of the copy that is updated; it picks the action [B, n_items].
        target: Q of the other copy; it gives the value [B, n_items].

    Returns:
        Value [B].
    """
    best = online.detach()[:, 1:].argmax(dim=1, keepdim=True) + 1
    return target.detach().gather(1, best).squeeze(1)


def td_loss(
    q: Tensor, actions: Tensor, reward: Tensor, next_value: Tensor, gamma: float, td_scale: float
) -> Tensor:
    r"""Squared TD error :math:`c\,(r + \gamma V - Q(s, a))^2`.

    Eq. 10 with the positive action and V of s_{t+1}; Eq. 11 with the negative action and V of
    s_t, as a negative action does not change the state; Eq. 15 with the LE's choice and V of
    s_{t+1}. c is ``td_scale`` (deviation 2). At the end of a session the whole target of the
    positive actions is 0 (deviation 6): the caller masks reward and value.

    Args:
        q: Q values of the updated copy at s_t [B, n_items].
        actions: [B].
        reward: [B].
        next_value: V [B], see ``double_q_value``.
        gamma: discount.
        td_scale: factor of the squared error.

    Returns:
        Loss [B].
    """
    target = reward + gamma * next_value
    error = target.detach() - q.gather(1, actions[:, None]).squeeze(1)
    return td_scale * error.square()


def advantage(q: Tensor, positive: Tensor, negative: Tensor, clip: tuple[float, float]) -> Tensor:
    r"""Eq. 12: :math:`A = (Q(s, a^+) - Q(s, a^-)) / 2`, clipped and without gradient.

    Args:
        q: Q values at s_t [B, n_items].
        positive: [B].
        negative: [B].
        clip: lowest and highest advantage (deviation 9).

    Returns:
        Advantage [B].
    """
    values = q.detach().gather(1, torch.stack([positive, negative], dim=1))  # [B, 2]
    return ((values[:, 0] - values[:, 1]) / 2).clamp(*clip)
