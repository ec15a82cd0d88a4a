"""Arrays that are filled shard by shard, and rows of them that are read."""

import errno
import hashlib
import json
import os
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_lea.store.arrays import ArrayStore, pieces, take
from recbole_lea.store.files import (
    DiskFull,
    read_array,
    read_record,
    write_array,
    write_record,
)
from tests.le.helpers import needs_smaps, resident

SPEC = {"a": ((5, 2), "float32"), "b": ((5,), "int64")}
BOUNDS = [0, 2, 5]
GIVEN = np.arange(10, dtype=np.int32).reshape(5, 2)
OTHER = "is of other arrays, or one was altered: ignored"


def open_store(folder, key="x"):
    return ArrayStore(folder, SPEC, BOUNDS, key, {"versions": {}}, {"given": GIVEN})


def fill(store, *shards):
    for shard in shards:
        start, end = BOUNDS[shard : shard + 2]
        values = np.full((end - start, 2), shard + 0.5, np.float32)
        store.write(shard, {"a": values, "b": np.arange(start, end)})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_goes_on_where_it_stopped(tmp_path):
    store = open_store(tmp_path / "s")
    assert store.missing() == [0, 1]
    fill(store, 1)
    assert store.missing() == [0]
    again = open_store(tmp_path / "s")
    assert again.missing() == [0]
    fill(again, 0)
    assert open_store(tmp_path / "s").missing() == []
    assert again.array("b").tolist() == list(range(5))
    assert again.array("a")[4].tolist() == [1.5, 1.5]
    np.testing.assert_array_equal(again.array("given"), GIVEN)


# SHA-256 of the files that commit fed9a18 wrote
FORMAT_2 = {
    "a.npy": "8298d34df9147a0f4570f9c03f2f6bfd670b9b9e46cd5f76e8b0a399f1927ee2",
    "b.npy": "e24087dfc0efa40c8b280f8839dbdac487c5be2456ee63b23a284df057d01a6e",
    "done.json": "df5cad14a9c6e12e4f508ce0e3658e0736ba2d7c7fe1f2bea4ad6767488f6a22",
    "given.npy": "55c171a42102058fb77c2352a047bff780a4f63f21410f5faaaa1dabefd39dc0",
    "manifest.json": "4caa13460451fce152d910befc2a73bee4460c82e99297da225168cdac2236e2",
    "x.npy": "b885b5418dad152deb908001cf5af86c6e5eed87b99fc3acf966ce7657cd11d9",
}


def test_the_files_of_format_2_do_not_change(tmp_path):
    fill(open_store(tmp_path), 0, 1)
    write_array(tmp_path / "x.npy", np.arange(6, dtype=np.float16).reshape(2, 3))
    write_record(tmp_path / "done.json", {"key": "x", "versions": {}}, ["x.npy"])
    found = {name: hashlib.sha256(content) for name, content in contents(tmp_path).items()}
    assert {name: digest.hexdigest() for name, digest in found.items()} == FORMAT_2


def test_interrupted_or_not_the_files_are_the_same(tmp_path):
    fill(open_store(tmp_path / "whole"), 0, 1)
    fill(open_store(tmp_path / "parts"), 1)
    fill(open_store(tmp_path / "parts"), 0)
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


@pytest.mark.parametrize("name", ["a", "b", "given"])
def test_altered_shard_is_computed_again(tmp_path, caplog, name):
    fill(open_store(tmp_path), 0, 1)
    whole = contents(tmp_path)
    path = tmp_path / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    again = open_store(tmp_path)
    assert again.missing() == [1]
    assert caplog.messages == [f"{tmp_path}: shard 1 fails its checksum, again"]
    fill(again, 1)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],  # truncated
        lambda content: content[:20],  # within the header
        lambda content: b"",
        lambda content: b"X" + content[1:],  # broken header, whole data
    ],
)
def test_truncated_or_broken_array_is_reported_and_computed_again(tmp_path, caplog, damage):
    fill(open_store(tmp_path), 0, 1)
    whole = contents(tmp_path)
    path = tmp_path / "a.npy"
    path.write_bytes(damage(path.read_bytes()))
    again = open_store(tmp_path)
    assert again.missing() == [0, 1]
    assert caplog.messages == [f"{tmp_path / 'manifest.json'} {OTHER}"]
    fill(again, 0, 1)
    assert contents(tmp_path) == whole


def test_lost_array_is_computed_again(tmp_path):
    fill(open_store(tmp_path), 0)
    (tmp_path / "a.npy").unlink()
    assert open_store(tmp_path).missing() == [0, 1]


def test_other_contents_are_computed_again(tmp_path, caplog):
    fill(open_store(tmp_path), 0, 1)
    assert open_store(tmp_path, key="y").missing() == [0, 1]
    assert caplog.messages == [f"{tmp_path / 'manifest.json'} {OTHER}"]


@pytest.mark.parametrize("shards", [["0" * 64], ["0" * 64] * 3, "00", None])
def test_a_manifest_lists_each_shard(tmp_path, shards):
    fill(open_store(tmp_path), 0, 1)
    manifest = read_record(tmp_path / "manifest.json")
    write_record(tmp_path / "manifest.json", manifest | {"shards": shards})
    assert open_store(tmp_path).missing() == [0, 1]


def test_a_whole_cache_is_read_without_a_word(tmp_path, caplog):
    fill(open_store(tmp_path / "made" / "for" / "it"), 0, 1)
    assert open_store(tmp_path / "made" / "for" / "it").missing() == []
    assert caplog.messages == []


def test_a_disk_that_fills_up_within_a_shard(tmp_path, monkeypatch):
    store = open_store(tmp_path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match=f"no space left in {tmp_path}: "):
        fill(store, 0)


def test_manifest_tells_what_the_arrays_are(tmp_path):
    fill(open_store(tmp_path), 0, 1)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["arrays"]["a"] == {"shape": [5, 2], "dtype": "float32"}
    assert manifest["arrays"]["given"] == {"shape": [5, 2], "dtype": "int32"}
    assert (manifest["bounds"], manifest["key"]) == (BOUNDS, "x")
    assert all(len(checksum) == 64 for checksum in manifest["shards"])


def test_nan_is_refused(tmp_path):
    store = open_store(tmp_path)
    values = {"a": np.full((2, 2), np.nan, np.float32), "b": np.arange(2)}
    with pytest.raises(
        ValueError, match="a of shard 0 holds NaN or infinity; check the LLM's weights and lea_"
    ):
        store.write(0, values)
    assert store.missing() == [0, 1]


def test_rows_of_a_map_are_read_from_its_file(tmp_path):
    array = np.arange(24, dtype=np.float16).reshape(6, 2, 2)
    write_array(tmp_path / "x.npy", array)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    rows = np.array([5, 0, 0, 3])
    for whole in (mapped, array, mapped[:, 1]):  # a view of a map is no map
        np.testing.assert_array_equal(take(whole, rows), np.asarray(whole)[rows])


def test_pieces_are_the_whole():
    array = np.arange(25).reshape(-1, 1)
    np.testing.assert_array_equal(np.concatenate(list(pieces(array, rows=10))), array)


@needs_smaps
def test_pieces_of_a_map_do_not_stay_in_memory(tmp_path):
    path = tmp_path / "x.npy"
    write_array(path, np.zeros(2**18))
    mapped = read_array(path, mapped=True)
    assert sum(piece.sum() for piece in pieces(mapped, rows=2**14)) == 0
    assert resident(path) == 0
    mapped.sum()
    assert resident(path) >= 2**11


def test_arrays_stay_on_disk_where_asked(tmp_path):
    fill(open_store(tmp_path), 0, 1)
    assert isinstance(open_store(tmp_path).array("a"), np.memmap)
    assert isinstance(read_array(tmp_path / "a.npy", mapped=True), np.memmap)
    assert not isinstance(read_array(tmp_path / "a.npy"), np.memmap)


def test_a_shard_may_be_one_byte(tmp_path):
    spec = {"a": ((2,), "int8")}
    store = ArrayStore(tmp_path, spec, [0, 1, 2], "x")
    for shard in (0, 1):
        store.write(shard, {"a": np.array([shard])})
    assert ArrayStore(tmp_path, spec, [0, 1, 2], "x").missing() == []


def test_nothing_is_written_through_a_link(tmp_path):
    folder, elsewhere = tmp_path / "s", tmp_path / "precious"
    elsewhere.write_text("mine")
    folder.mkdir()
    (folder / "a.npy").symlink_to(elsewhere)
    store = open_store(folder)
    fill(store, 0, 1)
    assert elsewhere.read_text() == "mine"
    assert open_store(folder).missing() == []


@hypothesis.settings(max_examples=50, deadline=None)
@given(st.data())
def test_shards_in_any_order_hold_what_was_written(data):
    n = data.draw(st.integers(2, 30))
    bounds = [0, *sorted(data.draw(st.sets(st.integers(1, n - 1)))), n]
    width = data.draw(st.integers(1, 4))
    values = np.random.default_rng(n).normal(size=(n, width)).astype("float32")
    order = data.draw(st.permutations(range(len(bounds) - 1)))
    spec = {"a": ((n, width), "float32")}
    with tempfile.TemporaryDirectory() as folder:
        for shard in order:  # opened again for each
            store = ArrayStore(Path(folder), spec, bounds, "x")
            assert shard in store.missing()
            store.write(shard, {"a": values[slice(*bounds[shard : shard + 2])]})
        store = ArrayStore(Path(folder), spec, bounds, "x")
        assert store.missing() == []
        np.testing.assert_array_equal(store.array("a"), values)
        # any flipped byte of the values costs its own shard alone
        row = data.draw(st.integers(0, n - 1))
        path = Path(folder) / "a.npy"
        content = bytearray(path.read_bytes())
        content[len(content) - (n - row) * width * 4] ^= 1
        path.write_bytes(content)
        hit = int(np.searchsorted(bounds, row, side="right")) - 1
        assert ArrayStore(Path(folder), spec, bounds, "x").missing() == [hit]
