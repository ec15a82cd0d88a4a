"""User sequences as JSON: user -> list of items, and item -> text fields."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dataset_prep.atomic import staged_folder, statistics_table, write_inter, write_items
from dataset_prep.events import EVENT
from dataset_prep.report import PrepError, Problems
from dataset_prep.text import TEXT_FIELDS, is_token, text_fields


class _Document:
    """A JSON object in a file, whose entries can be pointed at."""

    def __init__(self, path: Path, problems: Problems) -> None:
        if not path.is_file():
            raise PrepError(f"{path}: no such file")
        self.path, self._problems = path, problems
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
                    self.add("bad UTF-8", key)

    def where(self, key: str) -> str:
        """Return the file, line and key of an entry."""
        at = re.search(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:", self._text)
        # A key written with escapes is not found as text; the key itself still says which.
        line = f":{self._text.count(chr(10), 0, at.start()) + 1}" if at else ""
        shown = key if len(key) <= 60 else f"{key[:60]}..."
        return f"{self.path}{line} ({shown!r})"

    def add(self, kind: str, key: str, table: str = "", rows: int = 1) -> None:
        """Record a bad entry, or bad ``rows`` of another table that are within it."""
        self._problems.add(table or self.path.name, kind, partial(self.where, key), rows)


def _token(value: Any) -> str:
    """Return an id as text, "" where it can be none; JSON numbers are as good as strings."""
    token = str(value) if type(value) in (int, str) else ""
    return token if is_token(token) else ""


def _read_sequences(
    document: _Document, problems: Problems
) -> tuple[np.ndarray, list[str], dict[str, tuple[int, str]]]:
    """Return the interactions, the users, and each item's number and first user."""
    users: list[str] = []
    items: dict[str, tuple[int, str]] = {}
    pairs: list[tuple[int, int, int]] = []
    for user, sequence in document.entries.items():
        if not isinstance(sequence, list) or not _token(user):
            document.add("bad id" if isinstance(sequence, list) else "no list", user)
            continue
        problems.read("interactions", len(sequence))
        tokens = [_token(item) for item in sequence]
        for token in filter(None, tokens):
            number, _ = items.setdefault(token, (len(items), user))
            pairs.append((len(users), number, 0))
        if bad := tokens.count(""):
            document.add("bad id", user, "interactions", bad)
        if bad < len(tokens):
            users.append(user)
    return np.array(pairs, dtype=EVENT), users, items


def _read_texts(document: _Document) -> dict[str, list[str]]:
    """Return the text fields of every item."""
    texts = {}
    for item, row in document.entries.items():
        if isinstance(row, dict):
            texts[item] = text_fields(row)
        if not texts.get(item, [""])[0]:
            document.add("empty title" if item in texts else "no object", item)
    return texts


def convert(inter: Path, metadata: Path, output: Path, max_bad: float) -> None:
    """Convert sequences and item metadata, and print what was done.

    The arguments are the options of ``python -m dataset_prep sequences --help``. Every sequence is
    kept as it is: such files come filtered and ordered. They hold no times, so the ``.inter`` file
    has no ``time`` column. Metadata of items in no sequence is left out.

    Raises:
        PrepError: the input cannot be used, or ``output`` exists.
    """
    problems = Problems(max_bad)
    with staged_folder(output) as stage:
        document = _Document(inter, problems)
        events, users, items = _read_sequences(document, problems)
        problems.check()
        if not len(events):
            raise PrepError(f"{inter}: no interactions")
        texts = _read_texts(_Document(metadata, problems))
        counts = np.bincount(events["item"]).tolist()
        for item, (number, user) in items.items():
            if item not in texts:
                document.add("unknown id", user, "interactions", counts[number])
        problems.check()
        tokens = np.array(list(items), object)
        sizes = write_inter(
            stage / f"{output.name}.inter", [events], np.array(users, object), tokens, False
        )
        nothing = [""] * len(TEXT_FIELDS)
        rows = ((item, *texts.get(item, nothing)) for item in items)
        written = write_items(stage / f"{output.name}.item", TEXT_FIELDS, rows)
    paper = "industrial" if output.name == "industrial" else ""
    print(*problems.lines(), *statistics_table(written | sizes, paper), sep="\n")
