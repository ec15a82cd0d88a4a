"""User sequences as JSON: user -> list of items, and item -> text fields."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dataset_prep.atomic import staged_folder, write_inter, write_items
from dataset_prep.filtering import EVENT
from dataset_prep.index import Index
from dataset_prep.problems import PrepError, Problems
from dataset_prep.report import TABLE_1, statistics_table
from dataset_prep.text import is_token, joined

# Our field, and what the exchanged files call it.
_SOURCES = {
    "title": ("title",),
    "category": ("category", "categories"),
    "brand": ("brand",),
    "description": ("description",),
}


class _Document:
    """A JSON object in a file, whose entries can be pointed at."""

    def __init__(self, path: Path, problems: Problems) -> None:
        if not path.is_file():
            raise PrepError(f"{path}: no such file")
        self.path = path
        raw = path.read_bytes()
        # Undecodable bytes become U+FFFD.
        self._text = raw.decode("utf-8-sig", errors="replace")
        try:
            self.entries: dict[str, Any] = json.loads(self._text)
        except (ValueError, RecursionError) as error:
            raise PrepError(f"{path}: not JSON: {error}") from error
        if not isinstance(self.entries, dict):
            raise PrepError(f"{path}: not a JSON object but a {type(self.entries).__name__}")
        problems.read(path.name, len(self.entries))
        if self._text.encode() != raw.removeprefix(b"\xef\xbb\xbf"):
            for key, value in self.entries.items():
                if "\ufffd" in key + json.dumps(value, ensure_ascii=False):
                    problems.add(path.name, "bad UTF-8", self.finder(key))

    def finder(self, key: str) -> Callable[[], str]:
        """Return what finds the file, line and key of an entry, for the report of problems."""

        def find() -> str:
            at = re.search(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:", self._text)
            # A key written with escapes is not found as text; the key itself still says which.
            line = f":{self._text.count(chr(10), 0, at.start()) + 1}" if at else ""
            shown = key if len(key) <= 60 else f"{key[:60]}..."
            return f"{self.path}{line} ({shown!r})"

        return find


def _token(value: Any) -> str:
    """Return an id as text, "" where it can be none; JSON numbers are as good as strings."""
    token = str(value) if type(value) in (int, str) else ""
    return token if is_token(token) else ""


def _read_sequences(
    path: Path, problems: Problems
) -> tuple[np.ndarray, Index, Index, list[Callable[[], str]]]:
    """Return the interactions, the indices of users and items, and where each item came first."""
    document = _Document(path, problems)
    users, items = Index(), Index()
    pairs: list[tuple[int, int, int]] = []
    first: list[Callable[[], str]] = []
    for user, sequence in document.entries.items():
        here = document.finder(user)
        if not isinstance(sequence, list):
            problems.add(path.name, "no list", here)
            continue
        if not _token(user):
            problems.add(path.name, "bad id", here)
            continue
        problems.read("interactions", len(sequence))
        for item in map(_token, sequence):
            if not item:
                problems.add("interactions", "bad id", here)
                continue
            if (number := items.number(item)) == len(first):
                first.append(here)
            pairs.append((users.number(user), number, 0))
    return np.array(pairs, dtype=EVENT), users, items, first


def _text_fields(row: dict[str, Any]) -> list[str]:
    """Return an item's text fields; of several names of a field the first with text counts."""
    fields = []
    for name, keys in _SOURCES.items():
        separator = ", " if name == "category" else " "
        fields.append(next(filter(None, (joined(row.get(key), separator) for key in keys)), ""))
    return fields


def _read_texts(path: Path, problems: Problems) -> dict[str, list[str]]:
    """Return the text fields of every item."""
    document = _Document(path, problems)
    texts = {}
    for item, row in document.entries.items():
        if not isinstance(row, dict):
            problems.add(path.name, "no object", document.finder(item))
            continue
        texts[item] = _text_fields(row)
        if not texts[item][0]:
            problems.add(path.name, "empty title", document.finder(item))
    return texts


def convert(inter: Path, metadata: Path, output: Path, max_bad: float = 0.01) -> None:
    """Convert sequences and item metadata, and print what was done.

    Every sequence is kept as it is: such files come filtered and ordered. They hold no times, so
    the ``.inter`` file has no ``time`` column. Metadata of items in no sequence is left out.

    Args:
        inter: JSON object, user -> list of items in order.
        metadata: JSON object, item -> object with title, category or categories, brand and
            description, each a string or a list of strings.
        output: folder to make; its last component names the dataset.
        max_bad: largest share of bad rows, from 0 to 1.

    Raises:
        PrepError: the input cannot be used, or ``output`` exists.
    """
    problems = Problems(max_bad)
    with staged_folder(output) as stage:
        events, users, items, first = _read_sequences(inter, problems)
        problems.check()
        if not len(events):
            raise PrepError(f"{inter}: no interactions")
        texts = _read_texts(metadata, problems)
        tokens = items.tokens()
        times = np.bincount(events["item"]).tolist()
        for item, here, count in zip(tokens, first, times, strict=True):
            if item not in texts:
                problems.add("interactions", "unknown id", here, count)
        problems.check()
        write_inter(
            stage / f"{output.name}.inter", iter([events]), users.tokens(), tokens, with_time=False
        )
        nothing = [""] * len(_SOURCES)
        rows = ((item, *texts.get(item, nothing)) for item in tokens)
        counts = write_items(stage / f"{output.name}.item", list(_SOURCES), rows)
    print(*problems.lines(), sep="\n")
    paper = TABLE_1["industrial"] if output.name == "industrial" else None
    print(*statistics_table(counts, len(users), len(events), paper), sep="\n")
