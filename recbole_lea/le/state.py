"""The state model's head (paper section 3.2, Eq. 2 and 3)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LastHidden(nn.Module):
    """The paper's state: the last hidden state itself, compared by dot products."""

    def forward(self, hidden: Tensor, last: Tensor) -> Tensor:
        """Hidden states at x_t [N, d] and item tokens of x_t [N, d] -> states [N, d]."""
        return hidden

    def query(self, states: Tensor) -> Tensor:
        """What is multiplied with ``key`` for the score of an item: [N, d] -> [N, d]."""
        return states

    def key(self, tokens: Tensor) -> Tensor:
        """Item tokens [n, d] -> [n, d]."""
        return tokens


class Residual(nn.Module):
    r"""A skip connection from the item token: :math:`s'_t = g \odot x_t + W\,\mathrm{LN}(h_t)`.

    ``W`` starts at zero and ``g`` at one, so that the untrained state is the last item's token:
    its nearest items are those with the most similar text, and fine-tuning starts from there.
    Scores are cosines times a learned factor (deviation 40).

    Args:
        width: d of the LLM.
    """

    # The untrained cosines' best factor on Industrial and Scientific; it learns slowly.
    START = 6.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.weight = nn.Parameter(torch.zeros(width, width))
        self.log_factor = nn.Parameter(torch.tensor(math.log(self.START)))

    def forward(self, hidden: Tensor, last: Tensor) -> Tensor:
        """As ``LastHidden.forward``; the states have length sqrt(d)."""
        width = hidden.shape[-1]
        normed = F.layer_norm(hidden, (width,))
        state = self.gain * _of_length(last, math.sqrt(width)) + normed @ self.weight.T
        return _of_length(state, math.sqrt(width))

    def query(self, states: Tensor) -> Tensor:
        """As ``LastHidden.query``."""
        return F.normalize(states, dim=-1) * self.log_factor.exp()

    def key(self, tokens: Tensor) -> Tensor:
        """As ``LastHidden.key``."""
        return F.normalize(tokens, dim=-1)


def _of_length(vectors: Tensor, length: float) -> Tensor:
    return F.normalize(vectors, dim=-1) * length


STATE_HEADS = {"residual": Residual, "none": lambda width: LastHidden()}
