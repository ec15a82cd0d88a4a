"""The items the LE knows: their tokens, their texts, and the sentence that describes each."""

import re
from collections.abc import Mapping

_CLAUSE = re.compile(r"\[([^\[\]]*)\]")
_FIELD = re.compile(r"\{([^{}\[\]]*)\}")


class Catalogue:
    """Items in a fixed order: item token -> {field: text}; an empty text means that it is unknown.

    The LE's item index is the position in the sorted tokens: it does not depend on file order,
    filtering order or RecBole's internal ids.
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
        """The sentence T of each item (section 3.2), and the tokens of items without text.

        The template is such as ``{item} film[ is titled {movie_title}][, released in {year}].``
        A clause in square brackets is dropped where one of its fields is empty. An item with
        no text is described by its token as title. A ValueError names a field that no item has.
        """
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

        The template is such as ``{movie_title}[ ({release_year})]``; the rest is as for sentences.
        """
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
    """The fields of the ``.item`` file that a template names, in its order."""
    return [name for name in _FIELD.findall(template) if name != "item"]


def check_sentence(template: str) -> None:
    """Raise a ValueError unless every item gets a sentence from which the LLM can learn it."""
    outside, after = _CLAUSE.sub("", template), template.partition("{item}")[2]
    once = template.count("{item}") == outside.count("{item}") == 1
    if not once or not after.strip() or _stray(template):
        raise ValueError(
            "`lea_item_sentence` needs {item} exactly once, outside of the [brackets], with text "
            f"after it, and no brackets or braces within others, but is {template!r}"
        )


def check_title(template: str) -> None:
    """Raise a ValueError unless a title is made of an item's fields."""
    if not item_fields(template) or "{item}" in template or _stray(template):
        raise ValueError(
            "`lea_title` needs fields of the .item file, no {item}, and no [brackets] or braces "
            f"within others, but is {template!r}"
        )


def _stray(template: str) -> set[str]:
    """Brackets and braces of a template that belong to no clause and no field."""
    return set("[]") & set(_CLAUSE.sub("", template)) | set("{}") & set(_FIELD.sub("", template))


def _one_line(text: str) -> str:
    """Item text that cannot smuggle in a placeholder."""
    return " ".join(text.replace("{", "(").replace("}", ")").split())


def _fill(template: str, text: Mapping[str, str]) -> str:
    def clause(match: re.Match[str]) -> str:
        return match[1] if all(text.get(name) for name in item_fields(match[1])) else ""

    def field(match: re.Match[str]) -> str:
        return match[0] if match[1] == "item" else text.get(match[1]) or "unknown"

    return _FIELD.sub(field, _CLAUSE.sub(clause, template))
