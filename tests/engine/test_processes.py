"""Several processes build what one builds."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

BUILD = """
import json, sys
import numpy as np
from recbole_lea.le import LESettings, Pipeline
from recbole_lea.engine.processes import processes
from tests.le.helpers import CATALOGUE, SEQUENCES

asked = json.load(open(sys.argv[1]))
assert processes().num_processes == asked["processes"]
le = Pipeline(LESettings(**asked["settings"]), CATALOGUE, SEQUENCES, "d", progress_bar=False)
le.precomputed(want_states=True, want_rewards=True)
candidates = np.arange(SEQUENCES.n_transitions * 5).reshape(-1, 5) % len(CATALOGUE)
if processes().is_main_process:
    le.select(candidates, want_rewards=True)
    le.release()
else:
    le.assist()
"""


def build(settings, cache, processes, tmp_path):
    asked = {
        "settings": dataclasses.asdict(dataclasses.replace(settings, cache_dir=str(cache))),
        "processes": processes,
    }
    job, script = tmp_path / "job.json", tmp_path / "build.py"
    job.write_text(json.dumps(asked))
    script.write_text(BUILD)
    command = [sys.executable, str(script), str(job)]
    if processes > 1:
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes"]
        command[1:1] = [*launch, str(processes), "--main_process_port", "0"]
    # the same number of threads everywhere: it decides the order of float32 sums
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return next(Path(cache).iterdir())


def arrays(folder):
    return {
        f"{path.parent.name}/{path.name}": np.load(path) for path in sorted(folder.rglob("*.npy"))
    }


def test_two_processes_build_what_one_builds(settings, tmp_path):
    s = settings(row_length=32, batch_rows=2)
    alone = build(s, tmp_path / "one", 1, tmp_path)
    together = build(s, tmp_path / "two", 2, tmp_path)
    tokens, adapter = "items-*/tokens.npy", "environment-*/adapter.safetensors"
    one, two = (np.load(next(folder.glob(tokens))) for folder in (alone, together))
    np.testing.assert_array_equal(one, two)
    one, two = (load_file(next(folder.glob(adapter))) for folder in (alone, together))
    for name, tensor in one.items():
        np.testing.assert_allclose(two[name], tensor, rtol=1e-3, atol=1e-5)

    # from the same LE, the feedback is the same bit for bit
    for stage in together.iterdir():
        if stage.is_dir() and stage.name.split("-")[0] not in ("items", "environment"):
            shutil.rmtree(stage)
    for stage in ("items", "environment"):
        source = next(alone.glob(f"{stage}-*"))
        shutil.copytree(source, together / source.name, dirs_exist_ok=True)
    build(s, tmp_path / "two", 2, tmp_path)
    one, two = arrays(alone), arrays(together)
    assert set(one) == set(two)
    assert {name.split("-")[0] for name in one} >= {"states", "rewards", "selection"}
    for name, values in one.items():
        np.testing.assert_array_equal(two[name], values, err_msg=name)
