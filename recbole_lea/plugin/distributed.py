"""Training in several processes by RecBole's ``run(nproc=...)``: one process a GPU, or on CPUs.

Of RecBole 1.2.1's own way only the start of the processes is kept. The rest is left out
(``single_spec`` stays True), as it would train and measure something else than one process:
it gives every parameter a gradient of 0, so that Adam moves the copy that is not trained; it
repeats rows where they do not come out even, weights metrics by the length of a tuple, and
averages even those that are no mean over rows. Here the processes share each batch
(``le.processes.Share``), torch averages their gradients, and metrics see all rows.
``patches`` calls this from RecBole's classes.
"""

import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from recbole.trainer import Trainer
from recbole.utils import init_seed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from recbole_lea.engine.processes import collected, from_main, processes
from recbole_lea.plugin.trainer import StepTrainer

# What a mistake in the input raises; all else is ours to find.
MISTAKES = (ValueError, KeyError, OSError, ModuleNotFoundError)


class Mistake(Exception):
    """One of ``MISTAKES`` in one of the processes."""


def mistake(error: BaseException) -> str:
    """In one line what is wrong: the message of one of ``MISTAKES``."""
    return str(error.args[0] if isinstance(error, KeyError) else error)


def mistake_in(text: str) -> str | None:
    """The message of a ``Mistake`` in the traceback of another process; None if it is none."""
    _, marker, message = text.rpartition(f"{Mistake.__module__}.{Mistake.__qualname__}: ")
    return message.strip() if marker else None


def run_rank(local_rank: int, *arguments: Any) -> None:
    """RecBole's ``run_recboles``: ``run_recbole`` in a process of its own.

    A process that is asked for this function imports recbole_lea first.

    Args:
        local_rank: number of the process on this machine.
        arguments: model, dataset, YAML files, and a dict of RecBole's further arguments.

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


def join(local_rank: int, nproc: int, offset: int, world_size: int, ip: str, port: Any) -> None:
    """Make this process one of those that train together, for the LE's stages too.

    Args:
        local_rank: its number on this machine, and that of its GPU.
        nproc: processes on this machine.
        offset: processes on the machines before this one.
        world_size: processes on all machines.
        ip: address of the first machine.
        port: a free one there.

    Raises:
        ValueError: there are fewer GPUs than processes; or the processes do not find each other.
    """
    if torch.accelerator.is_available() and torch.accelerator.device_count() < nproc:
        raise ValueError(
            f"--nproc={nproc} needs as many GPUs, but {torch.accelerator.device_count()} can be "
            "seen: name them by --gpu_id=0,1,..., or choose CPUs by --gpu_id="
        )
    os.environ |= {
        "LOCAL_RANK": str(local_rank), "LOCAL_WORLD_SIZE": str(nproc),
        "RANK": str(offset + local_rank), "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": str(ip), "MASTER_PORT": str(port),
    }  # fmt: skip
    try:
        processes()
    except torch.distributed.DistError as error:
        raise ValueError(
            f"the processes do not find each other by --ip={ip} --port={port}: another run may "
            f"have that port, or a machine has not started its part ({error})"
        ) from error


class _Loss(nn.Module):
    """A model's loss as a forward pass, which is where DistributedDataParallel looks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss: Callable, interaction: Any) -> Any:
        return loss(interaction)


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
    original: Callable, trainer: Trainer, data: Any, epoch: int, loss: Callable, progress: bool
) -> float | tuple[float, ...]:
    """RecBole's ``_train_epoch`` on this process's share of each batch.

    Returns:
        As RecBole's, over all processes: the losses of the whole batches.
    """

    def weighted(interaction: Any) -> Any:
        losses = trainer.distributed_model(loss, interaction)
        if isinstance(losses, tuple):
            return tuple(term * data.share.weight for term in losses)
        return losses * data.share.weight

    total = original(trainer, data, epoch, weighted, progress)
    parts = collected([total])
    if isinstance(total, tuple):
        return tuple(sum(terms) / len(parts) for terms in zip(*parts, strict=True))
    return sum(parts) / len(parts)
