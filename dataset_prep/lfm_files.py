"""Readers for the raw LFM-1b layout: tab-separated UTF-8 text, with or without header rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset_prep.problems import PrepError, Problems
from dataset_prep.progress import progress

EVENTS, TRACKS = "LFM-1b_LEs.txt", "LFM-1b_tracks.txt"
ALBUMS, ARTISTS = "LFM-1b_albums.txt", "LFM-1b_artists.txt"

WRONG_COLUMNS, BAD_UTF8, BAD_NUMBER = "wrong column count", "bad UTF-8", "bad number"

# Small enough for a block and its arrays to stay in the processor's cache: 4 MB was slower.
_BLOCK = 1 << 20
_LARGEST_ID = 2**31 - 1
_LARGEST_TIME = 2**32 - 1
_TAB, _NEWLINE, _RETURN, _ZERO, _MINUS = b"\t\n\r0-"
_BOM = b"\xef\xbb\xbf"


def _is_header(line: bytes, numbers: tuple[int, ...], columns: int) -> bool:
    """Tell whether a file's first line names columns: no number where every row has one."""
    fields = line.strip().split(b"\t")
    return len(fields) == columns and all(fields[n].lstrip(b'#" ')[:1].isalpha() for n in numbers)


@dataclass(frozen=True)
class Events:
    """Listening events of consecutive lines, a column each.

    Attributes:
        line: line number in the file, from 1.
        user: user id, at least 0.
        album: album id; below 0 where the event names none.
        track: track id, at least 0.
        time: seconds since 1970 (UTC).
    """

    line: np.ndarray
    user: np.ndarray
    album: np.ndarray
    track: np.ndarray
    time: np.ndarray


class _Rows:
    """The lines of one block that have five columns, as positions in its bytes."""

    def __init__(self, data: bytes) -> None:
        self.bytes = np.frombuffer(data, np.uint8)
        newlines = np.flatnonzero(self.bytes == _NEWLINE)
        tabs = np.flatnonzero(self.bytes == _TAB)
        tabs_before = np.searchsorted(tabs, newlines)
        self.lines = len(newlines)
        self.starts = np.concatenate([[0], newlines[:-1] + 1])
        self.stops = newlines
        self.five = np.flatnonzero(np.diff(tabs_before, prepend=0) == 4)
        first_tab = tabs_before[self.five] - 4
        ends = newlines[self.five]
        ends = ends - (self.bytes[np.maximum(ends - 1, 0)] == _RETURN)
        self._stops = [tabs[first_tab + n] for n in range(4)] + [ends]
        self._starts = [self.starts[self.five]] + [stop + 1 for stop in self._stops[:4]]

    def column(self, n: int, largest: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a column's integers for ``rows`` (indices into ``five``), and which are sound."""
        start, stop = self._starts[n][rows], self._stops[n][rows]
        negative = self.bytes[start] == _MINUS
        width = stop - start - negative
        good = (width >= 1) & (width <= 10)
        value = np.zeros(len(rows), np.int64)
        for place in range(int(min(width.max(initial=0), 10))):
            inside = width > place
            # Below the field's end, or at any byte where the field is shorter than this place.
            digit = self.bytes[np.maximum(stop - 1 - place, 0)] - np.uint8(_ZERO)
            good &= (digit <= 9) | ~inside
            value += np.where(inside, digit, 0).astype(np.int64) * 10**place
        good &= value <= largest
        return np.where(negative, -value, value), good


def _kind(line: bytes) -> str:
    """Name what is wrong with an event line that could not be read."""
    try:
        line.decode()
    except UnicodeDecodeError:
        return BAD_UTF8
    return BAD_NUMBER if line.count(b"\t") == 4 else WRONG_COLUMNS


def _blocks(
    path: Path, doing: str, is_header: Callable[[bytes], bool]
) -> Iterator[tuple[int, bytes]]:
    """Yield whole lines, about a megabyte at a time, with the number of the first of them."""
    with open(path, "rb") as file, progress(path, doing) as bar:
        first = file.readline(_BLOCK)
        bar.update(len(first))
        rest, line = first.removeprefix(_BOM), 1
        if is_header(rest):
            rest, line = b"", 2
        while block := file.read(_BLOCK):
            bar.update(len(block))
            rest += block
            if cut := rest.rfind(b"\n") + 1:
                yield line, rest[:cut]
                line += rest.count(b"\n")
                rest = rest[cut:]
            if len(rest) > _BLOCK:
                raise PrepError(f"{path}: line {line} is longer than a megabyte: not a text table")
        if rest:
            yield line, rest if rest.endswith(b"\n") else rest + b"\n"


def _is_event_header(line: bytes) -> bool:
    return _is_header(line, (0, 1, 2, 3, 4), 5)


def _events(rows: _Rows, first_line: int, time: np.ndarray, chosen: np.ndarray) -> Events:
    """Return the events of the ``chosen`` rows whose ids are sound; ``time`` is theirs."""
    user, good = rows.column(0, _LARGEST_ID, chosen)
    _, artist_good = rows.column(1, _LARGEST_ID, chosen)
    album, album_good = rows.column(2, _LARGEST_ID, chosen)
    track, track_good = rows.column(3, _LARGEST_ID, chosen)
    good = good & artist_good & album_good & track_good & (user >= 0) & (track >= 0)
    line = first_line + rows.five[chosen]
    return Events(line[good], user[good], album[good], track[good], time[good])


def read_events(path: Path, problems: Problems) -> Iterator[Events]:
    """Stream the events of ``LFM-1b_LEs.txt`` in file order, in constant memory.

    Rows with a wrong column count or a bad number are counted and left out.

    Args:
        path: the file (user_id, artist_id, album_id, track_id, unix seconds).
        problems: where bad rows are counted.

    Raises:
        PrepError: the file is not made of lines.
    """
    for first_line, block in _blocks(path, "checking", _is_event_header):
        rows = _Rows(block)
        time, good = rows.column(4, _LARGEST_TIME, np.arange(len(rows.five)))
        chosen = np.flatnonzero(good & (time >= 0))
        events = _events(rows, first_line, time[chosen], chosen)
        problems.read(path.name, rows.lines)
        bad = np.ones(rows.lines, bool)
        bad[events.line - first_line] = False
        for n in np.flatnonzero(bad).tolist():
            line = block[rows.starts[n] : rows.stops[n]]
            problems.add(path.name, _kind(line), f"{path}:{first_line + n}")
        yield events


def read_window(path: Path, start: int, stop: int) -> Iterator[Events]:
    """Stream the events with start <= time < stop (unix seconds) of a file already checked.

    About twice as fast as ``read_events``, because only the time of other rows is read.
    """
    for first_line, block in _blocks(path, "reading the window of", _is_event_header):
        rows = _Rows(block)
        time, good = rows.column(4, _LARGEST_TIME, np.arange(len(rows.five)))
        chosen = np.flatnonzero(good & (start <= time) & (time < stop))
        yield _events(rows, first_line, time[chosen], chosen)


def read_names(path: Path, numbers: tuple[int, ...], problems: Problems) -> Iterator[tuple]:
    """Stream a table of names: tracks, albums or artists.

    Rows with a wrong column count or a bad number are left out; undecodable bytes become U+FFFD.

    Args:
        path: the file; its second column is a name, the others are ids.
        numbers: which columns are ids.
        problems: where bad rows are counted.

    Yields:
        The line number and the columns, ids as int and the name as str.
    """
    columns = len(numbers) + 1
    with open(path, "rb") as file, progress(path, "reading") as bar:
        for line, raw in enumerate(file, start=1):
            bar.update(len(raw))
            if line == 1:
                raw = raw.removeprefix(_BOM)
                if _is_header(raw, numbers, columns):
                    continue
            problems.read(path.name, 1)
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                problems.add(path.name, BAD_UTF8, f"{path}:{line}")
                text = raw.decode(errors="replace")
            fields = text.rstrip("\r\n").split("\t")
            if len(fields) != columns:
                problems.add(path.name, WRONG_COLUMNS, f"{path}:{line}")
                continue
            try:
                yield line, *(int(one) if n in numbers else one for n, one in enumerate(fields))
            except ValueError:
                problems.add(path.name, BAD_NUMBER, f"{path}:{line}")
