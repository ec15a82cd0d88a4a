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
from recbole.config import Config
from recbole.utils import set_color

from recbole_lea.keys import built_in_types
from recbole_lea.store.files import replacing

# What RecBole works out itself from the other keys, and what older versions of ours left there
DERIVED = (
    "MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "device", "single_spec", "local_rank",
    "ranks", "nproc", "world_size", "offset", "group_offset", "ip", "port",
)  # fmt: skip


def save(
    trainer: Any, epoch: int, verbose: bool, path: str | Path | None, resume: dict | None = None
) -> None:
    """RecBole's checkpoint of any trainer, whole or not at all, without its pickled Config.

    ``path`` is None for the trainer's own file, ``resume`` (``resume_state``) outside of a ``fit``.
    """
    path = Path(path or trainer.saved_model_file)
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


def resume_state(trainer: Any) -> dict[str, Any]:
    """What the rest of a training depends on beside RecBole's checkpoint, within a ``fit``.

    All is of built-in types and tensors, which torch loads without pickle.
    """
    feedback = trainer._dataset.lea_feedback
    random = {
        "torch": torch.get_rng_state(),
        "numpy": json.dumps(np.random.get_state(legacy=False), default=np.ndarray.tolist),
        "model": trainer.model._rng.get_state(),
    }
    if trainer.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(trainer.device)
    if feedback is not None:
        random["feedback"] = json.dumps(feedback.rng.bit_generator.state)
    state = {
        "best_is_warmup": trainer._best_is_warmup,
        "updates": trainer.model.updates,
        "best_valid_result": trainer._best_result,
        "random": [random],  # a list, as once there could be several processes
        "loader": trainer._batches.generator_state,
        "taken": trainer._batches.taken,
    }
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
        ValueError: it is of other training data.
    """
    feedback = trainer._dataset.lea_feedback
    trainer._best_is_warmup = state["best_is_warmup"]
    trainer.model.updates = state.get("updates", trainer.model.updates)
    # RecBole's checkpoint has its score alone
    trainer._best_result = trainer.best_valid_result = state.get("best_valid_result")
    if kept := state.get("augmentation"):
        if len(kept["actions"]) != feedback.sequences.n_transitions:
            raise ValueError(
                f"the checkpoint is of {len(kept['actions'])} training transitions, but the data "
                f"have {feedback.sequences.n_transitions}: resume with the data it was trained on"
            )
        kept = {name: values.cpu().numpy() for name, values in kept.items()}
        feedback.augment(kept["actions"], kept.get("scores"))
    trainer._batches.go_on(state["loader"].cpu(), state["taken"])
    random = state["random"][0]
    torch.set_rng_state(random["torch"].cpu())
    values = json.loads(random["numpy"])
    values["state"]["key"] = np.array(values["state"]["key"], dtype=np.uint32)
    np.random.set_state(values)
    trainer.model._rng.set_state(random["model"].cpu())
    if "cuda" in random and trainer.device.type == "cuda":
        torch.cuda.set_rng_state(random["cuda"].cpu(), trainer.device)
    if "feedback" in random:
        feedback.rng.bit_generator.state = json.loads(random["feedback"])


def restored_config(saved: dict[str, Any]) -> Config:
    """RecBole's config, for this machine, from a checkpoint's ``config`` or some of it.

    Keys on the command line win, so that data and caches may lie elsewhere than they did.
    """
    # RecBole refuses its own default beside loss_type CE; what is measured has to fit together
    first = ("metrics", "topk", "valid_metric")
    given = {key: saved[key] for key in saved if key in first} | {"train_neg_sample_args": None}
    config = Config(saved["model"], saved["dataset"], config_dict=given)
    keep = {*DERIVED, *config.cmd_config_dict}
    if saved["dataset"] == "ml-100k":  # inside RecBole's own package, here as there
        keep.add("data_path")
    for key, value in saved.items():
        if key not in keep:
            config[key] = value
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
            whole = zipfile.ZipFile(stream).testzip() is None
        except Exception:  # zipfile has many ways to stumble over a damaged file
            whole = False
    if not whole:
        raise ValueError(
            f"{path} is damaged: it was truncated or altered since it was written; use another "
            "checkpoint, or train again"
        )


@contextlib.contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Name a checkpoint that is no good; torch advises to allow the pickled code it refuses.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it was truncated or altered, or holds other than tensors and plain values.
    """
    refuse_damaged(path)
    try:
        yield
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{path}: no checkpoint of tensors and plain values alone: it is damaged, or it holds "
            "objects that can run code; use one that was written after `import recbole_lea`"
        ) from error
