"""What a checkpoint holds beside RecBole's, so that a resumed training equals an uninterrupted one.

RecBole saves weights, optimiser and scores. What was drawn until then and what the LE chose after
the warm-up decide the rest. All is of built-in types and tensors, which torch loads without pickle.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch


def random_state(trainer: Any) -> dict[str, Any]:
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


def set_random_state(trainer: Any, state: dict[str, Any]) -> None:
    """The inverse of ``random_state``."""
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


def augmentation(trainer: Any) -> dict[str, torch.Tensor] | None:
    """The LE's choice for every transition and its reward scores; None before there is one."""
    feedback = trainer._train_data._dataset.lea_feedback
    if feedback is None or feedback.augmented is None:
        return None
    actions, scores = feedback.augmented
    kept = {"actions": torch.tensor(np.asarray(actions))}
    return kept if scores is None else kept | {"scores": torch.tensor(np.asarray(scores))}


def set_augmentation(trainer: Any, kept: dict[str, torch.Tensor]) -> None:
    """The inverse of ``augmentation``.

    Raises:
        ValueError: it is of other training data.
    """
    feedback = trainer._train_data._dataset.lea_feedback
    n = feedback.sequences.n_transitions
    if len(kept["actions"]) != n:
        raise ValueError(
            f"the checkpoint holds the LE's choice for {len(kept['actions'])} training "
            f"transitions, but the data have {n}: resume with the data it was trained on"
        )
    scores = kept.get("scores")
    feedback.augment(
        kept["actions"].cpu().numpy(), None if scores is None else scores.cpu().numpy()
    )


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
