"""How sequences are parted into shards."""

import numpy as np

from recbole_lea.le import answers
from recbole_lea.le.answers import shard_bounds
from recbole_lea.le.sequences import Sequences
from tests.le.helpers import CATALOGUE


def test_shards_cover_all_sequences():
    many = Sequences({f"u{i:04}": ["i00"] * (1 + i % 9) for i in range(900)}, CATALOGUE)
    bounds = shard_bounds(many)
    assert bounds[0] == 0
    assert bounds[-1] == 900
    sizes = np.diff(many.transition_starts[bounds])
    assert len(sizes) == 4
    assert (sizes[:-1] >= 1024).all()
    assert (sizes < 1024 + 9).all()


def test_shards_are_not_more_than_their_most(monkeypatch):
    monkeypatch.setattr(answers, "SHARD", 1)
    monkeypatch.setattr(answers, "SHARDS", 5)
    many = Sequences({f"u{i:04}": ["i00"] * (1 + i % 9) for i in range(90)}, CATALOGUE)
    bounds = shard_bounds(many)
    assert len(bounds) - 1 <= 5
    assert (bounds[0], bounds[-1]) == (0, 90)
    assert np.diff(many.transition_starts[bounds]).max() < 360 / 5 + 9
