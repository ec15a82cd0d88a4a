"""Text as it must look inside a RecBole atomic file.

RecBole 1.2.1 reads it by ``pandas.read_csv(delimiter="\\t", engine="python")`` with pandas' default
quoting and missing values; other programs split lines at tabs. A field has to survive both.
"""

import html
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


def joined(value: Any, separator: str) -> str:
    """Return a JSON text value without markup: a string as it is, a list joined by ``separator``.

    In a list, empty and repeated entries are left out. Anything else (null, an object) is "".
    """
    if isinstance(value, str):
        return strip_markup(value)
    if not isinstance(value, list):
        return ""
    parts = (strip_markup(part) for part in value if isinstance(part, str))
    return separator.join(dict.fromkeys(part for part in parts if part))


# The text fields of products: what a source may call them, and what joins the entries of a list.
TEXT_FIELDS = {
    "title": (["title"], " "),
    "category": (["category", "categories"], ", "),
    "brand": (["brand"], " "),
    "description": (["description"], " "),
}


def text_fields(row: dict[str, Any]) -> list[str]:
    """Return a product's text fields; of several names of a field the first with text counts."""
    return [
        next(filter(None, (joined(row.get(name), between) for name in names)), "")
        for names, between in TEXT_FIELDS.values()
    ]


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
