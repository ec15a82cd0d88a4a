"""What a conversion reads and says: lines, its one error, rows that are not as they should be."""

import gzip
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from tqdm import tqdm

# Times are seconds since 1970 (UTC) that 32 bits hold.
MOST_SECONDS = 2**32

# Some lines of a file at a time, with the number of the first of them, from 1
Blocks = Iterator[tuple[int, list[bytes]]]

_BLOCK_LINES = 20_000
_LONGEST_LINE = 1 << 24


class PrepError(Exception):
    """A conversion cannot go on; the message is one line written for the person who ran it."""


class Problems:
    """Counts bad rows by table and kind, and keeps where the first of each kind is.

    A table is a file, or the part of one that is used. A share of ``max_bad`` of its rows, from 0
    to 1, may be bad.
    """

    def __init__(self, max_bad: float) -> None:
        self._max_bad = max_bad
        self._rows: Counter[str] = Counter()
        self._kinds: defaultdict[str, dict[str, tuple[int, str]]] = defaultdict(dict)

    def read(self, table: str, rows: int) -> None:
        """Record that ``rows`` more rows of ``table`` were looked at, good and bad together."""
        self._rows[table] += rows

    def add(self, table: str, kind: str, where: str | Callable[[], str], rows: int = 1) -> None:
        """Record bad ``rows``; ``where`` is the file and line of the kind's first, or finds it."""
        if kind not in (kinds := self._kinds[table]):
            kinds[kind] = 0, where if isinstance(where, str) else where()
        kinds[kind] = kinds[kind][0] + rows, kinds[kind][1]

    def add_line(self, path: Path, line: int, kind: str) -> None:
        """Record one bad line of a file."""
        self.add(path.name, kind, f"{path}:{line}")

    def decoded(self, path: Path, blocks: Blocks) -> Iterator[tuple[int, str]]:
        """Yield number and text of every line; undecodable bytes become U+FFFD and are recorded."""
        for first, lines in blocks:
            self.read(path.name, len(lines))
            for line, raw in enumerate(lines, first):
                text = raw.decode(errors="replace")
                if "\ufffd" in text and text.encode() != raw:
                    self.add_line(path, line, "bad UTF-8")
                yield line, text

    def lines(self) -> list[str]:
        """Return the report, a line for each table and kind, or one line when there is nothing."""
        found = [
            f"  {table}: {kind}: {count:,} of {rows:,} rows, first at {first}"
            for table, rows in self._rows.items()
            for kind, (count, first) in self._kinds[table].items()
        ]
        return ["row problems:", *found] if found else ["row problems: none"]

    def check(self) -> None:
        """Raise PrepError where a table has a larger share of bad rows than allowed."""
        for table, rows in self._rows.items():
            kinds = self._kinds[table].items()
            bad = sum(count for _, (count, _) in kinds)
            if bad > self._max_bad * rows:
                each = (f"{kind}: {count:,}, first at {first}" for kind, (count, first) in kinds)
                raise PrepError(
                    f"{table}: {bad:,} of {rows:,} rows are bad, over the share of "
                    f"{self._max_bad:g} that --max-bad allows: {'; '.join(each)}"
                )


def require_files(folder: Path, names: list[str], layout: str) -> list[Path]:
    """Return the paths of ``names`` in ``folder``, all of which have to be there."""
    if not folder.is_dir():
        raise PrepError(f"{folder}: no such folder")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise PrepError(f"{folder}: not {layout}: it has no {', '.join(missing)}")
    return [folder / name for name in names]


def read_lines(path: Path, doing: str = "reading") -> Blocks:
    """Yield a file's lines in constant memory, with a progress bar; a ``.gz`` file is unpacked.

    Raises PrepError where the gzip file is broken or a line is too long for a text table.
    """
    total, desc = path.stat().st_size, f"{doing} {path.name}"
    bar = tqdm(total=total, desc=desc, unit="B", unit_scale=True, disable=None)
    with open(path, "rb") as file, bar:
        source = gzip.open(file) if path.suffix == ".gz" else file
        endless = iter(partial(source.readline, _LONGEST_LINE), b"")
        first = 1
        try:
            while lines := list(islice(endless, _BLOCK_LINES)):
                bar.update(file.tell() - bar.n)
                for line, raw in enumerate(lines, first):
                    if len(raw) == _LONGEST_LINE:
                        raise PrepError(f"{path}: line {line} is too long: not a text table")
                yield first, lines
                first += len(lines)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise PrepError(f"{path}: broken gzip file: {error}") from error
