"""``state_dim``: a PCA of the LE's states (deviation 17)."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.decomposition import IncrementalPCA

from recbole_lea.store.arrays import release

logger = logging.getLogger(__name__)


def check_dim(dim: int, n: int, width: int) -> None:
    """Raise a ValueError unless ``n`` states of that width have ``dim`` principal components."""
    if dim > min(n, width):
        raise ValueError(
            f"state_dim is {dim}, but {n} states of width {width} allow at most {min(n, width)}"
        )


def projection_bounds(n: int, dim: int) -> list[int]:
    """Rows at which the parts of ``n`` states start, and the end."""
    step = max(4096, dim)
    # the last part is never smaller than the number of components
    return [*range(0, max(1, n - step), step), n]


def fit_projection(full: np.ndarray, dim: int) -> IncrementalPCA:
    """The first ``dim`` principal components of ``full`` [n, d], part by part."""
    pca, bounds = IncrementalPCA(dim), projection_bounds(len(full), dim)
    for number in range(len(bounds) - 1):
        pca.partial_fit(_part(full, bounds, number))
    return pca


def project(dim: int, full: np.ndarray, missing: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """States [n, d] -> [n, dim], the missing shards with their values."""
    pca, bounds = fit_projection(full, dim), projection_bounds(len(full), dim)
    kept = 100 * pca.explained_variance_ratio_.sum()
    logger.info("state_dim %d keeps %.1f %% of the states' variance", dim, kept)
    for shard in missing:
        yield shard, pca.transform(_part(full, bounds, shard))


def _part(full: np.ndarray, bounds: Sequence[int], number: int) -> np.ndarray:
    values = np.array(full[slice(*bounds[number : number + 2])], dtype=np.float32)
    release(full)
    return values
