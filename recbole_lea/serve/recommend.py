"""Recommendations from a checkpoint for any history: no LLM, no dataset, no training data."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from recbole_lea.serve.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

BATCH = 256  # histories scored at a time


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """What is recommended after one history."""

    items: list[str]  # item tokens, best first
    scores: list[float]  # of the items, as the model gives them; comparable within one history
    unknown: list[str]  # tokens of the history that the model does not know and were left out


class Recommender:
    """A model that is loaded once and asked often; see ``recommend``."""

    def __init__(self, checkpoint: str | Path) -> None:
        self.checkpoint = Checkpoint.read(checkpoint)
        self.ranker = self.checkpoint.ranker()
        self.tokens = self.checkpoint.item_tokens
        self.ids = {token: i for i, token in enumerate(self.tokens) if i}  # 0 is padding

    def known(
        self, history: Sequence[str | int], name: str = "the history"
    ) -> tuple[list[str], list[str]]:
        """The tokens of a history that the model knows, and the others, which are logged.

        Raises a ValueError if the history is no list, is empty, or has no known token.
        """
        history = _texts(history, name)
        if not history:
            raise ValueError(f"{name} is empty: give at least one item token")
        unknown = [token for token in history if token not in self.ids]
        names = ", ".join(unknown)
        if len(unknown) == len(history):
            raise ValueError(f"{name} has no item that the model knows: {names}")
        if unknown:
            logger.warning(
                "%d of the %d items of a history are unknown to %s and left out: %s",
                len(unknown), len(history), self.checkpoint.path, names,
            )  # fmt: skip
        return [token for token in history if token in self.ids], unknown

    @torch.inference_mode()
    def scores(self, histories: Sequence[Sequence[str]]) -> torch.Tensor:
        """Scores of all items after known tokens [B, n_items]; the padding item has -inf."""
        scores = self.ranker(*self.inputs(histories))
        scores[:, 0] = -torch.inf
        return scores

    def inputs(self, histories: Sequence[Sequence[str]]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the ranker takes: right-padded ids [B, L] and lengths [B] of known tokens."""
        length = self.checkpoint.config["MAX_ITEM_LIST_LENGTH"]
        newest = [[self.ids[token] for token in history[-length:]] for history in histories]
        padded = [ids + [0] * (length - len(ids)) for ids in newest]
        return torch.tensor(padded), torch.tensor([len(ids) for ids in newest])

    @torch.inference_mode()
    def recommend(
        self, histories: Sequence[Sequence[str | int]], k: int = 10,
        exclude_history: bool = False, exclude: Sequence[str | int] = (),
    ) -> list[Recommendation]:  # fmt: skip
        """See ``recommend``."""
        if not 1 <= k < len(self.tokens):
            raise ValueError(f"k is {k}, but has to be from 1 to the {len(self.tokens) - 1} items")
        read = [self.known(history, f"history {n}") for n, history in enumerate(histories)]
        never = [self.ids[token] for token in _texts(exclude, "exclude") if token in self.ids]
        made = []
        for start in range(0, len(read), BATCH):
            part = read[start : start + BATCH]
            scores = self.scores([known for known, _ in part])  # [B, n_items]
            scores[:, never] = -torch.inf
            for (known, _), row in zip(part, scores, strict=True):
                if exclude_history:
                    row[[self.ids[token] for token in known]] = -torch.inf
            best = scores.topk(k)
            for (_, unknown), ids, values in zip(part, best.indices, best.values, strict=True):
                left = int((values != -torch.inf).sum())
                items = [self.tokens[i] for i in ids[:left]]
                made.append(Recommendation(items, values[:left].tolist(), unknown))
        return made


def recommend(
    checkpoint: str | Path, histories: Sequence[Sequence[str | int]], k: int = 10,
    exclude_history: bool = False, exclude: Sequence[str | int] = (),
) -> list[Recommendation]:  # fmt: skip
    """The best next items after each history, such as none seen in training.

    To ask often, keep a ``Recommender``. A number as item is taken as its text.

    Args:
        checkpoint: of a model of this package, or a folder that ``--to safetensors`` made.
        histories: item tokens, oldest first; the newest ``MAX_ITEM_LIST_LENGTH`` known ones count.
        k: how many items; fewer come back where the exclusions leave fewer.
        exclude_history: leave out the items of each history; by default one can be recommended
            again, as in RecBole's evaluation.
        exclude: items that are never recommended; unknown ones are passed over.

    Raises a FileNotFoundError if there is no such checkpoint, and a ValueError if it is something
    else, a history is empty or has no known item, or ``k`` is more than there are items.
    """
    return Recommender(checkpoint).recommend(histories, k, exclude_history, exclude)


def _texts(tokens: Sequence[str | int], name: str) -> list[str]:
    if isinstance(tokens, str | int):
        raise ValueError(f"{name} is {tokens!r}: give a list of item tokens")
    return [str(token) for token in tokens]
