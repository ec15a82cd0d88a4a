"""Readers for the raw LFM-1b layout: tab-separated UTF-8 text, with or without header rows."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from dataset_prep.events import MOST_SECONDS
from dataset_prep.report import PrepError, Problems, watched

NAMES = [f"LFM-1b_{kind}.txt" for kind in ("LEs", "tracks", "albums", "artists")]
EVENTS, TRACKS, ALBUMS, ARTISTS = NAMES

# A line of the events file: its number from 1, ids (an album's is below 0 where the event names
# none) and seconds since 1970 (UTC).
LISTENED = np.dtype([(n, "i8") for n in ("line", "user", "artist", "album", "track", "time")])
_MOST_IDS = 2**31
# As many rows of five numbers as follow each other; possessive, so that nothing is tried again.
_ROWS = re.compile(rb"(?:" + rb"\t".join([rb"-?[0-9]{1,10}+"] * 5) + rb"\r?\n)*+")
# Small enough for a block and its arrays to stay in the processor's cache.
_BLOCK = 1 << 20
_BOM = b"\xef\xbb\xbf"


def _is_header(line: bytes, numbers: Sequence[int], columns: int) -> bool:
    """Tell whether a file's first line names columns: no number where every row has one."""
    fields = line.strip().split(b"\t")
    return len(fields) == columns and all(fields[n].lstrip(b'#" ')[:1].isalpha() for n in numbers)


def _blocks(
    path: Path, doing: str, numbers: Sequence[int], columns: int
) -> Iterator[tuple[int, bytes]]:
    """Yield whole lines, about a megabyte at a time, with the number of the first of them.

    A header is left out; ``numbers`` says which of the columns are numbers.
    """
    with open(path, "rb") as file:
        rest, line = file.readline(_BLOCK).removeprefix(_BOM), 1
        if _is_header(rest, numbers, columns):
            rest, line = b"", 2
        with watched(file, path, doing) as bar:
            while block := bar.read(_BLOCK):
                rest += block
                if cut := rest.rfind(b"\n") + 1:
                    yield line, rest[:cut]
                    line += rest.count(b"\n")
                    rest = rest[cut:]
                if len(rest) > _BLOCK:
                    raise PrepError(
                        f"{path}: line {line} is longer than a megabyte: not a text table"
                    )
        if rest:
            yield line, rest if rest.endswith(b"\n") else rest + b"\n"


def _parsed(block: bytes, first_line: int) -> np.ndarray:
    """Return the events of a block whose five columns are numbers in range, as ``LISTENED``."""
    rows: list[bytes] = []
    lines: list[np.ndarray] = []
    at, line = 0, first_line
    while at < len(block):
        end = cast(re.Match, _ROWS.match(block, at)).end()
        n = block.count(b"\n", at, end)
        rows.append(block[at:end])
        lines.append(np.arange(line, line + n))
        # The next line, if there is one, is no row.
        at, line = block.find(b"\n", end) + 1 or len(block), line + n + 1
    values = np.fromstring(b"".join(rows), np.int64, sep="\t").reshape(-1, 5)
    events = np.column_stack([np.concatenate(lines), values]).view(LISTENED)[:, 0]
    right = (0 <= events["time"]) & (events["time"] < MOST_SECONDS)
    for name in ("user", "artist", "album", "track"):
        right &= np.abs(events[name]) < _MOST_IDS
    return events[right & (events["user"] >= 0) & (events["track"] >= 0)]


def _kind(line: bytes) -> str:
    """Name what is wrong with an event line that could not be read."""
    try:
        line.decode()
    except UnicodeDecodeError:
        return "bad UTF-8"
    return "bad number" if line.count(b"\t") == 4 else "wrong column count"


def read_events(path: Path, problems: Problems | None = None) -> Iterator[np.ndarray]:
    """Stream the events of ``LFM-1b_LEs.txt`` in file order and constant memory, as ``LISTENED``.

    Rows with a wrong column count or a bad number are left out, and recorded in ``problems``, which
    is None where the file was checked before.

    Raises:
        PrepError: the file is not made of lines.
    """
    doing = "checking" if problems else "reading the window of"
    for first, block in _blocks(path, doing, range(5), 5):
        events = _parsed(block, first)
        if problems:
            n = block.count(b"\n")
            problems.read(path.name, n)
            bad = np.setdiff1d(np.arange(first, first + n), events["line"], assume_unique=True)
            lines = block.split(b"\n") if len(bad) else []
            for line in bad.tolist():
                problems.add_line(path, line, _kind(lines[line - first]))
        yield events


def read_names(path: Path, numbers: tuple[int, ...], problems: Problems) -> Iterator[tuple]:
    """Stream line number and columns of a table of names: tracks, albums or artists.

    Rows with a wrong column count or a bad number are left out; undecodable bytes become U+FFFD.

    Args:
        path: the file; its second column is a name, the others are ids.
        numbers: which columns are ids, and become int.
        problems: where bad rows are recorded.
    """
    columns = len(numbers) + 1
    for first, block in _blocks(path, "reading", numbers, columns):
        for line, raw in enumerate(block[:-1].split(b"\n"), first):
            problems.read(path.name, 1)
            fields = problems.decoded(raw, path, line).rstrip("\r").split("\t")
            if len(fields) != columns:
                problems.add_line(path, line, "wrong column count")
                continue
            try:
                yield line, *(int(one) if n in numbers else one for n, one in enumerate(fields))
            except ValueError:
                problems.add_line(path, line, "bad number")
