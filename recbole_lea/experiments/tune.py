"""Search of hyperparameters by RecBole's HyperTuning, which uses Hyperopt.

A search space is a file in RecBole's format, one key a line; it knows no comments:

    learning_rate loguniform -8,-5      from e^-8 to e^-5
    hidden_dropout_prob uniform 0.1,0.5
    dropout_prob quniform 0.1,0.5,0.1   in steps of 0.1; for whole numbers use choice
    w_ah choice [0.05,0.1,0.2]
    advantage_clip choice [[0,10],[0,5]]

Trials are compared by validation alone.
"""

import logging
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recbole_lea.arguments import CONFIG_FILES, Parser, literals, path
from recbole_lea.keys import built_in_types, check_values, nearest
from recbole_lea.yaml_files import find_config_file, find_config_files

logger = logging.getLogger(__name__)

# As in RecBole's run_hyper.py: trials without a better score after which a random search stops
PATIENCE = 10


def main() -> None:
    """RecBole's ``run_hyper.py`` for our models: the same flags, any ``--key=value``."""
    parser = _parser()
    options = parser.read()
    if options.tool != "Hyperopt":
        raise ValueError(f"--tool {options.tool}: the search is by Hyperopt alone, the default")
    try:
        from hyperopt.exceptions import AllTrialsFailed
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the search needs the package hyperopt: pip install 'recbole_lea[tune]', or in its "
            "checkout pip install '.[tune]'"
        ) from None
    from recbole.config import Config
    from recbole.quick_start import objective_function
    from recbole.trainer import HyperTuning

    files = find_config_files(options.config_files) or None
    config = Config(options.model, options.dataset, files)
    parser.refuse_unread(config["model"])
    named = {"model": config["model"], "dataset": config["dataset"]}
    file = find_config_file(options.params_file or f"properties/hyper/{config['model']}.test")
    space = read_space(file, config)
    choices = all(draw.name == "switch" for draw in space.values())
    if options.algo == "exhaustive" and not choices:
        raise ValueError(f"{file}: --algo exhaustive needs choices alone; give --algo random")
    algo = options.algo or ("exhaustive" if choices else "bayes")
    search = HyperTuning(
        lambda params, _: objective_function(named | params, files), space=space, algo=algo,
        early_stop=sys.maxsize if algo == "exhaustive" else PATIENCE,
        max_evals=options.max_evals, display_file=options.display_file,
    )  # fmt: skip
    search.trial = partial(tried, search, search.trial)
    try:
        search.run()
    except AllTrialsFailed:
        raise ValueError("no trial has finished: the warnings above say why") from None
    finally:  # also after Ctrl-C
        if search.params2result:
            search.export_result(options.output_file)
    if (n := len(search.params_list)) < search.max_evals:
        logger.warning(
            "the search ended after %d of %d trials: it stops after %d without a better score",
            n, search.max_evals, PATIENCE,
        )  # fmt: skip
    result = search.params2result[search.params2str(search.best_params)]
    print("best params:", literals(search.best_params))
    print("best valid result:", dict(result["best_valid_result"]))
    print("its test result:", dict(result["test_result"]))


def _parser() -> Parser:
    parser = Parser(
        "run_hyper.py",
        "Search the hyperparameters of a model of recbole_lea by validation. Every key of the YAML "
        "files can be given as --key=value or --key value and is then the same in all trials.",
    )
    add = parser.add_argument
    add("--model", "-m", help="name of the model; or `model` in a YAML file")
    add("--dataset", "-d", help="name of the dataset; or `dataset` in a YAML file")
    add("--config_files", **CONFIG_FILES)
    add("--params_file", help="search space; default: properties/hyper/MODEL.test")
    add("--output_file", type=path, default="hyper_example.result", help="all trials' results")
    add("--display_file", type=path, help="an .html picture of the trials")
    add("--tool", default="Hyperopt", help="Hyperopt alone")
    algo = "default: exhaustive where every line is a choice, else bayes"
    add("--algo", choices=("exhaustive", "random", "bayes"), help=algo)
    add("--max_evals", type=int, default=20, help="trials, unless exhaustive; default 20")
    return parser


def read_space(path: str, config: Any) -> dict[str, Any]:
    """Hyperopt's space of a file.

    Raises a ValueError if it is not in RecBole's format, or a key is unknown, the same in all
    trials, or cannot have a value that the file gives it.
    """
    from hyperopt import hp
    from hyperopt.pyll.base import rec_eval
    from hyperopt.pyll.stochastic import sample
    from recbole.trainer import HyperTuning

    lines = Path(path).read_text(encoding="utf-8").splitlines()
    try:
        space = HyperTuning._build_space_from_file(path)
        if not space or len(space) < sum(map(bool, map(str.strip, lines))):
            raise ValueError("a line is incomplete")  # RecBole skips it without a word
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(
            f"{path} holds no search space ({error}): each line has to be `KEY choice [A,B]`, `KEY "
            "uniform LOW,HIGH`, `KEY quniform LOW,HIGH,STEP` or `KEY loguniform LOW,HIGH` "
            "(natural logarithms), with one blank between the parts"
        ) from None
    for key, draw in space.items():
        if draw.name == "switch":  # Hyperopt takes a list for another space: it is given its text
            values = built_in_types([rec_eval(value) for value in draw.pos_args[1:]])
            space[key] = hp.choice(key, [str(v) if isinstance(v, list) else v for v in values])
        if key not in config:
            raise ValueError(f"{path}: unknown key `{key}`{nearest(key, config.final_config_dict)}")
        if key in config.cmd_config_dict:
            raise ValueError(f"{path} searches `{key}`, which --{key}=... fixes: drop one of them")
    rng = np.random.RandomState(0)  # Hyperopt 0.2.5 knows no Generator
    try:
        for _ in range(100):  # such a trial would fail hours later
            check_values(literals(sample(space, rng)), space)
    except ValueError as error:
        raise ValueError(f"{path}: {error} (choice alone gives whole numbers)") from None
    return space


def tried(search: Any, trial: Callable[[dict], dict], params: dict[str, Any]) -> dict[str, Any]:
    """What Hyperopt is told of a trial: one that fails counts as failed, and the others go on."""
    try:
        return trial(params)
    except Exception as error:
        logger.warning("a trial has failed: %s: %s", params, error)
        search.score_list.append(math.nan)  # the picture has a score for each trial
        return {"status": "fail", "loss": sys.float_info.max}  # Hyperopt's early stop reads it
