"""Item texts from a RecBole ``.item`` file."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

logger = logging.getLogger(__name__)


def not_encoded(path: str | Path, error: UnicodeDecodeError) -> str:
    """What is wrong with a file in another encoding than RecBole's ``encoding``."""
    return f"{path}: {error}: set `encoding` to the file's, or save it as UTF-8"


def read_item_texts(
    path: Path,
    item_field: str,
    tokens: Sequence[str],
    separator: str = "\t",
    encoding: str = "utf-8",
) -> dict[str, dict[str, str]]:
    """Text fields of the given items.

    Args:
        path: the ``.item`` file; if it is missing, no item has a text.
        item_field: RecBole's ``ITEM_ID_FIELD``.
        tokens: the items wanted.
        separator: RecBole's ``field_separator``.
        encoding: RecBole's ``encoding``.

    Returns:
        Item token -> {field: text}; an item that the file lacks has no fields.

    Raises:
        ValueError: the file has no column for the item, or cannot be read; the message names it.
    """
    texts: dict[str, dict[str, str]] = {token: {} for token in tokens}
    if not path.is_file():
        logger.warning("%s does not exist: no item has a text", path)
        return texts
    # the same reader and quoting as RecBole's, so that the item tokens agree
    try:
        frame = pd.read_csv(
            path,
            sep=separator,
            dtype=str,
            keep_default_na=False,
            encoding=encoding,
            engine="python",
        ).fillna("")
        if not isinstance(frame.index, pd.RangeIndex):  # pandas would shift the columns
            raise ValueError("the first row has more cells than there are columns")
    except UnicodeDecodeError as error:
        raise ValueError(not_encoded(path, error)) from error
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{path}: {error}; each line needs the columns that the first line names, separated by "
            f"{separator!r}, and a field has at most {csv.field_size_limit():,} characters"
        ) from error
    frame.columns = [column.split(":")[0] for column in frame.columns]
    if item_field not in frame.columns:
        raise ValueError(f"{path}: no column {item_field}; it has {', '.join(frame.columns)}")
    if frame.columns.has_duplicates:
        raise ValueError(f"{path}: two columns of one name: {', '.join(frame.columns)}")
    for column in frame.columns:
        swallowed = frame[column].str.contains("\n", regex=False)
        if swallowed.any():
            row = frame[swallowed].iloc[0]
            raise ValueError(
                f"{path}: column {column} of item {row[item_field][:50]!r} spans lines: a quote "
                'at the start of a field runs to the next quote; put a blank before that "'
            )
    repeated = frame[item_field].duplicated()
    if repeated.any():
        logger.warning("%s: %d repeated items, the first row of each counts", path, repeated.sum())
    for row in frame[~repeated].to_dict("records"):
        token = row.pop(item_field)
        if token in texts:
            texts[token] = row
    absent = sum(not fields for fields in texts.values())
    if absent:
        logger.warning("%s lacks %d of %d items", path, absent, len(texts))
    return texts
