"""How sequences are parted into shards."""

import numpy as np

from recbole_lea.le import answers
from recbole_lea.le.answers import shard_bounds
from recbole_lea.le.sequences import Sequences
from tests.le.helpers import CATALOGUE, pipeline


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


def test_a_shard_of_users_without_a_transition_has_no_answers(settings, monkeypatch):
    monkeypatch.setattr(answers, "SHARD", 1)
    users = {"a": ["i00", "i01", "i02"], "b": ["i03", "i04"], "z": ["i05"]}
    p = pipeline(settings(), Sequences(users, CATALOGUE))
    chosen, rewards = p.select(np.tile(np.arange(5), (3, 1)), want_rewards=True)
    assert chosen.shape == rewards.shape == (3,)
