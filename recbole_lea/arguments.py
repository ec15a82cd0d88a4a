"""The command line's ``--key=value`` that RecBole is to read; this module alone reads sys.argv."""

import sys
from collections.abc import Sequence

_given: list[str] | None = None


def given() -> list[str]:
    """What RecBole's ``Config`` reads: the process's own arguments, unless ``set_given`` was used.

    A notebook has none: its kernel's are not meant for RecBole.
    """
    if _given is not None:
        return list(_given)
    return [] if "ipykernel_launcher" in sys.argv[0] else sys.argv[1:]


def set_given(arguments: Sequence[str]) -> None:
    """Let RecBole read these arguments in this process, such as those that a parser has left."""
    global _given
    _given = list(arguments)
