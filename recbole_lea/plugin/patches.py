"""The one module that changes RecBole's internals.

Each function says which behaviour of recbole 1.2.1 it answers. Importing ``recbole_lea`` calls
``register`` once.
"""

import ast
import functools
import importlib
import inspect
import itertools
import logging
import os
import pickle
import pkgutil
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import recbole
import recbole.config
import recbole.data.dataset
import recbole.data.transform
import recbole.data.utils
import recbole.model
import recbole.trainer
import recbole.trainer.hyper_tuning
import recbole.utils
import torch
import yaml
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader, NegSampleEvalDataLoader
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.evaluator.collector import Collector, DataStruct
from recbole.utils import argument_list
from torch.utils.data import DataLoader

from recbole_lea import arguments
from recbole_lea.engine.processes import Share, collected, processes
from recbole_lea.model import lea_model
from recbole_lea.model import registry as backbones
from recbole_lea.model.recommender import LEARecommender
from recbole_lea.plugin import distributed
from recbole_lea.plugin.checkpoints import refuse_damaged
from recbole_lea.plugin.checks import validate, warn_of_unknown
from recbole_lea.plugin.dataset import LEADataset
from recbole_lea.plugin.keys import PAPER_EVAL_ARGS, literal, nearest, plain
from recbole_lea.plugin.trainer import LEATrainer
from recbole_lea.plugin.transform import TRANSFORMS
from recbole_lea.store.files import replacing
from recbole_lea.yaml_files import internal_files

logger = logging.getLogger(__name__)

# Keys that RecBole reads, or its scripts take, but that no YAML file of its has.
KEYS_WITHOUT_DEFAULT = (
    "model", "dataset", "config_files", "config_file_list", "encoding", "local_rank", "nproc",
    "world_size", "offset", "group_offset", "ip", "port", "tail_ratio", "reg_weight",
    "numerical_features", "params_file", "output_file", "display_file", "tool", "max_evals",
    "model_list", "valid_latex", "test_latex",
)  # fmt: skip


def register() -> None:
    """Make RecBole know our models, datasets, trainers, transforms and YAML files."""
    _name_numpy_types()
    quick_start = _import_quick_start()
    # sine.py switches autograd's anomaly detection on for every sequential model: 2.5 to 4
    # times slower training, and it stays on for the whole process.
    torch.autograd.set_detect_anomaly(False)
    for name in backbones.names():
        setattr(recbole.trainer, f"{name}Trainer", LEATrainer)
        setattr(recbole.data.dataset, f"{name}Dataset", LEADataset)
    _replace(recbole.utils, "get_model", _get_model)
    _replace(recbole.utils, "init_logger", _init_logger)
    _replace(recbole.utils, "get_tensorboard", _get_tensorboard)
    _replace(recbole.utils, "ensure_dir", lambda _, dir_path: os.makedirs(dir_path, exist_ok=True))
    _replace(recbole.data.transform, "construct_transform", _construct_transform)
    Config._build_yaml_loader = lambda self: _YAMLLoader
    Config._load_config_files = _load_config_files
    Config._load_cmd_line = _load_cmd_line
    Config._convert_config_dict = _convert_config_dict
    Config._load_internal_config_dict = _with_our_yaml(Config._load_internal_config_dict)
    Config._init_device = _in_several_processes(Config._init_device)
    # a module's own name goes before the builtin: run_hyper.py's lists of choices
    recbole.trainer.hyper_tuning.eval = ast.literal_eval
    recbole.data.utils.pickle = types.SimpleNamespace(load=_refuse_pickle, dump=pickle.dump)
    trainer = recbole.trainer.Trainer
    trainer._save_checkpoint = _save_checkpoint
    trainer.resume_checkpoint = _names_bad_checkpoint(trainer.resume_checkpoint)
    trainer.evaluate = _names_bad_checkpoint(trainer.evaluate)
    trainer.__init__ = _set_up_for_several(trainer.__init__)
    trainer._train_epoch = _shared_epoch(trainer._train_epoch)
    AbstractDataLoader.share = property(_share)
    AbstractDataLoader._index_sampler = property(_index_sampler)
    Collector.get_data_struct = _get_data_struct
    # so its processes import recbole_lea, and report mistakes shortly
    quick_start.run_recboles = distributed.run_rank


def _name_numpy_types() -> None:
    """``Config`` reads three names that numpy 2 has dropped."""
    for name, scalar in (
        ("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)
    ):  # fmt: skip
        if not hasattr(np, name):
            setattr(np, name, scalar)


def _import_quick_start() -> Any:
    """RecBole's module ``quick_start``.

    It imports ``ray.tune``, to report a trial's test metrics there. RecBole wants ray <= 2.6.3,
    which Python 3.12 and newer cannot have. Without Ray nothing is reported, as there is nothing
    to report to; a newer one gets the metrics as one dict.
    """
    name = "recbole.quick_start.quick_start"
    try:
        from ray import tune
    except ImportError:
        # one that is there, but without what its ray.tune needs
        kept = {key: module for key, module in sys.modules.items() if key == "ray"}
        stand_in: Any = types.ModuleType("ray")
        stand_in.tune = types.SimpleNamespace(report=lambda **metrics: None)
        sys.modules["ray"] = stand_in
        try:
            return importlib.import_module(name)
        finally:  # other packages look whether Ray is there
            del sys.modules["ray"]
            sys.modules.update(kept)
    quick_start: Any = importlib.import_module(name)
    if sys.version_info >= (3, 12):
        quick_start.tune = types.SimpleNamespace(report=lambda **metrics: tune.report(metrics))
    return quick_start


def _replace(module: Any, name: str, make: Callable) -> None:
    """Rebind a function in its module and in every module that imported it by name before.

    A script or notebook may well have done so: import sorters put recbole before recbole_lea.
    """
    original = getattr(module, name)
    replacement = functools.wraps(original)(functools.partial(make, original))
    for other in list(sys.modules.values()):
        if isinstance(other, types.ModuleType):
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
        raise ValueError(f"unknown model `{name}`{nearest(name, known)}") from error


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


def _get_tensorboard(original: Callable, *arguments: Any) -> Any:
    """Of several processes that train together, the main one alone leaves a record."""
    if processes().is_main_process:
        return original(*arguments)

    def nothing(*args: Any, **kwargs: Any) -> None: ...

    return types.SimpleNamespace(add_scalar=nothing, add_hparams=nothing)


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C: ten times faster


class _YAMLLoader(_SafeLoader):
    """YAML's plain values alone; RecBole's FullLoader also looks up names of Python modules."""


# RecBole's addition to YAML 1.1, where 1e-3 would be a text
_YAMLLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.[\d_]+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _load_config_files(self: Config, file_list: list[str] | None) -> dict[str, Any]:
    """YAML files, later ones overriding earlier ones.

    Raises:
        ValueError: a file is not YAML, or not a mapping of keys to plain values.
    """
    values: dict[str, Any] = {}
    for file in file_list or ():
        try:
            content = yaml.load(Path(file).read_text(encoding="utf-8"), Loader=self.yaml_loader)
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{file}: not YAML with plain values: {error}") from error
        if not isinstance(content, dict | None) or not all(
            isinstance(k, str) for k in content or ()
        ):
            raise ValueError(f"{file}: has to hold lines `key: value`")
        values.update(content or {})
    return values


def _load_cmd_line(self: Config) -> dict[str, Any]:
    """``--key=value``; RecBole drops values that hold a ``=``.

    Raises:
        ValueError: a key is given twice, with different values.
    """
    given: dict[str, str] = {}
    unused = []
    for argument in arguments.given():
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals:
            unused.append(argument)
        elif given.setdefault(key, value) != value:
            raise ValueError(f"`{key}` is given twice: --{key}={given[key]} and --{key}={value}")
    if unused:
        logger.warning(
            "not of the form --key=value, so RecBole does not read it: %s", " ".join(unused)
        )
    return self._convert_config_dict(given)


def _convert_config_dict(self: Config, values: dict[str, Any]) -> dict[str, Any]:
    """Texts as the literals they are; RecBole runs them through ``eval``."""
    return {
        key: literal(key, value) if isinstance(value, str) else value
        for key, value in values.items()
    }


def _refuse_pickle(stream: Any) -> None:
    raise ValueError(
        f"{stream.name}: datasets and loaders that RecBole saved are pickles, which can run any "
        "code when they are read, so recbole_lea does not read them: delete the file, and leave "
        "out save_dataset, save_dataloaders, dataset_save_path and dataloaders_save_path"
    )


def _names_bad_checkpoint(original: Callable) -> Callable:
    """torch overlooks altered numbers; it refuses pickled code, but advises to allow it."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def read(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        path = given.get("resume_file") or given.get("model_file") or self.saved_model_file
        if given.get("load_best_model", True):
            refuse_damaged(path)
        try:
            return original(self, *args, **kwargs)
        except (pickle.UnpicklingError, EOFError) as error:
            raise ValueError(
                f"{path}: no checkpoint of tensors and plain values "
                "alone: it is damaged, or it holds objects that can run code when they are read; "
                "use one that was written after `import recbole_lea`"
            ) from error

    return read


def _with_our_yaml(original: Callable) -> Callable:
    """Read our defaults after RecBole's of the backbone for our models, and check our keys."""

    @functools.wraps(original)
    def load(self: Config, model: str, model_class: type, dataset: str) -> None:
        if not issubclass(model_class, LEARecommender):
            return original(self, model, model_class, dataset)
        original(self, model_class.backbone_class().__name__, model_class, dataset)
        for path in internal_files(model, dataset):
            self._update_internal_config_dict(str(path))
        merged = self.internal_config_dict | self.external_config_dict
        validate(merged, self.external_config_dict, model_class)
        lists = (argument_list.__dict__[name] for name in dir(argument_list) if name[0] != "_")
        known = {*self.internal_config_dict, *KEYS_WITHOUT_DEFAULT, *itertools.chain(*lists)}
        warn_of_unknown(self.external_config_dict, known)
        if merged["eval_protocol"] == "paper":
            self.internal_config_dict["eval_args"] = PAPER_EVAL_ARGS

    return load


def _in_several_processes(original: Callable) -> Callable:
    """One of several processes: of a launcher, or of ``run(nproc=...)``.

    A launcher has given each its GPU, but RecBole hides all but the one that ``gpu_id`` names. For
    ``nproc`` RecBole hard-codes nccl and cuda; here ``ranks`` is the number of all processes, and
    unless ``gpu_id`` is given, the first GPUs serve.
    """

    @functools.wraps(original)
    def init_device(self: Config) -> None:
        values = self.final_config_dict
        if values.get("local_rank") is None:
            if "LOCAL_RANK" not in os.environ:
                return original(self)
            processes()  # takes its GPU
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            original(self)
            del os.environ["CUDA_VISIBLE_DEVICES"]
            os.environ |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
            return None
        if values.get("worker"):
            raise ValueError("`worker` and nproc do not go together: leave out one of them")
        if "gpu_id" in self.external_config_dict:
            given = values["gpu_id"]
            values["gpu_id"] = ",".join(map(str, given if isinstance(given, tuple) else [given]))
            os.environ["CUDA_VISIBLE_DEVICES"] = values["gpu_id"]
        names = ("local_rank", "nproc", "offset", "world_size", "ip", "port")
        distributed.join(*(values[name] for name in names))
        state = processes()
        device = state.device if state.device.type != "cpu" else torch.device("cpu")  # not cpu:1
        values |= {"device": device, "single_spec": True, "ranks": state.num_processes}
        if not state.is_main_process:
            values |= {"show_progress": False, "log_wandb": False}

    return init_device


def _set_up_for_several(original: Callable) -> Callable:
    @functools.wraps(original)
    def init(self: Any, config: Config, model: Any) -> None:
        original(self, config, model)
        if config["ranks"]:
            distributed.set_up(self)

    return init


def _shared_epoch(original: Callable) -> Callable:
    @functools.wraps(original)
    def train_epoch(
        self: Any, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress=False
    ) -> Any:
        if not self.config["ranks"]:
            return original(self, train_data, epoch_idx, loss_func, show_progress)
        loss = loss_func or self.model.calculate_loss
        return distributed.train_epoch(original, self, train_data, epoch_idx, loss, show_progress)

    return train_epoch


_batch_rows = cast(Any, DataLoader._index_sampler).fget


def _share(self: AbstractDataLoader) -> Share | None:
    """What of each batch is this process's; None in one process."""
    if not self.config["ranks"]:
        return None
    if "_own_share" not in vars(self):
        scores = isinstance(self, FullSortEvalDataLoader | NegSampleEvalDataLoader)
        self._own_share = Share(_batch_rows(self), even=not scores)
    return self._own_share


def _index_sampler(self: AbstractDataLoader) -> Any:
    """RecBole's DistributedSampler repeats rows; its batches would be no parts of those of one."""
    return _batch_rows(self) if self.share is None else self.share


# What RecBole collects by rows, and forgets after each evaluation.
ROWS = ("rec.topk", "rec.meanrank", "rec.score", "rec.items", "data.label")


def _get_data_struct(self: Collector) -> DataStruct:
    """What an evaluation has collected.

    RecBole's fails with the metrics that need counts (ItemCoverage, GiniIndex, AveragePopularity,
    TailPercentage). Several processes compute the metrics over the rows of all of them: they are
    those of one, and all stop and save alike.
    """
    data = self.data_struct._data_dict
    own = {key: data.pop(key).cpu() for key in ROWS if key in data}  # [n_rows, ...] each
    parts = collected([own]) if self.config["ranks"] else [own]
    struct = DataStruct()
    struct._data_dict |= data
    for key in {key: None for part in parts for key in part}:
        struct.set(key, torch.cat([part[key] for part in parts if key in part]))
    return struct


def _save_checkpoint(self: Any, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
    """RecBole's checkpoint, whole or not at all, without its pickled Config.

    torch >= 2.6 refuses to load that.

    Of several processes that train together the main one writes it, and none goes on before.
    """
    resumable = isinstance(self, LEATrainer) and self.has_begun
    more = {"resume": self.resume_state()} if resumable else {}
    if processes().is_main_process:
        _write_checkpoint(self, epoch, verbose, more, kwargs)
    if self.config["ranks"]:
        processes().wait_for_everyone()


def _write_checkpoint(self: Any, epoch: int, verbose: bool, more: dict, kwargs: dict) -> None:
    path = Path(kwargs.pop("saved_model_file", self.saved_model_file))
    state = {
        "config": plain(self.config.final_config_dict),
        # RecBole says -1 where a finished training is resumed, and would start over after that
        "epoch": max(int(epoch), self.start_epoch - 1),
        "cur_step": int(self.cur_step),
        "best_valid_score": float(self.best_valid_score),
        "state_dict": self.model.state_dict(),
        "other_parameter": self.model.other_parameter(),
        "optimizer": self.optimizer.state_dict(),
    }
    with replacing(path) as stream:  # a kill or a full disk leaves the model before it
        try:
            torch.save(state | more, stream)
        except RuntimeError as error:  # torch's, over the stream's own or Ctrl-C
            raise error.__context__ or error from None
    if verbose:
        self.logger.info(recbole.utils.set_color("Saving current", "blue") + f": {path}")
