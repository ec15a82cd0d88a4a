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
    "articleid newsid gameid businessid sku stockcode",
    "time": "timestamp unixreviewtime datetime time date ts createdat eventtime ratedat",
}

# Names of columns that come first in an item's sentence, in this order
_TITLES = "title name movietitle producttitle itemname productname trackname songname booktitle"
_FIRST = [
    _TITLES,
    "brand artist artistname author authors store",
    "category categories genre genres",
]
_LONG = 100  # characters on average: such a text stands last, where it is cut

_ZONE = re.compile(r"\d[zZ]$|:.*[+-]\d\d(?::?\d\d)?$")
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

    def cells() -> Rows:
        try:
            yield from ((reader.line_num, row) for row in reader if row)
        except csv.Error as error:
            where = f"{path}: line {reader.line_num}"
            raise PrepError(f"{where}: {error}: is a quote missing?") from error

    def rows() -> Rows:
        for line, row in every:
            if len(row) == len(names):
                yield line, row
            else:
                problems.add_line(path, line, "wrong column count")

    every = cells()
    problems.read(path.name, -1)  # the names of the columns are no row
    _, names = next(every, (1, []))
    return list(names), rows()


def _column(path: Path, names: list[str], role: str, given: str | None, last="") -> Any:
    """Return the place of a column, as given, or guessed by its name; None for no time."""
    if given is not None and given in names:
        return names.index(given)
    there = ", ".join(names) or "none"
    if given is not None:
        raise PrepError(f"{path}: it has no column {given!r}, which --{role} names, but: {there}")
    plain = [_plain(name) for name in names]
    for guess in [*_NAMES[role].split(), last]:
        if guess in plain:
            return plain.index(guess)
    if role == "time":
        return None
    raise PrepError(f"{path}: which column is the {role}? Name it by --{role}; it has: {there}")


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
    return value if type(value) in (str, int, float, dict) else str(value)


def _token(value: Any) -> str:
    """Return an id as text, "" where it can be none."""
    token = str(_value(value)).strip()
    return token if is_token(token) else ""


def _events(path: Path, given: dict[str, str | None], problems: Problems) -> pd.DataFrame:
    """Return the interactions by user and then by time: ``user``, ``item``, ``line``, ``time``.

    There is no ``time`` where no column is one: then the order of the file counts.
    """
    names, rows = _read(path, problems)
    places = {role: _column(path, names, role, given[role]) for role in _NAMES}
    said = [
        f"{role} = {names[at]}{'' if given[role] else ' (guessed)'}"
        for role, at in places.items()
        if at is not None
    ]
    unused = [name for at, name in enumerate(names) if at not in places.values()]
    print(f"columns of {path.name}: {', '.join(said)}; not used: {', '.join(unused) or 'none'}")
    found = []
    once: dict[str, str] = {}  # one text an id, not one an interaction
    for line, cells in rows:
        user, item = (_token(cells[places[role]]) for role in ("user", "item"))
        if user and item:
            time = None if places["time"] is None else str(_value(cells[places["time"]]))
            found.append((once.setdefault(user, user), once.setdefault(item, item), line, time))
        else:
            problems.add_line(path, line, "bad id")
    events = pd.DataFrame(found, columns=["user", "item", "line", "time"])
    if places["time"] is None:
        print("no column is the time: each user's rows are taken in the order of the file")
        events = events.drop(columns="time")
    else:
        events = _in_time(path, events, problems)
    problems.check()
    if events.empty:
        raise PrepError(f"{path}: no interactions")
    return events.iloc[pd.factorize(events["user"])[0].argsort(kind="stable")]


def _in_time(path: Path, events: pd.DataFrame, problems: Problems) -> pd.DataFrame:
    """Return the events in the order of their times, which become numbers, each event once."""
    numbers = pd.to_numeric(events["time"], errors="coerce").replace([np.inf, -np.inf], np.nan)
    # apart: pandas takes a time without a zone behind one with a zone for one of that zone
    zoned = events["time"].str.contains(_ZONE)
    dates = pd.concat(
        pd.to_datetime(part, format="ISO8601", utc=True, errors="coerce")
        for part in (events["time"][zoned], events["time"][~zoned])
    ).sort_index()
    if dates.notna().sum() > numbers.notna().sum():
        print("times: dates, written as seconds since 1970 (UTC)")
        numbers = (dates - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
    else:
        print("times: numbers, taken as they are")
    bad = numbers.isna()
    if bad.any():
        kind = "bad time (neither a number nor a date such as 2014-06-16T12:30)"
        problems.add(path.name, kind, f"{path}:{events['line'][bad].iloc[0]}", int(bad.sum()))
    whole = (numbers[~bad] % 1 == 0).all()
    events = events[~bad].assign(time=numbers[~bad].astype("int64" if whole else float))
    once = events.drop_duplicates(["user", "item", "time"])
    repeats = len(events) - len(once)
    print(
        f"interactions: {len(events):,}, of which {repeats:,} repeat user, item and time: left out"
    )
    return once.sort_values("time", kind="stable")


def _items(path: Path, item: str | None, kept: Sequence[str], problems: Problems):
    """Return the text fields of the items ``kept``, empty for unknown ones, and which are known."""
    names, rows = _read(path, problems)
    at = _column(path, names, "item", item if item in names else None, last="id")
    places = [n for n, name in enumerate(names) if n != at and name and name[:8] != "Unnamed:"]
    fields = {n: _field_name(names[n]) for n in places}
    unused = len(names) - 1 - len(fields)  # row numbers, as pandas writes them
    guessed = "" if item == names[at] else " (guessed)"
    print(f"columns of {path.name}: item = {names[at]}{guessed}; without a name: {unused}")
    wanted, others, repeats = set(kept), 0, 0
    texts: dict[str, list[str]] = {}
    for line, cells in rows:
        token = _token(cells[at])
        if not token:
            problems.add_line(path, line, "bad id")
        elif token not in wanted:
            others += 1
        elif token in texts:
            repeats += 1
        else:
            found = {name: joined(_value(cells[n]), ", ") for n, name in fields.items()}
            texts[token] = [text for text, _ in found.values()]
            for name in (name for name, (_, sound) in found.items() if not sound):
                problems.add_line(path, line, f"no text in {name}")
    print(
        f"items: {len(texts):,} of {len(wanted):,} are described; left out: {repeats:,} rows that "
        f"repeat one, {others:,} rows of items without interactions"
    )
    columns = list(fields.values())
    table = pd.DataFrame.from_dict(texts, orient="index", columns=columns, dtype=object)
    return table.reindex(list(kept), fill_value=""), list(texts)


def _field_name(name: str) -> str:
    """Return a column's name as a placeholder and the header of an atomic file can hold it."""
    name = re.sub(r"[][{}:]+", "_", name)
    return f"{name}_" if name in ("item", "item_id") else name


def _prompts(name: str, path: Path, items: pd.DataFrame) -> str:
    """Return the YAML file: each field in a clause, by its worth and length."""

    def place(field: str) -> int:
        plain, texts = _plain(field), items[field][items[field] != ""]
        known = next((n for n, group in enumerate(_FIRST) if plain in group.split()), len(_FIRST))
        return len(_FIRST) + 1 if known and texts.str.len().mean() > _LONG else known

    fields = sorted((field for field in items if (items[field] != "").any()), key=place)
    if not fields:
        raise PrepError(f"{path}: no text of any item that has interactions")
    if empty := [field for field in items if field not in fields]:
        print(f"empty columns, in no sentence: {', '.join(empty)}")
    clauses = [
        f"[, its {field.replace('_', ' ').strip().lower()} is {{{field}}}]" for field in fields
    ]
    if place(fields[0]) == 0:
        clauses[0] = f"[ is titled {{{fields[0]}}}]"
    keys = {
        "lea_item_sentence": f"{{item}} item{''.join(clauses)}.",
        "lea_title": f"{{{fields[0]}}}",
        "lea_user_prompt": "The user has interacted with these items in chronological order: "
        "{history}",
    }
    print(f"an item's sentence: {keys['lea_item_sentence']}")
    return "".join([
        f"# {{field}} is a column of {name}.item; a clause in [brackets] is dropped where that is\n"
        "# empty. Say what your items are (docs/data.md), as in: book.\n",
        *(f"{key}: {json.dumps(text, ensure_ascii=False)}\n" for key, text in keys.items()),
    ])  # fmt: skip


def convert(
    inter: Path, metadata: Path, output: Path, user: str | None, item: str | None, time: str | None,
    minimum: int, max_bad: float,
) -> None:  # fmt: skip
    """Convert a table of interactions and one of items, and print what was done.

    The arguments are the options of ``python -m dataset_prep table --help``. Raises PrepError where
    the input cannot be used or ``output`` exists.
    """
    problems = Problems(max_bad)
    with staged_folder(output) as stage:
        events = _events(inter, {"user": user, "item": item, "time": time}, problems)
        if minimum > 1:
            events = filter_events(events, minimum)
        kept = events["item"].unique()
        items, described = _items(metadata, item, kept, problems)
        unknown = events.loc[~events["item"].isin(described), "line"]
        problems.read("interactions", len(events))
        if len(unknown):
            where = f"{inter}:{unknown.min()}"
            problems.add("interactions", "unknown id", where, len(unknown))
        prompts = _prompts(output.name, metadata, items)
        (stage / f"{output.name}.yaml").write_text(prompts, encoding="utf-8")
        write_dataset(stage / output.name, events, items, problems)
