"""The one error a user sees, and the ledger of rows that were not as they should be."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


class PrepError(Exception):
    """A conversion cannot go on; the message is one line written for the person who ran it."""


@dataclass
class _Kind:
    rows: int
    first: str


@dataclass
class _Table:
    rows: int = 0
    kinds: dict[str, _Kind] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        return sum(kind.rows for kind in self.kinds.values())


class Problems:
    """Counts bad rows by table and kind, keeping the first example of each.

    A table is whatever a share of bad rows is meant over: a file, or the part of one that is used.
    """

    def __init__(self, max_bad: float) -> None:
        """Allow each table a share of ``max_bad`` bad rows, from 0 to 1."""
        self._max_bad = max_bad
        self._tables: defaultdict[str, _Table] = defaultdict(_Table)

    def read(self, table: str, rows: int) -> None:
        """Record that ``rows`` more rows of ``table`` were looked at, good and bad together."""
        self._tables[table].rows += rows

    def add(self, table: str, kind: str, where: str | Callable[[], str], rows: int = 1) -> None:
        """Record ``rows`` bad rows of one ``kind``.

        ``where`` is the file and line of the first, or finds it: it is asked once for each kind.
        """
        kinds = self._tables[table].kinds
        if kind not in kinds:
            kinds[kind] = _Kind(0, where if isinstance(where, str) else where())
        kinds[kind].rows += rows

    def lines(self) -> list[str]:
        """Return the report, a line for each table and kind, or one line when there is nothing."""
        found = [
            f"  {table}: {kind}: {count.rows:,} of {entry.rows:,} rows, first at {count.first}"
            for table, entry in self._tables.items()
            for kind, count in entry.kinds.items()
        ]
        return ["row problems:", *found] if found else ["row problems: none"]

    def check(self) -> None:
        """Stop a conversion that reads the wrong thing.

        Raises:
            PrepError: a table has a larger share of bad rows than allowed.
        """
        for table, entry in self._tables.items():
            if entry.bad > self._max_bad * entry.rows:
                kinds = "; ".join(
                    f"{kind}: {count.rows:,}, first at {count.first}"
                    for kind, count in entry.kinds.items()
                )
                raise PrepError(
                    f"{table}: {entry.bad:,} of {entry.rows:,} rows are bad, over the share of "
                    f"{self._max_bad:g} that --max-bad allows: {kinds}"
                )


def require_files(folder: Path, names: list[str], layout: str) -> list[Path]:
    """Return the paths of ``names`` in ``folder``.

    Args:
        folder: the folder given with ``--input``.
        names: file names that must all be there.
        layout: what such a folder is called in the error message.

    Raises:
        PrepError: the folder or one of the files is not there.
    """
    if not folder.is_dir():
        raise PrepError(f"{folder}: no such folder")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise PrepError(f"{folder}: not {layout}: it has no {', '.join(missing)}")
    return [folder / name for name in names]
