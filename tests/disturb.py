"""What disturbs a build or a training: signals, small and read-only disks, damaged files.

For ``tests/faults.py`` and ``tests/le/test_faults.py``. Disturbed runs are child processes.
"""

import contextlib
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from recbole.config import Config
from recbole.trainer import trainer as trainer_module

from recbole_lea.console import console
from recbole_lea.le import answers, finetune, item_tokens
from recbole_lea.le.pipeline import Pipeline
from recbole_lea.plugin import record
from recbole_lea.plugin.quick_start import prepare
from recbole_lea.store.arrays import ArrayStore
from recbole_lea.store.files import DONE, MANIFEST, read_record
from tests.conftest import tiny_settings
from tests.le.helpers import CATALOGUE, SEQUENCES

# children start from a process that has imported everything and computed nothing
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])
logging.getLogger("recbole_lea").addHandler(logging.NullHandler())


def le(llm, cache):
    """Settings for a cache folder: full states first, then projected ones."""
    common = {"finetune_epochs": 3, "negative_pool": 2}
    return [tiny_settings(llm, cache, **common, **more) for more in ({}, {"state_dim": 4})]


def build(make, before_each=lambda stage: None, without_llm=False):
    """All stages, each in several shards or epochs, with and without a projection.

    A complete cache also serves ``without_llm``, but then has no LE to put further questions to.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    candidates = np.stack([rng.permutation(12)[:5] for _ in range(SEQUENCES.n_transitions)])
    with mock.patch.object(answers, "SHARD", 5), mock.patch.object(item_tokens, "BUCKET", 5):
        for settings in make:
            p = Pipeline(settings, CATALOGUE, SEQUENCES, "tiny", progress_bar=False)
            stages = (p.item_tokens, p.environment, p.states, p.rewards)
            for stage in stages if not without_llm else stages[::2]:
                before_each(stage.__name__)
                stage()
            p.precomputed(want_states=True, want_rewards=True)
        for want_rewards in (False, True):
            before_each(f"select {want_rewards}")
            p.select(candidates, want_rewards)
    torch.set_num_threads(threads)


def tree(folder):
    """Every file but the locks, by name."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def same(folder, whole):
    """Hold every stored byte against another cache's, a folder or its ``tree``."""
    ours, theirs = tree(folder), whole if isinstance(whole, dict) else tree(whole)
    assert sorted(ours) == sorted(theirs)
    other = [name for name in ours if ours[name] != theirs[name]]
    assert other == []


def finished(cache):
    """What a cache holds of finished work.

    Returns:
        The inode of each finished stage's record, which writing it again would change; the
        finished shards; and the epochs of an unfinished fine-tuning.
    """
    stages, shards, epochs = {}, set(), 0
    for folder in (path for path in cache.glob("*/*") if path.is_dir()):
        manifest = read_record(folder / MANIFEST) or {"shards": [None]}
        shards |= {(folder.name, i) for i, sum_ in enumerate(manifest["shards"]) if sum_}
        if read_record(folder / DONE):
            stages[folder.name] = (folder / DONE).stat().st_ino
        elif all(manifest["shards"]) and not folder.name.startswith("items"):
            stages[folder.name] = (folder / MANIFEST).stat().st_ino
        checkpoint = read_record(folder / finetune.CHECKPOINT)
        epochs = len(checkpoint["history"]) if checkpoint else epochs
    return stages, shards, epochs


@contextlib.contextmanager
def watched_work():
    """Collect the shards that are written and the epochs that are trained."""
    shards, epochs = [], []
    write, save = ArrayStore.write, finetune._save_checkpoint

    def watched_write(self, shard, values):
        shards.append((self.folder.name, shard))
        write(self, shard, values)

    def watched_save(environment, optimizer, history, folder):
        epochs.append(len(history))
        save(environment, optimizer, history, folder)

    with (
        mock.patch.object(ArrayStore, "write", watched_write),
        mock.patch.object(finetune, "_save_checkpoint", watched_save),
    ):
        yield shards, epochs


def build_the_rest(make):
    """Finish a disturbed build; nothing that was finished is computed again.

    Returns:
        Shards and epochs that were finished, and that were computed now.
    """
    cache = Path(make[0].cache_dir)
    stages, shards, epochs = finished(cache)
    with watched_work() as (written, trained):
        build(make)
    assert not shards & set(written), "a finished shard was computed again"
    assert not [epoch for epoch in trained if epoch <= epochs], "an epoch was trained again"
    after = finished(cache)[0]
    again = [name for name, inode in stages.items() if after.get(name) != inode]
    assert not again, f"finished before, written again: {again}"
    return len(shards) + epochs, len(written) + len(trained)


def watch(folder, on_write):
    """Call ``on_write`` before each file below is opened for writing, renamed or removed."""

    def hook(event, args):
        if event == "open":
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            writes = event in ("os.rename", "os.remove", "os.truncate")
        if writes and str(args[0]).startswith(str(folder)) and not str(args[0]).endswith("lock"):
            on_write()

    sys.addaudithook(hook)


def strike_at(folder, after, delay, number=signal.SIGKILL, struck=None):
    """Send this process a signal at some write below a folder, or a moment later.

    Args:
        folder: what is watched.
        after: the number of the write.
        delay: seconds.
        number: the signal.
        struck: a file that is made just before.
    """
    left = after

    def strike():
        if struck is not None:
            struck.touch()
        os.kill(os.getpid(), number)

    def count():
        nonlocal left
        left -= 1
        if left == 0:
            if delay:
                later(delay, strike)
            else:
                strike()

    watch(folder, count)


def later(delay, function, *arguments):
    """Call a function in a while; a process that ends before does not wait for it."""
    timer = threading.Timer(delay, function, arguments)
    timer.daemon = True
    timer.start()


def build_back_in_time(make, seed, after):
    """Build while the clock jumps back at every look at it, and die at some write."""
    rng, now = random.Random(seed), time.time()

    def earlier():
        nonlocal now
        now -= rng.uniform(0, 3e7)
        return now

    time.time, time.time_ns = earlier, lambda: int(earlier() * 1e9)
    strike_at(make[0].cache_dir, after, 0)
    build(make)


def build_and_count(make, queue):
    """Put how often a build writes to its cache."""
    writes = []
    watch(make[0].cache_dir, lambda: writes.append(1))
    build(make)
    queue.put(len(writes))


def build_and_die(make, after, delay, number=signal.SIGKILL, struck=None, log=None):
    """Build as the command line would, and meet a signal."""
    if log is not None:
        into(log)
    strike_at(make[0].cache_dir, after, delay, number, struck)
    console(lambda: build(make))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # too late


def into(log):
    """Send all that this process prints to a file."""
    with open(log, "ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)


def train(folder, keys, queue=None, resume=None, strike=None, log=None, stopped=False):
    """Train and test in a folder; put the last weights, the best score and the test's result.

    Args:
        folder: working directory.
        keys: config of SASRecSA2CLEA on the dataset ``tiny``.
        queue: takes the outcome.
        resume: a checkpoint to go on from.
        strike: signal, then the epoch at whose end it comes (or None), a number of writes of
            checkpoints (or None), and a delay in seconds.
        log: takes what is printed.
        stopped: the clock stands still.
    """
    if log is not None:
        into(log)
    os.chdir(folder)
    sys.argv = ["train"]

    if stopped:
        trainer_module.get_local_time = record.get_local_time = lambda: "Nov-01-2026_02-30-00"

    def run():
        config = Config("SASRecSA2CLEA", "tiny", config_dict=keys)
        trainer, loaders = prepare(config)
        if resume is not None:
            trainer.resume_checkpoint(resume)
        number, epoch, after, delay = strike or (None, None, None, 0)
        if after is not None:
            strike_at(Path(config["checkpoint_dir"]), after, delay, number)

        def at_end(now, score):
            if now == epoch:
                later(delay, os.kill, os.getpid(), number)

        trainer.fit(loaders[0], loaders[1], verbose=False, callback_fn=at_end)
        weights = {name: value.tolist() for name, value in trainer.model.state_dict().items()}
        result = dict(trainer.evaluate(loaders[2]))
        if queue is not None:
            queue.put((weights, trainer.best_valid_score, result, trainer.saved_model_file))

    console(run)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # too late


def child(target, *arguments, **keywords):
    process = CONTEXT.Process(target=target, args=arguments, kwargs=keywords)
    process.start()
    return process


def ended(process):
    process.join(600)
    return process.exitcode


def flip(content, rng):
    """One bit is another."""
    i = rng.randrange(len(content))
    return content[:i] + bytes([content[i] ^ 1 << rng.randrange(8)]) + content[i + 1 :]


def cut(content, rng):
    """The end is missing."""
    return content[: rng.randrange(len(content))]


def may_mount():
    """Whether disks can be made here; in a container not even root may."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder) / "disk", 2**20):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


@contextlib.contextmanager
def mounted(folder, *options):
    """Mount something on a new folder."""
    folder.mkdir()
    subprocess.run(["mount", *options, str(folder)], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def small_disk(folder, size):
    """A disk of so many bytes."""
    return mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs")


def read_only(folder, shown):
    """The same files under another path, where nobody can write, not even root."""
    return mounted(shown, "--bind", "-o", "ro", str(folder))


def leave(disk, free):
    """Fill a disk up to so many free bytes."""
    with (disk / "ballast").open("ab") as ballast:
        ballast.truncate(0)
        os.posix_fallocate(ballast.fileno(), 0, shutil.disk_usage(disk).free - free)
