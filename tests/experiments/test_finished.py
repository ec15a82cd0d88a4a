"""Finished runs are two files, which are always whole."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from recbole_lea.experiments import finished
from recbole_lea.experiments.finished import FinishedRuns

RATES = [0.1, 1 / 3, 5e-324, 0.12345678901234567]


@pytest.fixture
def runs(tmp_path):
    return FinishedRuns(tmp_path / "results" / "tiny")


def users(*tokens, **metrics):
    values = {name: np.array(own) for name, own in metrics.items()}
    return {"users": np.array(tokens), "rows": np.arange(1, len(tokens) + 1)} | values


def test_what_was_added_is_read_back_bit_for_bit(runs):
    tested = users("a", "bcd", "e", "f", hit=RATES, ndcg=[0.0, 1.0, 0.5, 0.25])
    runs.add({"name": "trial-x", "method": "SASRec", "rates": RATES})
    runs.add({"name": "test-x", "method": "SASRec SA2C"}, tested)
    again = FinishedRuns(runs.folder)
    assert list(again.records()) == ["trial-x", "test-x"]
    assert again.records()["trial-x"]["rates"] == RATES
    found = again.users("test-x")
    assert list(found) == ["hit", "ndcg"]
    for name, own in found.items():
        assert own.tokens.tolist() == ["a", "bcd", "e", "f"]
        assert own.rows.tolist() == [1, 2, 3, 4]
        assert own.values.tobytes() == tested[name].tobytes()


def test_tests_on_the_same_users_share_them(runs):
    for name, tokens in (("1", "abc"), ("2", "abc"), ("3", "abd")):
        runs.add({"name": name}, users(*tokens, hit=[0.1, 0.2, float(name)]))
    with np.load(runs.folder / "users.npz", allow_pickle=False) as arrays:
        assert sum(name.endswith("-users") for name in arrays) == 2
    assert [runs.users(name)["hit"].values[-1] for name in "123"] == [1.0, 2.0, 3.0]
    assert runs.users("3")["hit"].tokens.tolist() == ["a", "b", "d"]


def test_a_run_is_there_once(runs):
    runs.add({"name": "a", "n": 1})
    runs.add({"name": "b", "n": 2}, users("x", hit=[0.5]))
    runs.add({"name": "b", "n": 3}, users("x", hit=[0.75]))
    assert [(r["name"], r["n"]) for r in FinishedRuns(runs.folder).records().values()] == [
        ("a", 1), ("b", 3),
    ]  # fmt: skip
    assert runs.users("b")["hit"].values == [0.75]


def test_runs_that_end_together_are_all_kept(runs):
    with ThreadPoolExecutor(8) as pool:
        for i in range(16):
            own = FinishedRuns(runs.folder)  # as in a process of its own
            pool.submit(own.add, {"name": str(i)}, users("x", hit=[float(i)]))
    assert set(runs.records()) == {str(i) for i in range(16)}
    assert [runs.users(str(i))["hit"].values[0] for i in range(16)] == list(range(16))


def test_a_kill_while_writing_leaves_what_was_there(runs, monkeypatch):
    runs.add({"name": "a"}, users("x", hit=[0.5]))
    before = [(runs.folder / name).read_bytes() for name in ("runs.jsonl", "users.npz")]

    def killed(stream, **arrays):
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(finished.np, "savez_compressed", killed)
    with pytest.raises(KeyboardInterrupt):
        runs.add({"name": "b"}, users("x", hit=[0.5]))
    assert [(runs.folder / n).read_bytes() for n in ("runs.jsonl", "users.npz")] == before


def test_what_another_process_adds_is_seen(runs):
    runs.add({"name": "a"})
    assert list(runs.records()) == ["a"]
    FinishedRuns(runs.folder).add({"name": "b"})
    assert list(runs.records()) == ["a", "b"]


@pytest.mark.parametrize("line", ["{", "[]", "{}", "3"])
def test_a_broken_line_is_named(runs, line):
    runs.add({"name": "a"})
    with runs.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"runs\.jsonl, line 2: not a run's record"):
        runs.records()


def test_nothing_is_pickled(runs):
    with pytest.raises((ValueError, TypeError)):
        runs.add({"name": "a", "x": object()})
    assert runs.records() == {}
    assert not json.dumps(runs.records()) == ""
