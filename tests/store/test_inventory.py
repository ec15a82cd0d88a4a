"""What a cache is said to hold, and what ``--prune`` removes of it."""

import json
import os
import re
from pathlib import Path

import pytest
from filelock import FileLock

from recbole_lea import cache as program
from recbole_lea.store.inventory import inventory, needless
from tests.le.helpers import pipeline


@pytest.fixture
def run(settings, capsys, monkeypatch):
    """Runs the program on the cache of ``settings``: (its lines, the cache's files)."""
    folder = Path(settings().cache_dir)

    def call(*arguments):
        monkeypatch.setattr("recbole_lea.arguments._given", None)  # as in a new process
        monkeypatch.setattr("sys.argv", ["cache", f"--lea_cache_dir={folder}", *arguments])
        capsys.readouterr()
        program.main()
        files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        return capsys.readouterr().out.splitlines(), files

    return call


def last_used(p, stage, hour):
    """Let a stage's last use be so many hours after another's."""
    os.utime(p.cache.path(stage) / "lock", (hour * 3600, hour * 3600))


def test_what_the_cache_holds(settings, run, tiny_llm):
    p = pipeline(settings())
    p.rewards()
    for hour, stage in enumerate(("items", "keys", "environment", "rewards"), 400_000):
        last_used(p, stage, hour)
    lines, _ = run()
    assert lines[0].split() == ["dataset", "stage", "LLM", "size", "last", "use", "folder"]
    rows = [re.split("  +", line) for line in lines[1:-1]]
    assert [row[:2] for row in rows] == [
        ["tiny", stage] for stage in ("items", "keys", "environment", "rewards", "sequences")
    ]
    assert {row[2] for row in rows[:4]} == {f"{tiny_llm} float32"}
    assert rows[3][-1] == str(p.cache.path("rewards")) and rows[3][-2].startswith("2015-08-")
    assert lines[-1].startswith("5 folders, ")
    before = inventory(p.cache.folder.parent)[0].used
    pipeline(settings()).item_tokens()  # read, which is a use
    assert inventory(p.cache.folder.parent)[0].used > before


def test_prune_keeps_what_training_reads_and_all_it_is_made_of(settings, run):
    p = pipeline(settings(negative_pool=2, state_dim=4))
    p.precomputed(want_states=True, want_rewards=True)
    older = pipeline(settings(finetune_epochs=2))
    older.states()
    lines, files = run("--prune")
    assert lines == ["freed 0.0 MB"] and files == run()[1]


def test_prune_removes_what_nothing_needs(settings, run):
    used, first, last = (
        pipeline(settings(item_iterations=steps, item_patience=None)) for steps in (1, 2, 3)
    )
    used.states()
    first.environment()
    last.item_tokens()
    last_used(first, "environment", 1)
    for hour, p in enumerate((first, used, last), 1):
        last_used(p, "items", hour)
    _, before = run()
    note = first.cache.path("items") / "notes.txt"
    note.write_text("mine")
    would, files = run("--prune", "--dry-run")
    gone = [first.cache.path("environment"), first.cache.path("items")]
    assert len(would) == 3 and files == before | {note.relative_to(gone[1].parents[1])}
    for line, folder in zip(would, gone, strict=False):
        assert line.startswith(f"would remove {folder} (") and "was used later" in line
    with FileLock(gone[0] / "lock"):
        last_used(first, "environment", 1)
        lines, files = run("--prune")
        assert lines[0].startswith(f"in use, not removed: {gone[0]}") and gone[0].is_dir()
    # the LE that a run holds is not removed, its item tokens are, without what is not ours
    assert list(gone[1].iterdir()) == [note]
    last_used(first, "environment", 1)
    lines, files = run("--prune")
    assert lines[0].startswith(f"removed {gone[0]} (") and not gone[0].exists()
    kept = {path for path in before if path.parts[1] not in {folder.name for folder in gone}}
    assert files == kept | {note.relative_to(gone[1].parents[1])}
    assert run("--prune")[0][-1] == "freed 0.0 MB"
    used.cache.folder.rename(used.cache.folder.with_name("elsewhere"))  # it is still an LE's cache
    assert not [one for one, _ in needless(inventory(used.cache.folder.parent)) if one.files]


def test_sequences_llms_and_older_layouts(settings, run):
    p = pipeline(settings())
    p.rewards()
    root, folder = p.cache.folder.parent, p.cache.folder
    sequences = folder / "sequences-0123456789abcdef"
    llms = [root / f"llm-{key}" for key in (p.llm_fingerprint[:16], "0123456789abcdef")]
    for made in (sequences, *llms):
        made.mkdir()
        (made / "done.json").write_text(json.dumps({"format": 2, "files": {"../x": ""}}))
        (made / "lock").touch()
    (folder / "x").write_text("")
    old = folder / "rewards-0123456789abcdef"
    old.mkdir()
    (old / "manifest.json").write_text('{"format": 1, "arrays": {"rewards": {}}, "shards": [null]}')
    (old / "rewards.npy").write_bytes(b"1")
    unfinished = folder / "states-0123456789abcdef"
    unfinished.mkdir()
    (unfinished / "manifest.json").write_text('{"format": 2, "shards": [null, "1"]}')
    assert [line.split()[1] for line in run("--prune")[0][:-1]] == [str(old)]
    assert [line for line in run()[0] if "states (unfinished)" in line and str(unfinished) in line]
    (unfinished / "manifest.json").unlink()
    removed = [line.split()[1] for line in run("--prune")[0][:-1]]
    assert removed == [str(path) for path in (unfinished, llms[1], sequences)]
    assert llms[0].is_dir() and (folder / "x").is_file()
    assert pipeline(settings()).cache.is_built("rewards")


def test_mistakes(run, settings):
    with pytest.raises(FileNotFoundError, match="cache: no such folder; --lea_cache_dir"):
        run()
    with pytest.raises(ValueError, match="--dry-run belongs to --prune"):
        run("--dry-run")
