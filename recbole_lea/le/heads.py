"""The state model's head (``equations.py``: Eq. 2 and 3).

A head has ``keys`` [n_items, d]; ``query(states)`` times them are the scores of all items.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LastHidden(nn.Module):
    """The paper's state: the last hidden state itself, compared by dot products."""

    keys: Tensor

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.register_buffer("keys", tokens, persistent=False)

    def forward(self, hidden: Tensor, items: Tensor) -> Tensor:
        """Hidden states at x_t [N, d] and x_t itself, item indices [N] -> states s'_t [N, d]."""
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
        state = self.gain * self.keys[items] * math.sqrt(width) + added
        return F.normalize(state, dim=-1) * math.sqrt(width)

    def query(self, states: Tensor) -> Tensor:
        """As ``LastHidden.query``; the product with ``keys`` is a cosine times the factor."""
        return F.normalize(states, dim=-1) * self.log_factor.exp()


def evened(vectors: Tensor) -> Tensor:
    """Vectors [n, d], centred: U S V^T -> U S^(1/2) V^T.

    A few directions that many items share no longer outweigh what tells them apart.
    """
    centred = vectors - vectors.mean(0)
    values, directions = torch.linalg.eigh(centred.T @ centred)  # S^2 ascending, V
    kept = values > values[-1] * 1e-6
    # d x d first: at a million items each [n, d] is gigabytes
    return centred @ (directions[:, kept] * values[kept] ** -0.25 @ directions[:, kept].T)


STATE_HEADS: dict[str, type[LastHidden]] = {"residual": Residual, "none": LastHidden}
