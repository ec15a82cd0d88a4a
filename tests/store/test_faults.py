"""Quick runs of ``tests/faults.py``, and what that does not do."""

import logging
import random
import shutil
import signal
from pathlib import Path
from unittest import mock

import pytest

from recbole_lea.le import finetune
from recbole_lea.le.pipeline import Pipeline
from recbole_lea.store import cache as cache_module
from tests import faults
from tests.disturb import CONTEXT, build, child, cut, ended, flip, le, same
from tests.le.helpers import CATALOGUE, SEQUENCES


@pytest.fixture(scope="module")
def bench(tmp_path_factory, tiny_llm):
    return faults.Bench(tmp_path_factory.mktemp("bench"), tiny_llm)


# the others are as quick, but tests/le/test_store.py and test_pipeline.py see to what they see
IN_PYTEST = (
    faults.kill, faults.interrupt, faults.full_disk, faults.read_only, faults.together,
    faults.killed_training, faults.resumed_twice, faults.damaged_checkpoint, faults.training_disk,
    faults.same_second,
)  # fmt: skip


@pytest.mark.parametrize("fault", IN_PYTEST, ids=lambda fault: fault.__name__)
def test_no_fault_changes_a_result_or_loses_work(bench, fault):
    try:
        fault(bench, random.Random(1), faults.FAULTS[fault][1])
    except faults.NotHere as error:
        pytest.skip(str(error))


def hold(folder, held, enough):
    with cache_module.held(Path(folder)):
        held.set()
        enough.wait(60)


def test_a_second_run_says_that_it_waits_and_a_killed_one_holds_nothing(tiny_llm, tmp_path):
    make = le(tiny_llm, tmp_path / "cache")[:1]
    p = Pipeline(make[0], CATALOGUE, SEQUENCES, "tiny", progress_bar=False)
    held, enough = CONTEXT.Event(), CONTEXT.Event()
    holder = child(hold, str(p.cache.path("items")), held, enough)
    assert held.wait(60)
    waiting = child(build, make)
    with mock.patch.object(cache_module.logger, "warning") as warning:
        warning.side_effect = lambda *a: holder.kill()
        p.item_tokens()
    assert "another run is computing" in warning.call_args.args[0]
    assert ended(holder) == -signal.SIGKILL
    assert ended(waiting) == 0


@pytest.mark.parametrize("name", ["checkpoint.json", "checkpoint-2.safetensors"])
@pytest.mark.parametrize("damage", [flip, cut])
def test_damaged_checkpoint_is_noticed(
    bench, tiny_llm, tmp_path, caplog, monkeypatch, damage, name
):
    save, saved = finetune._save_checkpoint, []

    def save_and_stop(*arguments):
        save(*arguments)
        saved.append(1)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "_save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        build(le(tiny_llm, tmp_path / "cut"))
    monkeypatch.undo()
    (path,) = (tmp_path / "cut").rglob(name)
    path.write_bytes(damage(path.read_bytes(), random.Random(3)))
    build(le(tiny_llm, tmp_path / "cut"))
    assert str(path) in caplog.text
    same(tmp_path / "cut", bench.whole)


@pytest.mark.parametrize("damage", [flip, cut])
def test_damage_to_any_file_is_noticed_and_repaired(bench, tiny_llm, tmp_path, caplog, damage):
    """The first file of each stage at once, then the second ..."""
    shutil.copytree(bench.whole, tmp_path / "copy")
    rng = random.Random(5)
    folders = [*(tmp_path / "copy" / "tiny").iterdir(), tmp_path / "copy" / "tiny"]
    files = {
        folder: sorted(path for path in folder.iterdir() if path.is_file() and path.name != "lock")
        for folder in folders
        if folder.is_dir()
    }
    assert len(files) == 10  # eight stages, the sequences, and llm.json
    for number in range(max(map(len, files.values()))):
        damaged = [paths[number] for paths in files.values() if number < len(paths)]
        for path in damaged:
            path.write_bytes(damage(path.read_bytes(), rng))
        caplog.clear()
        caplog.set_level(logging.WARNING)
        build(le(tiny_llm, tmp_path / "copy"))
        for path in damaged:
            assert f"{path.parent}" in caplog.text, path
        same(tmp_path / "copy", bench.whole)
