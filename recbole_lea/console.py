"""How a program ends in the shell: a mistake, Ctrl-C or SIGTERM is one line."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

# What a mistake in the input raises, RecBole's way to refuse one too; all else is ours to find.
MISTAKES = (ValueError, KeyError, OSError, ModuleNotFoundError, NotImplementedError)


class StoppedAfter(SystemExit):
    """The end of a run with ``lea_stop_after``: exit code 0. ``steps``: of its plan, after that."""

    def __init__(self, steps: Sequence[Any] = ()) -> None:
        super().__init__(0)
        self.steps = steps


def mistake(error: BaseException) -> str | None:
    """In one line what is wrong in the input; None if the error is ours to find."""
    if isinstance(error, MISTAKES):
        return str(error.args[0] if isinstance(error, KeyError) else error)
    return None


def console(function: Callable[[], Any]) -> None:
    """A program for the shell: a mistake in the input is one line, not a traceback.

    So are Ctrl-C and SIGTERM, with the exit codes by which shells know them, 130 and 143. Progress
    bars take one line of the terminal, and where there is none, such as in a file, few.
    """
    # tqdm reads them when it is imported, whichever package makes the bar
    os.environ.setdefault("TQDM_LEAVE", "")  # false
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "60")
    before = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        function()
    except KeyboardInterrupt as stop:
        print("stopped: the same command goes on with what the cache holds", file=sys.stderr)
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))
    except Exception as error:
        found = mistake(error)
        if os.environ.get("LEA_TRACEBACK") or found is None:
            raise
        sys.exit(f"error: {found} (LEA_TRACEBACK=1 shows where)")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, _: Any) -> None:
    raise KeyboardInterrupt(number)
