"""What is reused from a cache, copied, read-only or altered, and what is computed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_lea.store import cache as cache_module
from recbole_lea.store import llms
from recbole_lea.store.files import ReadOnly
from tests.le.helpers import computed, pipeline


def test_a_cache_that_cannot_be_written_to_is_read_or_one_error(settings, log, monkeypatch):
    """Root may write anywhere: the system's answer is replaced."""
    whole = np.array(pipeline(settings()).states())
    files = [path for path in Path(settings().cache_dir).rglob("*") if path.is_file()]
    dates = [path.stat().st_mtime_ns for path in files]
    monkeypatch.setattr(cache_module.os, "access", lambda *_: False)
    monkeypatch.setattr(cache_module, "FileLock", None)
    computed(log)
    again = pipeline(settings())
    np.testing.assert_array_equal(again.states(), whole)
    with pytest.raises(ReadOnly, match="the cache lacks rewards, and .*rewards-.*lea_cache_dir"):
        again.rewards()
    assert computed(log) == []
    assert [path.stat().st_mtime_ns for path in files] == dates


def test_altered_feedback_is_noticed_and_computed_again(settings, log):
    whole = np.array(pipeline(settings()).rewards())
    path = next(pipeline(settings()).cache.folder.glob("rewards-*/rewards.npy"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content)
    computed(log)
    np.testing.assert_array_equal(pipeline(settings()).rewards(), whole)
    assert computed(log) == ["rewards"]


@pytest.fixture
def moved_llm(tiny_llm, tmp_path):
    """A copy of the LLM, and a function that takes it away."""
    folder = tmp_path / "llm"
    shutil.copytree(tiny_llm, folder)
    return str(folder), lambda: folder.rename(tmp_path / "gone")


def test_a_copied_cache_is_used_without_the_llm(settings, moved_llm, tmp_path, log):
    llm, remove = moved_llm
    first = pipeline(settings(llm=llm))
    feedback = first.precomputed(want_states=True, want_rewards=True)
    states = np.array(feedback.states)
    shutil.copytree(tmp_path / "cache", tmp_path / "elsewhere")
    remove()
    computed(log)
    there = settings(llm=llm, cache_dir=str(tmp_path / "elsewhere"))
    copy = pipeline(there)
    assert "the LLM is not here: using what the cache was made with" in log.text
    assert copy.llm_fingerprint == first.llm_fingerprint
    again = copy.precomputed(want_states=True, want_rewards=True)
    assert computed(log) == []
    np.testing.assert_array_equal(again.states, states)
    with pytest.raises(FileNotFoundError, match="the augmentation needs the LLM: .*no such"):
        copy.require_llm("the augmentation")
    with pytest.raises(FileNotFoundError, match="lea_live needs the LLM"):
        copy.live(want_states=True, want_rewards=False)
    more = settings(llm=llm, cache_dir=str(tmp_path / "elsewhere"), negative_pool=3)
    with pytest.raises(FileNotFoundError, match="what the cache .*tiny lacks needs the LLM"):
        pipeline(more).rewards()
    with pytest.raises(FileNotFoundError, match="no such folder"):
        pipeline(settings(llm=llm, cache_dir=str(tmp_path / "empty")))


def test_a_copied_cache_keeps_the_dtype_that_auto_was(settings, monkeypatch, log):
    monkeypatch.setattr(llms, "pick_dtype", lambda name, device: torch.bfloat16)
    first = pipeline(settings(llm_dtype="auto"))
    first.rewards()
    monkeypatch.setattr(llms, "pick_dtype", lambda name, device: torch.float32)
    computed(log)
    second = pipeline(settings(llm_dtype="auto"))
    second.rewards()
    assert computed(log) == []
    assert second.keys == first.keys
    assert second.llm().model.dtype == torch.bfloat16
    assert pipeline(settings(llm_dtype="float32")).keys != first.keys


def test_another_llm_under_the_same_name_is_another_le(settings, moved_llm):
    llm, _ = moved_llm
    keys = pipeline(settings(llm=llm)).keys
    path = Path(llm, "model.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert pipeline(settings(llm=llm)).keys["items"] != keys["items"]


def test_manifests_say_where_the_arrays_come_from(settings):
    p = pipeline(settings(negative_pool=2))
    p.precomputed(want_states=True, want_rewards=True)
    for stage, name in (("states", "states"), ("rewards", "rewards")):
        manifest = json.loads((p.cache.path(stage) / "manifest.json").read_text())
        array = np.load(p.cache.path(stage) / f"{name}.npy")
        assert manifest["arrays"][name] == {"shape": list(array.shape), "dtype": array.dtype.name}
        assert manifest["key"] == p.keys[stage]
        assert manifest["fingerprints"]["llm"] == p.llm_fingerprint
        assert manifest["versions"]["torch"]
        assert (p.cache.folder / manifest["sequences"] / "users.json").is_file()


def test_a_finished_stage_leaves_no_intermediate_files(settings):
    pipeline(settings(finetune_epochs=2)).environment()
    p = pipeline(settings(finetune_epochs=2))
    for stage in ("items", "environment"):  # as after a kill at the very end
        (p.cache.path(stage) / "manifest.json").write_text("{}")
    p.environment()
    for stage, files in (
        ("items", {"tokens.npy"}),
        ("environment", {"adapter.safetensors", "history.json"}),
    ):
        assert {f.name for f in p.cache.path(stage).iterdir()} == files | {"done.json", "lock"}
