"""The one module that touches RecBole's internals.

Each function says which behaviour of recbole 1.2.1 it answers. Importing ``recbole_lea`` calls
``register`` once.
"""

import functools
import logging
import os
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import recbole
import recbole.config
import recbole.data.dataset
import recbole.data.transform
import recbole.model
import recbole.trainer
import recbole.utils
import torch
import yaml
from recbole.config import Config
from recbole.utils.argument_list import dataset_arguments

from recbole_lea import config as lea_config
from recbole_lea.data.dataset import LEADataset
from recbole_lea.data.transform import TRANSFORMS
from recbole_lea.le.processes import processes
from recbole_lea.model import backbones, lea_model
from recbole_lea.model.lea import LEARecommender
from recbole_lea.trainer import LEATrainer

logger = logging.getLogger(__name__)

# Keys that change what a dataset holds: a dataset or loader cached under others is not reused.
DATASET_KEYS = sorted({*lea_config.RULES, "transform"} - {"lea_compare", "lea_note"})


def register() -> None:
    """Make RecBole know our models, datasets, trainers, transforms and YAML files."""
    # sine.py switches autograd's anomaly detection on for every sequential model: 2.5 to 4
    # times slower training, and it stays on for the whole process.
    torch.autograd.set_detect_anomaly(False)
    for name in backbones.names():
        setattr(recbole.trainer, f"{name}Trainer", LEATrainer)
        setattr(recbole.data.dataset, f"{name}Dataset", LEADataset)
    _replace(recbole.utils, "get_model", _get_model)
    _replace(recbole.utils, "init_logger", _init_logger)
    _replace(recbole.data.transform, "construct_transform", _construct_transform)
    Config._load_internal_config_dict = _with_our_yaml(Config._load_internal_config_dict)
    recbole.trainer.Trainer._save_checkpoint = _save_checkpoint
    dataset_arguments.extend(key for key in DATASET_KEYS if key not in dataset_arguments)


def _replace(module: Any, name: str, make: Callable) -> None:
    """Rebind a function in its module and in every RecBole module that imported it by name."""
    original = getattr(module, name)
    replacement = functools.wraps(original)(functools.partial(make, original))
    for other in list(sys.modules.values()):
        if getattr(other, "__name__", "").startswith("recbole."):
            for attribute, value in list(vars(other).items()):
                if value is original:
                    setattr(other, attribute, replacement)


def _get_model(original: Callable, name: str) -> type:
    """Our models by name; for a mistyped name, an error that suggests the nearest one."""
    if model := lea_model(name):
        return model
    try:
        return original(name)
    except (ValueError, ModuleNotFoundError, AttributeError) as error:
        # RecBole's search ends in its optional packages: "No module named 'lightgbm'"
        if name.lower() in _stock_modules():
            raise
        known = [*backbones.names(), *_stock_models()]
        raise ValueError(f"unknown model `{name}`{lea_config.nearest(name, known)}") from error


def _stock_models() -> list[str]:
    import recbole.model.general_recommender as general
    import recbole.model.sequential_recommender as sequential

    return [name for module in (general, sequential) for name in vars(module) if name[0].isupper()]


def _stock_modules() -> set[str]:
    """Module names of RecBole's models, those of optional packages included."""
    folders = [folder.path for folder in os.scandir(recbole.model.__path__[0]) if folder.is_dir()]
    return {module.name for module in pkgutil.iter_modules(folders)}


def _construct_transform(original: Callable, config: Config) -> Any:
    """RecBole's table of transforms is a local variable: ours are looked up first."""
    if config["transform"] in TRANSFORMS:
        return TRANSFORMS[config["transform"]](config)
    return original(config)


def _init_logger(original: Callable, config: Config) -> None:
    """RecBole keeps the log's path to itself; ``config["log_file"]`` remembers it.

    Of several processes that build one LE, the main one logs.
    """
    if not processes().is_main_process:
        logging.basicConfig(level=logging.ERROR)
        config["log_file"] = None
        return
    folder = Path("log") / config["model"]
    before = set(folder.glob("*.log"))
    original(config)
    new = set(folder.glob("*.log")) - before
    config["log_file"] = str(new.pop()) if new else None


def _with_our_yaml(original: Callable) -> Callable:
    """Read our defaults after RecBole's of the backbone for our models, and check our keys."""

    @functools.wraps(original)
    def load(self: Config, model: str, model_class: type, dataset: str) -> None:
        if not issubclass(model_class, LEARecommender):
            return original(self, model, model_class, dataset)
        original(self, model_class.backbone_class().__name__, model_class, dataset)
        for path in lea_config.internal_files(model, dataset):
            self._update_internal_config_dict(str(path))
        merged = self.internal_config_dict | self.external_config_dict
        lea_config.validate(merged, self.external_config_dict)
        if merged["eval_protocol"] == "paper":
            self.internal_config_dict["eval_args"] = lea_config.PAPER_EVAL_ARGS

    return load


def backbone_keys(backbone: str) -> list[str]:
    """Names of the hyperparameters in RecBole's own YAML file of a model."""
    path = Path(recbole.__file__).parent / "properties" / "model" / f"{backbone}.yaml"
    return list(yaml.safe_load(path.read_text(encoding="utf-8")) or {})


def evaluate_rows(trainer: Any, data: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """RecBole's test of the best model, and what each row contributes to it.

    RecBole's metrics average over the rows in ``TopkMetric.topk_result``.

    Args:
        trainer: after ``fit``.
        data: the test loader.

    Returns:
        The test result, and the same names with values [n_rows], in the order of
        ``data._dataset``.
    """
    rows: dict[str, np.ndarray] = {}
    metrics = trainer.evaluator.metric_class.values()

    def watched(metric: Any) -> Callable:
        def topk_result(name: str, value: np.ndarray) -> dict[str, float]:
            rows.update({f"{name}@{k}": value[:, k - 1] for k in metric.topk})
            return type(metric).topk_result(metric, name, value)

        return topk_result

    for metric in metrics:
        metric.topk_result = watched(metric)
    try:
        return dict(trainer.evaluate(data)), rows
    finally:
        for metric in metrics:
            del metric.topk_result


def plain(value: Any) -> Any:
    """The value in built-in types, as YAML and a checkpoint without pickled classes hold them."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        return float(value) if isinstance(value, float) else int(value)
    return str(value)


# What RecBole works out itself from the other keys; a checkpoint holds its text alone.
DERIVED = ("MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "device", "single_spec", "local_rank")


def restored_config(saved: dict[str, Any]) -> Config:
    """RecBole's config from what ``plain`` made of it.

    Keys on the command line win, so that data and caches may lie elsewhere than they did.

    Args:
        saved: ``checkpoint["config"]``, or some of it.

    Returns:
        A config for this machine: of what depends on it, nothing is taken over.
    """
    # RecBole refuses its own default beside loss_type CE
    given = {"train_neg_sample_args": None}
    config = Config(saved["model"], saved["dataset"], config_dict=given)
    keep = {*DERIVED, *config.cmd_config_dict}
    if saved["dataset"] == "ml-100k":  # inside RecBole's own package, here as there
        keep.add("data_path")
    for key, value in saved.items():
        if key not in keep:
            config[key] = value
    return config


def _save_checkpoint(self: Any, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
    """RecBole's checkpoint without its pickled Config, which torch >= 2.6 refuses to load."""
    if not self.config["single_spec"] and self.config["local_rank"] != 0:
        return
    path = kwargs.pop("saved_model_file", self.saved_model_file)
    state = {
        "config": plain(self.config.final_config_dict),
        "epoch": int(epoch),
        "cur_step": int(self.cur_step),
        "best_valid_score": float(self.best_valid_score),
        "state_dict": self.model.state_dict(),
        "other_parameter": self.model.other_parameter(),
        "optimizer": self.optimizer.state_dict(),
    }
    torch.save(state, path)
    if verbose:
        self.logger.info(recbole.utils.set_color("Saving current", "blue") + f": {path}")
