"""Search of hyperparameters by RecBole's HyperTuning, or by Ray Tune over a cluster.

A search space is a file in RecBole's format, one key a line; it knows no comments:

    learning_rate loguniform -8,-5      from e^-8 to e^-5
    hidden_dropout_prob uniform 0.1,0.5
    dropout_prob quniform 0.1,0.5,0.1   in steps of 0.1; for whole numbers use choice
    w_ah choice [0.05,0.1,0.2]

``properties/hyper/<model>.test`` has one for each model on SASRec and GRU4Rec. Trials are compared
by validation alone.
"""

import argparse
import ast
import importlib
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.quick_start import objective_function
from recbole.trainer import HyperTuning
from recbole.utils import dict2str

from recbole_lea.keys import RECBOLE_RULES, RULES, absolute_paths, nearest
from recbole_lea.store.files import write_bytes
from recbole_lea.yaml_files import find_config_file, find_config_files

logger = logging.getLogger(__name__)

# Number of bounds of each kind of a space file
KINDS = {"choice": None, "uniform": 2, "quniform": 3, "loguniform": 2}

# Packages that each tool needs beside those of recbole
NEEDS = {"Hyperopt": ("hyperopt",), "Ray": ("ray", "pyarrow")}

# As in RecBole's run_hyper.py: trials without a better score after which Hyperopt stops
PATIENCE = 10

Space = dict[str, tuple[str, list]]


def main() -> None:
    """RecBole's ``run_hyper.py`` for our models: the same flags, any ``--key=value``."""
    parser = argparse.ArgumentParser(
        prog="run_hyper.py",
        description="Search the hyperparameters of a model of recbole_lea by validation. Every "
        "key of the YAML files can be given as --key=value and is then the same in all trials.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", "-m", help="name of the model; or `model` in a YAML file")
    parser.add_argument("--dataset", "-d", help="name of the dataset; or `dataset` in a YAML file")
    parser.add_argument("--config_files", default="", help="YAML files, separated by blanks")
    parser.add_argument("--params_file", help="search space; default: properties/hyper/MODEL.test")
    parser.add_argument("--output_file", default="hyper_example.result", help="all trials' results")
    parser.add_argument("--display_file", help="Hyperopt: an .html picture of the trials")
    parser.add_argument("--tool", choices=NEEDS, default="Hyperopt")
    parser.add_argument(
        "--algo",
        choices=("exhaustive", "random", "bayes"),
        help="default: exhaustive where every line is a choice; else bayes, with Ray random",
    )
    parser.add_argument(
        "--max_evals", type=int, default=20, help="trials, unless exhaustive; default 20"
    )
    options, rest = parser.parse_known_args()
    sys.argv = [sys.argv[0], *rest]  # what RecBole is to read
    for package in NEEDS[options.tool]:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                f"--tool {options.tool} needs the package {package}: pip install "
                "'recbole_lea[tune]', or in its checkout pip install '.[tune]'"
            ) from None
    files = [str(Path(file).absolute()) for file in find_config_files(options.config_files)]
    config = Config(options.model, options.dataset, files or None)
    path = find_config_file(options.params_file or f"properties/hyper/{config['model']}.test")
    space = read_space(path)
    _check(space, path, config)
    fixed = _fixed(config)
    sys.argv = sys.argv[:1]  # it is in `fixed`; a Ray worker has others of its own
    algo = options.algo or _algorithm(space, options.tool)
    if algo == "exhaustive" and _algorithm(space, options.tool) != algo:
        raise ValueError(f"{path}: --algo exhaustive needs choices alone; give --algo random")
    if options.tool == "Ray":
        if algo == "bayes":
            raise ValueError("--tool Ray knows --algo exhaustive and random; bayes is Hyperopt's")
        _by_ray(space, fixed, files, algo, options.max_evals, config, Path(options.output_file))
        return
    search = HyperTuning(
        partial(run_trial, fixed=fixed), params_file=path, fixed_config_file_list=files or None,
        algo=algo, max_evals=options.max_evals, early_stop=PATIENCE,
        display_file=options.display_file,
    )  # fmt: skip
    search.run()
    search.export_result(options.output_file)
    _report(search.best_params, search.params2result[search.params2str(search.best_params)])


def read_space(path: str | Path) -> Space:
    """A file in RecBole's format: key -> its kind, and the choices or bounds.

    Raises:
        ValueError: a line is not in this format.
    """
    space: Space = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        # RecBole reads at single blanks, and the values without any
        kind, text = (parts[1], "".join(parts[2:])) if len(parts) > 2 else ("", "")
        try:
            values = list(ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError):
            values = []
        wanted = KINDS.get(kind)
        numbers = all(isinstance(v, int | float) for v in values)
        right = bool(values) if kind == "choice" else len(values) == wanted and numbers
        if kind not in KINDS or not right or line != " ".join(parts):
            raise ValueError(
                f"{path}, line {number}: {line!r} is not `KEY choice [A,B]`, `KEY uniform "
                "LOW,HIGH`, `KEY quniform LOW,HIGH,STEP` or `KEY loguniform LOW,HIGH` (natural "
                "logarithms), with one blank between the parts"
            )
        space[parts[0]] = (kind, values)
    if not space:
        raise ValueError(f"{path} holds no search space")
    return space


def _check(space: Space, path: str, config: Config) -> None:
    """RecBole would take an unknown key, and what the command line overrides, without a word."""
    rules = RULES | RECBOLE_RULES
    for key, (kind, values) in space.items():
        if key not in config:
            raise ValueError(f"{path}: unknown key `{key}`{nearest(key, config.final_config_dict)}")
        if key in config.cmd_config_dict:
            raise ValueError(f"{path} searches `{key}`, which --{key}=... fixes: drop one of them")
        remedy = ""
        if kind != "choice":  # both tools draw numbers with a point, also from whole bounds
            values = [float(value) for value in values[:2]]
            remedy = f"; {kind} gives no whole numbers, choice does"
        if kind == "loguniform":
            values = [math.exp(value) for value in values]
        for value in values if key in rules else ():
            check, wanted = rules[key]
            if not check(value):
                raise ValueError(f"{path}: `{key}` is {value!r}, but has to be {wanted}{remedy}")


def _algorithm(space: Space, tool: str) -> str:
    if all(kind == "choice" for kind, _ in space.values()):
        return "exhaustive"
    return "random" if tool == "Ray" else "bayes"


def _fixed(config: Config) -> dict[str, Any]:
    """Keys of all trials; a trial of Ray has a folder of its own."""
    paths = absolute_paths(config)
    paths["data_path"] = str(Path(paths["data_path"]).parent)  # RecBole appends the dataset's name
    named = {"model": config["model"], "dataset": config["dataset"]}
    return dict(config.cmd_config_dict) | named | paths


def run_trial(
    params: Mapping[str, Any], files: Sequence[str] | None = None, *, fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """One trial, by RecBole's ``objective_function``.

    Args:
        params: what is searched.
        files: YAML files of all trials.
        fixed: keys of all trials.

    Returns:
        ``model``, ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result`` and
        ``test_result``.
    """
    return objective_function(dict(fixed) | dict(params), list(files or []) or None)


def _ray_trial(params: dict[str, Any], files: list[str], fixed: dict[str, Any]) -> dict[str, Any]:
    """A trial in a worker of Ray, in a folder of its own."""
    sys.argv = sys.argv[:1]  # RecBole would take the worker's options for keys
    # RecBole shows CUDA the GPU `gpu_id`; Ray has given this trial another
    if gpus := os.environ.get("CUDA_VISIBLE_DEVICES"):
        fixed = fixed | {"gpu_id": gpus}
    return run_trial(params, files, fixed=fixed)


def _by_ray(
    space: Space,
    fixed: dict[str, Any],
    files: list[str],
    algo: str,
    max_evals: int,
    config: Config,
    output: Path,
) -> None:
    """Spread the trials over a Ray cluster: a running one, or this machine."""
    import ray
    from ray import tune

    samplers = {
        "choice": tune.grid_search if algo == "exhaustive" else tune.choice,
        "uniform": tune.uniform,
        "quniform": tune.quniform,
        "loguniform": lambda low, high: tune.loguniform(math.exp(low), math.exp(high)),
    }
    searched = {
        key: samplers[kind](values) if kind == "choice" else samplers[kind](*map(float, values))
        for key, (kind, values) in space.items()
    }
    ray.init(ignore_reinit_error=True)
    try:
        result = tune.run(
            tune.with_parameters(_ray_trial, files=files, fixed=fixed),
            config=searched, num_samples=1 if algo == "exhaustive" else max_evals,
            resources_per_trial={"cpu": 1, "gpu": int(torch.cuda.is_available())},
            storage_path=str(Path("ray_log").absolute()), raise_on_failed_trial=False, verbose=1,
            # a newer Ray leaves what a trial writes in its session's temporary folder
            sync_config=tune.SyncConfig(sync_artifacts=True),
        )  # fmt: skip
        done = [trial for trial in result.trials if "best_valid_score" in (trial.last_result or {})]
        # a newer Ray tells these files only until it is shut down
        errors = [trial.error_file for trial in result.trials if trial not in done]
    finally:
        ray.shutdown()
    if not done:
        raise ValueError(f"no trial has finished; the first one's error: {errors[0]}")
    for file in errors:
        logger.warning("a trial has failed: %s", file)
    lines = []
    for trial in done:
        lines += [
            HyperTuning.params2str(trial.config),
            f"Valid result:\n{dict2str(trial.last_result['best_valid_result'])}",
            f"Test result:\n{dict2str(trial.last_result['test_result'])}\n",
        ]
    write_bytes(output, "\n".join([*lines, ""]).encode())
    mode = max if config["valid_metric_bigger"] else min
    best = mode(done, key=lambda trial: trial.last_result["best_valid_score"])
    _report(best.config, best.last_result)


def _report(params: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    print("best params:", dict(params))
    print("best valid result:", dict(result["best_valid_result"]))
    print("its test result:", dict(result["test_result"]))
