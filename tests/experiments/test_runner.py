"""Which runs are started, in which order, and that none is repeated."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from recbole_lea.experiments import runner
from recbole_lea.experiments.finished import FinishedRuns
from recbole_lea.experiments.plan import Search, figure, table
from recbole_lea.experiments.run import Spec
from recbole_lea.experiments.runner import Benchmark, Run, execute
from recbole_lea.le import LESettings
from tests.experiments.helpers import METRICS, run_json, tiny_yaml

SEARCH = Search(
    trials=2,
    tuning_seed=2020,
    grid={"learning_rate": [0.01, 0.02], "q_weight": [0.5], "w_ah": [0.1]},
    sweeps={
        "w_ah": [0.2, 0.3],
        "w_aq": [0.4],
        "lea_finetune_fraction": [0.2, 0.5],
        "other_llm": None,
    },
)


@pytest.fixture
def benchmark(tiny_dataset, tiny_llm, tmp_path):
    files = (tiny_yaml(tiny_llm, tmp_path),)

    def make(number=4, seeds=(1, 2), **changes):
        options = {"search": SEARCH, "config_files": files, "methods": table(number)} | changes
        return Benchmark("tiny", seeds=seeds, results=Path("results"), **options)

    return make


@pytest.fixture
def started(monkeypatch):
    """Runs are only noted; trials with the higher learning rate are better."""
    runs = []

    def fake(pending, jobs):
        for run in pending:
            runs.append(run)
            rate = run.spec.keys.get("learning_rate", 0)
            content = run_json(0.1, kind=run.spec.kind, best_valid_score=rate, seed=run.spec.seed)
            content["config"] = {**run.values, "valid_metric_bigger": True}
            if run.spec.stock:  # RecBole's own class knows none of our keys
                content["model"] = "SASRec"
                ours = ("lea_method", "lea_augmentation", "q_weight")
                content["config"] = {k: v for k, v in content["config"].items() if k not in ours}
            users = {"users": np.array(["a", "b"]), "rows": np.array([1, 1])}
            users |= dict.fromkeys(METRICS, np.zeros(2))
            tested = users if run.spec.kind == "test" else None
            run.finished.add({"name": run.name, "method": run.spec.method, **content}, tested)
        return []

    monkeypatch.setattr(runner, "execute", fake)
    return runs


def forget(run):
    """Take a run's line out of the finished ones."""
    lines = run.finished.path.read_text().splitlines(keepends=True)
    run.finished.path.write_text("".join(x for x in lines if json.loads(x)["name"] != run.name))


def test_le_then_trials_then_tests_of_the_best(benchmark, started):
    own = benchmark()
    assert own.run() == []
    kinds = [run.spec.kind for run in started]
    assert kinds == ["le"] + ["trial"] * 10 + ["test"] * 10  # 5 methods, RecBole's own among them
    for run in started:
        if run.spec.kind == "trial":
            assert run.spec.seed == SEARCH.tuning_seed
        if run.spec.kind == "test":
            assert run.spec.keys["learning_rate"] == 0.02
            assert run.spec.seed in (1, 2)


def test_named_rows_alone_are_run_and_all_finished_ones_reported(benchmark, started):
    benchmark(only=["SASRec RecBole"]).run()
    assert {run.spec.stock for run in started} == {True}
    n = len(started)
    own = benchmark(only=["SASRec SA2C"])
    assert own.run() == []
    assert {run.spec.keys["lea_method"] for run in started[n:]} == {"base"}
    finished = [o.method.label for o in own.outcomes() if o.records]
    assert finished == ["SASRec RecBole", "SASRec SA2C"]
    assert list(own.phases()) == [[], [], []]
    with pytest.raises(ValueError, match="no row is called 'SA2C'; there are: SASRec RecBole"):
        benchmark(only=["SA2C"])


def test_a_smaller_metric_can_be_the_better_one(benchmark, started, monkeypatch):
    original = runner.Run.record

    def smaller(run):
        content = original(run)
        if content:
            content["config"]["valid_metric_bigger"] = False
        return content

    monkeypatch.setattr(runner.Run, "record", smaller)
    benchmark().run()
    assert {r.spec.keys["learning_rate"] for r in started if r.spec.kind == "test"} == {0.01}


def test_finished_runs_are_not_repeated_and_shared_by_tables(benchmark, started):
    benchmark().run()
    n = len(started)
    benchmark().run()
    assert len(started) == n
    benchmark(seeds=(1, 2, 3)).run()
    assert [run.spec.seed for run in started[n:]] == [3] * 5
    n = len(started)
    benchmark(3).run()  # its SA2C and sv+q (LEA) are there
    names = {run.spec.keys.get("lea_method") for run in started[n:] if run.spec.kind == "test"}
    assert names == {"base"}
    n_new = sum(run.spec.kind == "test" for run in started[n:])
    assert n_new == 2 * len({"Normal", "sv", "SA2C sv", "SA2C q"})


def test_one_le_for_all_methods_with_all_that_they_want(benchmark):
    (le,) = benchmark(4).environments
    wanted = {key: le.spec.keys[key] for key in ("lea_state", "lea_reward", "lea_augmentation")}
    assert wanted == {"lea_state": "hidden", "lea_reward": "LE", "lea_augmentation": "both"}
    (le,) = benchmark(5).environments
    assert le.spec.keys["lea_state"] == "both" and le.spec.keys["lea_reward"] == "constant"
    own = benchmark(7, only=["SASRec SNQN LEASR", "SASRec SA2C LES shuffled"])
    (le,) = own.environments  # that of the shuffled control is no other


@pytest.mark.parametrize(("number", "searches"), [(4, 2), (5, 3)])
def test_a_point_of_a_figure_changes_its_key_in_the_tests_alone(
    benchmark, started, number, searches
):
    own = benchmark(methods=figure(number, SEARCH.sweeps))
    own.run()
    trials = [run.folder for run in started if run.spec.kind == "trial"]
    assert len(trials) == len(set(trials)) == 2 * searches  # the points share their parent's
    points = [method for method in own.methods if method.missing is None]
    for method in points:
        for key, value in method.changes.items():
            assert all(run.spec.keys.get(key) != value for run in own.trials(method))
            assert [run.spec.keys[key] for run in own.tests(method)] == [value, value]
    tests = [run.folder for method in points for run in own.tests(method)]
    assert len(tests) == len(set(tests)) == 2 * len(points)


def test_each_fraction_of_the_data_has_an_le_of_its_own(benchmark, started):
    def settings(run):
        return LESettings.from_config(run.spec.config().final_config_dict)

    own = benchmark(methods=figure(5, SEARCH.sweeps))
    own.run()
    built = [settings(run) for run in started if run.spec.kind == "le"]
    assert [le.finetune_fraction for le in built].count(0.2) == 1
    assert [le.finetune_fraction for le in built].count(0.5) == 1
    assert len(built) == 5  # and the parents', -IT and -SM
    for method in own.methods:
        if method.missing is None and method.switches.needs_le:
            assert settings(own.trials(method)[0]) in built
            assert settings(own.tests(method)[0]) in built
    alone = benchmark(methods=own.methods, only=["SASRec SA2C LEASR 50% of the data"])
    fractions = [settings(run).finetune_fraction for run in alone.environments]
    assert fractions == [0.1, 0.5]


def test_le_embeddings_want_the_item_tokens_alone(benchmark):
    own = benchmark(6, only=["SASRec Normal with LE embeddings"])
    (le,) = own.environments
    keys = ("item_embedding_init", "lea_state", "lea_reward", "lea_augmentation")
    assert [le.spec.keys[key] for key in keys] == ["le", "hidden", "constant", "none"]
    (both,) = benchmark(6).environments
    assert both.spec.keys["item_embedding_init"] == "le" and both.spec.keys["lea_state"] == "both"


def test_a_run_under_another_default_is_repeated(benchmark, started):
    own = benchmark()
    own.run()
    n = len(started)
    run = own.tests(own.methods[1])[0]
    content = run.record()
    del content["config"]["gamma"]  # a key that the program did not have then
    own.finished.add(content)
    own.run()
    assert len(started) == n
    content["config"]["gamma"] = 0.9
    own.finished.add(content)
    own.run()
    assert started[n:] == [run]


def test_one_trial_is_no_search(benchmark, started):
    search = Search(1, 2020, {"learning_rate": [0.01, 0.02]}, {})
    benchmark(search=search).run()
    assert {run.spec.kind for run in started} == {"le", "test"}


def test_a_method_with_a_missing_trial_is_not_tested(benchmark, started):
    own = benchmark()
    own.run()
    ler = next(method for method in own.methods if method.name == "LER")
    forget(own.trials(ler)[0])
    outcomes = {outcome.method.name: outcome for outcome in own.outcomes()}
    assert outcomes["LER"].chosen is None and not outcomes["LER"].records
    assert sorted(outcomes["LEA"].records) == [1, 2]
    assert len(outcomes["LEA"].trials) == 2 and len(outcomes["LER"].trials) == 1


def test_the_tuning_seed_is_never_reported(benchmark):
    with pytest.raises(ValueError, match="tuning seed 2020 is among the reported"):
        benchmark(seeds=(2019, 2020))


def test_missing_data_are_named(benchmark):
    Path("dataset/tiny/tiny.item").unlink()
    with pytest.raises(FileNotFoundError, match=r"tiny\.item.*--data_path"):
        benchmark()


def test_what_is_missing_is_known_beforehand(benchmark, started):
    own = benchmark()
    le, trials, tests = own.phases()
    assert [len(le), len(trials), len(tests)] == [1, 10, 0]
    own.run()
    assert list(map(len, benchmark(seeds=(1, 2, 3)).phases())) == [0, 0, 5]


def test_a_fresh_clone_has_all_that_was_finished(benchmark, started):
    own = benchmark()
    own.run()
    n, before = len(started), own.outcomes()
    files = {path.name for path in own.folder.iterdir() if path.name != "runs"}  # not committed
    assert files == {"runs.jsonl", "users.npz"}
    shutil.rmtree(own.folder / "runs")
    again = benchmark()
    assert again.run() == [] and len(started) == n
    for one, other in zip(before, again.outcomes(), strict=True):
        assert (one.trials, one.chosen, one.records) == (other.trials, other.chosen, other.records)
        assert one.users.keys() == other.users.keys() == {1, 2}
        assert one.users[1].keys() == other.users[1].keys() == set(METRICS)


def test_a_finished_run_says_its_method_in_clear_text(benchmark, started):
    own = benchmark()
    own.run()
    methods = [record["method"] for record in own.finished.records().values()]
    assert methods.count("SASRec SA2C LE") == 1
    assert methods.count("SASRec SA2C LEAR") == 4  # two trials and two tests


def spec_run(name, **keys):
    spec = Spec("test", "SASRecSA2CLEA", False, "tiny", 1, keys)
    return Run(spec, Path("results/runs") / name, {}, FinishedRuns(Path("results")))


# What a child does; it imports neither torch nor RecBole.
CHILD = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
keys = json.loads((folder / "spec.json").read_text())["keys"]
if "fail" in keys:
    print("ValueError: no such luck")
    sys.exit(1)
line = {"name": folder.name, "config": {}, "threads": os.environ["OMP_NUM_THREADS"]}
with open(folder.parent.parent / "runs.jsonl", "a") as file:
    file.write(json.dumps(line) + "\\n")
"""


def test_a_failed_run_is_named_and_the_others_go_on(caplog):
    caplog.set_level("INFO")
    runs = [spec_run("a"), spec_run("b", fail=1), spec_run("c")]
    failed = execute(runs, 2, [sys.executable, "-c", CHILD])
    assert [run.folder.name for run in failed] == ["b"]
    assert "b/run.log\n  ValueError: no such luck" in caplog.text
    assert "3 of 3" in caplog.text
    assert all(run.record() for run in (runs[0], runs[2]))


def test_jobs_share_the_cores():
    runs = [spec_run("a"), spec_run("b")]
    execute(runs, 2, [sys.executable, "-c", CHILD])
    cores = len(runner.os.sched_getaffinity(0))
    assert int(runs[0].record()["threads"]) == max(1, cores // 2)


def test_an_interrupted_benchmark_ends_its_runs(monkeypatch):
    code = "import time; time.sleep(60)"
    children = []
    original = runner.subprocess.Popen

    def watched(*args, **kwargs):
        children.append(original(*args, **kwargs))
        if len(children) == 2:
            raise KeyboardInterrupt
        return children[-1]

    monkeypatch.setattr(runner.subprocess, "Popen", watched)
    with pytest.raises(KeyboardInterrupt):
        execute([spec_run("a"), spec_run("b")], 2, [sys.executable, "-c", code])
    assert children[0].wait(timeout=30) != 0
    children[1].kill()
