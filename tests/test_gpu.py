"""The same on a GPU, where there is one: whole runs, and the LE's answers beside a CPU's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from recbole_lea.model import MODELS
from recbole_lea.store.files import read_array
from tests.conftest import tiny_keys
from tests.plugin.test_quick_start import run as script


@pytest.fixture(scope="session")
def gpu():
    """Skips where there is none; only a process that may see GPUs can tell."""
    code = "import torch; print(torch.cuda.is_available())"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "0"},
    )  # fmt: skip
    if "True" not in found.stdout:
        pytest.skip("no CUDA GPU here")


@pytest.fixture
def run(gpu, tiny_dataset, tiny_llm):
    """Runs the script on the tiny dataset, on the GPU unless told otherwise; its run.json."""
    keys = tiny_keys(tiny_llm)
    del keys["gpu_id"]
    Path("tiny.yaml").write_text(yaml.safe_dump(keys), encoding="utf-8")

    def start(model, *arguments):
        before = set(Path().glob("log/*/*/run.json"))
        code, output = script(
            f"--model={model}", "--dataset=tiny", "--config_files=tiny.yaml", *arguments
        )
        assert code == 0, output[-3000:]
        (record,) = set(Path().glob("log/*/*/run.json")) - before
        return json.loads(record.read_text())

    return start


@pytest.mark.parametrize("transform", ["lea_feedback", "lea_live"])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_and_tests(run, model, transform):
    record = run(model, f"--transform={transform}", "--lea_compile=True", "--lea_compare=True")
    assert record["device"] != "cpu"
    assert record["stages"]["LE fine-tuning"]["peak_gpu_memory_mb"] > 0
    assert record["test_result"]["hit@10"] >= 0


def test_gpu_id_chooses_cpus_for_all(run):
    record = run("SASRecSA2CLEA", "--gpu_id=")
    assert record["device"] == "cpu"
    assert record["stages"]["LE fine-tuning"].get("peak_gpu_memory_mb", 0) == 0


def test_feedback_is_that_of_a_cpu(run):
    run("SASRecSA2CLEA", "--gpu_id=", "--lea_stop_after=feedback")
    found = {}
    for stage in ("states", "rewards"):
        (path,) = Path("lea_cache/tiny").glob(f"{stage}-*/{stage}.npy")
        found[path] = read_array(path)
        path.unlink()
    run("SASRecSA2CLEA", "--lea_stop_after=feedback")
    for path, expected in found.items():
        np.testing.assert_allclose(read_array(path), expected, rtol=1e-3, atol=1e-4)
