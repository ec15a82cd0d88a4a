"""The positive-action model (section 3.4): which of a list the user would like best."""

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from recbole_lea.le import answers, stages
from recbole_lea.le.heads import STATE_HEADS
from recbole_lea.store.arrays import pieces, take

if TYPE_CHECKING:
    from recbole_lea.le.pipeline import Pipeline

logger = logging.getLogger(__name__)


def choose(
    scores: np.ndarray, candidates: np.ndarray, calibration: str
) -> tuple[np.ndarray, np.ndarray]:
    """The predicted positive action a^e: the listed item with the highest score.

    ``scores`` [n, k] of the listed candidates [n, k] are log-probabilities of the label words,
    rewards, or nearness to the state. ``calibration: prior`` subtracts each label's mean over all
    prompts, because a small LLM leans to one position whatever the items (deviation 14b); ``none``
    is the paper. Returns the chosen item [n] and the share each position won [k].
    """
    n, k = scores.shape
    prior = np.zeros(k, dtype=np.float32)
    if calibration == "prior":
        prior[:] = sum(part.sum(0, dtype=np.float64) for part in pieces(scores)) / n
    position = np.concatenate([(part - prior).argmax(1) for part in pieces(scores)])
    share = np.bincount(position, minlength=k) / n
    return np.take_along_axis(candidates, position[:, None], axis=1)[:, 0], share


def nearness(le: "Pipeline", candidates: np.ndarray) -> np.ndarray:
    """How near each candidate is to the transition's state, up to a factor [n_transitions, k].

    x_t itself, which by the skip connection is near whatever the user wants, comes last.
    """
    states = le.full_states()
    head = STATE_HEADS[le.settings.state_head](torch.from_numpy(le.item_keys()))
    # a user's last state has no transition
    rows = np.delete(np.arange(len(states)), le.sequences.state_starts[1:] - 1)
    newest = np.concatenate([own[:-1] for own in le.sequences.items])
    scores = np.empty(candidates.shape, dtype=np.float32)
    parts = (pieces(array, 2**12) for array in (scores, rows, candidates, newest))
    for part, own, listed, last in zip(*parts, strict=True):
        query = head.query(torch.from_numpy(take(states, own).astype(np.float32)))  # [m, d]
        near = head.keys[torch.from_numpy(listed)] @ query[:, :, None]  # [m, k, 1]
        part[:] = near.squeeze(2).detach().numpy()
        part[listed == last[:, None]] = -np.inf
    return scores


def select(
    le: "Pipeline", candidates: np.ndarray, want_rewards: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """``Pipeline.select`` in each process."""
    s, truth = le.settings, le.actions[:, 0]
    scores = _scores(le, candidates)
    calibration = s.selection_calibration if s.selection_by == "label" else "none"
    chosen, share = choose(scores, candidates, calibration)
    listed = float((candidates == truth[:, None]).any(1).mean())
    right = float((chosen == truth).mean())
    logger.info(
        "augmentation: share of positions chosen: %s; the true next item is in %.3f of the "
        "lists and is chosen in %.3f", ", ".join(f"{part:.2f}" for part in share), listed, right,
    )  # fmt: skip
    le.measured |= {
        "positions_chosen": share.tolist(), "true_item_listed": listed, "true_item_chosen": right,
    }  # fmt: skip
    if not want_rewards:
        return chosen, None
    if s.selection_by == "reward":
        return chosen, np.max(scores, axis=1)
    title = "rewards of the chosen actions"
    made_of = stages.parts(environment=le.keys["environment"], actions=stages.digest(chosen))
    stage = stages.rewards_of(le, chosen[:, None], "selection_rewards", title, made_of)
    return chosen, le.array(stage)[:, 0]


def _scores(le: "Pipeline", candidates: np.ndarray) -> np.ndarray:
    """What the LE picks from candidates by [n_transitions, k]."""
    s, title = le.settings, "augmentation"
    if s.selection_by == "state":
        with le.stages.stage(title):
            return nearness(le, candidates)
    made_of = stages.parts(environment=le.keys["environment"], candidates=stages.digest(candidates))
    if s.selection_by == "reward":
        made_of["by"] = "reward"
        return le.array(stages.rewards_of(le, candidates, "selection", title, made_of))
    prompt = s.selection_prompt + s.selection_suffix
    made_of |= {"prompt": prompt, "labels": s.selection_labels}
    asked = (le.environment, answers.label_scores, "label_scores")
    return le.array(stages.of_actions(le, candidates, "selection", title, made_of, *asked))
