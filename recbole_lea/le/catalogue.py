"""The items the LE knows: their tokens, their texts, and the sentence that describes each."""

import re
from collections.abc import Mapping

_CLAUSE = re.compile(r"\[([^\[\]]*)\]")
_FIELD = re.compile(r"\{(\w+)\}")


class Catalogue:
    """Item tokens in a fixed order with their text fields.

    The LE's item index is the position in the sorted tokens: it does not depend on file order,
    filtering order or RecBole's internal ids.

    Args:
        texts: item token -> {field: text}; an empty text means that it is unknown.
    """

    def __init__(self, texts: Mapping[str, Mapping[str, str]]) -> None:
        if not texts:
            raise ValueError("the LE needs at least one item, but the catalogue is empty")
        self.tokens = sorted(texts)
        self.index = {token: i for i, token in enumerate(self.tokens)}
        self.texts = [
            {name: _one_line(text) for name, text in texts[token].items()} for token in self.tokens
        ]

    def __len__(self) -> int:
        return len(self.tokens)

    def sentences(self, template: str) -> tuple[list[str], list[str]]:
        """The sentence T of each item (paper section 3.2, item tokenization).

        The template is such as ``{item} film[ is titled {movie_title}][, released in {year}].``
        A clause in square brackets is dropped where one of its fields is empty. An item with
        no text at all is described by its token as title.

        Returns:
            The sentences with the placeholder ``{item}``, and the tokens of items without text.

        Raises:
            ValueError: the template lacks ``{item}`` or names a field that no item has.
        """
        check_sentence(template)
        sentences, without_text = [], []
        filled = self._filled(template, "lea_item_sentence")
        for token, sentence in zip(self.tokens, filled, strict=True):
            if sentence is None or not sentence.partition("{item}")[2].strip():
                without_text.append(token)  # there is nothing to learn the item from
                sentence = f"{{item}} is titled {_one_line(token)}."
            sentences.append(sentence)
        return sentences, without_text

    def titles(self, template: str) -> list[str]:
        """What stands for each item where prompts are made of words (paper section 5.4.2).

        The template is such as ``{movie_title}[ ({release_year})]``; an item without text is
        called by its token. A ValueError where it names no field, or one that no item has.
        """
        check_title(template)
        titles = zip(self._filled(template, "lea_title"), self.tokens, strict=True)
        return [_one_line(token if title is None else title) for title, token in titles]

    def _filled(self, template: str, key: str) -> list[str | None]:
        """The template with each item's texts; None for an item that has none of them."""
        fields = item_fields(template)
        known = {name for text in self.texts for name in text}
        unknown = [name for name in fields if known and name not in known]
        if unknown:
            raise ValueError(
                f"{key} names the field {unknown[0]!r}, but the .item file has only: "
                f"{', '.join(sorted(known))}"
            )
        return [
            _fill(template, text) if any(text.get(name) for name in fields) else None
            for text in self.texts
        ]


def item_fields(template: str) -> list[str]:
    """The fields of the ``.item`` file that ``lea_item_sentence`` names, in its order."""
    return [name for name in _FIELD.findall(template) if name != "item"]


def check_sentence(template: str) -> None:
    """Raise a ValueError unless every item gets a sentence from which the LLM can learn it.

    ``{item}`` has to be there once, outside of any clause and before some text.
    """
    key = "`lea_item_sentence`"
    if template.count("{item}") != 1:
        raise ValueError(f"{key} needs {{item}} exactly once, but is {template!r}")
    outside = _outside(template, key)
    if "{item}" not in outside:
        raise ValueError(f"{key} needs {{item}} outside of the brackets, but is {template!r}")
    if not template.partition("{item}")[2].strip():
        raise ValueError(f"{key} needs text after {{item}}, but is {template!r}")


def check_title(template: str) -> None:
    """Raise a ValueError unless a title is made of an item's fields."""
    key = "`lea_title`"
    _outside(template, key)
    if not item_fields(template) or "{item}" in template:
        raise ValueError(f"{key} needs fields of the .item file alone, but is {template!r}")


def _outside(template: str, key: str) -> str:
    """A template without its clauses."""
    outside = _CLAUSE.sub("", template)
    if "[" in outside or "]" in outside:
        raise ValueError(f"{key} has a bracket too many, or one within another: {template!r}")
    return outside


def _one_line(text: str) -> str:
    """Item text that cannot smuggle in a placeholder."""
    return " ".join(text.replace("{", "(").replace("}", ")").split())


def _fill(template: str, text: Mapping[str, str]) -> str:
    def clause(match: re.Match[str]) -> str:
        names = item_fields(match.group(1))
        return match.group(1) if all(text.get(name) for name in names) else ""

    def field(match: re.Match[str]) -> str:
        name = match.group(1)
        return "{item}" if name == "item" else text.get(name) or "unknown"

    return _FIELD.sub(field, _CLAUSE.sub(clause, template))
