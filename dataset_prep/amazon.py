"""Amazon reviews, 2018 release: user sequences of reviewed products with their metadata."""

import gzip
import json
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dataset_prep.atomic import staged_folder, write_inter, write_items
from dataset_prep.filtering import EVENT, filter_events, kept_events
from dataset_prep.index import Index
from dataset_prep.problems import PrepError, Problems, require_files
from dataset_prep.progress import progress
from dataset_prep.report import TABLE_1, filter_report, statistics_table
from dataset_prep.text import is_token, joined

PAPER_CATEGORY = "Industrial_and_Scientific"
TEXT_FIELDS = ["title", "category", "brand", "description"]

_LARGEST_TIME = 2**32 - 1


def _read_rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and object of a gzip file of JSON objects, one a line.

    Undecodable bytes become U+FFFD; lines that are no JSON object are counted and left out.
    """
    with (
        open(path, "rb") as file,
        gzip.open(file) as lines,
        progress(path, "reading") as bar,
    ):
        try:
            for line, raw in enumerate(lines, start=1):
                bar.update(file.tell() - bar.n)
                problems.read(path.name, 1)
                try:
                    text = raw.decode()
                except UnicodeDecodeError:
                    problems.add(path.name, "bad UTF-8", f"{path}:{line}")
                    text = raw.decode(errors="replace")
                try:
                    row = json.loads(text)
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    yield line, row
                else:
                    problems.add(path.name, "bad JSON", f"{path}:{line}")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise PrepError(f"{path}: broken gzip file: {error}") from error


def _read_reviews(path: Path, problems: Problems) -> tuple[np.ndarray, np.ndarray, Index, Index]:
    """Return reviews by user and time, their line numbers, and the indices of users and items.

    Each user and item pair is there once, at its earliest time. Reviews of equal time, which is a
    day, keep the order of the file.
    """
    users, items = Index(), Index()
    columns = array("q"), array("q"), array("q"), array("q")
    for line, row in _read_rows(path, problems):
        user, item, time = (row.get(key) for key in ("reviewerID", "asin", "unixReviewTime"))
        if user is None or item is None or time is None:
            problems.add(path.name, "missing field", f"{path}:{line}")
        elif not all(isinstance(token, str) and is_token(token) for token in (user, item)):
            problems.add(path.name, "bad id", f"{path}:{line}")
        elif type(time) is not int or not 0 <= time <= _LARGEST_TIME:
            problems.add(path.name, "bad number", f"{path}:{line}")
        else:
            for column, value in zip(
                columns, (users.number(user), items.number(item), time, line), strict=True
            ):
                column.append(value)
    user, item, time, lines = (np.frombuffer(column, np.int64) for column in columns)
    # lexsort is stable: the first of each pair is its earliest review, the first in the file.
    order = np.lexsort((time, item, user))
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(user[order]) != 0) | (np.diff(item[order]) != 0)
    first = np.sort(order[new])
    first = first[np.lexsort((time[first], user[first]))]
    events = np.empty(len(first), EVENT)
    events["user"], events["item"], events["time"] = user[first], item[first], time[first]
    print(f"reviews: {len(user):,}, of which {len(user) - len(first):,} repeat a user and item")
    return events, lines[first], users, items


def _title(value: Any) -> str:
    """Return a title without markup, "" where the release has a page's script in its place.

    The release's own notebook tells such titles by "getTime".
    """
    title = joined(value, " ")
    return "" if "getTime" in title else title


def _read_metadata(
    path: Path, items: np.ndarray, kept: np.ndarray, problems: Problems
) -> tuple[dict[str, list[str]], np.ndarray]:
    """Return the text fields of the kept items, and which of all ``items`` have metadata.

    Where an item has several rows, each field is the first that is not empty.
    """
    number = {token: n for n, token in enumerate(items)}
    seen = np.zeros(len(items), bool)
    texts: dict[str, list[str]] = {}
    repeated = 0
    for line, row in _read_rows(path, problems):
        item = row.get("asin")
        if not isinstance(item, str):
            problems.add(path.name, "missing field", f"{path}:{line}")
            continue
        title = _title(row.get("title"))
        if not title:
            problems.add(path.name, "empty title", f"{path}:{line}")
        n = number.get(item)
        if n is None:
            continue
        repeated += int(seen[n])
        seen[n] = True
        if kept[n]:
            found = [
                title,
                joined(row.get("category"), ", "),
                joined(row.get("brand"), " "),
                joined(row.get("description"), " "),
            ]
            before = texts.get(item, found)
            texts[item] = [old or new for old, new in zip(before, found, strict=True)]
    print(f"metadata: {repeated:,} rows repeat a reviewed item")
    return texts, seen


def _review_file(source: Path, category: str) -> str:
    """Return the name of the reviews of a category: the 5-core where it is there, else the full."""
    five, full = f"{category}_5.json.gz", f"{category}.json.gz"
    if not source.is_dir():
        raise PrepError(f"{source}: no such folder")
    for name in (five, full):
        if (source / name).is_file():
            return name
    there = ", ".join(
        sorted(path.name[len("meta_") : -len(".json.gz")] for path in source.glob("meta_*.json.gz"))
    )
    raise PrepError(
        f"{source}: it has neither {five} nor {full}; categories there: {there or 'none'}"
    )


def convert(
    source: Path,
    output: Path,
    category: str = PAPER_CATEGORY,
    minimum: int = 3,
    max_bad: float = 0.01,
) -> None:
    """Convert reviews and metadata of one category, and print what was done.

    Args:
        source: folder with ``CATEGORY_5.json.gz`` or ``CATEGORY.json.gz`` (the first is taken
            where both are there), and ``meta_CATEGORY.json.gz``.
        output: folder to make; its last component names the dataset.
        category: the category, as in the file names.
        minimum: least number of interactions of a sequence and of an item.
        max_bad: largest share of bad rows, from 0 to 1.

    Raises:
        PrepError: the input cannot be used, or ``output`` exists.
    """
    reviews, metadata = require_files(
        source,
        [_review_file(source, category), f"meta_{category}.json.gz"],
        f"a folder with Amazon's {category}",
    )
    problems = Problems(max_bad)
    with staged_folder(output) as stage:
        print(f"reading {reviews.name}")
        events, lines, user_index, item_index = _read_reviews(reviews, problems)
        problems.check()
        if not len(events):
            raise PrepError(f"{reviews}: no reviews")
        users, items = user_index.tokens(), item_index.tokens()

        def chunks() -> Iterator[np.ndarray]:
            return iter([events])

        kept = filter_events(chunks, len(users), len(items), minimum)
        print(*filter_report(kept.rounds), sep="\n")
        texts, seen = _read_metadata(metadata, items, kept.items, problems)
        unknown = lines[~seen[events["item"]]]
        problems.read("different reviews", len(events))
        if len(unknown):
            problems.add(
                "different reviews", "unknown id", f"{reviews}:{unknown.min()}", len(unknown)
            )
        problems.check()
        write_inter(
            stage / f"{output.name}.inter",
            kept_events(chunks, kept.users, kept.items, drop_repeats=False),
            users,
            items,
            with_time=True,
        )
        nothing = [""] * len(TEXT_FIELDS)
        rows = ((item, *texts.get(item, nothing)) for item in items[kept.items])
        counts = write_items(stage / f"{output.name}.item", TEXT_FIELDS, rows)
    last = kept.rounds[-1]
    paper = TABLE_1["industrial"] if category == PAPER_CATEGORY else None
    print(*problems.lines(), sep="\n")
    print(*statistics_table(counts, last.sequences, last.interactions, paper), sep="\n")
