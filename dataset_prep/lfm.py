"""LFM-1b: a window of whole days of listening events, as user sequences of tracks."""

from collections.abc import Iterator
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dataset_prep import events as stored
from dataset_prep import lfm_files as files
from dataset_prep.atomic import staged_folder, statistics_table, write_inter, write_items
from dataset_prep.events import MOST_SECONDS, Tally, Totals, totals
from dataset_prep.report import PrepError, Problems, require_files
from dataset_prep.text import one_line

_DAY = 86_400
_EPOCH = date(1970, 1, 1)


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


def _gather(
    path: Path, raw: Path, problems: Problems, start: date | None, days: int
) -> tuple[Totals, Totals]:
    """Write the window's events to ``raw``; count its users, and its ``track << 32 | album + 1``.

    Without an album the latter ends in 0.
    """
    per_day = np.zeros(MOST_SECONDS // _DAY + 1, np.int64)  # since 1970-01-01 (UTC)
    for events in files.read_events(path, problems):
        per_day += np.bincount(events["time"] // _DAY, minlength=len(per_day))
    problems.check()
    if not per_day.any():
        raise PrepError(f"{path}: no events")
    busy = np.flatnonzero(per_day)
    first, last = (_EPOCH + timedelta(int(day)) for day in busy[[0, -1]])
    there = f"{per_day.sum():,} from {first} to {last}"
    how = "as asked" if start else "the busiest"
    start = start or busiest_window(per_day, days)
    window = f"{start} to {start + timedelta(days - 1)} ({days} UTC days)"
    since = (start - _EPOCH).days * _DAY
    users, pairs, gathered = Tally(), Tally(), 0
    with open(raw, "wb") as file:
        for events in files.read_events(path):
            inside = (since <= events["time"]) & (events["time"] < since + days * _DAY)
            events = events[inside]
            gathered += len(events)
            events[["user", "track", "time"]].astype(stored.EVENT).tofile(file)
            users.add(events["user"], events["line"])
            pair = events["track"] << 32 | np.maximum(events["album"], -1) + 1
            pairs.add(pair, events["line"])
    if not gathered:
        raise PrepError(f"{path}: no events in {window}; there are {there}")
    print(f"events: {there}\nwindow: {window}, {how}: {gathered:,} events")
    return users.result(), pairs.result()


def _main_albums(pairs: Totals, kept: np.ndarray) -> dict[int, tuple[int, int, int]]:
    """Return number, album and first line of the album that most events of a kept track name."""
    of_kept = np.isin(pairs[0] >> 32, kept) & (pairs[0] & 0xFFFFFFFF > 0)
    main: dict[int, tuple[int, int, int]] = {}
    for key, count, line in zip(*(part[of_kept].tolist() for part in pairs), strict=True):
        # Of albums named equally often the lowest id, which comes first, stays.
        if count > main.get(key >> 32, (0,))[0]:
            main[key >> 32] = count, (key & 0xFFFFFFFF) - 1, line
    return main


def _rows_of(
    path: Path, numbers: tuple[int, ...], wanted: set[int], problems: Problems
) -> dict[int, tuple]:
    """Return line, name and further id of the ``wanted`` ids; of repeated ids the first row."""
    rows: dict[int, tuple] = {}
    for line, one, name, *others in files.read_names(path, numbers, problems):
        name = one_line(name)
        if not name and path.name == files.TRACKS:
            problems.add_line(path, line, "empty title")
        if one in wanted:
            rows.setdefault(one, (line, name, *others))
    return rows


def _texts(
    source: Path, pairs: Totals, kept: np.ndarray, problems: Problems
) -> Iterator[tuple[str, str, str, str]]:
    """Yield token, title, album and artist of every kept track, in order of track id."""
    tracks, counts, lines = totals(pairs[0] >> 32, *pairs[1:])
    rows = _rows_of(source / files.TRACKS, (0, 2), set(tracks.tolist()), problems)
    unknown = np.array([track not in rows for track in tracks.tolist()])
    problems.read("events in the window", int(counts.sum()))
    if unknown.any():
        where = f"{source / files.EVENTS}:{lines[unknown].min()} (track)"
        problems.add("events in the window", "unknown id", where, int(counts[unknown].sum()))
    kept_tracks = tracks[kept].tolist()
    main = _main_albums(pairs, tracks[kept])
    named = {album for _, album, _ in main.values()}
    albums = _rows_of(source / files.ALBUMS, (0, 2), named, problems)
    artists = {rows[track][2] for track in kept_tracks if track in rows}
    artist_rows = _rows_of(source / files.ARTISTS, (0,), artists, problems)
    problems.read("kept tracks", len(kept_tracks))

    def name_of(one: int, found: dict[int, tuple], where: str) -> str:
        if one not in found:
            problems.add("kept tracks", "unknown id", where)
        return found[one][1] if one in found else ""

    for track in kept_tracks:
        title = album = artist = ""
        if track in rows:
            line, title, id_ = rows[track]
            artist = name_of(id_, artist_rows, f"{source / files.TRACKS}:{line} (artist)")
        if track in main:
            _, id_, line = main[track]
            album = name_of(id_, albums, f"{source / files.EVENTS}:{line} (album)")
        yield str(track), title, album, artist


def convert(
    source: Path, output: Path, days: int, start: date | None, minimum: int, drop_repeats: bool,
    max_bad: float,
) -> None:  # fmt: skip
    """Convert a folder in the LFM-1b layout, and print what was done.

    The arguments are the options of ``python -m dataset_prep lfm --help``. The events are
    streamed; those of the window go through files beside the output. Memory grows with the users
    and tracks of the window only.

    Raises:
        PrepError: the input cannot be used, or ``output`` exists.
    """
    require_files(source, files.NAMES, "an LFM-1b folder")
    problems = Problems(max_bad)
    with staged_folder(output) as stage, TemporaryDirectory(dir=stage) as scratch:
        raw = Path(scratch, "raw")
        (users, of_user, _), pairs = _gather(source / files.EVENTS, raw, problems, start, days)
        tracks = np.unique(pairs[0] >> 32)
        chunks = partial(stored.chunks_of, stored.sort_events(raw, users, of_user, tracks))
        kept = stored.filter_events(chunks, len(users), len(tracks), minimum, drop_repeats)[:2]
        events = stored.kept_events(chunks, *kept, drop_repeats)
        sizes = write_inter(stage / f"{output.name}.inter", events, users, tracks, with_time=True)
        rows = _texts(source, pairs, kept[1], problems)
        texts = write_items(stage / f"{output.name}.item", ["title", "album", "artist"], rows)
        problems.check()
    print(*problems.lines(), *statistics_table(texts | sizes, "lfm"), sep="\n")
