"""Amazon reviews, 2018 release: user sequences of reviewed products with their metadata."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dataset_prep.atomic import filter_events, product_table, staged_folder, write_dataset
from dataset_prep.report import MOST_SECONDS, PrepError, Problems, read_lines, require_files
from dataset_prep.text import is_token, text_fields

PAPER_CATEGORY = "Industrial_and_Scientific"

_REVIEW = np.dtype([(name, "i8") for name in ("user", "item", "time", "line")])


def _read_rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and object of a gzip file of JSON objects; other lines are recorded."""
    for line, text in problems.decoded(path, read_lines(path)):
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield line, row
        else:
            problems.add_line(path, line, "bad JSON")


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


def _read_metadata(
    path: Path, reviewed: dict[str, int], kept: set[str], problems: Problems
) -> tuple[dict[str, list[str]], set[int]]:
    """Return the text fields of the kept items, and the numbers of the reviewed with metadata.

    Where an item has several rows, each field is the first that is not empty.
    """
    texts: dict[str, list[str]] = {}
    seen: set[int] = set()
    repeated = 0
    for line, row in _read_rows(path, problems):
        item = row.get("asin")
        if not isinstance(item, str):
            problems.add_line(path, line, "missing field")
            continue
        found, bad = text_fields(row if item in kept else {"title": row.get("title")})
        if "getTime" in found[0]:  # the release's own notebook tells a page's script so
            found[0] = ""
        if bad:
            problems.add_line(path, line, f"no text in {bad[0]}")
        elif not found[0]:
            problems.add_line(path, line, "empty title")
        if item in reviewed:
            repeated += reviewed[item] in seen
            seen.add(reviewed[item])
        if item in kept:
            before = texts.get(item, found)
            texts[item] = [old or new for old, new in zip(before, found, strict=True)]
    print(f"metadata: {repeated:,} rows repeat a reviewed item")
    return texts, seen


def _files(source: Path, category: str) -> list[Path]:
    """Return the reviews of a category, the 5-core where it is there, and the metadata."""
    require_files(source, [], "a folder")
    names = f"{category}_5", category, f"meta_{category}"
    five, full, metadata = (f"{name}.json.gz" for name in names)
    reviews = next((name for name in (five, full) if (source / name).is_file()), None)
    if reviews is None:
        meta = sorted(path.name for path in source.glob("meta_*.json.gz"))
        there = ", ".join(name[len("meta_") : -len(".json.gz")] for name in meta) or "none"
        raise PrepError(f"{source}: it has neither {five} nor {full}; categories there: {there}")
    return require_files(source, [reviews, metadata], f"a folder with Amazon's {category}")


def convert(source: Path, output: Path, category: str, minimum: int, max_bad: float) -> None:
    """Convert reviews and metadata of one category, and print what was done.

    The arguments are the options of ``python -m dataset_prep amazon --help``. Of several reviews of
    an item by one user the earliest counts; reviews of one day keep the order of the file.
    Raises PrepError where the input cannot be used or ``output`` exists.
    """
    path, metadata = _files(source, category)
    problems = Problems(max_bad)
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    with staged_folder(output) as stage:
        print(f"reading {path.name}")
        every = pd.DataFrame(np.fromiter(_sound_reviews(path, problems, users, items), _REVIEW))
        reviews = every.sort_values("time", kind="stable").drop_duplicates(["user", "item"])
        repeats = len(every) - len(reviews)
        print(f"reviews: {len(every):,}, of which {repeats:,} repeat a user and item")
        problems.check()
        if reviews.empty:
            raise PrepError(f"{path}: no reviews")
        events = filter_events(reviews.sort_values("user", kind="stable"), minimum)
        user_tokens, tokens = np.array(list(users), object), np.array(list(items), object)
        kept = tokens[np.unique(events["item"])]
        texts, seen = _read_metadata(metadata, items, set(kept), problems)
        problems.read("different reviews", len(reviews))
        unknown = reviews.loc[~reviews["item"].isin(seen), "line"]
        if len(unknown):
            where = f"{path}:{unknown.min()}"
            problems.add("different reviews", "unknown id", where, len(unknown))
        events = events.assign(user=user_tokens[events["user"]], item=tokens[events["item"]])
        paper = "industrial" if category == PAPER_CATEGORY else ""
        texts = product_table(texts, kept)
        write_dataset(stage / output.name, events, texts, problems, paper)
