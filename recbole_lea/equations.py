"""The equations of the paper's section 3 in its order, one small function each; torch only.

Eq. 6, the expected return, is the objective that Q-learning pursues; it has no code of its own.
The activation of Eq. 7 and 9 is the identity (deviation 4). Item 0 is RecBole's padding, never an
action. Shapes: B transitions, N prompts, n items, d and H the widths of the LLM's states and of
h_t, S that of s_t. Functions that say nothing else return one loss per row: the caller averages.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

# Section 3.2: the LLM as environment


def sentence_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Item tokenization, without a number: cross-entropy of the sentence's next tokens."""
    return F.cross_entropy(logits.float(), targets, reduction="none")  # [N, V], [N] -> [N]


def reward_loss(positive: Tensor, negative: Tensor) -> Tensor:
    r"""Eq. 1, reward model, per pair: :math:`-\log\sigma(r^+ - r^-)`."""
    return -F.logsigmoid(positive - negative)  # [B, 1], [B, K] -> [B, K]


def state_pairwise_loss(states: Tensor, table: Tensor, items: Tensor, batch: Tensor) -> Tensor:
    r"""Eq. 2, state model: :math:`-\frac1B\sum_j \log\sigma(s'\cdot a^+ - s'\cdot a^j)`.

    The sum runs over the batch's actions, the row's own positive included as in the paper
    (a constant :math:`\log 2`). Another row with the same item would add more of that
    constant; such duplicates are left out (deviation 18).

    Args:
        states: s'_t [N, d].
        table: item tokens [n, d].
        items: ids of the rows' next items [N].
        batch: ids of the next items of the whole batch [B].
    """
    products = states @ table[batch].T  # [N, B]
    own = (states * table[items]).sum(-1, keepdim=True)  # [N, 1]
    terms = -F.logsigmoid(own - products)  # [N, B]
    same = items[:, None] == batch[None, :]  # [N, B]
    return (terms.masked_fill(same, 0.0).sum(1) + math.log(2)) / len(batch)  # [N]


def state_softmax_loss(states: Tensor, table: Tensor, items: Tensor) -> Tensor:
    r"""Instead of Eq. 2 (deviation 18): :math:`-\log\mathrm{softmax}(s' E^\top)_{a^+}`.

    Args:
        states: s'_t [B, d].
        table: E, all item tokens [n, d].
        items: ids of the next items [B].
    """
    return F.cross_entropy(states @ table.T, items, reduction="none")  # [B]


# Section 3.3: reinforcement learning with the LE


def le_state(hidden: Tensor, ends: Tensor) -> Tensor:
    """Eq. 3, s'_t: the LLM's last hidden state at the end of each prompt of x_{1:t}.

    ``lea_state_head: recency`` adds to it (deviations 40 and 68).
    """
    return hidden[ends]  # [n_tokens, d], [N] -> [N, d]


def rl_state(le_state: Tensor, hidden: Tensor) -> Tensor:
    r"""Eq. 4: :math:`s_t = s'_t \,\|\, h_t`."""
    return torch.cat([le_state, hidden], dim=-1)  # [B, d], [B, H] -> [B, d + H]


def reward(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Eq. 5: the linear score head on the last hidden state of each reward prompt."""
    return F.linear(hidden, weight, bias).squeeze(-1)  # [N, d], [1, d], [1] -> [N]


def scores(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Eq. 7 without its softmax: the ranking scores of h_t.

    The weight is that of a dense head, with its bias, or the item embeddings, without one.
    """
    return F.linear(hidden, weight, bias)  # [B, H], [n, H], [n] -> [B, n]


def log_probabilities(scores: Tensor, actions: Tensor) -> Tensor:
    r"""Eq. 7's softmax: :math:`\log\hat y` of the given actions."""
    return F.log_softmax(scores, dim=1).gather(1, actions)  # [B, n], [B, k] -> [B, k]


def supervised_loss(log_y: Tensor, advantage: Tensor | None = None) -> Tensor:
    r"""Eq. 8, L_h, the batch's mean: :math:`-\log\hat y_{a^+}`, under SA2C times the advantage."""
    weighted = log_y if advantage is None else log_y * advantage  # [B]
    return -weighted.mean()


def q_values(state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Eq. 9: Q(s_t, a) of all actions, or of those whose weights are given."""
    return F.linear(state, weight, bias)  # [B, S], [n, S], [n] -> [B, n]


def double_q_value(online: Iterable[Tensor], target: Callable[[Tensor], Tensor]) -> Tensor:
    r"""Algorithm 1, lines 9 and 14: :math:`V(s) = Q'(s, \arg\max_a Q(s, a))`, without gradient.

    Args:
        online: Q of the copy that is updated; it picks the action. Pieces of [B, n] in the order
            of the items, the first of two or more; a generator holds one at a time.
        target: Q' of the other copy at the same states, which is asked for the picked actions
            alone: [B, 1] -> [B, 1].
    """
    pieces = iter(online)
    q = next(pieces).detach()
    offset = q.shape[1]
    value, best = q[:, 1:].max(dim=1, keepdim=True)  # [B, 1]
    best = best + 1
    for q in pieces:
        piece_value, piece_best = q.detach().max(dim=1, keepdim=True)  # [B, 1]
        better = piece_value > value
        value = torch.where(better, piece_value, value)
        best = torch.where(better, piece_best + offset, best)
        offset += q.shape[1]
    return target(best).detach().squeeze(1)  # [B]


def _squared_td_error(q: Tensor, target: Tensor, td_scale: float) -> Tensor:
    return td_scale * (target.detach() - q).square()  # [B]


def positive_td_loss(
    q: Tensor, reward: Tensor, next_value: Tensor, gamma: float, td_scale: float
) -> Tensor:
    r"""Eq. 10, L_p: :math:`c\,(r^+ + \gamma V(s_{t+1}) - Q(s_t, a^+))^2`.

    Args:
        q: Q(s_t, a^+) of the updated copy [B].
        reward: r^+ [B].
        next_value: V(s_{t+1}) of ``double_q_value`` [B]; 0 at the end of a session (deviation 6).
        gamma: discount.
        td_scale: c, the factor of the squared error (deviation 2).
    """
    return _squared_td_error(q, reward + gamma * next_value, td_scale)


def negative_td_loss(
    q: Tensor, reward: Tensor, value: Tensor, gamma: float, td_scale: float
) -> Tensor:
    r"""Eq. 11, L_n: :math:`c\,(r^- + \gamma V(s_t) - Q(s_t, a^-))^2`.

    As Eq. 10, but with V(s_t), as a negative action does not change the state.
    """
    return _squared_td_error(q, reward + gamma * value, td_scale)


def advantage(q_positive: Tensor, q_negative: Tensor, clip: tuple[float, float]) -> Tensor:
    r"""Eq. 12: :math:`A = (Q(s_t, a^+) - Q(s_t, a^-)) / 2`, without gradient.

    It is clipped to the lowest and the highest that are given (deviation 9). ``lea_advantage:
    reward`` gives it rewards in the place of Q (deviation 65).
    """
    return ((q_positive - q_negative).detach() / 2).clamp(*clip)  # [B], [B] -> [B]


# Section 3.4: augmentation by the LE


def augmented_supervised_loss(log_y: Tensor) -> Tensor:
    r"""Eq. 14, L_ah, the batch's mean: :math:`-\log\hat y_{a^e}` of the LE's choice."""
    return -log_y.mean()


def augmented_td_loss(
    q: Tensor, reward: Tensor, next_value: Tensor, gamma: float, td_scale: float
) -> Tensor:
    r"""Eq. 15, L_aq, as Eq. 10: :math:`c\,(r^e + \gamma V(s_{t+1}) - Q(s_t, a^e))^2`."""
    return _squared_td_error(q, reward + gamma * next_value, td_scale)


@dataclasses.dataclass(frozen=True)
class LossTerms:
    """The terms of the loss, by their names in the log.

    Each is a scalar as it enters the sum: L_q already times ``q_weight``, L_ah times w_ah and
    L_aq times w_aq. None where a method has no such term.
    """

    L_h: Tensor
    L_q: Tensor | None = None
    L_ah: Tensor | None = None
    L_aq: Tensor | None = None

    @property
    def L_c(self) -> Tensor:
        """Eq. 13."""
        return self.L_h if self.L_q is None else self.L_h + self.L_q

    @property
    def total(self) -> Tensor:
        """Eq. 16."""
        return sum((term for term in (self.L_ah, self.L_aq) if term is not None), self.L_c)

    def named(self) -> dict[str, Tensor]:
        """The terms that there are, in the order in which RecBole logs and sums them."""
        return {name: term for name, term in vars(self).items() if term is not None}
