"""Files that are whole or not there, records that notice a change, readers that run no code."""

import contextlib
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
from recbole_lea.store import files as files_module
from recbole_lea.store.files import (
    DiskFull,
    ReadOnly,
    file_checksum,
    read_array,
    read_json,
    read_record,
    read_tensors,
    record_checksum,
    replacing,
    write_array,
    write_bytes,
    write_record,
)
from tests.conftest import Payload
from tests.le.helpers import CATALOGUE, SEQUENCES
from tests.store.test_arrays import contents, open_store

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_no_room_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_bytes(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="no space left in"):
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
    assert str(error).endswith("(models) to one that is")
    assert str(ReadOnly(Path("there"))).startswith("there cannot be written to")


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
    monkeypatch.setattr(files_module, "FORMAT", files_module.FORMAT + 1)
    assert read_record(tmp_path / "r.json") is None


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
    record["files"] = {name: file_checksum(tmp_path / "x")}
    record["sha256"] = record_checksum(record)
    (folder / "r.json").write_text(json.dumps(record))
    assert read_record(folder / "r.json") is None
    assert len(caplog.messages) == 1 and "ignored" in caplog.text


@hypothesis.settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(["files", "format", "key", "arrays", "shards"]), JSON), JSON)
def test_any_record_is_read_or_ignored(record, other):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.json"
        for content in (other, record, record | {"format": files_module.FORMAT}):
            path.write_text(json.dumps(content))
            assert read_record(path) is None  # no checksum
            if isinstance(content, dict):
                forged = content | {"sha256": record_checksum(content)}
                path.write_text(json.dumps(forged))
                assert read_record(path) in (None, json.loads(json.dumps(content)))
                assert open_store(Path(folder)).missing() == [0, 1]


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
            # one of the two alone is computed in other rows than both: another rounding
            np.testing.assert_allclose(found.states, expected[0], rtol=2e-3, atol=2e-3)
            np.testing.assert_allclose(found.rewards, expected[1], rtol=1e-5, atol=1e-5)
        except ValueError as error:
            assert str(path) in str(error)
        planted += 1
        shutil.rmtree(cache)
        shutil.move(whole, cache)
    assert planted >= 10
    assert not Path("ran").exists()
    np.load("object.npy", allow_pickle=True)
    assert Path("ran").exists()  # so the payload works


def test_a_flipped_bit_in_an_array_s_header_is_named(tmp_path):
    """NumPy reads the header as Python: each byte in turn, whatever its parser makes of it."""
    np.save(tmp_path / "x.npy", np.zeros((36, 1), np.float32))
    whole = (tmp_path / "x.npy").read_bytes()
    for i in range(10, whole.index(b"}") + 1):
        for bit in range(8):
            damaged = whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :]
            (tmp_path / "x.npy").write_bytes(damaged)
            with contextlib.suppress(ValueError):  # some are other arrays, all in order
                read_array(tmp_path / "x.npy")
