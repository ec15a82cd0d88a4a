"""Amazon reviews, 2018 release: user sequences of reviewed products with their metadata."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dataset_prep.atomic import staged_folder, statistics_table, write_inter, write_items
from dataset_prep.events import EVENT, MOST_SECONDS, filter_events, kept_events
from dataset_prep.report import PrepError, Problems, require_files, watched
from dataset_prep.text import TEXT_FIELDS, is_token, text_fields

PAPER_CATEGORY = "Industrial_and_Scientific"

_REVIEW = np.dtype([("user", "i8"), ("item", "i8"), ("time", "i8"), ("line", "i8")])


def _read_rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and object of a gzip file of JSON objects; other lines are recorded."""
    with open(path, "rb") as file, watched(file, path, "reading") as packed:
        try:
            for line, raw in enumerate(gzip.open(packed), start=1):
                problems.read(path.name, 1)
                try:
                    row = json.loads(problems.decoded(raw, path, line))
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    yield line, row
                else:
                    problems.add_line(path, line, "bad JSON")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise PrepError(f"{path}: broken gzip file: {error}") from error


def _sound_reviews(
    path: Path, problems: Problems, users: dict[str, int], items: dict[str, int]
) -> Iterator[tuple[int, int, int, int]]:
    """Yield the fields of ``_REVIEW``; new users and items get the next number."""
    for line, row in _read_rows(path, problems):
        user, item, time = (row.get(key) for key in ("reviewerID", "asin", "unixReviewTime"))
        if user is None or item is None or time is None:
            problems.add_line(path, line, "missing field")
        elif not all(isinstance(token, str) and is_token(token) for token in (user, item)):
            problems.add_line(path, line, "bad id")
        elif type(time) is not int or not 0 <= time < MOST_SECONDS:
            problems.add_line(path, line, "bad number")
        else:
            yield users.setdefault(user, len(users)), items.setdefault(item, len(items)), time, line


def _first_reviews(reviews: np.ndarray, n_items: int) -> np.ndarray:
    """Return each user and item's earliest review, by user, time (a day) and place in the file."""
    reviews = reviews[np.argsort(reviews["time"], kind="stable")]
    _, first = np.unique(reviews["user"] * n_items + reviews["item"], return_index=True)
    reviews = reviews[np.sort(first)]
    return reviews[np.argsort(reviews["user"], kind="stable")]


def _read_metadata(
    path: Path, items: dict[str, int], kept: np.ndarray, problems: Problems
) -> tuple[dict[str, list[str]], np.ndarray]:
    """Return the text fields of the kept items, and which of all ``items`` have metadata.

    Where an item has several rows, each field is the first that is not empty.
    """
    seen = np.zeros(len(items), bool)
    texts: dict[str, list[str]] = {}
    repeated = 0
    for line, row in _read_rows(path, problems):
        item = row.get("asin")
        if not isinstance(item, str):
            problems.add_line(path, line, "missing field")
            continue
        n = items.get(item)
        wanted = n is not None and kept[n]
        found = text_fields(row if wanted else {"title": row.get("title")})
        if "getTime" in found[0]:  # the release's own notebook tells a page's script so
            found[0] = ""
        if not found[0]:
            problems.add_line(path, line, "empty title")
        if n is not None:
            repeated += int(seen[n])
            seen[n] = True
        if wanted:
            before = texts.get(item, found)
            texts[item] = [old or new for old, new in zip(before, found, strict=True)]
    print(f"metadata: {repeated:,} rows repeat a reviewed item")
    return texts, seen


def _files(source: Path, category: str) -> list[Path]:
    """Return the reviews of a category, the 5-core where it is there, and the metadata."""
    require_files(source, [], "a folder")
    five, full, metadata = (
        f"{name}.json.gz" for name in (f"{category}_5", category, f"meta_{category}")
    )
    reviews = next((name for name in (five, full) if (source / name).is_file()), None)
    if reviews is None:
        meta = (path.name for path in source.glob("meta_*.json.gz"))
        there = ", ".join(sorted(name[len("meta_") : -len(".json.gz")] for name in meta)) or "none"
        raise PrepError(f"{source}: it has neither {five} nor {full}; categories there: {there}")
    return require_files(source, [reviews, metadata], f"a folder with Amazon's {category}")


def convert(source: Path, output: Path, category: str, minimum: int, max_bad: float) -> None:
    """Convert reviews and metadata of one category, and print what was done.

    The arguments are the options of ``python -m dataset_prep amazon --help``.

    Raises:
        PrepError: the input cannot be used, or ``output`` exists.
    """
    path, metadata = _files(source, category)
    problems = Problems(max_bad)
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    with staged_folder(output) as stage:
        print(f"reading {path.name}")
        every = np.fromiter(_sound_reviews(path, problems, users, items), _REVIEW)
        reviews = _first_reviews(every, len(items))
        repeats = len(every) - len(reviews)
        print(f"reviews: {len(every):,}, of which {repeats:,} repeat a user and item")
        problems.check()
        if not len(reviews):
            raise PrepError(f"{path}: no reviews")
        events = reviews[["user", "item", "time"]].astype(EVENT)
        user_tokens, tokens = np.array(list(users), object), np.array(list(items), object)
        kept = filter_events(lambda: iter([events]), len(users), len(items), minimum)[:2]
        texts, seen = _read_metadata(metadata, items, kept[1], problems)
        problems.read("different reviews", len(reviews))
        unknown = reviews["line"][~seen[reviews["item"]]]
        if len(unknown):
            where = f"{path}:{unknown.min()}"
            problems.add("different reviews", "unknown id", where, len(unknown))
        problems.check()
        chunks = kept_events(lambda: iter([events]), *kept)
        sizes = write_inter(
            stage / f"{output.name}.inter", chunks, user_tokens, tokens, with_time=True
        )
        nothing = [""] * len(TEXT_FIELDS)
        rows = ((item, *texts.get(item, nothing)) for item in tokens[kept[1]])
        counts = write_items(stage / f"{output.name}.item", TEXT_FIELDS, rows)
    paper = "industrial" if category == PAPER_CATEGORY else ""
    print(*problems.lines(), *statistics_table(counts | sizes, paper), sep="\n")
