"""Training in several processes by RecBole's ``run(nproc=...)``: one process a GPU, or on CPUs.

Of RecBole 1.2.1's own way only the start of the processes is kept. The rest is left out
(``single_spec`` stays True), as it would train and measure something else than one process:
it gives every parameter a gradient of 0, so that Adam moves the copy that is not trained; it
repeats rows where they do not come out even, weights metrics by the length of a tuple, and
averages even those that are no mean over rows. Here the processes share each batch
(``engine.processes.Share``), torch averages their gradients, and metrics see all rows.
``patches`` puts these functions into RecBole's classes.
"""

import logging
import os
import types
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader, NegSampleEvalDataLoader
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.evaluator.collector import Collector, DataStruct
from recbole.trainer import Trainer
from recbole.utils import init_seed
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from recbole_lea.console import MISTAKES, Mistake, mistake
from recbole_lea.engine.processes import Share, collected, from_main, processes
from recbole_lea.keys import N_PROCESSES
from recbole_lea.plugin.trainer import StepTrainer


def run_rank(local_rank: int, *arguments: Any) -> None:
    """RecBole's ``run_recboles``: ``run_recbole`` in a process of its own.

    A process that is asked for this function imports recbole_lea first. ``arguments`` are model,
    dataset, YAML files, and a dict of RecBole's further arguments.

    Raises:
        Mistake: the input is wrong.
    """
    from recbole.quick_start import run_recbole

    options = arguments[-1]
    keys = options["config_dict"]
    keys["local_rank"] = local_rank
    if keys["offset"] + local_rank > 0:
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
    try:
        run_recbole(*arguments[:3], **options)
    except MISTAKES as error:
        raise Mistake(mistake(error)) from error
    except SystemExit as end:  # lea_stop_after
        if end.code:
            raise
    processes().wait_for_everyone()
    processes().destroy_process_group()


def init_device(original: Callable, self: Config) -> None:
    """RecBole's choice of the device, for a process of a launcher or of ``run(nproc=...)``.

    A launcher has given each its GPU, but RecBole hides all but the one that ``gpu_id`` names. For
    ``nproc`` RecBole hard-codes nccl and cuda; here the first GPUs serve without a ``gpu_id``.
    """
    if self.final_config_dict.get("local_rank") is not None:
        _join(self)
    elif "LOCAL_RANK" not in os.environ:
        original(self)
    else:
        processes()  # takes its GPU
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        original(self)
        del os.environ["CUDA_VISIBLE_DEVICES"]
        os.environ |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}


def _join(config: Config) -> None:
    """Make this process one of those that train together, for the LE's stages too.

    Raises:
        ValueError: there are fewer GPUs than processes; or the processes do not find each other.
    """
    values = config.final_config_dict
    if values.get("worker"):
        raise ValueError("`worker` and nproc do not go together: leave out one of them")
    if "gpu_id" in config.external_config_dict:
        given = values["gpu_id"]
        values["gpu_id"] = ",".join(map(str, given if isinstance(given, tuple) else [given]))
        os.environ["CUDA_VISIBLE_DEVICES"] = values["gpu_id"]
    number, nproc = values["local_rank"], values["nproc"]
    if torch.accelerator.is_available() and torch.accelerator.device_count() < nproc:
        raise ValueError(
            f"--nproc={nproc} needs as many GPUs, but {torch.accelerator.device_count()} can be "
            "seen: name them by --gpu_id=0,1,..., or choose CPUs by --gpu_id="
        )
    ip, port = str(values["ip"]), str(values["port"])
    os.environ |= {
        "LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": str(nproc),
        "RANK": str(values["offset"] + number), "WORLD_SIZE": str(values["world_size"]),
        "MASTER_ADDR": ip, "MASTER_PORT": port,
    }  # fmt: skip
    try:
        state = processes()
    except torch.distributed.DistError as error:
        raise ValueError(
            f"the processes do not find each other by --ip={ip} --port={port}: another run may "
            f"have that port, or a machine has not started its part ({error})"
        ) from error
    device = state.device if state.device.type != "cpu" else torch.device("cpu")  # not cpu:1
    values |= {"device": device, "single_spec": True, N_PROCESSES: state.num_processes}
    if not state.is_main_process:
        values |= {"show_progress": False, "log_wandb": False}


class _Loss(nn.Module):
    """A model's loss as a forward pass, which is where DistributedDataParallel looks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss: Callable, interaction: Any) -> Any:
        return loss(interaction)


def init_trainer(original: Callable, self: Trainer, config: Config, model: nn.Module) -> None:
    """RecBole's, then ``set_up`` where several processes train together."""
    original(self, config, model)
    if config[N_PROCESSES]:
        set_up(self)


def set_up(trainer: Trainer) -> None:
    """Let a trainer average gradients; all start with the weights and files of the main process.

    Raises:
        ValueError: it does not train by RecBole's ``_train_epoch``.
    """
    config, state = trainer.config, processes()
    own_loop = type(trainer)._train_epoch is not Trainer._train_epoch
    if own_loop and not isinstance(trainer, StepTrainer):
        raise ValueError(
            f"{config['model']} has a training loop of its own, {type(trainer).__name__}'s, which "
            "works in one process: leave out nproc"
        )
    if not state.is_main_process:
        # RecBole counts within a machine: dropout would be the same on each
        init_seed(config["seed"] + state.process_index, config["reproducibility"])
    if state.device.type == "cuda":
        trainer.model = nn.SyncBatchNorm.convert_sync_batchnorm(trainer.model)
    # in each step one copy of Algorithm 1 is not trained
    trainer.distributed_model = DistributedDataParallel(
        _Loss(trainer.model), find_unused_parameters=True
    )
    # RecBole names it by each process's own clock
    trainer.saved_model_file = from_main(trainer.saved_model_file)


def train_epoch(
    original: Callable, self: Trainer, train_data: Any, epoch_idx: int, loss_func: Any = None,
    show_progress: bool = False,
) -> Any:  # fmt: skip
    """RecBole's, on this process's share of each batch; the losses are those of whole batches."""
    if not self.config[N_PROCESSES]:
        return original(self, train_data, epoch_idx, loss_func, show_progress)
    loss = loss_func or self.model.calculate_loss

    def weighted(interaction: Any) -> Any:
        losses = self.distributed_model(loss, interaction)
        if isinstance(losses, tuple):
            return tuple(term * train_data.share.weight for term in losses)
        return losses * train_data.share.weight

    total = original(self, train_data, epoch_idx, weighted, show_progress)
    parts = collected([total])
    if isinstance(total, tuple):
        return tuple(sum(terms) / len(parts) for terms in zip(*parts, strict=True))
    return sum(parts) / len(parts)


_all_batches = cast(Any, DataLoader._index_sampler).fget


def share(self: AbstractDataLoader) -> Share | None:
    """What of each batch is this process's; None in one process."""
    if not self.config[N_PROCESSES]:
        return None
    if "_own_share" not in vars(self):
        scores = isinstance(self, FullSortEvalDataLoader | NegSampleEvalDataLoader)
        self._own_share = Share(_all_batches(self), even=not scores)
    return self._own_share


def index_sampler(self: AbstractDataLoader) -> Any:
    """torch's batches of row numbers, or this process's share of them."""
    return _all_batches(self) if self.share is None else self.share


# What RecBole collects by rows, and forgets after each evaluation.
ROWS = ("rec.topk", "rec.meanrank", "rec.score", "rec.items", "data.label")


def get_data_struct(self: Collector) -> DataStruct:
    """What an evaluation has collected, over the rows of all processes."""
    data = self.data_struct._data_dict
    own = {key: data.pop(key).cpu() for key in ROWS if key in data}  # [n_rows, ...] each
    parts = collected([own]) if self.config[N_PROCESSES] else [own]
    struct = DataStruct()
    struct._data_dict |= data
    for key in {key: None for part in parts for key in part}:
        struct.set(key, torch.cat([part[key] for part in parts if key in part]))
    return struct


def get_tensorboard(original: Callable, logger: logging.Logger) -> Any:
    """RecBole's record for TensorBoard, of the main process alone."""
    if processes().is_main_process:
        return original(logger)

    def nothing(*args: Any, **kwargs: Any) -> None: ...

    return types.SimpleNamespace(add_scalar=nothing, add_hparams=nothing)
