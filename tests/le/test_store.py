"""Arrays that are filled shard by shard."""

import numpy as np
import pytest

from recbole_lea.le.store import ArrayStore

SPEC = {"a": ((5, 2), "float32"), "b": ((7,), "int64")}
BOUNDS = {"a": [0, 2, 5], "b": [0, 3, 7]}


def open_store(folder, meta=None):
    return ArrayStore(folder, SPEC, BOUNDS, meta or {"key": "x"})


def fill(store, shard):
    a0, a1 = BOUNDS["a"][shard : shard + 2]
    b0, b1 = BOUNDS["b"][shard : shard + 2]
    store.write(
        shard, {"a": np.full((a1 - a0, 2), shard + 0.5, np.float32), "b": np.arange(b0, b1)}
    )


def test_goes_on_where_it_stopped(tmp_path):
    store = open_store(tmp_path)
    assert store.missing() == [0, 1]
    fill(store, 1)
    again = open_store(tmp_path)
    assert again.missing() == [0]
    fill(again, 0)
    assert open_store(tmp_path).missing() == []
    assert again.array("b").tolist() == list(range(7))
    assert again.array("a")[4].tolist() == [1.5, 1.5]


def test_altered_shard_is_computed_again(tmp_path, caplog):
    store = open_store(tmp_path)
    fill(store, 0)
    fill(store, 1)
    path = tmp_path / "b.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert open_store(tmp_path).missing() == [1]
    assert "shard 1" in caplog.text


def test_lost_array_starts_over(tmp_path):
    store = open_store(tmp_path)
    fill(store, 0)
    (tmp_path / "a.npy").unlink()
    assert open_store(tmp_path).missing() == [0, 1]


def test_other_contents_are_refused(tmp_path):
    open_store(tmp_path)
    with pytest.raises(ValueError, match="meta differ"):
        open_store(tmp_path, {"key": "y"})


def test_nan_is_refused(tmp_path):
    store = open_store(tmp_path)
    values = {"a": np.full((2, 2), np.nan, np.float32), "b": np.arange(3)}
    with pytest.raises(ValueError, match="NaN"):
        store.write(0, values)
    assert store.missing() == [0, 1]
