"""Checkpoints: written, resumed, restored as a config, and held against their checksums."""

import contextlib
import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from recbole.config import Config
from recbole.utils import set_color

from recbole_lea.engine.processes import collected, processes
from recbole_lea.keys import N_PROCESSES, built_in_types
from recbole_lea.store.files import replacing

# What RecBole works out itself from the other keys; a checkpoint holds its text alone.
DERIVED = (
    "MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "device", "single_spec", "local_rank",
    N_PROCESSES, "nproc", "world_size", "offset", "group_offset", "ip", "port",
)  # fmt: skip


def save(
    trainer: Any, epoch: int, verbose: bool, path: str | Path | None, resume: dict | None = None
) -> None:
    """RecBole's checkpoint, whole or not at all, without its pickled Config.

    Of several processes that train together the main one writes it, and all wait for it.

    Args:
        trainer: RecBole's or ours.
        epoch: the one that has ended.
        verbose: log it.
        path: of the file; None for the trainer's own.
        resume: ``resume_state``; None outside of a ``fit``.
    """
    path = Path(path or trainer.saved_model_file)
    if processes().is_main_process:
        state = {
            "config": built_in_types(trainer.config.final_config_dict),
            # RecBole says -1 where a finished training is resumed, and would start over after that
            "epoch": max(int(epoch), trainer.start_epoch - 1),
            "cur_step": int(trainer.cur_step),
            "best_valid_score": float(trainer.best_valid_score),
            "state_dict": trainer.model.state_dict(),
            "other_parameter": trainer.model.other_parameter(),
            "optimizer": trainer.optimizer.state_dict(),
        }
        with replacing(path) as stream:  # a kill or a full disk leaves the model before it
            try:
                torch.save(state | ({"resume": resume} if resume else {}), stream)
            except RuntimeError as error:  # torch's, over the stream's own or Ctrl-C
                raise error.__context__ or error from None
        if verbose:
            trainer.logger.info(set_color("Saving current", "blue") + f": {path}")
    if trainer.config[N_PROCESSES]:
        processes().wait_for_everyone()


def resume_state(trainer: Any) -> dict[str, Any]:
    """What the rest of a training depends on beside RecBole's checkpoint, within a ``fit``.

    All is of built-in types and tensors, which torch loads without pickle. With ``nproc`` all
    processes have to call it.
    """
    random = [_random_state(trainer)]
    state = {
        "warm_epoch": trainer._warm_epoch,
        "best_is_warmup": trainer._best_is_warmup,
        "best_valid_result": trainer._best_result,
        "random": collected(random) if trainer.config[N_PROCESSES] else random,
        "loader": trainer._batches.generator_state,
        "taken": trainer._batches.taken,
    }
    feedback = trainer._train_data._dataset.lea_feedback
    if feedback is not None and feedback.augmented is not None:
        # the LE's choice for every transition, and its reward scores
        kept = zip(("actions", "scores"), feedback.augmented, strict=True)
        state["augmentation"] = {
            name: torch.tensor(np.asarray(values)) for name, values in kept if values is not None
        }
    return state


def restore(trainer: Any, state: dict[str, Any]) -> None:
    """The inverse of ``resume_state``, within a ``fit`` of the same loaders.

    Raises:
        ValueError: it was written by another number of processes, or is of other training data.
    """
    here, there = trainer.config[N_PROCESSES] or 1, len(state["random"])
    if here != there:
        raise ValueError(
            f"{trainer.saved_model_file} was written by a training in {there} processes, this is "
            f"one in {here}: resume it with --nproc (or nodes) for {there}"
        )
    trainer._warm_epoch = state["warm_epoch"]
    trainer._best_is_warmup = state["best_is_warmup"]
    # RecBole's checkpoint has its score alone
    trainer._best_result = trainer.best_valid_result = state.get("best_valid_result")
    if kept := state.get("augmentation"):
        feedback = trainer._train_data._dataset.lea_feedback
        if len(kept["actions"]) != feedback.sequences.n_transitions:
            raise ValueError(
                f"the checkpoint holds the LE's choice for {len(kept['actions'])} training "
                f"transitions, but the data have {feedback.sequences.n_transitions}: resume with "
                "the data it was trained on"
            )
        kept = {name: values.cpu().numpy() for name, values in kept.items()}
        feedback.augment(kept["actions"], kept.get("scores"))
    trainer._batches.go_on(state["loader"].cpu(), state["taken"])
    number = processes().process_index if trainer.config[N_PROCESSES] else 0
    _set_random_state(trainer, state["random"][number])


def _random_state(trainer: Any) -> dict[str, Any]:
    """Every stream of random numbers that training draws from."""
    state = {
        "torch": torch.get_rng_state(),
        "numpy": json.dumps(np.random.get_state(legacy=False), default=np.ndarray.tolist),
        "model": trainer.model._rng.get_state(),
    }
    if trainer.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(trainer.device)
    if feedback := trainer._train_data._dataset.lea_feedback:
        state["feedback"] = json.dumps(feedback.rng.bit_generator.state)
    return state


def _set_random_state(trainer: Any, state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    values = json.loads(state["numpy"])
    values["state"]["key"] = np.array(values["state"]["key"], dtype=np.uint32)
    np.random.set_state(values)
    trainer.model._rng.set_state(state["model"].cpu())
    if "cuda" in state and trainer.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), trainer.device)
    if "feedback" in state:
        feedback = trainer._train_data._dataset.lea_feedback
        feedback.rng.bit_generator.state = json.loads(state["feedback"])


def restored_config(saved: dict[str, Any]) -> Config:
    """RecBole's config from what ``built_in_types`` made of it.

    Keys on the command line win, so that data and caches may lie elsewhere than they did.

    Args:
        saved: ``checkpoint["config"]``, or some of it.

    Returns:
        A config for this machine: of what depends on it, nothing is taken over.
    """
    # RecBole refuses its own default beside loss_type CE; what is measured has to fit together
    measured = {key: saved[key] for key in ("metrics", "topk", "valid_metric") if key in saved}
    given = measured | {"train_neg_sample_args": None}
    config = Config(saved["model"], saved["dataset"], config_dict=given)
    keep = {*DERIVED, *config.cmd_config_dict}
    if saved["dataset"] == "ml-100k":  # inside RecBole's own package, here as there
        keep.add("data_path")
    for key, value in saved.items():
        if key not in keep:
            config[key] = value
    # it has done its work; a pickled config must not hold a class of this package
    config.yaml_loader = yaml.SafeLoader
    return config


def refuse_damaged(path: str | Path) -> None:
    """Hold a checkpoint against the checksums within it, which torch writes but does not read.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it was truncated or altered.
    """
    with open(path, "rb") as stream:
        if stream.read(4) != b"PK\3\4":  # no zip file: torch says what it thinks of it
            return
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None
    except Exception:  # zipfile has many ways to stumble over a damaged file
        whole = False
    if not whole:
        raise ValueError(
            f"{path} is damaged: it was truncated or altered since it was written; use another "
            "checkpoint, or train again"
        )


@contextlib.contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Name a checkpoint that is no good, around what reads it.

    torch refuses pickled code, but advises to allow it.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it was truncated or altered, or holds other than tensors and plain values.
    """
    refuse_damaged(path)
    try:
        yield
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{path}: no checkpoint of tensors and plain values "
            "alone: it is damaged, or it holds objects that can run code when they are read; "
            "use one that was written after `import recbole_lea`"
        ) from error
