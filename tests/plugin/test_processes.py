"""A run under ``accelerate launch``: two processes build the LE, the first trains with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, tiny_keys

LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]


def run(*launch, cache, **more):
    """The command line on the tiny data; its output, and what its ``run.json`` holds."""
    command = [sys.executable, *launch, str(ROOT / "run_recbole_lea.py"),
               "--model=SASRecSA2CLEA", "--dataset=tiny",
               "--config_files=tiny.yaml", f"--lea_cache_dir={cache}",
               *(f"--{key}={value}" for key, value in more.items())]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    before = seen.copy()
    seen.update(Path("log").glob("*/*/run.json"))
    records = [json.loads(path.read_text()) for path in seen - before]
    return done, records


seen: set[Path] = set()


@pytest.fixture(autouse=True)
def tiny(tiny_dataset, tiny_llm):
    seen.clear()
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny_keys(tiny_llm)), encoding="utf-8")


def test_a_launched_run_gives_the_metrics_of_one_process():
    alone, (expected,) = run(cache="one")
    assert alone.returncode == 0, alone.stderr[-3000:]
    launched, (found,) = run(*LAUNCH, "--main_process_port=0", cache="two")
    assert launched.returncode == 0, launched.stderr[-3000:]
    for part in ("best_valid_result", "test_result"):
        assert found[part] == pytest.approx(expected[part], abs=1e-6)
    # one process says and writes what happens
    assert (launched.stdout + launched.stderr).count("summary\n") == 1
    assert len(list(Path("saved").glob("*.pth"))) == 2


def test_live_feedback_needs_one_process():
    done, records = run(*LAUNCH, "--main_process_port=0", cache="live", transform="lea_live")
    assert done.returncode != 0 and not records
    assert "error: transform: lea_live asks the LLM within the recommender's" in done.stderr
