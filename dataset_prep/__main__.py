"""The command line: ``python -m dataset_prep {lfm,amazon,sequences,table}``."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

import dataset_prep
from dataset_prep import amazon, lfm, sequences, table
from dataset_prep.report import PrepError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, without the usage lines argparse puts before it."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _checked(read: Callable[[str], Any], right: Callable[[Any], bool], wanted: str) -> Callable:
    """Return what reads an option's value and says what is ``wanted`` where it is not right."""

    def parse(text: str) -> Any:
        with suppress(ValueError):
            if right(value := read(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")

    return parse


_SHARE = _checked(float, lambda share: 0 <= share <= 1, "a share from 0 to 1")
_DAY = _checked(date.fromisoformat, lambda d: 1970 <= d.year <= 2105, "a day such as 2014-06-16")
_DAYS = _checked(int, lambda n: 1 <= n <= 36_500, "a whole number from 1 to 36,500")
_COUNT = _checked(int, lambda n: 1 <= n <= 1_000_000, "a whole number from 1 to 1,000,000")


def _parser() -> argparse.ArgumentParser:
    """Return the parser; the options of a command are the arguments of its ``convert``."""
    parser = _Parser(prog="python -m dataset_prep", description=dataset_prep.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    path: dict[str, Any] = {"type": Path, "required": True}

    def command(convert: Callable, name: str, does: str, prompts: str = "") -> Callable:
        made = commands.add_parser(name, help=does, description=does)
        made.set_defaults(convert=convert, prompts=prompts)
        does = "folder to make; its last component names the dataset"
        made.add_argument("--output", **path, help=does)
        does = "stop when more than this share of a table's rows is bad (default: 0.01)"
        made.add_argument("--max-bad", type=_SHARE, default=0.01, metavar="SHARE", help=does)
        return made.add_argument

    does = "raw LFM-1b files: user sequences of tracks in a window of days"
    of_lfm = command(lfm.convert, "lfm", does, "lfm")
    does = "raw Amazon reviews and metadata"
    of_amazon = command(amazon.convert, "amazon", does, "industrial")
    does = "a user -> item list JSON file with item metadata"
    of_sequences = command(sequences.convert, "sequences", does, "industrial")
    of_table = command(table.convert, "table", "your own tables: CSV, TSV or Parquet")
    for add in (of_lfm, of_amazon):
        add("--input", dest="source", **path, help="folder with the raw files")
        does = "drop sequences and items with fewer, until nothing changes (default: 3)"
        add("--min-interactions", dest="minimum", type=_COUNT, default=3, metavar="N", help=does)
    of_lfm("--days", type=_DAYS, default=3, metavar="N", help="whole UTC days (default: 3)")
    does = "first day of the window, such as 2014-06-16 (default: the busiest window)"
    of_lfm("--start", type=_DAY, metavar="DATE", help=does)
    of_lfm("--drop-repeats", action="store_true", help="leave out consecutive repeats of a track")
    does = f"as in meta_NAME.json.gz or .jsonl (default: {amazon.PAPER_CATEGORY})"
    of_amazon("--category", default=amazon.PAPER_CATEGORY, metavar="NAME", help=does)
    of_sequences("--inter", **path, help="user -> item list JSON")
    of_sequences("--items", dest="metadata", **path, help="item -> text fields JSON")
    of_table("--inter", **path, help="table of interactions, a row each; .gz too")
    of_table("--items", dest="metadata", **path, help="table of items, with columns of text")
    for role in ("user", "item", "time"):
        does = f"the column of the {role} (default: guessed by its name)"
        of_table(f"--{role}", metavar="COLUMN", help=does)
    does = "drop users and items with fewer, until nothing changes (default: 1)"
    of_table("--min-interactions", dest="minimum", type=_COUNT, default=1, metavar="N", help=does)
    return parser


def _next_command(output: Path, prompts: str) -> str:
    """Return what trains on ``output``; ``prompts`` names our YAML file for it, "" one within."""
    words = ["python", "run_recbole_lea.py", "--model=SASRecSA2CLEA", f"--dataset={output.name}"]
    if output.parent != Path("dataset"):
        words.append(f"--data_path={output.parent}")
    if prompts != output.name:
        ours = f"properties/dataset/{prompts}.yaml"
        words.append(f"--config_files={ours if prompts else output / f'{output.name}.yaml'}")
    return shlex.join(words)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, or 1 after one line on standard error.

    Raises SystemExit where the arguments are wrong (status 2) or the process was told to stop.
    """
    options = vars(_parser().parse_args(argv))
    prompts = options.pop("prompts")
    convert, _, given = options.pop("convert"), options.pop("command"), options["output"]
    # Path("x/..").name is "..": the dataset takes its name from the folder really meant.
    options["output"] = Path(os.path.abspath(given))
    # A terminated run then leaves through the clean-up of its half-made folder.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        convert(**options)
    except (PrepError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    print(f"wrote {given}")
    folder, here = options["output"], Path.cwd()
    shown = folder.relative_to(here) if folder.is_relative_to(here) else folder
    print(f"next: {_next_command(shown, prompts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
