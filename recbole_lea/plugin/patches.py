"""The one module that changes RecBole's internals: each change with its reason, in three groups.

``recbole_lea`` calls ``register`` once, right after RecBole's package is first imported.
"""

import ast
import contextlib
import functools
import importlib
import logging
import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import recbole.data.transform
import recbole.data.utils
import recbole.trainer
import recbole.trainer.hyper_tuning
import recbole.utils
import torch
from recbole.config import Config
from recbole.data.transform import Equal
from recbole.evaluator.collector import Collector, DataStruct
from recbole.trainer import Trainer

import recbole_lea.model
from recbole_lea import arguments, keys
from recbole_lea.engine.processes import processes
from recbole_lea.model import registry
from recbole_lea.model.recommender import LEARecommender
from recbole_lea.plugin import checkpoints
from recbole_lea.plugin.checks import validate, warn_of_unknown
from recbole_lea.plugin.dataset import LEADataset
from recbole_lea.plugin.feedback import attach
from recbole_lea.plugin.terminal import keep_quiet
from recbole_lea.plugin.trainer import LEATrainer, StepTrainer
from recbole_lea.yaml_files import internal_files, read_files

logger = logging.getLogger(__name__)


class Change(NamedTuple):
    """One change to RecBole 1.2.1."""

    owner: Any  # a class or a module
    name: str  # of its attribute that is replaced, or added
    new: Any
    why: str  # what goes wrong without the change
    around: bool = False  # ``new`` is a function that gets the old one as its first argument


def _around(function: Callable, original: Any) -> Callable:
    @functools.wraps(original)
    def changed(*args: Any, **kwargs: Any) -> Any:
        return function(original, *args, **kwargs)

    return changed


def _report(**metrics: Any) -> None:
    if tune := sys.modules.get("ray.tune"):  # else Ray does not run this trial
        if sys.version_info < (3, 12):
            tune.report(**metrics)
        else:
            tune.report(metrics)


def _import_quick_start() -> Any:
    """RecBole's module, which imports ``ray.tune``.

    Python 3.12 cannot have the Ray that it wants, which reads names that numpy 2.4 has dropped.
    """
    kept = {key: module for key, module in sys.modules.items() if key == "ray"}
    stand_in: Any = types.ModuleType("ray")
    stand_in.tune = None
    sys.modules["ray"] = stand_in
    module = importlib.import_module("recbole.quick_start.quick_start")
    del sys.modules["ray"]  # other packages look whether Ray is there
    sys.modules.update(kept)
    return module


quick_start = _import_quick_start()


def _load_cmd_line(self: Config) -> dict[str, Any]:
    values, others = arguments.read_arguments(arguments.given())
    if others:
        logger.warning("not read, as not of the form --key=value: %s", " ".join(others))
    return values


def _refuse_pickle(stream: Any) -> None:
    raise ValueError(
        f"{stream.name}: datasets and loaders that RecBole saved are pickles, which can run any "
        "code when they are read, so recbole_lea does not read them: delete the file, and leave "
        "out save_dataset, save_dataloaders, dataset_save_path and dataloaders_save_path"
    )


def _resume_checkpoint(original: Callable, self: Trainer, file: Any) -> None:
    with checkpoints.readable(file):
        original(self, file)


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


def _get_data_struct(self: Collector) -> DataStruct:
    data = self.data_struct._data_dict
    # what RecBole collects by rows, and forgets after each evaluation
    rows = [key for key, value in data.items() if isinstance(value, torch.Tensor)]
    struct = DataStruct()
    struct._data_dict |= {key: data.pop(key).cpu() for key in rows} | data
    return struct


def _init_device(original: Callable, self: Config) -> None:
    if "LOCAL_RANK" not in os.environ:
        return original(self)
    processes()  # takes the GPU that the launcher has given it
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    original(self)
    del os.environ["CUDA_VISIBLE_DEVICES"]
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible


def _get_model(original: Callable, model_name: str) -> type:
    try:
        # the package may be half imported when this module is
        return recbole_lea.model.lea_model(model_name) or original(model_name)
    except (ValueError, ModuleNotFoundError, AttributeError):
        keys.check_model_name(model_name)
        raise  # such as: No module named 'lightgbm'


def _create_dataset(original: Callable, config: Config) -> Any:
    # a stock model gets the key by `protocol_keys`
    return original(config) if config["eval_protocol"] is None else LEADataset(config)


def _new_trainer(cls: type, config: Any = None, model: Any = None) -> Trainer:
    if isinstance(model, LEARecommender) and not issubclass(cls, LEATrainer):
        if cls is not Trainer:
            raise ValueError(
                f"{cls.__name__} knows neither the warm-up nor the augmentation of "
                f"{type(model).__name__}: derive it from recbole_lea.plugin.trainer.LEATrainer"
            )
        cls = LEATrainer
    elif cls is Trainer and config is not None and config["lea_valid_steps"]:
        cls = StepTrainer
    return object.__new__(cls)


def _construct_transform(original: Callable, config: Config) -> Any:
    # `attach` gives the training loader its own
    return Equal(config) if config["transform"] in keys.TRANSFORMS else original(config)


def _data_preparation(original: Callable, config: Config, dataset: Any) -> tuple:
    loaders = original(config, dataset)
    if issubclass(config.model_class, LEARecommender):
        attach(loaders[0], config, len(loaders[1]._dataset) if loaders[1] else 0)
    return loaders


def _init_logger(original: Callable, config: Config) -> None:
    if not issubclass(config.model_class, LEARecommender):
        original(config)
    elif not processes().is_main_process:
        logging.basicConfig(level=logging.ERROR)
    else:
        folder = Path("log") / config["model"]
        before = set(folder.glob("*.log"))
        original(config)
        new = set(folder.glob("*.log")) - before
        config["log_file"] = str(new.pop()) if new else None
        keep_quiet(issubclass(config.model_class, LEARecommender))


# What RecBole's scripts take from the command line, where Config sees it too
SCRIPT_FLAGS = (
    "model", "dataset", "config_files", "config_file_list", "local_rank", "params_file",
    "output_file", "display_file", "tool", "max_evals", "model_list", "valid_latex", "test_latex",
)  # fmt: skip


def _load_internal_config_dict(
    original: Callable, self: Config, model: str, model_class: type, dataset: str
) -> None:
    keys.check_dataset_name(dataset)
    self.external_config_dict |= keys.expanded_paths(self.external_config_dict)
    if not issubclass(model_class, LEARecommender):
        original(self, model, model_class, dataset)
        return _without_negatives(self.internal_config_dict, self.external_config_dict)
    original(self, model_class.backbone_class().__name__, model_class, dataset)
    for path in internal_files(registry.adopt(model_class), dataset):
        self._update_internal_config_dict(str(path))
    merged = self.internal_config_dict | self.external_config_dict
    validate(merged, self.external_config_dict, model_class)
    known = {*self.internal_config_dict, *SCRIPT_FLAGS, *keys.known_keys(model)}
    warn_of_unknown(self.external_config_dict, known)
    if merged["eval_protocol"] in keys.WHOLE_SEQUENCES:
        self.internal_config_dict["eval_args"] = keys.PAPER_EVAL_ARGS


def _without_negatives(internal: dict[str, Any], given: dict[str, Any]) -> None:
    """RecBole's default gives its sequential models negatives, and its Config then refuses them."""
    sequential = internal["MODEL_TYPE"] == recbole.utils.ModelType.SEQUENTIAL
    if sequential and (internal | given).get("loss_type") == "CE":
        internal["train_neg_sample_args"] = None


PROTECTION = (
    Change(Config, "_load_config_files", lambda self, files: read_files(files or ()),
           "tags in a file name Python objects; one that is no mapping ends in a bare TypeError"),
    Change(Config, "_load_cmd_line", _load_cmd_line, "values that hold a `=` are dropped"),
    Change(Config, "_convert_config_dict", lambda self, values: arguments.literals(values),
           "texts are run through `eval`: --key='__import__(...)' is code"),
    # a module's own name goes before the builtin
    Change(recbole.trainer.hyper_tuning, "eval", ast.literal_eval, "likewise, lists of choices"),
    Change(recbole.data.utils, "pickle",
           types.SimpleNamespace(load=_refuse_pickle, dump=pickle.dump),
           "a dataset or loader found in `saved` is unpickled unasked, which can run any code"),
    Change(Trainer, "_save_checkpoint", _save_checkpoint,
           "torch >= 2.6 cannot read the pickled Config; a kill leaves half a file"),
    Change(Trainer, "resume_checkpoint", _resume_checkpoint,
           "torch overlooks altered numbers; it refuses pickles, but advises to allow them", True),
    Change(Trainer, "evaluate", _evaluate, "likewise", True),
    Change(quick_start, "load_data_and_model", _load_data_and_model,
           "it expects the pickled Config"),
    Change(recbole.utils, "ensure_dir", functools.partial(os.makedirs, exist_ok=True),
           "of two processes that make one folder, one fails"),
    Change(Collector, "get_data_struct", _get_data_struct,
           "metrics that need counts (ItemCoverage, GiniIndex ...) fail: `.cpu()` of a Counter"),
    Change(Config, "_init_device", _init_device,
           "a process of a launcher loses the GPU that it was given", True),
)  # fmt: skip

TODAYS_VERSIONS = (
    *(Change(np, f"{name}_", getattr(np, f"{name}_", new), "Config needs what numpy 2 has dropped")
      for name, new in (("float", np.float64), ("complex", np.complex128), ("unicode", np.str_))),
    Change(_import_quick_start(), "tune", types.SimpleNamespace(report=_report),
           "Ray is needed, and one that Python 3.12 can have takes metrics as one dict"),
)  # fmt: skip

LEA = (
    Change(Trainer, "__new__", staticmethod(_new_trainer), "RecBole's trains, without a warm-up"),
    Change(recbole.data.utils, "create_dataset", _create_dataset, "RecBole's reads the data", True),
    Change(recbole.utils, "get_model", _get_model,
           "only RecBole's own folders are looked at; a mistyped name asks for lightgbm", True),
    Change(Config, "_load_internal_config_dict", _load_internal_config_dict,
           "our keys have no defaults, and any key and value is taken without a word", True),
    Change(recbole.data.transform, "construct_transform", _construct_transform,
           "our transforms are unknown: RecBole's table is a local variable", True),
    Change(recbole.data.utils, "data_preparation", _data_preparation,
           "run_recbole trains without the LE's feedback", True),
    Change(recbole.utils, "init_logger", _init_logger,
           "run.json cannot stand beside the log; each process that builds the LE logs", True),
)  # fmt: skip


def register() -> None:
    """Make the changes. Autograd's anomaly detection is switched off.

    RecBole's sine.py switches it on for every sequential model: 2.5 to 4 times slower training.
    """
    torch.autograd.set_detect_anomaly(False)
    for change in (*PROTECTION, *TODAYS_VERSIONS, *LEA):
        original, new = getattr(change.owner, change.name, None), change.new
        if change.around:
            new = _around(new, original)
        setattr(change.owner, change.name, new)
        if isinstance(original, types.FunctionType) and isinstance(change.owner, types.ModuleType):
            _rebind(original, new)


def _rebind(original: Any, replacement: Any) -> None:
    """In every module that imported a function by name before.

    A script or notebook may well have done so: import sorters put recbole before recbole_lea.
    """
    for module in list(sys.modules.values()):
        if isinstance(module, types.ModuleType):
            for name, value in list(vars(module).items()):
                if value is original:
                    setattr(module, name, replacement)
