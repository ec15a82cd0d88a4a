"""The state model's head (paper section 3.2, Eq. 2 and 3), and ``state_dim``'s projection."""

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import IncrementalPCA
from torch import Tensor, nn

from recbole_lea.store.arrays import ArrayStore, release

logger = logging.getLogger(__name__)


class LastHidden(nn.Module):
    """The paper's state: the last hidden state itself, compared by dot products.

    Args:
        tokens: item tokens [n_items, d].

    Attributes:
        keys: what ``query`` is multiplied with for the scores of all items [n_items, d].
    """

    keys: Tensor

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.register_buffer("keys", tokens, persistent=False)

    def forward(self, hidden: Tensor, items: Tensor) -> Tensor:
        """Hidden states at x_t [N, d] and x_t itself, item indices [N] -> states s'_t [N, d]."""
        return hidden

    def query(self, states: Tensor) -> Tensor:
        """States [N, d] -> [N, d]."""
        return states


class Residual(nn.Module):
    r"""A skip connection from the item: :math:`s'_t = g \odot e_{x_t} + W\,\mathrm{LN}(h_t)`.

    :math:`e` are the item tokens with an evened spectrum, of length :math:`\sqrt d`. ``W`` starts
    at zero and ``g`` at one, so that the untrained state is that of the last item: its nearest
    items are those with the most similar text, and fine-tuning starts from there. Scores are
    cosines times a learned factor (deviation 40).

    Args:
        tokens: item tokens [n_items, d].

    Attributes:
        keys: as ``LastHidden.keys``.
    """

    # Near the best factor of the untrained cosines on Industrial and Scientific.
    START = 6.0

    keys: Tensor

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        width = tokens.shape[1]
        self.register_buffer("keys", F.normalize(evened(tokens), dim=-1), persistent=False)
        self.gain = nn.Parameter(torch.ones(width))
        self.weight = nn.Parameter(torch.zeros(width, width))
        self.log_factor = nn.Parameter(torch.tensor(math.log(self.START)))

    def forward(self, hidden: Tensor, items: Tensor) -> Tensor:
        """As ``LastHidden.forward``; the states have length sqrt(d)."""
        width = hidden.shape[-1]
        added = F.layer_norm(hidden, (width,)) @ self.weight.T
        state = self.gain * self.keys[items] * math.sqrt(width) + added
        return F.normalize(state, dim=-1) * math.sqrt(width)

    def query(self, states: Tensor) -> Tensor:
        """As ``LastHidden.query``."""
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


STATE_HEADS: dict[str, type[Residual] | type[LastHidden]] = {
    "residual": Residual,
    "none": LastHidden,
}


def projection_bounds(n: int, dim: int) -> list[int]:
    """Rows at which the parts of ``n`` states start, and the end."""
    step = max(4096, dim)
    # the last part is never smaller than the number of components
    return [*range(0, max(1, n - step), step), n]


def _part(full: np.ndarray, bounds: Sequence[int], number: int) -> np.ndarray:
    values = np.array(full[slice(*bounds[number : number + 2])], dtype=np.float32)
    release(full)
    return values


def fit_projection(full: np.ndarray, bounds: Sequence[int], dim: int) -> IncrementalPCA:
    """The first ``dim`` principal components of ``full`` [n, d], part by part."""
    pca = IncrementalPCA(dim)
    for number in range(len(bounds) - 1):
        pca.partial_fit(_part(full, bounds, number))
    return pca


def project(full: np.ndarray, store: ArrayStore) -> None:
    """Fill ``states`` with the first principal components of ``full`` [n, d], shard by shard."""
    pca = fit_projection(full, store.bounds, store.arrays["states"][0][1])
    kept = 100 * pca.explained_variance_ratio_.sum()
    logger.info("state_dim %d keeps %.1f %% of the states' variance", pca.n_components, kept)
    for shard in store.missing():
        store.write(shard, {"states": pca.transform(_part(full, store.bounds, shard))})
