"""LFM-1b, tab-separated text: a window of days of listening events as user sequences of tracks."""

import re
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from itertools import compress
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_prep.atomic import filter_events, staged_folder, write_dataset
from dataset_prep.report import MOST_SECONDS, Blocks, PrepError, Problems, read_lines, require_files
from dataset_prep.text import one_line

NAMES = [f"LFM-1b_{kind}.txt" for kind in ("LEs", "tracks", "albums", "artists")]
EVENTS, TRACKS, ALBUMS, ARTISTS = NAMES

_ROW = re.compile(rb"-?[0-9]{1,10}(?:\t-?[0-9]{1,10}){4}\r?\n?")
_MOST_IDS = 2**31
_DAY = 86_400
_EPOCH = date(1970, 1, 1)
# A window's events stay in memory: 24 bytes each.
_WINDOW = {"line": "i8", "user": "i4", "album": "i4", "track": "i4", "time": "u4"}


def _table(path: Path, doing: str, numbers: Sequence[int], columns: int) -> Blocks:
    """Yield what ``read_lines`` does, without a header: no number where every row has one."""
    for first, lines in read_lines(path, doing):
        if first == 1:
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
            cells = [cell.lstrip(b'#" ')[:1] for cell in lines[0].strip().split(b"\t")]
            named = len(cells) == columns and all(cells[n].isalpha() for n in numbers)
            # A file may be nothing but a byte order mark.
            if named or not lines[0]:
                first, lines = 2, lines[1:]
        yield first, lines


def _kind(line: bytes) -> str:
    """Name what is wrong with an event line that could not be read."""
    try:
        line.decode()
    except UnicodeDecodeError:
        return "bad UTF-8"
    return "bad number" if line.count(b"\t") == 4 else "wrong column count"


def read_events(path: Path, problems: Problems | None = None) -> Iterator[pd.DataFrame]:
    """Stream the events of ``LFM-1b_LEs.txt`` in file order and constant memory.

    The columns are ``user``, ``artist``, ``album`` (below 0: none), ``track``, ``time`` (seconds
    since 1970, UTC) and ``line``. Rows with a wrong column count or a bad number are left out, and
    recorded in ``problems``, which is None where the file was checked before.
    """
    doing = "checking" if problems else "reading the window of"
    for first, lines in _table(path, doing, range(5), 5):
        whole = [_ROW.fullmatch(line) is not None for line in lines]
        values = np.fromstring(b"".join(compress(lines, whole)), np.int64, sep="\t").reshape(-1, 5)
        ids, time = values[:, :4], values[:, 4]
        right = (np.abs(ids) < _MOST_IDS).all(axis=1) & (0 <= time) & (time < MOST_SECONDS)
        right &= (ids[:, 0] >= 0) & (ids[:, 3] >= 0)
        events = pd.DataFrame(values, columns=["user", "artist", "album", "track", "time"])
        events["line"] = first + np.flatnonzero(whole)
        events = events[right]
        if problems:
            problems.read(path.name, len(lines))
            bad = np.setdiff1d(np.arange(first, first + len(lines)), events["line"])
            for line in bad.tolist():
                problems.add_line(path, line, _kind(lines[line - first]))
        yield events


def read_names(
    path: Path, numbers: tuple[int, ...], wanted: set[int], problems: Problems
) -> dict[int, tuple]:
    """Return line, name and further id of the ``wanted`` ids of a table of names.

    ``numbers`` are the columns that are ids; column 1 is the name. Rows with a wrong column count
    or a bad number are left out and recorded. Of repeated ids the first row counts.
    """
    columns = len(numbers) + 1
    rows: dict[int, tuple] = {}
    for line, text in problems.decoded(path, _table(path, "reading", numbers, columns)):
        fields = text.rstrip("\r\n").split("\t")
        if len(fields) != columns:
            problems.add_line(path, line, "wrong column count")
            continue
        try:
            one, *others = (int(fields[n]) for n in numbers)
        except ValueError:
            problems.add_line(path, line, "bad number")
            continue
        name = one_line(fields[1])
        if not name and path.name == TRACKS:
            problems.add_line(path, line, "empty title")
        if one in wanted:
            rows.setdefault(one, (line, name, *others))
    return rows


def busiest_window(per_day: np.ndarray, days: int) -> date:
    """Return the first of ``days`` consecutive days with the most events, the earliest of equals.

    A log that covers fewer days gives a window that starts with it. ``per_day`` holds the number
    of events on each day since 1970-01-01 (UTC), at least one in all.
    """
    busy = np.flatnonzero(per_day)
    first, last = int(busy[0]), int(busy[-1])
    before = np.concatenate([[0], np.cumsum(per_day[first : last + 1])])
    length = min(days, last - first + 1)
    return _EPOCH + timedelta(first + int(np.argmax(before[length:] - before[:-length])))


def _read_window(path: Path, problems: Problems, start: date | None, days: int) -> pd.DataFrame:
    """Return the window's events (columns: see ``_WINDOW``) in the order of the file."""
    per_day = np.zeros(MOST_SECONDS // _DAY + 1, np.int64)  # since 1970-01-01 (UTC)
    for events in read_events(path, problems):
        per_day += np.bincount(events["time"] // _DAY, minlength=len(per_day))
    problems.check()
    if not per_day.any():
        raise PrepError(f"{path}: no events")
    # A player whose clock was never set reports 1970, years before any other event.
    if per_day[365:].any() and not per_day[365:730].any() and (undated := per_day[:365].sum()):
        print(f"undated: {undated:,} events of 1970, left out of the choice of a window")
        per_day[:365] = 0
    first, last = (_EPOCH + timedelta(int(day)) for day in np.flatnonzero(per_day)[[0, -1]])
    there = f"{per_day.sum():,} from {first} to {last}"
    how = "as asked" if start else "the busiest"
    start = start or busiest_window(per_day, days)
    window = f"{start} to {start + timedelta(days - 1)} ({days} UTC days)"
    since = (start - _EPOCH).days * _DAY
    parts = []
    for events in read_events(path):
        inside = (since <= events["time"]) & (events["time"] < since + days * _DAY)
        parts.append(events.loc[inside, list(_WINDOW)].astype(_WINDOW))
    found = pd.concat(parts, ignore_index=True)
    if found.empty:
        raise PrepError(f"{path}: no events in {window}; there are {there}")
    print(f"events: {there}\nwindow: {window}, {how}: {len(found):,} events")
    return found


def _main_albums(window: pd.DataFrame, kept: list[int]) -> dict[int, tuple[int, int]]:
    """Return id and first line of the album that most events of a kept track name."""
    named = window[window["track"].isin(kept) & (window["album"] >= 0)]
    albums = named.groupby(["track", "album"])["line"].agg(["size", "min"]).reset_index()
    # Of albums named equally often the lowest id, which comes first, stays.
    main = albums.sort_values("size", ascending=False, kind="stable").drop_duplicates("track")
    return {track: (album, line) for track, album, _, line in main.itertuples(index=False)}


def _texts(source: Path, window: pd.DataFrame, kept: list[int], problems: Problems) -> pd.DataFrame:
    """Return title, album and artist of the ``kept`` tracks."""
    rows = read_names(source / TRACKS, (0, 2), set(window["track"].unique()), problems)
    problems.read("events in the window", len(window))
    unknown = window.loc[~window["track"].isin(list(rows)), "line"]
    if len(unknown):
        where = f"{source / EVENTS}:{unknown.min()} (track)"
        problems.add("events in the window", "unknown id", where, len(unknown))
    main = _main_albums(window, kept)
    albums = read_names(source / ALBUMS, (0, 2), {one for one, _ in main.values()}, problems)
    wanted = {rows[track][2] for track in kept if track in rows}
    artists = read_names(source / ARTISTS, (0,), wanted, problems)
    problems.read("kept tracks", len(kept))

    def name_of(one: int | None, found: dict[int, tuple], where: str) -> str:
        if one is not None and one not in found:
            problems.add("kept tracks", "unknown id", where)
        return found[one][1] if one in found else ""

    texts = []
    for track in kept:
        line, title, one = rows.get(track, (0, "", None))
        artist = name_of(one, artists, f"{source / TRACKS}:{line} (artist)")
        one, line = main.get(track, (None, 0))
        texts.append((title, name_of(one, albums, f"{source / EVENTS}:{line} (album)"), artist))
    return pd.DataFrame(texts, index=kept, columns=["title", "album", "artist"])


def convert(
    source: Path, output: Path, days: int, start: date | None, minimum: int, drop_repeats: bool,
    max_bad: float,
) -> None:  # fmt: skip
    """Convert a folder in the LFM-1b layout, and print what was done.

    The arguments are the options of ``python -m dataset_prep lfm --help``. Only the window's events
    are held in memory. Raises PrepError where the input cannot be used or ``output`` exists.
    """
    require_files(source, NAMES, "an LFM-1b folder")
    problems = Problems(max_bad)
    with staged_folder(output) as stage:
        window = _read_window(source / EVENTS, problems, start, days)
        # lexsort leaves events of one second in the order of the file.
        order = np.lexsort((window["time"], window["user"]))
        events = window.loc[order, ["user", "track", "time"]].rename(columns={"track": "item"})
        events = filter_events(events, minimum, drop_repeats)
        kept = sorted(events["item"].unique().tolist())
        items = _texts(source, window, kept, problems)
        write_dataset(stage / output.name, events, items, problems, "lfm")
