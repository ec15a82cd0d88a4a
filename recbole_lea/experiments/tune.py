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
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from recbole_lea import arguments
from recbole_lea.engine.versions import check_versions

logger = logging.getLogger(__name__)

# Number of bounds of each kind of a space file
BOUNDS = {"choice": None, "uniform": 2, "quniform": 3, "loguniform": 2}

# Packages that each tool needs beside those of recbole, and its search of what is not all choices
NEEDS = {"Hyperopt": ("hyperopt",), "Ray": ("ray", "pyarrow")}
OF_RANGES = {"Hyperopt": "bayes", "Ray": "random"}

# As in RecBole's run_hyper.py: trials without a better score after which Hyperopt stops
PATIENCE = 10

Space = dict[str, tuple[str, list]]
Result = dict[str, Any]


def main() -> None:
    """RecBole's ``run_hyper.py`` for our models: the same flags, any ``--key=value``."""
    options, rest = _parser().parse_known_args(arguments.given())
    for package in NEEDS[options.tool]:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                f"--tool {options.tool} needs the package {package}: pip install "
                "'recbole_lea[tune]', or in its checkout pip install '.[tune]'"
            ) from None
    if options.tool == "Ray":
        check_versions("tune")
    from recbole.config import Config
    from recbole.trainer import HyperTuning

    from recbole_lea.yaml_files import find_config_file, find_config_files

    arguments.set_given(rest)  # what RecBole is to read
    files = [str(Path(file).absolute()) for file in find_config_files(options.config_files)]
    config = Config(options.model, options.dataset, files or None)
    path = find_config_file(options.params_file or f"properties/hyper/{config['model']}.test")
    space = read_space(path)
    check_space(space, path, config)
    choices = all(kind == "choice" for kind, _ in space.values())
    algo = options.algo or ("exhaustive" if choices else OF_RANGES[options.tool])
    if algo == "exhaustive" and not choices:
        raise ValueError(f"{path}: --algo exhaustive needs choices alone; give --algo random")
    trial = partial(run_trial, files=files, fixed=_fixed(config))
    if options.tool == "Hyperopt":
        search = HyperTuning(
            lambda params, _: trial(params), params_file=path, algo=algo, early_stop=PATIENCE,
            max_evals=options.max_evals, display_file=options.display_file,
        )  # fmt: skip
        search.run()
        best, results = search.best_params, search.params2result
    elif algo == "bayes":
        raise ValueError("--tool Ray knows --algo exhaustive and random; bayes is Hyperopt's")
    else:
        done = _by_ray(trial, space, None if algo == "exhaustive" else options.max_evals)
        choose = max if config["valid_metric_bigger"] else min
        best = choose(done, key=lambda trial: trial[1]["best_valid_score"])[0]
        results = {HyperTuning.params2str(params): result for params, result in done}
    HyperTuning.export_result(SimpleNamespace(params2result=results), options.output_file)
    result = results[HyperTuning.params2str(best)]
    print("best params:", dict(best))
    print("best valid result:", dict(result["best_valid_result"]))
    print("its test result:", dict(result["test_result"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_hyper.py",
        description="Search the hyperparameters of a model of recbole_lea by validation. Every "
        "key of the YAML files can be given as --key=value and is then the same in all trials.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", "-m", help="name of the model; or `model` in a YAML file")
    add("--dataset", "-d", help="name of the dataset; or `dataset` in a YAML file")
    add("--config_files", default="", help="YAML files, separated by blanks")
    add("--params_file", help="search space; default: properties/hyper/MODEL.test")
    add("--output_file", default="hyper_example.result", help="all trials' results")
    add("--display_file", help="Hyperopt: an .html picture of the trials")
    add("--tool", choices=NEEDS, default="Hyperopt")
    algo = "default: exhaustive where every line is a choice; else bayes, with Ray random"
    add("--algo", choices=("exhaustive", "random", "bayes"), help=algo)
    add("--max_evals", type=int, default=20, help="trials, unless exhaustive; default 20")
    return parser


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
        bounds = len(values) == BOUNDS.get(kind) and all(isinstance(v, int | float) for v in values)
        if not (values if kind == "choice" else bounds) or line != " ".join(parts):
            raise ValueError(
                f"{path}, line {number}: {line!r} is not `KEY choice [A,B]`, `KEY uniform "
                "LOW,HIGH`, `KEY quniform LOW,HIGH,STEP` or `KEY loguniform LOW,HIGH` (natural "
                "logarithms), with one blank between the parts"
            )
        space[parts[0]] = (kind, values)
    if not space:
        raise ValueError(f"{path} holds no search space")
    return space


def check_space(space: Space, path: str, config: Any) -> None:
    """Refuse what RecBole would take without a word: unknown keys, and keys given for all trials.

    Raises:
        ValueError: also where a key cannot have one of its values.
    """
    from recbole_lea.keys import RECBOLE_RULES, RULES, nearest

    rules = RULES | RECBOLE_RULES
    for key, (kind, values) in space.items():
        if key not in config:
            raise ValueError(f"{path}: unknown key `{key}`{nearest(key, config.final_config_dict)}")
        if key in config.cmd_config_dict:
            raise ValueError(f"{path} searches `{key}`, which --{key}=... fixes: drop one of them")
        remedy = ""
        if kind != "choice":  # both tools draw numbers with a point, also from whole bounds
            scale = math.exp if kind == "loguniform" else float
            values = [scale(value) for value in values[:2]]
            remedy = f"; {kind} gives no whole numbers, choice does"
        for value in values if key in rules else ():
            check, wanted = rules[key]
            if not check(value):
                raise ValueError(f"{path}: `{key}` is {value!r}, but has to be {wanted}{remedy}")


def _fixed(config: Any) -> dict[str, Any]:
    """Keys of all trials; a trial of Ray has a folder of its own."""
    from recbole_lea.keys import absolute_paths

    paths = absolute_paths(config)
    paths["data_path"] = str(Path(paths["data_path"]).parent)  # RecBole appends the dataset's name
    named = {"model": config["model"], "dataset": config["dataset"]}
    return dict(config.cmd_config_dict) | named | paths


def run_trial(params: dict[str, Any], files: list[str], fixed: dict[str, Any]) -> Result:
    """One trial with these keys and files, by RecBole's ``objective_function``."""
    from recbole.quick_start import objective_function

    # the command line is in `fixed`; a Ray worker has options of its own there
    arguments.set_given([])
    return objective_function(fixed | params, files or None)


def _ray_trial(params: dict[str, Any], trial: partial) -> Result:
    # RecBole shows CUDA the GPU `gpu_id`; Ray has given this trial another
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    return trial(params | ({"gpu_id": gpus} if gpus else {}))


def _by_ray(
    trial: partial, space: Space, samples: int | None
) -> list[tuple[dict[str, Any], Result]]:
    """Spread trials over a Ray cluster, a running one or this machine; all choices, or samples."""
    import ray
    import torch
    from ray import tune

    def sampler(kind: str, values: list) -> Any:
        if kind == "choice":
            return (tune.choice if samples else tune.grid_search)(values)
        if kind == "loguniform":
            return tune.loguniform(*map(math.exp, values))
        return getattr(tune, kind)(*map(float, values))

    ray.init(ignore_reinit_error=True)
    try:
        result = tune.run(
            tune.with_parameters(_ray_trial, trial=trial),
            config={key: sampler(*own) for key, own in space.items()}, num_samples=samples or 1,
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
    return [(trial.config, trial.last_result) for trial in done]
