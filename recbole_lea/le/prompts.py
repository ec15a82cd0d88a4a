"""The paper's prompts (section 3.2 and 3.4) as token ids.

An item is one virtual token: item ``i`` has the id ``vocab_size + i``. Where items stand as their
titles (section 5.4.2), that is the id of the title's last word: so an item ends at a token of its
own in both.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from recbole_lea.le.settings import LESettings

# LE item indices
Items = Sequence[int] | np.ndarray

# Texts that the tokenizer gets together; its own records of them take kilobytes each.
AT_ONCE = 4096

_PLACEHOLDER = re.compile(r"\{[^{}]*\}")


class Template:
    """One template, tokenized once around its only placeholder.

    One that comes ``first`` in the prompt gets the BOS token of tokenizers that add one.
    """

    def __init__(self, text: str, tokenizer: Any, first: bool = False) -> None:
        before, after = _PLACEHOLDER.split(text)
        # A BPE word carries its own leading space; a space left before a virtual token would
        # become a token of its own.
        before = before.rstrip(" ")
        self.before, self.after = following(tokenizer, [before, after])
        if first:
            self.before = bos_ids(tokenizer) + ids_of(tokenizer, [before])[0]

    def fill(self, ids: Sequence[int]) -> list[int]:
        """The token ids with the given ones in the place of the placeholder."""
        return [*self.before, *ids, *self.after]


class Prompts:
    """The LE's prompts for one Hugging Face tokenizer.

    ``vocab_size`` are the rows of the LLM's embedding matrix: item ids start there. ``titles``
    are the word ids of each item's title, with ``prompt_items: title``.
    """

    def __init__(
        self, tokenizer: Any, vocab_size: int, settings: LESettings,
        titles: Sequence[Sequence[int]] | None = None,
    ) -> None:  # fmt: skip
        self.vocab_size, self.titles, self.settings = vocab_size, titles, settings
        (self.separator,) = following(tokenizer, [","])
        self.user = Template(settings.user_prompt, tokenizer, first=True)
        self.action = Template(action_prompt(settings), tokenizer)
        self.selection = Template(settings.selection_prompt + settings.selection_suffix, tokenizer)
        self.labels = label_ids(tokenizer, settings.selection_labels)

    def item_ids(self, items: Items) -> list[int]:
        """Token ids of LE item indices: one each, or their titles, separated by commas."""
        ids: list[int] = []
        for item in items:
            if self.titles is not None:
                ids += [*(self.separator if ids else []), *self.titles[item][:-1]]
            ids.append(self.vocab_size + int(item))
        return ids

    def window(self, history: Items) -> Items:
        """The part of x_{1:t} that the LE sees: the newest ``max_history`` items.

        With a ``history_hop`` of h, the first of them moves on only every h steps, so that the
        prompts in between share all but their last item.
        """
        start = max(0, len(history) - self.settings.max_history)
        if hop := self.settings.history_hop:
            start -= start % hop
        return history[start:]

    def _user_prompt(self, history: Items) -> list[int]:
        return self.user.fill(self.item_ids(self.window(history)))

    def reward(self, history: Items, item: int) -> list[int]:
        """Reward prompt "p_t p_a"; the reward is read at its last token (Eq. 1)."""
        return self._user_prompt(history) + self.action.fill(self.item_ids([item]))

    def state(self, history: Items) -> list[int]:
        """Input of the state model: the bare items (the paper), or the user prompt up to x_t.

        The state is read at its last token, x_t (Eq. 3).
        """
        items = self.item_ids(self.window(history))
        return items if self.settings.state_input == "items" else [*self.user.before, *items]

    def select(self, history: Items, items: Items) -> list[int]:
        """Augmentation prompt "p_t p_l"; the label is read after its last token."""
        return self._user_prompt(history) + self.selection.fill(self.item_ids(items))


def action_prompt(settings: LESettings) -> str:
    """The paper's wording, or one with the item last: there an action costs one token."""
    paper = settings.reward_prompt == "paper"
    return settings.action_prompt if paper else settings.action_prompt_item_last


def ids_of(tokenizer: Any, texts: list[str], foreign: bool = False) -> list[list[int]]:
    """Token ids of each text, nothing added.

    ``foreign`` texts come from data, where ``</s>`` is text and no special token.
    """
    options = {"split_special_tokens": True} if foreign else {}
    return tokenizer(texts, add_special_tokens=False, **options)["input_ids"] if texts else []


def following(tokenizer: Any, texts: list[str], foreign: bool = False) -> list[list[int]]:
    """Token ids of each text as it follows a word; ``foreign`` as for ``ids_of``."""
    # Tokenizers in the manner of Llama 2 put a space before every text they get: alone, " first"
    # would start with a token for nothing but that space.
    (before,) = ids_of(tokenizer, ["the"])
    n = len(before)
    alones = ids_of(tokenizer, texts, foreign)
    boths = ids_of(tokenizer, [f"the{text}" for text in texts], foreign)
    return [
        both[n:] if not text[:1].isalnum() and both[:n] == before else alone
        for text, alone, both in zip(texts, alones, boths, strict=True)
    ]


def title_ids(tokenizer: Any, titles: Sequence[str], limit: int) -> list[list[int]]:
    """Word ids of each title as it follows a word, cut to ``limit``; "unknown" if none are left."""
    (unknown,) = following(tokenizer, [" unknown"])
    ids: list[list[int]] = []
    for first in range(0, len(titles), AT_ONCE):
        texts = [f" {title}" for title in titles[first : first + AT_ONCE]]
        ids += [(words or unknown)[:limit] for words in following(tokenizer, texts, foreign=True)]
    return ids


def bos_ids(tokenizer: Any) -> list[int]:
    """``[bos]`` where the tokenizer adds it by itself, else nothing."""
    ids, bos = tokenizer("x")["input_ids"], tokenizer.bos_token_id
    return [bos] if bos is not None and ids and ids[0] == bos else []


def label_ids(tokenizer: Any, labels: Sequence[str]) -> list[int]:
    """Id of the first token of each label word, as it follows a word; all have to differ."""
    ids = [words[0] for words in following(tokenizer, [f" {label}" for label in labels])]
    if len(set(ids)) < len(ids):
        raise ValueError(
            "lea_selection_labels: two labels start with the same token of this LLM's tokenizer: "
            f"{', '.join(map(repr, labels))} with {ids}"
        )
    return ids
