"""Kills, runs side by side, full disks and flipped bits: the cache survives, its contents agree."""

import collections
import logging
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from recbole_lea.le import feedback as fb
from recbole_lea.le import finetune
from recbole_lea.le import pipeline as pipeline_module
from recbole_lea.le.pipeline import Pipeline
from recbole_lea.le.store import DiskFull
from tests.le.helpers import CATALOGUE, SEQUENCES

# children start from a process that has imported everything and computed nothing
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


def build(make, before_each=lambda stage: None):
    """All stages, each in several shards or epochs, with and without a projection."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    candidates = np.stack([rng.permutation(12)[:5] for _ in range(SEQUENCES.n_transitions)])
    with mock.patch.object(fb, "SHARD", 5), mock.patch.object(pipeline_module, "BUCKET", 5):
        for settings in make:
            p = Pipeline(settings, CATALOGUE, SEQUENCES, "tiny", progress_bar=False)
            for stage in (p.item_tokens, p.environment, p.states, p.rewards):
                before_each(stage.__name__)
                stage()
            p.precomputed(want_states=True, want_rewards=True)
        for want_rewards in (False, True):
            before_each(f"select {want_rewards}")
            p.select(candidates, want_rewards)
    torch.set_num_threads(threads)


@pytest.fixture
def at(settings):
    """Settings for a cache folder: full states first, then projected ones."""

    def make(folder):
        common = {"cache_dir": str(folder), "finetune_epochs": 3, "negative_pool": 2}
        return [settings(**common), settings(**common, state_dim=4)]

    return make


@pytest.fixture
def whole(at, tmp_path):
    """A cache whose build was never disturbed."""
    build(at(tmp_path / "whole"))
    return tmp_path / "whole"


def tree(folder):
    """Every file but the locks, by name."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def same(folder, whole):
    ours, theirs = tree(folder), tree(whole)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def watch(folder, on_write):
    """Call ``on_write`` before each file of the cache is opened for writing, renamed or removed."""

    def hook(event, args):
        if event == "open":
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            writes = event in ("os.rename", "os.remove", "os.truncate")
        if writes and str(args[0]).startswith(str(folder)) and not str(args[0]).endswith("lock"):
            on_write()

    sys.addaudithook(hook)


def count_writes(make, queue):
    writes = []
    watch(make[0].cache_dir, lambda: writes.append(1))
    build(make)
    queue.put(len(writes))


def build_and_die(make, after, delay):
    """``kill -9`` at some write to the cache, or a moment later."""
    left = after

    def die():
        nonlocal left
        left -= 1
        if left == 0:
            if delay:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    watch(make[0].cache_dir, die)
    build(make)


def child(target, *arguments):
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def ended(process):
    process.join(120)
    return process.exitcode


def test_killed_again_and_again_the_store_is_the_same(at, whole, tmp_path):
    queue = CONTEXT.Queue()
    assert ended(child(count_writes, at(tmp_path / "counted"), queue)) == 0
    n_writes = queue.get()
    rng = random.Random(1)
    kills = 0
    while True:
        delay = rng.choice([0, rng.random() * 0.01])
        process = child(build_and_die, at(tmp_path / "cut"), rng.randint(1, n_writes // 6), delay)
        if ended(process) == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    assert kills >= 10
    same(tmp_path / "cut", whole)


def test_two_runs_at_once_get_the_same(at, whole, tmp_path):
    runs = [child(build, at(tmp_path / "shared")) for _ in range(2)]
    assert [ended(run) for run in runs] == [0, 0]
    same(tmp_path / "shared", whole)


def hold(folder, held, enough):
    with pipeline_module._locked(Path(folder)):
        held.set()
        enough.wait(60)


def test_a_second_run_says_that_it_waits_and_a_killed_one_holds_nothing(at, tmp_path, caplog):
    make = at(tmp_path / "cache")[:1]
    p = Pipeline(make[0], CATALOGUE, SEQUENCES, "tiny", progress_bar=False)
    held, enough = CONTEXT.Event(), CONTEXT.Event()
    holder = child(hold, str(p._folder("items")), held, enough)
    assert held.wait(60)
    waiting = child(build, make)
    with mock.patch.object(pipeline_module.logger, "warning") as warning:
        warning.side_effect = lambda *a: holder.kill()
        p.item_tokens()
    assert "another run is computing" in warning.call_args.args[0]
    assert ended(holder) == -signal.SIGKILL
    assert ended(waiting) == 0


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 1 MB, and a function that leaves so many free bytes on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk to fill up needs the right to mount a tmpfs")

    def leave(free):
        with (folder / "ballast").open("ab") as ballast:
            ballast.truncate(0)
            os.posix_fallocate(ballast.fileno(), 0, shutil.disk_usage(folder).free - free)

    yield folder, leave
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_is_one_clear_error_and_the_cache_still_works(at, whole, small_disk):
    folder, leave = small_disk
    failures = collections.Counter()
    stages = []

    def leave_little(stage):
        """Each stage meets a full disk; it has twice the room when it is tried again."""
        stages.append(stage)
        leave(4096 << failures[stage])

    while failures.total() < 50:
        try:
            build(at(folder / "cache"), leave_little)
            break
        except DiskFull as error:
            assert re.search(r"no space left in .*cache/tiny.* for [\d,]+ bytes", str(error))
            assert "lea_cache_dir" in str(error)
            failures[stages[-1]] += 1
    assert set(failures) == set(stages)
    same(folder / "cache", whole)


def flip(content, rng):
    i = rng.randrange(len(content))
    return content[:i] + bytes([content[i] ^ 1 << rng.randrange(8)]) + content[i + 1 :]


def cut(content, rng):
    return content[: rng.randrange(len(content))]


@pytest.mark.parametrize("name", ["checkpoint.json", "checkpoint-2.safetensors"])
@pytest.mark.parametrize("damage", [flip, cut])
def test_damaged_checkpoint_is_noticed(at, whole, tmp_path, caplog, monkeypatch, damage, name):
    save, saved = finetune._save_checkpoint, []

    def save_and_stop(*arguments):
        save(*arguments)
        saved.append(1)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "_save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        build(at(tmp_path / "cut"))
    monkeypatch.undo()
    (path,) = (tmp_path / "cut").rglob(name)
    path.write_bytes(damage(path.read_bytes(), random.Random(3)))
    build(at(tmp_path / "cut"))
    assert str(path) in caplog.text
    same(tmp_path / "cut", whole)


@pytest.mark.parametrize("damage", [flip, cut])
def test_damage_to_any_file_is_noticed_and_repaired(at, whole, tmp_path, caplog, damage):
    """The first file of each stage at once, then the second ..."""
    shutil.copytree(whole, tmp_path / "copy")
    rng = random.Random(5)
    folders = [*(tmp_path / "copy" / "tiny").iterdir(), tmp_path / "copy" / "tiny"]
    files = {
        folder: sorted(path for path in folder.iterdir() if path.is_file() and path.name != "lock")
        for folder in folders
        if folder.is_dir()
    }
    assert len(files) == 9  # seven stages, the sequences, and llm.json
    for number in range(max(map(len, files.values()))):
        damaged = [paths[number] for paths in files.values() if number < len(paths)]
        for path in damaged:
            path.write_bytes(damage(path.read_bytes(), rng))
        caplog.clear()
        caplog.set_level(logging.WARNING)
        build(at(tmp_path / "copy"))
        for path in damaged:
            assert f"{path.parent}" in caplog.text, path
        same(tmp_path / "copy", whole)
