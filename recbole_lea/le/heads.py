"""The state model's head (``equations.py``: Eq. 2 and 3).

A head has ``keys`` [n_items, d]; ``query(states)`` times them are the scores of all items.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What an item weighs in the untrained state beside the one that came after it.
DECAY = 0.7


class LastHidden(nn.Module):
    """The paper's state: the last hidden state itself, compared by dot products."""

    keys: Tensor

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.register_buffer("keys", tokens, persistent=False)

    def forward(self, hidden: Tensor, items: Tensor) -> Tensor:
        """Hidden states at x_t [N, d], item indices x_t, x_{t-1}, ... [N, H] -> states s'_t [N, d].

        A row of ``items`` ends in negative numbers where its history is shorter than H.
        """
        return hidden

    def query(self, states: Tensor) -> Tensor:
        """States [N, d] -> [N, d], to be multiplied with ``keys``."""
        return states


class Residual(LastHidden):
    r"""A skip connection from the item: :math:`s'_t = g \odot e_{x_t} + W\,\mathrm{LN}(h_t)`.

    :math:`e` are the item tokens with an evened spectrum, of length :math:`\sqrt d`. ``W`` starts
    at zero and ``g`` at one, so that the untrained state is that of the last item: its nearest
    items are those with the most similar text, and fine-tuning starts from there. Scores are
    cosines times a learned factor (deviation 40).
    """

    START = 6.0  # near the best factor of the untrained cosines on Industrial and Scientific

    def __init__(self, tokens: Tensor) -> None:
        super().__init__(F.normalize(evened(tokens), dim=-1))
        self.gain = nn.Parameter(torch.ones(tokens.shape[1]))
        self.weight = nn.Parameter(torch.zeros(tokens.shape[1], tokens.shape[1]))
        self.log_factor = nn.Parameter(torch.tensor(math.log(self.START)))

    def forward(self, hidden: Tensor, items: Tensor) -> Tensor:
        """As ``LastHidden.forward``; the states have length sqrt(d)."""
        width = hidden.shape[-1]
        added = F.layer_norm(hidden, (width,)) @ self.weight.T
        state = self.gain * self.skipped(items) * math.sqrt(width) + added
        return F.normalize(state, dim=-1) * math.sqrt(width)

    def skipped(self, items: Tensor) -> Tensor:
        """What the skip connection brings: [N, H] -> [N, d], of length 1."""
        return self.keys[items[:, 0].clamp(min=0)]

    def query(self, states: Tensor) -> Tensor:
        """As ``LastHidden.query``; the product with ``keys`` is a cosine times the factor."""
        return F.normalize(states, dim=-1) * self.log_factor.exp()


class Recency(Residual):
    r"""As ``Residual``, but for :math:`e_{x_t}` the history's :math:`\sum_i \gamma^i e_{x_{t-i}}`.

    The factor :math:`\gamma` is learned. The untrained state is that of ``lea_environment: text``
    (deviation 68).
    """

    def __init__(self, tokens: Tensor) -> None:
        super().__init__(tokens)
        self.decay_logit = nn.Parameter(torch.tensor(math.log(DECAY / (1 - DECAY))))

    def skipped(self, items: Tensor) -> Tensor:
        """As ``Residual.skipped``."""
        return recency_mean(self.keys, items, self.decay_logit.sigmoid())


def recency_mean(keys: Tensor, items: Tensor, decay: Tensor | float) -> Tensor:
    """Sum of keys [n_items, d], each item weighing ``decay`` times the newer one: [N, d], length 1.

    ``items`` are indices [N, H], newest first, negative where there is none.
    """
    ages = torch.arange(items.shape[1], device=items.device)
    weights = torch.where(items >= 0, decay**ages, 0.0)  # [N, H]
    return F.normalize((weights[:, :, None] * keys[items.clamp(min=0)]).sum(1), dim=-1)


def evened(vectors: Tensor) -> Tensor:
    """Vectors [n, d], centred: U S V^T -> U S^(1/2) V^T.

    A few directions that many items share no longer outweigh what tells them apart.
    """
    centred = vectors - vectors.mean(0)
    values, directions = torch.linalg.eigh(centred.T @ centred)  # S^2 ascending, V
    kept = values > values[-1] * 1e-6
    # d x d first: at a million items each [n, d] is gigabytes
    return centred @ (directions[:, kept] * values[kept] ** -0.25 @ directions[:, kept].T)


STATE_HEADS: dict[str, type[LastHidden]] = {
    "recency": Recency, "residual": Residual, "none": LastHidden,
}  # fmt: skip
