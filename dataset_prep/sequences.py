"""User sequences as JSON: user -> list of items, and item -> text fields."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from dataset_prep.atomic import product_table, staged_folder, write_dataset
from dataset_prep.report import PrepError, Problems
from dataset_prep.text import is_token, text_fields


class _Document:
    """A JSON object in a file, whose entries can be pointed at."""

    def __init__(self, path: Path, problems: Problems) -> None:
        self.path, self._problems = path, problems
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        # Undecodable bytes become U+FFFD.
        self._text = raw.decode(errors="replace")
        try:
            self.entries: dict[str, Any] = json.loads(self._text)
        except (ValueError, RecursionError) as error:
            raise PrepError(f"{path}: not JSON: {error}") from error
        if not isinstance(self.entries, dict):
            raise PrepError(f"{path}: not a JSON object but a {type(self.entries).__name__}")
        problems.read(path.name, len(self.entries))
        if self._text.encode() != raw:
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


def _read_sequences(document: _Document, problems: Problems) -> pd.DataFrame:
    """Return the interactions: columns ``user`` and ``item``."""
    pairs: list[tuple[str, str]] = []
    for user, sequence in document.entries.items():
        if not isinstance(sequence, list) or not _token(user):
            document.add("bad id" if isinstance(sequence, list) else "no list", user)
            continue
        problems.read("interactions", len(sequence))
        tokens = [_token(item) for item in sequence]
        if bad := tokens.count(""):
            document.add("bad id", user, "interactions", bad)
        pairs += [(user, token) for token in tokens if token]
    return pd.DataFrame(pairs, columns=["user", "item"])


def _read_texts(document: _Document) -> dict[str, list[str]]:
    """Return the text fields of every item."""
    texts = {}
    for item, row in document.entries.items():
        if not isinstance(row, dict):
            document.add("no object", item)
            continue
        texts[item], bad = text_fields(row)
        if bad:
            document.add(f"no text in {bad[0]}", item)
        elif not texts[item][0]:
            document.add("empty title", item)
    return texts


def convert(inter: Path, metadata: Path, output: Path, max_bad: float) -> None:
    """Convert sequences and item metadata, and print what was done.

    The arguments are the options of ``python -m dataset_prep sequences --help``. Every sequence is
    kept as it is: such files come filtered and ordered, without times. Metadata of items in no
    sequence is left out. Raises PrepError where the input cannot be used or ``output`` exists.
    """
    problems = Problems(max_bad)
    with staged_folder(output) as stage:
        document = _Document(inter, problems)
        events = _read_sequences(document, problems)
        problems.check()
        if events.empty:
            raise PrepError(f"{inter}: no interactions")
        texts = _read_texts(_Document(metadata, problems))
        users = events.groupby("item", sort=False)["user"].agg(["first", "size"])
        for _, user, count in users[~users.index.isin(list(texts))].itertuples():
            document.add("unknown id", user, "interactions", count)
        paper = "industrial" if output.name == "industrial" else ""
        items = product_table(texts, users.index)
        write_dataset(stage / output.name, events, items, problems, paper)
