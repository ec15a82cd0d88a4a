"""Recommendations from a checkpoint for any history: no LLM, no dataset, no training data."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from recbole_lea.serve.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

# Histories scored at a time
BATCH = 256


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """What is recommended after one history.

    Attributes:
        items: item tokens, best first.
        scores: of the items, as the model gives them; comparable within one history.
        unknown: tokens of the history that the model was not trained on; they were left out.
    """

    items: list[str]
    scores: list[float]
    unknown: list[str]


class Recommender:
    """A model that is loaded once and asked often.

    Args:
        checkpoint: a checkpoint of a model of this package, or a folder that
            ``recbole_lea.export --to safetensors`` made.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is something else.
    """

    def __init__(self, checkpoint: str | Path | Checkpoint) -> None:
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = Checkpoint.read(checkpoint)
        self.checkpoint = checkpoint
        self.ranker = checkpoint.ranker()
        self.tokens = checkpoint.item_tokens
        # the padding item is none
        self.ids = {token: i for i, token in enumerate(self.tokens) if i}

    def known(self, history: Sequence[str]) -> tuple[list[str], list[str]]:
        """The tokens of a history that the model knows, and the others, which are logged."""
        known = [token for token in history if token in self.ids]
        unknown = [token for token in history if token not in self.ids]
        if unknown:
            logger.warning(
                "%d of the %d items of a history are unknown to %s and left out: %s",
                len(unknown), len(history), self.checkpoint.path, ", ".join(map(str, unknown)),
            )  # fmt: skip
        return known, unknown

    @torch.inference_mode()
    def scores(self, histories: Sequence[Sequence[str]]) -> torch.Tensor:
        """Scores of all items; the padding item has -inf.

        Args:
            histories: known item tokens, oldest first; the newest ``max_length`` count.

        Returns:
            [B, n_items], by RecBole's id.
        """
        scores = self.ranker(*self._inputs(histories))
        scores[:, 0] = -torch.inf
        return scores

    def _inputs(self, histories: Sequence[Sequence[str]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Right-padded ids [B, L] and lengths [B]."""
        length = self.checkpoint.max_length
        ids = torch.zeros(len(histories), length, dtype=torch.int64)
        lengths = torch.zeros(len(histories), dtype=torch.int64)
        for row, history in enumerate(histories):
            newest = [self.ids[token] for token in history[-length:]]
            ids[row, : len(newest)] = torch.tensor(newest)
            lengths[row] = len(newest)
        return ids, lengths

    @torch.inference_mode()
    def hidden(self, histories: Sequence[Sequence[str]]) -> torch.Tensor:
        """h_t of the backbone after each history, as ``scores`` takes it [B, H]."""
        return self.ranker.backbone(*self._inputs(histories))

    def recommend(self, histories: Sequence[Sequence[str]], k: int = 10) -> list[Recommendation]:
        """See ``recommend``."""
        if not 1 <= k < len(self.tokens):
            raise ValueError(f"k is {k}, but has to be from 1 to the {len(self.tokens) - 1} items")
        read = []
        for number, history in enumerate(histories):
            if isinstance(history, str):
                raise ValueError(f"history {number} is the text {history!r}: give a list of tokens")
            if len(history) == 0:
                raise ValueError(f"history {number} is empty: give at least one item token")
            known, unknown = self.known(history)
            if not known:
                raise ValueError(
                    f"history {number} has no item that the model knows: "
                    f"{', '.join(map(str, unknown))}"
                )
            read.append((known, unknown))
        made = []
        for start in range(0, len(read), BATCH):
            part = read[start : start + BATCH]
            best = self.scores([known for known, _ in part]).topk(k)
            for (_, unknown), ids, scores in zip(part, best.indices, best.values, strict=True):
                items = [self.tokens[i] for i in ids]
                made.append(Recommendation(items, scores.tolist(), unknown))
        return made


def recommend(
    checkpoint: str | Path | Checkpoint, histories: Sequence[Sequence[str]], k: int = 10
) -> list[Recommendation]:
    """The best next items after each history, such as none seen in training.

    As in RecBole's evaluation, an item of the history can be recommended again. To ask often,
    keep a ``Recommender``.

    Args:
        checkpoint: a checkpoint of a model of this package, or a folder that
            ``recbole_lea.export --to safetensors`` made.
        histories: item tokens, oldest first; of a long one the newest
            ``MAX_ITEM_LIST_LENGTH`` that are known count.
        k: how many items.

    Returns:
        One for each history.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is something else, a history is empty or has no known item, or ``k`` is
            more than there are items.
    """
    return Recommender(checkpoint).recommend(histories, k)
