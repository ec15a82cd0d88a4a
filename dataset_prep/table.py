"""Anybody's tables, CSV, TSV or Parquet: interactions, and the items' text columns.

Beside the atomic files it writes a YAML file with the prompts, made of the items' columns.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dataset_prep.atomic import filter_events, staged_folder, write_dataset
from dataset_prep.report import PrepError, Problems, read_lines
from dataset_prep.text import is_token, joined, one_line

# Names by which a column is guessed, the first that is there; case, blanks and signs do not count.
_NAMES = {
    "user": "userid user uid reviewerid customerid customer visitorid memberid personid accountid "
    "sessionid session",
    "item": "itemid item iid parentasin asin productid product movieid bookid isbn trackid songid "
    "articleid newsid gameid businessid sku stockcode id",
    "time": "timestamp unixreviewtime datetime time date ts createdat eventtime ratedat",
}

# Names of columns that come first in an item's sentence, in this order
_TITLES = "title name movietitle producttitle itemname productname trackname songname booktitle"
_FIRST = [_TITLES, "brand artist artistname author authors store", "category categories genre genres"]
_LONG = 100  # characters on average: such a text stands last, where it is cut

_TYPE = re.compile(r":(token|float)(_seq)?$")

Rows = Iterator[tuple[int, Sequence[Any]]]  # number of the line (Parquet: of the row), and cells


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _read(path: Path, problems: Problems) -> tuple[list[str], Rows]:
    """Return names of the columns, without RecBole's types, and the rows."""
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    if not path.is_file():
        raise PrepError(f"{path}: no such file")
    if kind in (".parquet", ".pq"):
        names, rows = _read_parquet(path, problems)
    elif kind in (".csv", ".tsv", ".tab", ".txt", ".inter", ".item"):
        names, rows = _read_text(path, problems)
    else:
        raise PrepError(f"{path}: not CSV, TSV or Parquet by its name: such a file is to be given")
    names = [_TYPE.sub("", one_line(name)) for name in names]
    if repeated := next((name for name in names if name and names.count(name) > 1), None):
        raise PrepError(f"{path}: two columns of the name {repeated!r}")
    return names, rows


def _read_parquet(path: Path, problems: Problems) -> tuple[list[str], Rows]:
    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise PrepError(f"{path}: Parquet needs one more package: pip install pyarrow") from error
    except (ValueError, OSError) as error:
        raise PrepError(f"{path}: not Parquet: {one_line(str(error))}") from error
    problems.read(path.name, len(frame))
    columns = (frame[name].astype(object).tolist() for name in frame)
    return [str(name) for name in frame], zip(count(1), zip(*columns, strict=True))


def _read_text(path: Path, problems: Problems) -> tuple[list[str], Rows]:
    lines = (text for _, text in problems.decoded(path, read_lines(path)))
    first = next(lines, "").removeprefix("\ufeff")
    separator = max(",\t;|", key=first.count)
    reader = csv.reader(chain([first], lines), delimiter=separator, strict=True)

    def rows() -> Rows:
        try:
            for cells in reader:
                if len(cells) == len(names):
                    yield reader.line_num, cells
                elif cells:
                    problems.add_line(path, reader.line_num, "wrong column count")
        except csv.Error as error:
            raise PrepError(f"{path}: line {reader.line_num}: {error}: is a quote amiss?") from error

    problems.read(path.name, -1)  # the names of the columns are no row
    names = next(reader, [])
    return names, rows()


def _column(path: Path, names: list[str], role: str, given: str | None) -> int:
    """Return the place of a column, as given or guessed by its name."""
    if given is not None and given in names:
        return names.index(given)
    there = ", ".join(names) or "none"
    if given is not None:
        raise PrepError(f"{path}: it has no column {given!r}, which --{role} names, but: {there}")
    plain = [_plain(name) for name in names]
    for guess in _NAMES[role].split():
        if guess in plain:
            return plain.index(guess)
    raise PrepError(f"{path}: which column is the {role}? Name it by --{role}; it has: {there}")


def _say(path: Path, names: list[str], chosen: dict[str, int | None], given: dict) -> None:
    """Print which columns were taken, and which of them were guessed."""
    parts = [
        f"{role} = {names[at]}" + ("" if given[role] == names[at] else " (guessed)")
        for role, at in chosen.items()
        if at is not None
    ]
    print(f"columns of {path.name}: {', '.join(parts)}")


def _value(value: Any) -> Any:
    """Return a cell as JSON would hold it: 3.0, as pandas makes of a 3 beside gaps, is 3."""
    if isinstance(value, np.ndarray | list | tuple):
        return [_value(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NaT or value is pd.NA or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, str | int | float | dict) and value not in (
        True, False) else str(value)


def _token(value: Any) -> str:
    """Return an id as text, "" where it can be none."""
    token = str(_value(value)).strip()
    return token if is_token(token) else ""
