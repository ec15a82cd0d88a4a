"""Item texts from a RecBole ``.item`` file."""

import contextlib
import csv
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def named(path: str | Path, hint: str) -> Iterator[None]:
    """Name the file in what goes wrong while it is read, and say what it has to be like."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: {error}: set `encoding` to the file's, or save it as UTF-8"
        ) from error
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: {error}; {hint}") from error


def refuse_shifted(frame: pd.DataFrame) -> None:
    """pandas takes the first of too many cells for names of rows, and shifts the columns."""
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError("the first row has more cells than there are columns")


def read_item_texts(
    path: Path, item_field: str, tokens: Sequence[str], separator: str = "\t",
    encoding: str = "utf-8",
) -> dict[str, dict[str, str]]:  # fmt: skip
    """Text fields of the items ``tokens``; of none, where the ``.item`` file is missing.

    The others are RecBole's ``ITEM_ID_FIELD``, ``field_separator`` and ``encoding``.

    Returns:
        Item token -> {field: text}; an item that the file lacks has no fields.

    Raises:
        ValueError: the file has no column for the item, or cannot be read; the message names it.
    """
    texts: dict[str, dict[str, str]] = {token: {} for token in tokens}
    if not path.is_file():
        logger.warning("%s does not exist: no item has a text", path)
        return texts
    frame = _read(path, item_field, separator, encoding)
    repeated = frame[item_field].duplicated()
    if repeated.any():
        logger.warning("%s: %d repeated items, the first row of each counts", path, repeated.sum())
    wanted = frame[~repeated & frame[item_field].isin(texts)]
    texts |= {row.pop(item_field): row for row in wanted.to_dict("records")}
    if absent := len(texts) - len(wanted):
        logger.warning("%s lacks %d of %d items", path, absent, len(texts))
    return texts


def _read(path: Path, item_field: str, separator: str, encoding: str) -> pd.DataFrame:
    """By the same reader and quoting as RecBole's, so that the item tokens agree."""
    hint = (
        f"each line needs the columns that the first line names, separated by {separator!r}, and "
        f"a field has at most {csv.field_size_limit():,} characters"
    )
    options = {"dtype": str, "keep_default_na": False, "encoding": encoding, "engine": "python"}
    with named(path, hint):
        frame = pd.read_csv(path, sep=separator, **options).fillna("")
        refuse_shifted(frame)
        frame.columns = [column.split(":")[0] for column in frame.columns]
        columns = ", ".join(frame.columns)
        if item_field not in frame.columns:
            raise ValueError(f"no column {item_field}; it has {columns}")
        if frame.columns.has_duplicates:
            raise ValueError(f"two columns of one name: {columns}")
        for column in frame.columns:
            swallowed = frame[item_field][frame[column].str.contains("\n", regex=False)]
            if len(swallowed):
                raise ValueError(
                    f"column {column} of item {swallowed.iloc[0][:50]!r} spans lines: a quote at "
                    'the start of a field runs to the next quote; put a blank before that "'
                )
    return frame
