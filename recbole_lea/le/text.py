"""The LE's twin without an LLM pass: states and rewards from item texts alone.

``lea_environment: text`` is the control of every claim about the LE, and a choice where an LLM
costs too much. Nothing of it is trained. It answers as ``Environment`` does: every method runs
with it; it has no positive-action prompt (deviation 66).
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_lea.engine.processes import processes
from recbole_lea.le.finetune import HISTORY, held_out
from recbole_lea.le.heads import DECAY, evened, recency_mean
from recbole_lea.le.quality import evaluate
from recbole_lea.le.sequences import Sequences
from recbole_lea.le.settings import LESettings
from recbole_lea.store.files import write_json

# Histories that are looked at together.
AT_ONCE = 4096

_NOTHING = -1  # fills the rows of shorter histories


class TextEnvironment:
    """States and rewards by the similarity of item texts.

    The state is the mean of the newest items' evened text vectors [n_items, d]; an item weighs
    ``DECAY`` times what the next one does. The reward of an action is its cosine to the state.
    """

    def __init__(self, item_tokens: Tensor, settings: LESettings) -> None:
        self.item_tokens, self.settings = item_tokens, settings
        self.keys = F.normalize(evened(item_tokens), dim=-1)  # [n_items, d]
        self.device = item_tokens.device
        self.prompts = self  # a "prompt" is the newest items' indices

    def state(self, history: Sequence[int] | np.ndarray) -> list[int]:
        """What the state of a history is made of."""
        return [int(item) for item in history[-self.settings.max_history :]]

    def reward(self, history: Sequence[int] | np.ndarray, action: int) -> list[int]:
        """What the reward of an action is made of."""
        return [*self.state(history), int(action)]

    def state_of(self, rows: Tensor) -> Tensor:
        """States [N, d] of length sqrt(d) at the end of each row, right-aligned [N, L]."""
        return recency_mean(self.keys, rows.flip(1), DECAY) * math.sqrt(self.keys.shape[1])

    def reward_of(self, rows: Tensor) -> Tensor:
        """Cosine of each row's last item to the state before it [N]."""
        state = F.normalize(self.state_of(rows[:, :-1]), dim=-1)  # [N, d]
        return (state * self.keys[rows[:, -1].clamp(min=0)]).sum(-1)

    def state_scores(self, states: Tensor) -> Tensor:
        """Cosine of every item to states s'_t: [N, d] -> [N, n_items]."""
        return F.normalize(states, dim=-1) @ self.keys.T

    @torch.inference_mode()
    def answer(
        self, groups: Iterable[Sequence[Sequence[int]]], head: Callable[[Tensor], Tensor]
    ) -> np.ndarray:
        """Apply ``head`` to each row of the groups, in their order: [N, ...], float32."""
        found = []
        prompts = itertools.chain.from_iterable(groups)
        while rows := list(itertools.islice(prompts, AT_ONCE)):
            padded = np.full((len(rows), self.settings.max_history + 1), _NOTHING)
            for line, row in zip(padded, rows, strict=True):
                line[-len(row) :] = row
            found.append(head(torch.from_numpy(padded)).float().numpy())
        return np.concatenate(found) if found else np.zeros((0,), dtype=np.float32)


def measure(sequences: Sequences, environment: TextEnvironment, folder: Path) -> dict[str, Any]:
    """The stage that takes fine-tuning's place: nothing learns, and it is measured alike."""
    settings = environment.settings
    record: dict[str, Any] = {"epoch": 0}
    if pairs := held_out(sequences, settings):
        record |= evaluate(environment, sequences, pairs, settings.seed)
    if processes().is_main_process:
        write_json(folder / HISTORY, [record])
    return {}
