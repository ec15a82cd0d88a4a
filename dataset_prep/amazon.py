"""Amazon reviews, releases of 2014, 2018 and 2023: user sequences of products with metadata."""

import ast
import json
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dataset_prep.atomic import filter_events, product_table, staged_folder, write_dataset
from dataset_prep.report import MOST_SECONDS, PrepError, Problems, read_lines, require_files
from dataset_prep.text import is_token, text_fields

PAPER_CATEGORY = "Industrial_and_Scientific"

# How the releases name user, item and time
_OLD, _NEW = ("reviewerID", "asin", "unixReviewTime"), ("user_id", "parent_asin", "timestamp")
_ENDS = (".json.gz", ".jsonl.gz", ".jsonl")

_REVIEW = np.dtype([(name, "i8") for name in ("user", "item", "time", "line")])


def _literal(text: str) -> Any:
    """Return a Python literal, as the metadata of 2014 are, or None."""
    wrong = (ValueError, TypeError, SyntaxError, RecursionError, MemoryError)
    with warnings.catch_warnings(), suppress(*wrong):
        warnings.simplefilter("ignore")  # of odd escapes
        return ast.literal_eval(text.strip())


def _fields(row: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return user, item and time of a row by the names of its release, and which release it is."""
    new = "parent_asin" in row or "user_id" in row
    return {name: row.get(name) for name in (_NEW if new else _OLD)}, "2023" if new else "2014/2018"


def _seconds(time: Any) -> int:
    """Return seconds since 1970, also of milliseconds; below 0 where it is no time."""
    if type(time) not in (int, float) or not 0 <= time < MOST_SECONDS * 1000:
        return -1
    # In milliseconds 2**32 is February 1970: smaller numbers are seconds.
    return int(time if time < MOST_SECONDS else time // 1000)


def _read_rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and object of a file of JSON objects; other lines are recorded."""
    for line, text in problems.decoded(path, read_lines(path)):
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            row = _literal(text)
        if isinstance(row, dict):
            yield line, row
        else:
            problems.add_line(path, line, "bad JSON")


def _sound_reviews(
    path: Path, problems: Problems, users: dict[str, int], items: dict[str, int]
) -> Iterator[tuple[int, int, int, int]]:
    """Yield the fields of ``_REVIEW``; new users and items get the next number."""
    for line, row in _read_rows(path, problems):
        fields, release = _fields(row)
        user, item, time = fields.values()
        if missing := ", ".join(name for name, value in fields.items() if value is None):
            problems.add_line(path, line, f"missing {missing} (layout of {release})")
        elif not all(isinstance(token, str) and is_token(token) for token in (user, item)):
            problems.add_line(path, line, "bad id")
        elif (time := _seconds(time)) < 0:
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
        fields, release = _fields(row)
        _, (name, item), _ = fields.items()
        if not isinstance(item, str):
            kind = f"missing {name} (layout of {release})" if item is None else "bad id"
            problems.add_line(path, line, kind)
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
    stems = f"{category}_5", category, f"reviews_{category}_5", f"reviews_{category}"
    for end in _ENDS:
        for stem in stems:
            if (source / f"{stem}{end}").is_file():
                names = [f"{stem}{end}", f"meta_{category}{end}"]
                return require_files(source, names, f"a folder with Amazon's {category}")
    meta = sorted(path.name for path in source.glob("meta_*") if path.name.endswith(_ENDS))
    there = ", ".join(name[len("meta_") : name.index(".json")] for name in meta) or "none"
    raise PrepError(
        f"{source}: it has neither {stems[0]}.json.gz nor {category}.json.gz, nor {category}.jsonl "
        f"(2023) nor reviews_{category}.json.gz (2014); categories there: {there}"
    )


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
