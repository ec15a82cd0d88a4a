"""The positive-action model (section 3.4): which of a list the user would like best."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from recbole_lea.engine.progress import PromptBar
from recbole_lea.le.answers import Bar, Filled, by_shard, transitions
from recbole_lea.le.environment import Environment
from recbole_lea.le.heads import STATE_HEADS
from recbole_lea.le.sequences import Sequences
from recbole_lea.le.settings import LESettings
from recbole_lea.store.arrays import pieces, take

logger = logging.getLogger(__name__)


def choose(
    scores: np.ndarray, candidates: np.ndarray, calibration: str
) -> tuple[np.ndarray, np.ndarray]:
    """The predicted positive action a^e: the listed item with the highest score.

    Args:
        scores: log-probabilities of the label words, rewards, or nearness to the state [n, k].
        candidates: listed items [n, k].
        calibration: ``prior`` subtracts each label's mean over all prompts, because a small
            LLM leans to one position whatever the items (deviation 14b); ``none`` is the paper.

    Returns:
        The chosen item [n] and the share each position won [k].
    """
    n, k = scores.shape
    prior = np.zeros(k, dtype=np.float32)
    if calibration == "prior":
        prior[:] = sum(part.sum(0, dtype=np.float64) for part in pieces(scores)) / n
    position = np.concatenate([(part - prior).argmax(1) for part in pieces(scores)])
    share = np.bincount(position, minlength=k) / n
    return np.take_along_axis(candidates, position[:, None], axis=1)[:, 0], share


def label_scores(
    sequences: Sequences,
    candidates: np.ndarray,
    bar: Bar,
    environment: Environment,
    missing: list[int],
) -> Filled:
    """Log-probability of each label word, for lists [n_transitions, k]: [n, k] a shard."""

    def prompts(first: int, end: int) -> Iterator[list[list[int]]]:
        for row, history in transitions(sequences, first, end):
            yield [environment.prompts.select(history, candidates[row])]

    def of(first: int, end: int, progress: PromptBar) -> np.ndarray:
        scores = environment.answer(prompts(first, end), environment.label_scores_of, progress)
        return scores[:, : candidates.shape[1]]

    return by_shard(sequences, missing, bar, sequences.transition_starts, of)


def nearness(
    settings: LESettings,
    sequences: Sequences,
    tokens: np.ndarray,
    states: np.ndarray,
    candidates: np.ndarray,
) -> np.ndarray:
    """How near each candidate is to the transition's state, up to a factor.

    x_t itself, which by the skip connection is near whatever the user wants, comes last.

    Args:
        settings: name the state head.
        sequences: the training sequences.
        tokens: item tokens [n_items, d].
        states: of all prefixes [n_states, d].
        candidates: listed items [n_transitions, k].

    Returns:
        Scores [n_transitions, k], float32.
    """
    head = STATE_HEADS[settings.state_head](torch.from_numpy(tokens))
    # a user's last state has no transition
    rows = np.delete(np.arange(len(states)), sequences.state_starts[1:] - 1)
    newest = np.concatenate([items[:-1] for items in sequences.items])
    scores = np.empty(candidates.shape, dtype=np.float32)
    parts = (pieces(array, 2**12) for array in (scores, rows, candidates, newest))
    for part, own, listed, last in zip(*parts, strict=True):
        query = head.query(torch.from_numpy(take(states, own).astype(np.float32)))  # [m, d]
        near = head.keys[torch.from_numpy(listed)] @ query[:, :, None]  # [m, k, 1]
        part[:] = near.squeeze(2).detach().numpy()
        part[listed == last[:, None]] = -np.inf
    return scores


def outcome(
    settings: LESettings,
    truth: np.ndarray,
    candidates: np.ndarray,
    chosen: np.ndarray,
    share: np.ndarray,
) -> dict[str, Any]:
    """How often each position [k] and the true next item [n] were chosen, for log and record."""
    labels = zip(settings.selection_labels, share, strict=False)
    listed = float((candidates == truth[:, None]).any(1).mean())
    right = float((chosen == truth).mean())
    logger.info(
        "augmentation: share of positions chosen: %s; the true next item is in %.3f of the "
        "lists and is chosen in %.3f",
        ", ".join(f"{label} {part:.2f}" for label, part in labels), listed, right,
    )  # fmt: skip
    return {
        "positions_chosen": share.tolist(),
        "true_item_listed": listed,
        "true_item_chosen": right,
    }
