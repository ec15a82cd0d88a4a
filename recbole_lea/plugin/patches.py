"""The one module that changes RecBole's internals: each change with its reason, in three groups.

``recbole_lea`` calls ``register`` once, right after RecBole's package is first imported.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib
import itertools
import logging
import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import recbole.data.dataset
import recbole.data.transform
import recbole.data.utils
import recbole.trainer
import recbole.trainer.hyper_tuning
import recbole.utils
import torch
from recbole.config import Config
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.transform import Equal
from recbole.evaluator.collector import Collector
from recbole.trainer import Trainer
from recbole.utils import argument_list

import recbole_lea.model
from recbole_lea import arguments
from recbole_lea.engine.processes import processes
from recbole_lea.keys import PAPER_EVAL_ARGS, TRANSFORMS, check_model_name
from recbole_lea.model import registry as backbones
from recbole_lea.model.recommender import LEARecommender
from recbole_lea.plugin import checkpoints, distributed
from recbole_lea.plugin.checks import validate, warn_of_unknown
from recbole_lea.plugin.dataset import LEADataset
from recbole_lea.plugin.feedback import attach
from recbole_lea.plugin.trainer import LEATrainer
from recbole_lea.yaml_files import YAMLLoader, internal_files, read_files

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Change:
    """One change to RecBole 1.2.1."""

    owner: Any  # a class or a module
    name: str  # of its attribute that is replaced, or added
    make: Callable[[Any], Any]  # gives the new value for the old one, or for None
    why: str  # the reason, and what goes wrong without the change


def _always(value: Any) -> Callable[[Any], Any]:
    """A ``make`` that does not ask for the old value."""
    return lambda original: value


def _or(new: Any, original: Any) -> Any:
    return original or new


def _around(function: Callable) -> Callable[[Any], Any]:
    """A ``make`` of a function that gets the old one as its first argument."""

    def make(original: Callable) -> Callable:
        @functools.wraps(original)
        def changed(*args: Any, **kwargs: Any) -> Any:
            return function(original, *args, **kwargs)

        return changed

    return make


def _import_quick_start() -> Any:
    """RecBole's module ``quick_start``, with a stand-in for Ray where that does not work.

    It imports ``ray.tune``, to report a trial's test metrics there. RecBole wants ray <= 2.6.3,
    which Python 3.12 and newer cannot have, and which reads names that numpy 2.4 has dropped.
    """
    name = "recbole.quick_start.quick_start"
    try:
        import ray.tune  # noqa: F401
    except (ImportError, AttributeError):
        # one that is there, but without what its ray.tune needs
        kept = {key: module for key, module in sys.modules.items() if key == "ray"}
        stand_in: Any = types.ModuleType("ray")
        stand_in.tune = types.SimpleNamespace(report=lambda *args, **metrics: None)
        sys.modules["ray"] = stand_in
        try:
            return importlib.import_module(name)
        finally:  # other packages look whether Ray is there
            del sys.modules["ray"]
            sys.modules.update(kept)
    return importlib.import_module(name)


quick_start = _import_quick_start()


def _report_one_dict(tune: Any) -> Any:
    if sys.version_info < (3, 12):
        return tune
    return types.SimpleNamespace(report=lambda **metrics: tune.report(metrics))


def _load_cmd_line(self: Config) -> dict[str, Any]:
    values, others = arguments.read_arguments(arguments.given())
    if others:
        logger.warning(
            "not of the form --key=value, so RecBole does not read it: %s", " ".join(others)
        )
    return values


def _refuse_pickle(stream: Any) -> None:
    raise ValueError(
        f"{stream.name}: datasets and loaders that RecBole saved are pickles, which can run any "
        "code when they are read, so recbole_lea does not read them: delete the file, and leave "
        "out save_dataset, save_dataloaders, dataset_save_path and dataloaders_save_path"
    )


def _resume_checkpoint(original: Callable, self: Trainer, resume_file: Any) -> None:
    with checkpoints.readable(resume_file):
        original(self, resume_file)


def _evaluate(
    original: Callable, self: Trainer, eval_data: Any, load_best_model: bool = True,
    model_file: Any = None, show_progress: bool = False,
) -> Any:  # fmt: skip
    file = (model_file or self.saved_model_file) if load_best_model else None
    with checkpoints.readable(file) if file else contextlib.nullcontext():
        return original(self, eval_data, load_best_model, model_file, show_progress)


def _load_data_and_model(model_file: str) -> tuple:
    with checkpoints.readable(model_file):
        content = torch.load(model_file, map_location="cpu", weights_only=True)
    config = checkpoints.restored_config(content["config"])
    quick_start.init_seed(config["seed"], config["reproducibility"])
    quick_start.init_logger(config)
    dataset = quick_start.create_dataset(config)
    loaders = quick_start.data_preparation(config, dataset)
    quick_start.init_seed(config["seed"], config["reproducibility"])
    model = quick_start.get_model(config["model"])(config, loaders[0]._dataset)
    model.load_state_dict(content["state_dict"])
    model.load_other_parameter(content.get("other_parameter"))
    return config, model.to(config["device"]), dataset, *loaders


def _save_checkpoint(self: Trainer, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
    checkpoints.save(self, epoch, verbose, kwargs.get("saved_model_file"))


def lea_model(name: str) -> type | None:
    """The one of ``recbole_lea.model``, which may be half imported when this module is."""
    return recbole_lea.model.lea_model(name)


def _get_model(original: Callable, model_name: str) -> type:
    if model := lea_model(model_name):
        return model
    try:
        return original(model_name)
    except (ValueError, ModuleNotFoundError, AttributeError):
        check_model_name(model_name)
        raise  # such as: No module named 'lightgbm'


def _construct_transform(original: Callable, config: Config) -> Any:
    # `attach` gives the training loader its own
    return Equal(config) if config["transform"] in TRANSFORMS else original(config)


def _data_preparation(original: Callable, config: Config, dataset: Any) -> tuple:
    loaders = original(config, dataset)
    if issubclass(config.model_class, LEARecommender):
        attach(loaders[0], config)
    return loaders


def _init_logger(original: Callable, config: Config) -> None:
    if not issubclass(config.model_class, LEARecommender):
        original(config)
    elif not processes().is_main_process:
        logging.basicConfig(level=logging.ERROR)
        config["log_file"] = None
    else:
        folder = Path("log") / config["model"]
        before = set(folder.glob("*.log"))
        original(config)
        new = set(folder.glob("*.log")) - before
        config["log_file"] = str(new.pop()) if new else None


# Keys that RecBole reads, or its scripts take, but that no YAML file of its has.
KEYS_WITHOUT_DEFAULT = (
    "model", "dataset", "config_files", "config_file_list", "encoding", "local_rank", "nproc",
    "world_size", "offset", "group_offset", "ip", "port", "tail_ratio", "reg_weight",
    "numerical_features", "params_file", "output_file", "display_file", "tool", "max_evals",
    "model_list", "valid_latex", "test_latex",
)  # fmt: skip


def _load_internal_config_dict(
    original: Callable, self: Config, model: str, model_class: type, dataset: str
) -> None:
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


PROTECTION = (
    Change(Config, "_build_yaml_loader", _always(lambda self: YAMLLoader),
           "RecBole's loader also looks up names of Python modules that a file mentions"),
    Change(Config, "_load_config_files", _always(lambda self, files: read_files(files or ())),
           "a file that is no mapping ends in a TypeError that does not name it"),
    Change(Config, "_load_cmd_line", _always(_load_cmd_line),
           "values that hold a `=` are dropped, and programs of ours leave RecBole some arguments"),
    Change(Config, "_convert_config_dict", _always(lambda self, values: arguments.literals(values)),
           "texts are run through `eval`: --key='__import__(...)' is code"),
    # a module's own name goes before the builtin
    Change(recbole.trainer.hyper_tuning, "eval", _always(ast.literal_eval),
           "lists of choices in a file of hyperparameters are run through `eval`"),
    Change(recbole.data.utils, "pickle",
           _always(types.SimpleNamespace(load=_refuse_pickle, dump=pickle.dump)),
           "a dataset or loader found in `saved` is unpickled unasked, which can run any code"),
    Change(Trainer, "_save_checkpoint", _always(_save_checkpoint),
           "the file holds a pickled Config, which torch >= 2.6 refuses to read; a kill or a full "
           "disk leaves half a file in place of the model before it"),
    Change(Trainer, "resume_checkpoint", _around(_resume_checkpoint),
           "torch overlooks altered numbers; it refuses pickled code, but advises to allow it"),
    Change(Trainer, "evaluate", _around(_evaluate), "likewise"),
    Change(quick_start, "load_data_and_model", _always(_load_data_and_model),
           "it expects the pickled Config"),
    Change(recbole.utils, "ensure_dir", _always(functools.partial(os.makedirs, exist_ok=True)),
           "of two processes that make one folder, one fails"),
    Change(Collector, "get_data_struct", _always(distributed.get_data_struct),
           "metrics that need counts (ItemCoverage, GiniIndex ...) fail: `.cpu()` of a Counter; in "
           "several processes metrics are averaged, even those that are no mean over rows"),
    Change(Config, "_init_device", _around(distributed.init_device),
           "nproc needs nccl and GPUs; a launcher's process loses the GPU that it was given"),
    Change(Trainer, "__init__", _around(distributed.init_trainer),
           "nproc gives parameters that are not trained a gradient of 0, by which Adam moves them"),
    Change(Trainer, "_train_epoch", _around(distributed.train_epoch), "likewise"),
    Change(AbstractDataLoader, "share", _always(property(distributed.share)),
           "nproc repeats rows where they do not come out even"),
    Change(AbstractDataLoader, "_index_sampler", _always(property(distributed.index_sampler)),
           "likewise"),
    Change(recbole.utils, "get_tensorboard", _around(distributed.get_tensorboard),
           "every process of nproc would leave a record of the same training"),
    Change(quick_start, "run_recboles", _always(distributed.run_rank),
           "the processes of nproc would not import recbole_lea, nor report mistakes in one line"),
)  # fmt: skip

TODAYS_VERSIONS = (
    *(Change(np, f"{name}_", functools.partial(_or, new), "Config reads what numpy 2 has dropped")
      for name, new in (("float", np.float64), ("complex", np.complex128), ("unicode", np.str_))),
    Change(quick_start, "tune", _report_one_dict,
           "a Ray that Python 3.12 can have takes a trial's metrics as one dict"),
)  # fmt: skip

LEA = (
    *(Change(recbole.trainer, f"{name}Trainer", _always(LEATrainer),
             "RecBole finds a trainer by the model's name") for name in backbones.names()),
    *(Change(recbole.data.dataset, f"{name}Dataset", _always(LEADataset),
             "RecBole finds a dataset by the model's name") for name in backbones.names()),
    Change(recbole.utils, "get_model", _around(_get_model),
           "RecBole looks for models in its own folders alone; a mistyped name ends in: No module "
           "named 'lightgbm'"),
    Change(Config, "_load_internal_config_dict", _around(_load_internal_config_dict),
           "our keys would have no defaults, and RecBole takes any key and value without a word"),
    Change(recbole.data.transform, "construct_transform", _around(_construct_transform),
           "RecBole's table of transforms is a local variable"),
    Change(recbole.data.utils, "data_preparation", _around(_data_preparation),
           "run_recbole would train without the LE's feedback"),
    Change(recbole.utils, "init_logger", _around(_init_logger),
           "RecBole keeps the log's path to itself, and run.json stands beside the log; of several "
           "processes that build one LE, each would log"),
)  # fmt: skip


def register() -> None:
    """Make the changes. Autograd's anomaly detection is switched off.

    RecBole's sine.py switches it on for every sequential model: 2.5 to 4 times slower training.
    """
    torch.autograd.set_detect_anomaly(False)
    for change in (*PROTECTION, *TODAYS_VERSIONS, *LEA):
        original = getattr(change.owner, change.name, None)
        replacement = change.make(original)
        setattr(change.owner, change.name, replacement)
        if isinstance(original, types.FunctionType) and isinstance(change.owner, types.ModuleType):
            _rebind(original, replacement)


def _rebind(original: Any, replacement: Any) -> None:
    """In every module that imported a function by name before.

    A script or notebook may well have done so: import sorters put recbole before recbole_lea.
    """
    for module in list(sys.modules.values()):
        if isinstance(module, types.ModuleType):
            for name, value in list(vars(module).items()):
                if value is original:
                    setattr(module, name, replacement)
