"""The command line: one model on one dataset, by RecBole's own ``run``."""

import argparse
import logging
import os
import sys
from typing import Any

from recbole.config import Config
from recbole.data import data_preparation
from recbole.quick_start import run
from recbole.utils import init_seed, set_color

from recbole_lea.config import find_config_file
from recbole_lea.data.dataset import LEADataset
from recbole_lea.model import MODELS
from recbole_lea.trainer import StepTrainer

logger = logging.getLogger(__name__)


def main() -> dict[str, Any]:
    """RecBole's ``run_recbole.py`` for our models: the same flags, any ``--key=value``.

    Like RecBole's, it reads ``sys.argv``.
    """
    parser = argparse.ArgumentParser(
        prog="run_recbole_lea.py",
        description="Train and test a model of recbole_lea (or of RecBole). Every key of the "
        "YAML files can be given as --key=value.",
    )
    parser.add_argument(
        "--model", "-m", default="SASRecSA2CLEA", help=f"one of {', '.join(MODELS)}"
    )
    parser.add_argument("--dataset", "-d", default="ml-100k", help="name of the dataset")
    parser.add_argument(
        "--config_files", default=None, help="YAML files, separated by blanks; later ones win"
    )
    options, _ = parser.parse_known_args()
    names = options.config_files.split() if options.config_files else []
    files = [find_config_file(name) for name in names]
    result = run(options.model, options.dataset, config_file_list=files or None)
    _report(options.model, options.dataset, files, result)
    return result


def console() -> None:
    """``main`` for the shell: a mistake in the input is one line, not a traceback."""
    try:
        main()
    except (ValueError, KeyError, OSError) as error:
        if os.environ.get("LEA_TRACEBACK"):
            raise
        message = error.args[0] if isinstance(error, KeyError) else error
        sys.exit(f"error: {message} (LEA_TRACEBACK=1 shows where)")


def _report(model: str, dataset: str, files: list[str], result: dict[str, Any]) -> None:
    config = Config(model=model, dataset=dataset, config_file_list=files or None)
    if model in MODELS and config["lea_compare"]:
        stock = train_backbone(config, files)
        lines = [f"  {model:<20}{_line(result['test_result'])}"]
        name = stock["model"]
        if config["lea_output_head"] == "dense":
            name += " (tied head)"
        lines.append(f"  {name:<20}{_line(stock['test_result'])}")
        logger.info(
            set_color("test result beside plain RecBole", "yellow") + ":\n" + "\n".join(lines)
        )
    if config["lea_note"]:
        logger.info(config["lea_note"])


def _line(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def train_backbone(config: Config, files: list[str]) -> dict[str, Any]:
    """Train and test the plain RecBole backbone on the same data, splits and budget.

    Args:
        config: of the LEA model.
        files: its YAML files.

    Returns:
        ``model`` and ``test_result``.
    """
    backbone = MODELS[config["model"]].backbone_class()
    name = backbone.__name__
    ours = {key: value for key, value in config.final_config_dict.items() if key in SHARED_KEYS}
    ours["train_neg_sample_args"] = None
    stock = Config(
        model=name, dataset=config["dataset"], config_file_list=files or None, config_dict=ours
    )
    stock["transform"] = None
    init_seed(stock["seed"], stock["reproducibility"])
    loaders = data_preparation(stock, LEADataset(stock))
    init_seed(stock["seed"], stock["reproducibility"])
    model = backbone(stock, loaders[0]._dataset).to(stock["device"])
    trainer = StepTrainer(stock, model)
    trainer.fit(loaders[0], loaders[1], verbose=False, show_progress=False)
    result = trainer.evaluate(loaders[2], load_best_model=True)
    return {"model": name, "test_result": result}


# What the plain run must have in common: data, splits, budget and measures. The backbone's own
# hyperparameters are RecBole's defaults or what the user gave.
SHARED_KEYS = (
    "load_col", "lea_newest", "eval_protocol", "eval_args", "lea_valid_steps", "metrics", "topk",
    "valid_metric", "epochs", "stopping_step", "train_batch_size", "eval_batch_size",
    "learning_rate", "MAX_ITEM_LIST_LENGTH", "seed",
)  # fmt: skip
