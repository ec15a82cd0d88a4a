"""What is wrong in a command line is said before RecBole and torch are imported."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_lea import arguments, console

HEAVY = "assert not {'recbole', 'torch', 'ray', 'transformers'} & set(sys.modules)"


def fresh(code, *given):
    """Run code in a process of its own; its output and errors."""
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--help"], "--config_files"),
        (["--lea_methd=LES"], "did you mean `lea_method`"),
        (["--gamma", "7"], "`gamma` is 7, but has to be"),
        (["--learner=sparse_adam"], "`learner` is 'sparse_adam', but has to be one of adam, "),
        (["--save_dataset=True"], "`save_dataset` is True.*pickles"),
        (["--config_files", "more.yaml", "own.yaml"], "`lea_lm`; did you mean `lea_llm`"),
        (["--config_files=list.yaml"], "list.yaml: has to hold lines"),
        (["--config_files=nowhere.yaml"], "config file nowhere.yaml: not found"),
        (["--model=SASRecSA2CLE"], "did you mean `SASRecSA2CLEA`"),
        (["--nproc=2"], "`nproc` is 2.*accelerate launch"),
    ],
)
def test_a_mistake_is_said_before_anything_heavy_is_imported(given, says):
    Path("own.yaml").write_text("lea_lm: x\n")
    Path("more.yaml").write_text("model: SASRecSA2CLEA\n")
    Path("list.yaml").write_text("- 1\n")
    if "--model" not in given[0]:
        given = [*given, "-m", "SASRecSA2CLEA"]
    given = [*given, "--dataset", "ml-100k"]
    code = (
        "import sys\n"
        "from recbole_lea.console import console\n"
        "from recbole_lea.run import main\n"
        "try:\n"
        "    console(main)\n"
        "except SystemExit as end:\n"
        "    print(end.code, file=sys.stderr)\n"
    )
    assert re.search(says, fresh(code + HEAVY, *given))


@pytest.mark.parametrize("module", ["recbole_lea", "run_recbole_lea", "recbole_lea.arguments"])
def test_importing_is_light(module):
    fresh(f"import sys, {module}\n{HEAVY}")


def test_recbole_s_arguments_can_be_replaced(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tool.py", "FILE", "--epochs=3"])
    assert arguments.given() == ["FILE", "--epochs=3"]
    arguments.set_given(["--epochs=3"])
    assert arguments.given() == ["--epochs=3"]
    assert sys.argv == ["tool.py", "FILE", "--epochs=3"]
    monkeypatch.setattr(arguments, "_given", None)
    monkeypatch.setattr(sys, "argv", ["/x/ipykernel_launcher.py", "-f", "kernel.json"])
    assert arguments.given() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_in_one_line(capsys, number):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end:
        console.console(lambda: signal.raise_signal(number))
    assert end.value.code == 128 + number
    assert capsys.readouterr().err == (
        "stopped: the same command goes on with what the cache holds\n"
    )
    assert signal.getsignal(number) == before
