"""The choice among the top-5."""

import numpy as np
import pytest

from recbole_lea.le import selection
from recbole_lea.le.selection import choose
from recbole_lea.store.arrays import pieces


def test_calibration_takes_out_a_label_s_head_start():
    # label 0 always scores 5 higher; row 0 prefers position 1, row 1 position 0 beyond that
    scores = np.array([[5.0, 1.0], [6.0, 0.0]])
    candidates = np.array([[10, 11], [20, 21]])
    chosen, share = choose(scores, candidates, "prior")
    assert chosen.tolist() == [11, 20]
    assert share.tolist() == [0.5, 0.5]
    chosen, share = choose(scores, candidates, "none")
    assert chosen.tolist() == [10, 20]
    assert share.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("calibration", ["prior", "none"])
def test_many_choices_are_made_in_pieces(monkeypatch, calibration):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((100, 5)).astype(np.float32) + np.arange(5, dtype=np.float32)
    candidates = rng.integers(0, 50, (100, 5))
    sizes = []

    def seven_rows(array):
        for part in pieces(array, rows=7):
            sizes.append(len(part))
            yield part

    monkeypatch.setattr(selection, "pieces", seven_rows)
    chosen, share = choose(scores, candidates, calibration)
    position = (scores - (calibration == "prior") * scores.mean(0)).argmax(1)
    assert chosen.tolist() == candidates[np.arange(100), position].tolist()
    assert share.tolist() == (np.bincount(position, minlength=5) / 100).tolist()
    assert max(sizes) == 7
