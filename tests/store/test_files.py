"""Arrays that are filled shard by shard, and the files beside them."""

import errno
import json
import os
import pickle
import shutil
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_lea.le.pipeline import Pipeline
from recbole_lea.store import files as store_module
from recbole_lea.store.arrays import ArrayStore, pieces, take
from recbole_lea.store.files import (
    DiskFull,
    ReadOnly,
    read_array,
    read_json,
    read_record,
    read_tensors,
    replacing,
    write_array,
    write_bytes,
    write_record,
)
from recbole_lea.store.lookup import read_rewards, read_state
from tests.conftest import Payload
from tests.le.helpers import CATALOGUE, SEQUENCES, needs_smaps, resident

SPEC = {"a": ((5, 2), "float32"), "b": ((5,), "int64")}
BOUNDS = [0, 2, 5]
GIVEN = np.arange(10, dtype=np.int32).reshape(5, 2)


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
    ("damage", "lost"),
    [
        (lambda content: content[:-1], [1]),  # truncated
        (lambda content: content[:-25], [0, 1]),
        (lambda content: content[:20], [0, 1]),  # within the header
        (lambda content: b"", [0, 1]),
        (lambda content: content + b"more", []),
        (lambda content: b"X" + content[1:], []),  # broken header, whole data
    ],
)
def test_truncated_or_broken_array_is_reported_and_repaired(tmp_path, caplog, damage, lost):
    fill(open_store(tmp_path), 0, 1)
    whole = contents(tmp_path)
    path = tmp_path / "a.npy"
    path.write_bytes(damage(path.read_bytes()))
    again = open_store(tmp_path)
    assert again.missing() == lost
    assert f"{path} is truncated or has another header, again" in caplog.messages
    fill(again, *lost)
    assert contents(tmp_path) == whole


def test_lost_array_is_computed_again(tmp_path):
    fill(open_store(tmp_path), 0)
    (tmp_path / "a.npy").unlink()
    assert open_store(tmp_path).missing() == [0, 1]


def test_other_contents_are_computed_again(tmp_path, caplog):
    fill(open_store(tmp_path), 0, 1)
    assert open_store(tmp_path, key="y").missing() == [0, 1]
    assert caplog.messages == [f"{tmp_path / 'manifest.json'} belongs to other arrays: ignored"]


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
    with pytest.raises(DiskFull, match=f"no space left in {tmp_path} for 16 bytes"):
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


def test_space_is_taken_before_the_first_shard(tmp_path, monkeypatch):
    """A file that only looks as large as it is would fail in the middle."""
    n = 2**18
    store = ArrayStore(tmp_path, {"a": ((n,), "float32")}, [0, 10, n], "x")
    store.write(0, {"a": np.zeros(10)})
    found = os.stat(tmp_path / "a.npy")
    assert found.st_blocks * 512 >= n * 4

    def full(descriptor, start, size):
        os.ftruncate(descriptor, size // 2)  # some file systems take what there is
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    other = ArrayStore(tmp_path / "other", {"a": ((n,), "float32")}, [0, 10, n], "x")
    with pytest.raises(DiskFull, match=r"no space left in .*other for 1,048,\d+ bytes.*lea_cache"):
        other.write(0, {"a": np.zeros(10)})
    assert os.stat(tmp_path / "other" / "a.npy").st_size < 1000
    monkeypatch.undo()
    other.write(0, {"a": np.ones(10)})
    assert other.array("a")[:11].tolist() == [1.0] * 10 + [0.0]


def test_no_room_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_bytes(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="for 3 bytes"):
        write_bytes(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch, number):
    def refused(self, mode):
        raise OSError(number, "refused")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ReadOnly, match=f"{tmp_path} cannot be written to: .*lea_cache_dir"):
        write_bytes(tmp_path / "f", b"new")


def test_what_ends_within_a_file_leaves_the_old_one(tmp_path):
    write_bytes(tmp_path / "f", b"old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "f") as stream:
        stream.write(b"new")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"f": b"old"}


def test_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    """Killed before the last moment, the old one is still there."""
    path = tmp_path / "f"
    write_bytes(path, b"old")

    def killed(self, target):
        assert self.read_bytes() == b"new"
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"n", b"ew")
    assert path.read_bytes() == b"old"


def test_arrays_are_plain_npy(tmp_path):
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    write_array(tmp_path / "x.npy", array.T)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy", allow_pickle=False), array.T)


def test_record_and_its_files_are_checked(tmp_path, caplog):
    path = tmp_path / "done.json"
    assert read_record(path) is None
    assert caplog.text == ""
    (tmp_path / "f").write_bytes(b"content")
    write_record(path, {"key": "x"}, ["f"])
    assert read_record(path)["key"] == "x"
    whole = path.read_bytes()
    for i in range(0, len(whole), 7):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        assert read_record(path) is None
    for broken in (b"", whole[:-20], b"[]", b"1", b"{}", b"\xff\xfe"):
        path.write_bytes(broken)
        caplog.clear()
        assert read_record(path) is None
        assert caplog.messages == [f"{path} is broken or of another version: ignored"]
    record = json.loads(whole)
    path.write_text(json.dumps(dict(reversed(record.items()))))  # the order of keys means nothing
    assert read_record(path)["key"] == "x"
    path.write_text(json.dumps(record | {"key": "y"}))
    assert read_record(path) is None
    path.write_bytes(whole)
    caplog.clear()
    (tmp_path / "f").write_bytes(b"Content")
    assert read_record(path) is None
    message = f"{tmp_path / 'f'} is missing or was altered: {path} is ignored"
    assert caplog.messages == [message]


def test_record_of_another_format_is_ignored(tmp_path, monkeypatch):
    write_record(tmp_path / "r.json", {"key": "x"})
    monkeypatch.setattr(store_module, "FORMAT", store_module.FORMAT + 1)
    assert read_record(tmp_path / "r.json") is None


def test_rows_of_a_map_are_read_from_its_file(tmp_path):
    array = np.arange(24, dtype=np.float16).reshape(6, 2, 2)
    write_array(tmp_path / "x.npy", array)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    rows = np.array([5, 0, 0, 3])
    for whole in (mapped, array, mapped[:, 1]):  # a view of a map is none
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


def test_feedback_is_read_by_tokens(settings):
    """Against the pipeline's own arrays, for every user and position."""
    p = Pipeline(settings(negative_pool=2), CATALOGUE, SEQUENCES, "tiny", progress_bar=False)
    states, rewards = p.states(), p.rewards()
    (states_folder,) = p.cache.folder.glob("states-*")
    (rewards_folder,) = p.cache.folder.glob("rewards-*")
    state_rows, transition_rows = iter(states), iter(zip(rewards, p.negatives, strict=True))
    for user, items in zip(SEQUENCES.users, SEQUENCES.items, strict=True):
        for n in range(1, len(items) + 1):
            np.testing.assert_array_equal(read_state(states_folder, user, n), next(state_rows))
        for n in range(1, len(items)):
            scores, negatives = next(transition_rows)
            expected = dict(zip([items[n], *negatives], scores.tolist(), strict=True))
            found = read_rewards(rewards_folder, user, n)
            assert found == {CATALOGUE.tokens[i]: score for i, score in expected.items()}
            assert next(iter(found)) == CATALOGUE.tokens[items[n]]
    with pytest.raises(KeyError, match="users.json has no user 'nobody'"):
        read_state(states_folder, "nobody", 1)
    user, n = SEQUENCES.users[-1], len(SEQUENCES.items[-1])
    with pytest.raises(IndexError, match=f"1 to {n} items, not {n + 1}"):
        read_state(states_folder, user, n + 1)
    with pytest.raises(IndexError, match=f"1 to {n - 1} items, not {n}"):
        read_rewards(rewards_folder, user, n)
    with pytest.raises(IndexError, match="1 to 2 items, not 3"):
        read_state(states_folder, "u0", 3)
    with pytest.raises(IndexError, match="1 to 1 items, not 2"):
        read_rewards(rewards_folder, "u0", 2)


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


def test_a_full_disk_is_named_with_the_remedy():
    error = DiskFull(Path("there"))
    assert error.errno == errno.ENOSPC
    assert str(error).startswith("no space left in there: free some, or set lea_cache_dir")
    assert str(error).endswith("what is finished is kept")


def test_a_read_only_folder_is_named_with_the_remedy():
    error = ReadOnly(Path("there"), "states")
    assert error.errno == errno.EROFS
    assert str(error).startswith("the cache lacks states, and there cannot be written to: make it")
    assert "(the LE: a copy of the cache goes on where it stands) or checkpoint_dir" in str(error)
    assert str(error).endswith("(models) to a folder that is")
    assert str(ReadOnly(Path("there"))).startswith("there cannot be written to")


def test_planted_objects_are_never_unpickled(settings):
    """Every file of a cache is replaced, its checksums forged; numbers are read, or computed."""

    def feedback():
        p = Pipeline(settings(), CATALOGUE, SEQUENCES, "tiny", progress_bar=False)
        return p.precomputed(want_states=True, want_rewards=True)

    first = feedback()
    expected = first.states.copy(), first.rewards.copy()
    cache = Path(settings().cache_dir) / "tiny"
    planted = 0
    for path in sorted(cache.rglob("*.*")):
        if path.is_dir() or path.name == "manifest.json":
            continue
        whole = shutil.copytree(cache, "whole", dirs_exist_ok=False)
        np.save(Path("object.npy"), np.array([Payload()]), allow_pickle=True)
        content = Path("object.npy").read_bytes()
        path.write_bytes(content if path.suffix == ".npy" else pickle.dumps(Payload()))
        done = path.with_name("done.json")
        if done.is_file() and path != done:
            record = read_record(whole / done.relative_to(cache))
            names = record.pop("files")
            write_record(done, record, names)
        try:
            found = feedback()
            np.testing.assert_array_equal(found.states, expected[0])
            np.testing.assert_array_equal(found.rewards, expected[1])
        except ValueError as error:
            assert str(path) in str(error)
        planted += 1
        shutil.rmtree(cache)
        shutil.move(whole, cache)
    assert planted >= 10
    assert not Path("ran").exists()
    np.load("object.npy", allow_pickle=True)
    assert Path("ran").exists()  # so the payload works


def test_anything_but_numbers_is_named(tmp_path):
    np.save(tmp_path / "x.npy", np.array([Payload()]), allow_pickle=True)
    (tmp_path / "y.npy").touch()
    for name in ("x.npy", "y.npy"):
        for mapped in (False, True):
            with pytest.raises(ValueError, match=f"{name}: not a .npy array of numbers"):
                read_array(tmp_path / name, mapped)
    (tmp_path / "x.safetensors").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="x.safetensors: not a safetensors file"):
        read_tensors(tmp_path / "x.safetensors")
    for content in (b"\xff", b"{", b"[" * 100_000):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(ValueError, match="x.json: not JSON: .*; delete it"):
            read_json(tmp_path / "x.json")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "name", ["../x", "/etc/hostname", ".", "..", "", "a/../../x", "a\\b", "a\0b"]
)
def test_a_record_cannot_name_files_elsewhere(tmp_path, caplog, name):
    folder = tmp_path / "cache"
    folder.mkdir()
    (tmp_path / "x").write_bytes(b"content")
    write_record(folder / "r.json", {"key": "x"})
    record = json.loads((folder / "r.json").read_text())
    del record["sha256"]
    record["files"] = {name: store_module.file_checksum(tmp_path / "x")}
    record["sha256"] = store_module.record_checksum(record)
    (folder / "r.json").write_text(json.dumps(record))
    assert read_record(folder / "r.json") is None
    message = f"{folder / 'r.json'} names {name!r}, which is not beside it: ignored"
    assert caplog.messages == [message]


@pytest.mark.parametrize("name", ["../x", "/etc", "..", None, 5, ["a"]])
def test_a_manifest_cannot_point_to_sequences_elsewhere(tmp_path, name):
    folder = tmp_path / "cache" / "states-1"
    folder.mkdir(parents=True)
    write_record(folder / "manifest.json", {"sequences": name})
    for read in (read_state, read_rewards):
        with pytest.raises(ValueError, match="manifest.json: `sequences` is"):
            read(folder, "u0", 1)


def test_nothing_is_written_through_a_link(tmp_path, caplog):
    folder, elsewhere = tmp_path / "s", tmp_path / "precious"
    elsewhere.write_text("mine")
    folder.mkdir()
    (folder / "a.npy").symlink_to(elsewhere)
    store = open_store(folder)
    fill(store, 0, 1)
    assert elsewhere.read_text() == "mine"
    assert f"{folder / 'a.npy'} is a link: removed" in caplog.messages
    assert open_store(folder).missing() == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@hypothesis.settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(["files", "format", "key", "arrays", "shards"]), JSON), JSON)
def test_any_record_is_read_or_ignored(record, other):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.json"
        for content in (other, record, record | {"format": store_module.FORMAT}):
            path.write_text(json.dumps(content))
            assert read_record(path) is None  # no checksum
            if isinstance(content, dict):
                forged = content | {"sha256": store_module.record_checksum(content)}
                path.write_text(json.dumps(forged))
                assert read_record(path) in (None, json.loads(json.dumps(content)))
                assert open_store(Path(folder)).missing() == [0, 1]


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
