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

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class Template:
    """One template, tokenized once; ``fill`` only concatenates.

    The text has each placeholder of ``names`` once; ``key`` is its YAML key. One that comes
    ``first`` in the prompt gets the BOS token of tokenizers that add one.
    """

    def __init__(
        self, text: str, names: Sequence[str], key: str, tokenizer: Any, first: bool
    ) -> None:
        check_placeholders(text, names, key)
        parts = _PLACEHOLDER.split(text)
        self.names = parts[1::2]
        # A BPE word carries its own leading space; a space left before a virtual token would
        # become a token of its own.
        texts = [part.rstrip(" ") for part in parts[:-1:2]] + [parts[-1]]
        self.pieces = following(tokenizer, texts)
        if first:
            self.pieces[0] = bos_ids(tokenizer) + ids_of(tokenizer, texts[:1])[0]

    def fill(self, **values: Sequence[int]) -> list[int]:
        """The token ids with the placeholders replaced by the given token ids."""
        ids = list(self.pieces[0])
        for name, piece in zip(self.names, self.pieces[1:], strict=True):
            ids.extend(values[name])
            ids.extend(piece)
        return ids


class Prompts:
    """The LE's prompts for one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer.
        vocab_size: rows of the LLM's embedding matrix; item ids start there.
        settings: the LE's templates and labels.
        titles: word ids of each item's title, with ``prompt_items: title``.
    """

    def __init__(
        self,
        tokenizer: Any,
        vocab_size: int,
        settings: LESettings,
        titles: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.vocab_size, self.titles, self.settings = vocab_size, titles, settings
        self.separator = following(tokenizer, [","])[0] if titles is not None else []
        s, (action, key) = settings, action_prompt(settings)
        self.user = Template(s.user_prompt, ["history"], "lea_user_prompt", tokenizer, first=True)
        self.action = Template(action, ["item"], key, tokenizer, first=False)
        selection, key = s.selection_prompt + s.selection_suffix, "lea_selection_prompt"
        self.selection = Template(selection, ["list"], key, tokenizer, first=False)
        self.labels = label_ids(tokenizer, s.selection_labels)

    def item_ids(self, items: Items) -> list[int]:
        """Token ids of LE item indices: one each, or their titles, separated by commas."""
        if self.titles is None:
            return [self.vocab_size + int(item) for item in items]
        ids: list[int] = []
        for number, item in enumerate(items):
            ids += self.separator if number else []
            ids += [*self.titles[item][:-1], self.vocab_size + int(item)]
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
        return self.user.fill(history=self.item_ids(self.window(history)))

    def reward(self, history: Items, item: int) -> list[int]:
        """Reward prompt "p_t p_a"; the reward is read at its last token (Eq. 1)."""
        return self._user_prompt(history) + self.action.fill(item=self.item_ids([item]))

    def state(self, history: Items) -> list[int]:
        """Input of the state model; the state is read at its last token, x_t (Eq. 3).

        The bare item tokens (the paper); or the user prompt, which the reward's begins with.
        """
        if self.settings.state_input == "items":
            return self.item_ids(self.window(history))
        prompt = self._user_prompt(history)
        return prompt[: len(prompt) - len(self.user.pieces[-1])]

    def select(self, history: Items, items: Items) -> list[int]:
        """Augmentation prompt "p_t p_l"; the label is read after its last token."""
        return self._user_prompt(history) + self.selection.fill(list=self.item_ids(items))


def action_prompt(settings: LESettings) -> tuple[str, str]:
    """The action prompt in use and its YAML key.

    ``reward_prompt: paper`` is the paper's wording; ``item_last`` says the same with the item
    as the last token, so that the text before it is shared and an action costs one token.
    """
    if settings.reward_prompt == "paper":
        return settings.action_prompt, "lea_action_prompt"
    check_item_last(settings.action_prompt_item_last)
    return settings.action_prompt_item_last, "lea_action_prompt_item_last"


def check_placeholders(text: str, names: Sequence[str], key: str) -> None:
    """Raise a ValueError unless a template has each of its placeholders once, and no other."""
    if sorted(_PLACEHOLDER.findall(text)) != sorted(names):
        wanted = " and ".join(f"{{{name}}}" for name in names)
        raise ValueError(f"`{key}` needs exactly the placeholder {wanted}, but is {text!r}")


def check_item_last(text: str) -> None:
    """Raise a ValueError unless the ``item_last`` wording ends with its only placeholder."""
    key = "lea_action_prompt_item_last"
    check_placeholders(text, ["item"], key)
    if not text.endswith("{item}"):
        raise ValueError(f"`{key}` has to end with {{item}}, but is {text!r}")


def ids_of(tokenizer: Any, texts: list[str], foreign: bool = False) -> list[list[int]]:
    """Token ids of each text, nothing added; together they take a fraction of the time.

    ``foreign`` texts come from data, where ``</s>`` is text and no special token.
    """
    options = {"split_special_tokens": True} if foreign else {}
    return tokenizer(texts, add_special_tokens=False, **options)["input_ids"] if texts else []


def following(tokenizer: Any, texts: list[str], foreign: bool = False) -> list[list[int]]:
    """Token ids of each text as it follows a word; ``foreign`` as for ``ids_of``.

    Tokenizers in the manner of Llama 2 put a space before every text they get: alone, " first"
    would start with a token for nothing but that space.
    """
    (before,) = ids_of(tokenizer, ["the"])
    n, found = len(before), []
    alones = ids_of(tokenizer, texts, foreign)
    boths = ids_of(tokenizer, [f"the{text}" for text in texts], foreign)
    for text, alone, both in zip(texts, alones, boths, strict=True):
        apart = not text[:1].isalnum() and both[:n] == before
        found.append(both[n:] if apart else alone)
    return found


def title_ids(tokenizer: Any, titles: Sequence[str], limit: int) -> list[list[int]]:
    """Word ids of each title as it follows a word, cut to ``limit``; "unknown" if none are left."""
    ids: list[list[int]] = []
    (unknown,) = following(tokenizer, [" unknown"])
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
    for i, label in enumerate(labels):
        if ids[i] in ids[:i]:
            other = labels[ids.index(ids[i])]
            raise ValueError(
                f"the labels {other!r} and {label!r} start with the same token of this LLM's "
                "tokenizer; choose other words in lea_selection_labels"
            )
    return ids
