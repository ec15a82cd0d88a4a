"""What a conversion says: its one error, the rows that are not as they should be, its progress."""

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm


class PrepError(Exception):
    """A conversion cannot go on; the message is one line written for the person who ran it."""


class Problems:
    """Counts bad rows by table and kind, and keeps where the first of each kind is.

    A table is whatever a share of bad rows is meant over: a file, or the part of one that is used.
    Each may have a share of ``max_bad`` of them, from 0 to 1.
    """

    def __init__(self, max_bad: float) -> None:
        self._max_bad = max_bad
        self._rows: Counter[str] = Counter()
        self._kinds: defaultdict[str, dict[str, tuple[int, str]]] = defaultdict(dict)

    def read(self, table: str, rows: int) -> None:
        """Record that ``rows`` more rows of ``table`` were looked at, good and bad together."""
        self._rows[table] += rows

    def add(self, table: str, kind: str, where: str | Callable[[], str], rows: int = 1) -> None:
        """Record ``rows`` bad rows of one ``kind``.

        ``where`` is the file and line of the first, or finds it: it is asked once for each kind.
        """
        if kind not in (kinds := self._kinds[table]):
            kinds[kind] = 0, where if isinstance(where, str) else where()
        kinds[kind] = kinds[kind][0] + rows, kinds[kind][1]

    def add_line(self, path: Path, line: int, kind: str) -> None:
        """Record one bad line of a file."""
        self.add(path.name, kind, f"{path}:{line}")

    def decoded(self, raw: bytes, path: Path, line: int) -> str:
        """Return a line as text; undecodable bytes become U+FFFD and are recorded."""
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.add_line(path, line, "bad UTF-8")
            return raw.decode(errors="replace")

    def lines(self) -> list[str]:
        """Return the report, a line for each table and kind, or one line when there is nothing."""
        found = [
            f"  {table}: {kind}: {count:,} of {rows:,} rows, first at {first}"
            for table, rows in self._rows.items()
            for kind, (count, first) in self._kinds[table].items()
        ]
        return ["row problems:", *found] if found else ["row problems: none"]

    def check(self) -> None:
        """Stop a conversion that reads the wrong thing.

        Raises:
            PrepError: a table has a larger share of bad rows than allowed.
        """
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


def watched(file: BinaryIO, path: Path, doing: str) -> Any:
    """Give the open file with a progress bar over its bytes, silent where no terminal watches."""
    return tqdm.wrapattr(
        file, "read", initial=file.tell(), total=path.stat().st_size,
        desc=f"{doing} {path.name}", disable=None,
    )  # fmt: skip
