"""``state_dim``: a PCA of the LE's states (deviation 17)."""

import logging
from collections.abc import Iterator

import numpy as np
from sklearn.decomposition import IncrementalPCA

from recbole_lea.store.arrays import release

logger = logging.getLogger(__name__)


def projection_bounds(n: int, dim: int) -> list[int]:
    """Rows at which the parts of ``n`` states start, and the end."""
    step = max(4096, dim)
    # the last part is never smaller than the number of components
    return [*range(0, max(1, n - step), step), n]


def fit_projection(full: np.ndarray, dim: int) -> IncrementalPCA:
    """The first ``dim`` principal components of ``full`` [n, d], part by part."""
    pca = IncrementalPCA(dim)
    for part in range(len(projection_bounds(len(full), dim)) - 1):
        pca.partial_fit(_part(full, dim, part))
    return pca


def project(dim: int, full: np.ndarray, missing: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """States [n, d] -> [n, dim], the missing shards with their values."""
    pca = fit_projection(full, dim)
    kept = 100 * pca.explained_variance_ratio_.sum()
    logger.info("state_dim %d keeps %.1f %% of the states' variance", dim, kept)
    for shard in missing:
        yield shard, pca.transform(_part(full, dim, shard))


def _part(full: np.ndarray, dim: int, number: int) -> np.ndarray:
    start, end = projection_bounds(len(full), dim)[number : number + 2]
    values = np.array(full[start:end], dtype=np.float32)
    release(full)
    return values
