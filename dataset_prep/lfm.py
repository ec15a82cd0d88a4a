"""LFM-1b: a window of whole days of listening events, as user sequences of tracks."""

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dataset_prep.atomic import staged_folder, write_inter, write_items
from dataset_prep.external import RAW, Tally, read_records, sort_events
from dataset_prep.filtering import EVENT, filter_events, kept_events
from dataset_prep.lfm_files import (
    ALBUMS,
    ARTISTS,
    EVENTS,
    TRACKS,
    Events,
    read_events,
    read_names,
    read_window,
)
from dataset_prep.problems import PrepError, Problems, require_files
from dataset_prep.report import TABLE_1, filter_report, statistics_table
from dataset_prep.text import one_line

_DAY = 86_400
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Window:
    """Whole UTC days.

    Attributes:
        first: the first day.
        days: how many.
    """

    first: date
    days: int

    @property
    def seconds(self) -> tuple[int, int]:
        """Unix seconds at which the window starts and at which it is over."""
        start = (self.first - _EPOCH).days * _DAY
        return start, start + self.days * _DAY

    def __str__(self) -> str:
        """Return first and last day and the number of days."""
        return f"{self.first} to {self.first + timedelta(self.days - 1)} ({self.days} UTC days)"


def busiest_window(per_day: np.ndarray, days: int) -> Window:
    """Return the window of ``days`` consecutive days with the most events, the earliest of equals.

    A log that covers fewer days gives a window that starts with it.

    Args:
        per_day: number of events on each day since 1970-01-01 (UTC); at least one event in all.
        days: length of the window.
    """
    busy = np.flatnonzero(per_day)
    first, last = int(busy[0]), int(busy[-1])
    before = np.concatenate([[0], np.cumsum(per_day[first : last + 1])])
    length = min(days, last - first + 1)
    events = before[length:] - before[:-length]
    return Window(_EPOCH + timedelta(first + int(np.argmax(events))), days)


@dataclass(frozen=True)
class _Found:
    """What the window holds: each tally counts its events, the last by track << 32 | album."""

    users: Tally
    tracks: Tally
    albums: Tally


def _count_days(events: Iterator[Events], per_day: np.ndarray) -> Iterator[Events]:
    """Pass events on, adding their number to each day's."""
    for some in events:
        per_day += np.bincount(some.time // _DAY, minlength=len(per_day))
        yield some


def _span(per_day: np.ndarray) -> str:
    days = np.flatnonzero(per_day)
    first, last = (_EPOCH + timedelta(int(day)) for day in (days[0], days[-1]))
    return f"{per_day.sum():,} from {first} to {last}"


def _gather(path: Path, raw: Path, problems: Problems, start: date | None, days: int) -> _Found:
    """Write the window's events to ``raw``; without ``start`` a first pass finds the window."""
    per_day = np.zeros(2**32 // _DAY + 1, np.int64)
    every = _count_days(read_events(path, problems), per_day)
    if start is None:
        for _ in every:
            pass
        problems.check()
        if not per_day.any():
            raise PrepError(f"{path}: no events")
        window = busiest_window(per_day, days)
        every = read_window(path, *window.seconds)
    else:
        window = Window(start, days)
    found = _Found(Tally(), Tally(), Tally())
    since, until = window.seconds
    gathered = 0
    with open(raw, "wb") as file:
        for events in every:
            inside = (since <= events.time) & (events.time < until)
            line, track, album = events.line[inside], events.track[inside], events.album[inside]
            records = np.empty(len(line), RAW)
            records["user"], records["item"] = events.user[inside], track
            records["time"] = events.time[inside]
            records.tofile(file)
            gathered += len(records)
            found.users.add(events.user[inside], line)
            found.tracks.add(track, line)
            named = album >= 0
            found.albums.add(track[named] << 32 | album[named], line[named])
    problems.check()
    if not per_day.any():
        raise PrepError(f"{path}: no events")
    if not gathered:
        raise PrepError(f"{path}: no events in {window}; there are {_span(per_day)}")
    how = "the busiest" if start is None else "as asked"
    print(f"events: {_span(per_day)}")
    print(f"window: {window}, {how}: {gathered:,} events")
    return found


def _main_albums(
    albums: Tally, tracks: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each track index the album most of its events name, and its first line.

    The album is -1 where no event names one, and for tracks that are not kept. Of albums named
    equally often the lowest id wins.
    """
    keys, counts, lines = albums.result()
    track, album = np.searchsorted(tracks, keys >> 32), keys & 0xFFFFFFFF
    order = np.lexsort((album, -counts, track))
    best = order[np.flatnonzero(np.diff(track[order], prepend=-1))]
    best = best[kept[track[best]]]
    main, first = np.full(len(tracks), -1, np.int64), np.zeros(len(tracks), np.int64)
    main[track[best]], first[track[best]] = album[best], lines[best]
    return main, first


def _read_tracks(
    path: Path, tracks: np.ndarray, kept: np.ndarray, problems: Problems
) -> tuple[dict[int, tuple[str, int, int]], np.ndarray]:
    """Return name, artist and line of the kept tracks, and which of all ``tracks`` have a row."""
    # bisect in an array of machine integers: a dict of every track heard would be far larger.
    ids = array("q", tracks.tobytes())
    seen = np.zeros(len(ids), bool)
    rows: dict[int, tuple[str, int, int]] = {}
    for line, track, name, artist in read_names(path, (0, 2), problems):
        title = one_line(name)
        if not title:
            problems.add(path.name, "empty title", f"{path}:{line}")
        n = bisect_left(ids, track)
        if n < len(ids) and ids[n] == track and not seen[n]:
            seen[n] = True
            if kept[n]:
                rows[n] = (title, artist, line)
    return rows, seen


def _read_wanted(
    path: Path, numbers: tuple[int, ...], wanted: set[int], problems: Problems
) -> dict[int, str]:
    """Return the names of the ``wanted`` ids; of repeated ids the first row counts."""
    names: dict[int, str] = {}
    for _, one, name, *_ in read_names(path, numbers, problems):
        if one in wanted:
            names.setdefault(one, one_line(name))
    return names


def _texts(
    paths: dict[str, Path], found: _Found, kept: np.ndarray, problems: Problems
) -> Iterator[tuple[str, str, str, str]]:
    """Yield token, title, album and artist of every kept track, in order of track id."""
    tracks, counts, lines = found.tracks.result()
    rows, seen = _read_tracks(paths[TRACKS], tracks, kept, problems)
    events, table = paths[EVENTS], "events in the window"
    problems.read(table, int(counts.sum()))
    if not seen.all():
        unknown = int(counts[~seen].sum())
        problems.add(table, "unknown id", f"{events}:{lines[~seen].min()} (track)", unknown)
    albums, album_lines = _main_albums(found.albums, tracks, kept)
    named = set(albums[albums >= 0].tolist())
    album_names = _read_wanted(paths[ALBUMS], (0, 2), named, problems)
    wanted = {artist for _, artist, _ in rows.values()}
    artist_names = _read_wanted(paths[ARTISTS], (0,), wanted, problems)
    problems.read("kept tracks", int(np.count_nonzero(kept)))
    for n in np.flatnonzero(kept).tolist():
        title, artist, line = rows.get(n, ("", None, 0))
        album = int(albums[n])
        if artist is not None and artist not in artist_names:
            problems.add("kept tracks", "unknown id", f"{paths[TRACKS]}:{line} (artist)")
        if album >= 0 and album not in album_names:
            problems.add("kept tracks", "unknown id", f"{events}:{album_lines[n]} (album)")
        artist_name = "" if artist is None else artist_names.get(artist, "")
        yield str(tracks[n]), title, album_names.get(album, ""), artist_name


def convert(
    source: Path,
    output: Path,
    days: int = 3,
    start: date | None = None,
    minimum: int = 3,
    drop_repeats: bool = False,
    max_bad: float = 0.01,
) -> None:
    """Convert a folder in the LFM-1b layout, and print what was done.

    The events are streamed; those of the window go through files beside the output. Memory grows
    with the users and tracks of the window only.

    Args:
        source: folder with ``LFM-1b_LEs.txt`` and the tables of tracks, albums and artists.
        output: folder to make; its last component names the dataset.
        days: length of the window in whole UTC days.
        start: its first day; by default the busiest window is taken.
        minimum: least number of interactions of a sequence and of a track.
        drop_repeats: leave out consecutive repeats of a track.
        max_bad: largest share of bad rows, from 0 to 1.

    Raises:
        PrepError: the input cannot be used, or ``output`` exists.
    """
    names = [EVENTS, TRACKS, ALBUMS, ARTISTS]
    paths = dict(zip(names, require_files(source, names, "an LFM-1b folder"), strict=True))
    problems = Problems(max_bad)
    with staged_folder(output) as stage, TemporaryDirectory(dir=stage) as scratch:
        raw, ordered = Path(scratch, "raw"), Path(scratch, "ordered")
        found = _gather(paths[EVENTS], raw, problems, start, days)
        users, user_counts, _ = found.users.result()
        tracks, _, _ = found.tracks.result()
        sort_events(raw, users, user_counts, tracks, ordered)

        def chunks() -> Iterator[np.ndarray]:
            return read_records(ordered, EVENT)

        kept = filter_events(chunks, len(users), len(tracks), minimum, drop_repeats)
        print(*filter_report(kept.rounds), sep="\n")
        rows = _texts(paths, found, kept.items, problems)
        events = kept_events(chunks, kept.users, kept.items, drop_repeats)
        write_inter(stage / f"{output.name}.inter", events, users, tracks, with_time=True)
        counts = write_items(stage / f"{output.name}.item", ["title", "album", "artist"], rows)
        problems.check()
    last = kept.rounds[-1]
    print(*problems.lines(), sep="\n")
    print(*statistics_table(counts, last.sequences, last.interactions, TABLE_1["lfm"]), sep="\n")
