"""Text as it must look inside a RecBole atomic file.

RecBole 1.2.1 reads it by ``pandas.read_csv(delimiter="\\t", engine="python")`` with pandas' default
quoting and missing values; other programs split lines at tabs. A field has to survive both.
"""

import html
import math
import re
from typing import Any

# The csv module, which pandas' python engine reads with, refuses longer fields.
MAX_FIELD = 131_072

# pandas' default na_values: a field that is exactly one of these is read as missing.
PANDAS_MISSING = frozenset(
    "|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan"
    "|null".split("|")
)

_BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ENTITY = re.compile(r"&(?:#[0-9]+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);")
_HIDDEN = re.compile(r"<(script|style)\b[^>]*>.*?</\1\s*>|<!--.*?-->", re.DOTALL | re.IGNORECASE)
# Only names that HTML knows: "<Artist Name>" or "5 <10" is text, not markup.
_TAG = re.compile(
    r"</?(?:a|abbr|address|area|article|aside|b|big|blockquote|body|br|button|caption|center|cite|"
    r"code|col|colgroup|dd|del|div|dl|dt|em|embed|figcaption|figure|font|footer|form|h[1-6]|head|"
    r"header|hr|html|i|iframe|img|input|ins|label|li|link|map|meta|nav|noscript|object|ol|option|p|"
    r"param|pre|q|s|script|section|select|small|span|strike|strong|style|sub|sup|table|tbody|td|"
    r"textarea|tfoot|th|thead|title|tr|tt|u|ul|video)(?:[\s/][^<>]*)?>",
    re.IGNORECASE,
)


def one_line(text: str) -> str:
    """Collapse every run of white space and control characters to one space, and trim the ends.

    Lone surrogates, which JSON can carry and UTF-8 cannot, become U+FFFD.
    """
    return _SURROGATE.sub("\ufffd", _BLANK.sub(" ", text).strip(" "))


def strip_markup(text: str) -> str:
    """Remove HTML tags, comments, scripts and styles, resolve entities, and make it one line."""
    before = None
    # Published metadata is often escaped twice (``&amp;lt;b&amp;gt;``).
    while text != before:
        before = text
        text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
        text = _TAG.sub(" ", _HIDDEN.sub(" ", text))
    return one_line(text)


def joined(value: Any, separator: str) -> tuple[str, bool]:
    """Return the text of a JSON value without markup, and whether all of it can be text.

    Lists, also nested ones, are joined by ``separator``, without empty and repeated entries.
    Numbers become text; null and NaN are empty. Objects, true and false are left out: no text.
    """
    parts: dict[str, None] = {}
    sound, left = True, [value]
    while left:
        one = left.pop()
        if isinstance(one, list):
            left += reversed(one)
        elif type(one) in (str, int) or (type(one) is float and math.isfinite(one)):
            parts[strip_markup(str(one))] = None
        elif one is not None and one == one:  # NaN differs from itself
            sound = False
    return separator.join(filter(None, parts)), sound


# The text fields of products: what a source may call them, and what joins the entries of a list.
TEXT_FIELDS = {
    "title": (["title"], " "),
    "category": (["category", "categories"], ", "),
    "brand": (["brand", "store"], " "),
    "description": (["description"], " "),
}


def text_fields(row: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return a product's text fields, and the names of those that hold something else than text.

    Of several names of a field the first with text counts.
    """
    texts, bad = [], []
    for names, between in TEXT_FIELDS.values():
        found = {name: joined(row.get(name), between) for name in names}
        texts.append(next((text for text, _ in found.values() if text), ""))
        bad += [name for name, (_, sound) in found.items() if not sound]
    return texts, bad


def field(text: str) -> str:
    """Return ``text``, already on one line, as a field that every reader reads alike.

    A leading quote would make RecBole's reader swallow tabs and lines up to the next quote, and a
    title such as "None" or "NA" would be read as missing. One leading space prevents both;
    RecBole splits a ``token_seq`` at spaces, so nothing of it remains there.
    """
    if text.startswith('"') or (text and text in PANDAS_MISSING):
        text = f" {text}"
    return text[:MAX_FIELD].rstrip(" ")


def is_token(token: str) -> bool:
    """Tell whether ``token`` can be written as a user or item id and read back unchanged."""
    return bool(token) and " " not in token and token == one_line(token) == field(token)
