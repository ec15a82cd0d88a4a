"""The command that reproduces a table, on the tiny dataset."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from recbole_lea.arguments import set_given
from recbole_lea.console import console
from recbole_lea.experiments import benchmark, compare, runner
from tests.experiments.helpers import in_process, tiny_yaml

SEARCH = {
    "trials": 1, "tuning_seed": 2020, "grid": {"learning_rate": [0.01], "dropout": [0.1]},
    "sweeps": {"w_ah": [0.1], "w_aq": [0.1], "lea_finetune_fraction": [0.5], "other_llm": None},
}  # fmt: skip


@pytest.fixture
def call(tiny_dataset, tiny_llm, tmp_path, monkeypatch):
    """The command line in this process; its runs as well."""
    Path("search.yaml").write_text(yaml.safe_dump(SEARCH), encoding="utf-8")
    config = tiny_yaml(tiny_llm, tmp_path, epochs=1)
    started = in_process(monkeypatch)

    def command(*arguments):
        started.clear()
        common = ["--dataset", "tiny", "--search", "search.yaml", "--config_files", config]
        set_given([*arguments, *common])
        with pytest.raises(SystemExit) as end:
            console(benchmark.main)
        return end.value.code, list(started)

    return command


def test_a_table_from_runs_to_report(call):
    code, started = call("--table", "4", "--seeds", "2", "--weight_decay=0.001")
    assert code == 0
    assert [own.spec.kind for own in started] == ["le"] + ["test"] * 10
    folder = Path("results/tiny")
    rows = json.loads((folder / "table4.json").read_text())
    assert {row["method"] for row in rows} == {"RecBole", "SA2C", "LER", "LEA", "LEAR"}
    text = (folder / "table4.md").read_text()
    assert "**Not final**" in text and "2 seeds are too few" in text
    assert "--table 4 --seeds 2" in text
    for name in ("gains", "curves"):
        assert (folder / f"table4-{name}.png").is_file()
        assert f"table4-{name}.png" in text
    assert "(tiny/table4.md)" in Path("results/README.md").read_text()
    for own in started:  # the key given for all runs, the search, and the method's own
        config = own.record()["config"]
        assert config["weight_decay"] == 0.001
        if own.spec.kind == "test":
            assert config["learning_rate"] == 0.01
            assert config["epochs"] == 1
    assert call("--table", "4", "--seeds", "2", "--weight_decay", "0.001") == (0, [])
    # another budget is another run
    _, started = call("--table", "4", "--seeds", "1", "--weight_decay=0.002")
    assert len(started) == 6


def test_dry_run_starts_nothing(call, capsys):
    code, started = call("--figure", "5", "--dry-run")
    output = capsys.readouterr().out
    assert (code, started) == (0, [])
    assert "SASRec SA2C LES, seed 1" in output and "LEASR -IT, seed 5" in output
    assert not Path("results/tiny").exists()


def test_a_dry_run_measures_what_the_cache_lacks_and_what_no_row_has_recorded(
    call, capsys, monkeypatch
):
    monkeypatch.setattr("recbole_lea.plugin.plan._training_seconds", lambda *own: 7200.0)
    monkeypatch.setattr(
        "recbole_lea.le.plan.measure",
        lambda le, wanted: [setattr(s, "seconds", 600.0) for s in wanted if not s.cached],
    )
    rows = ("--table", "4", "--methods", "SASRec RecBole,SASRec SA2C LER",
            "--lea_compare=True")  # fmt: skip

    def said(seeds):
        capsys.readouterr()
        assert call(*rows, "--seeds", seeds, "--dry-run") == (0, [])
        return capsys.readouterr().out.splitlines()

    measured = [
        "le     SASRec SA2C LE, seed 2020, about 40 min",  # four stages
        "test   SASRec RecBole, seed 1, about 2.0 h",
        "test   SASRec SA2C LER, seed 1, about 2.0 h",
    ]
    assert said("1") == [*measured, "one after another about 4.7 h"]
    assert call(*rows, "--seeds", "1")[0] == 0
    path = Path("results/tiny/runs.jsonl")
    records = [json.loads(line) | {"seconds": 30.0} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(own) + "\n" for own in records))
    assert said("1") == []
    recorded = ["SASRec RecBole, seed 2, about 30 s", "SASRec SA2C LER, seed 2, about 30 s"]
    tests = [f"test   {line}" for line in recorded]
    assert said("2") == [*tests, "one after another about 60 s"]
    shutil.rmtree("lea_cache")  # the record says nothing of what is lost
    assert said("2") == [measured[0], *tests, "one after another about 41 min"]


def test_a_report_of_what_is_finished_starts_nothing(call):
    _, started = call("--table", "4", "--seeds", "2", "--methods", "SASRec SA2C")
    Path("results/tiny/table4.md").unlink()
    lines = Path("results/tiny/runs.jsonl").read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["name"] == started[-1].name
    Path("results/tiny/runs.jsonl").write_text("".join(lines[:-1]))
    assert call("--table", "4", "--seeds", "2", "--report") == (0, [])
    text = Path("results/tiny/table4.md").read_text()
    assert "runs are missing: " in text and "SASRec SA2C LEAR" in text
    assert "--report" not in text
    rows = json.loads(Path("results/tiny/table4.json").read_text())
    assert {(row["method"], *row["seeds"]) for row in rows} == {("SA2C", 1)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lea_method=LES"], "--lea_method cannot be given for all runs of table4"),
        (["--lea_reward=constant"], "--lea_reward cannot be given for all runs of table4"),
        (["--seed=3"], "--seed cannot be given"),
        (["--lea_stop_after=items"], "--lea_stop_after cannot be given"),
        (["--eval_batch_size", "1", "--seed", "3"], "--seed cannot be given"),
        (["--seeds", "0"], "1 or more"),
        (["--data_path=nowhere"], "nowhere/tiny/tiny.inter does not exist"),
    ],
)
def test_a_mistake_is_one_line(call, arguments, message):
    code, started = call("--table", "4", *arguments)
    assert code.startswith("error: ") and message in code
    assert not started


def test_what_nobody_reads_is_one_line(call, capsys):
    for typed, hint in (
        (["weight_decay=1"], ""),
        (["--lea_seeed", "1"], "; did you mean `lea_seed`?"),
    ):
        assert call("--table", "4", *typed) == (2, [])
        name = typed[0].split("=")[0]
        assert f"error: {name}: not an option, nor a key that anybody reads{hint}" in (
            capsys.readouterr().err
        )


def test_one_benchmark_at_a_time(call):
    Path("results/tiny").mkdir(parents=True)
    with FileLock("results/tiny/lock"):
        code, started = call("--table", "4")
    assert "another benchmark is working in results/tiny" in code and not started


def test_speed_is_that_of_the_config_files_and_keys(tiny_dataset, monkeypatch, capsys):
    keys = ("train_batch_size", "lea_row_length")
    monkeypatch.setattr(
        "recbole_lea.experiments.speed.run", lambda config, users: [config[key] for key in keys]
    )
    Path("own.yaml").write_text("train_batch_size: 7\n", encoding="utf-8")
    own = ["--dataset", "tiny", "--config_files", "own.yaml", "--lea_row_length=99"]
    set_given(["--speed", *own])
    console(benchmark.main)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == [7, 99]


def test_failed_runs_are_counted(call, monkeypatch):
    monkeypatch.setattr(runner, "execute", lambda runs, jobs: list(runs))
    code, _ = call("--table", "4", "--seeds", "1")
    assert code == "1 runs failed; their run.log says why"  # the LE; nothing was tried without it
    assert not Path("results/tiny/table4.json").exists()


def test_traceback_on_request(call, monkeypatch):
    monkeypatch.setitem(os.environ, "LEA_TRACEBACK", "1")
    set_given(["--table", "4", "--seeds", "0"])
    with pytest.raises(ValueError, match="1 or more"):
        console(benchmark.main)


def test_help_imports_nothing_heavy():
    code = """
import recbole_lea, sys
before = set(sys.modules)
sys.argv = ["benchmark", "--help"]
from recbole_lea.experiments.benchmark import main
try:
    main()
finally:
    print("imported:", {"torch", "recbole", "numpy"} & (set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--speed" in done.stdout
    assert "imported: set()" in done.stdout


def test_commands_that_reports_name_can_be_parsed():
    root = Path(__file__).parent.parent.parent
    files = [*root.glob("results/**/*.md"), *root.glob("docs/*.md"), root / "README.md"]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    commands = re.findall(r"python -m recbole_lea\.(benchmark|compare) (--[^`\n]*)", text)
    assert len(commands) > 10
    for program, command in set(commands):
        set_given(command.split())
        {"benchmark": benchmark, "compare": compare}[program]._parser().read()
