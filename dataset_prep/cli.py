"""The command line: ``python -m dataset_prep {lfm,amazon,sequences}``."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import NoReturn

from dataset_prep import amazon, lfm, sequences
from dataset_prep.problems import PrepError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, without the usage lines argparse puts before it."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _count(most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {most:,}")
        return int(text)

    return parse


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return share


def _day(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = date.min
    if not 1970 <= day.year <= 2105:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day such as 2014-06-16")
    return day


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m dataset_prep", description=sys.modules["dataset_prep"].__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    def command(name: str, does: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=does, description=does)
        made.add_argument(
            "--output",
            type=Path,
            required=True,
            help="folder to make; its last component names the dataset",
        )
        made.add_argument(
            "--max-bad",
            type=_share,
            default=0.01,
            metavar="SHARE",
            help="stop when more than this share of a table's rows is bad (default: 0.01)",
        )
        return made

    def minimum(made: argparse.ArgumentParser) -> None:
        made.add_argument(
            "--min-interactions",
            type=_count(1_000_000),
            default=3,
            metavar="N",
            help="drop sequences and items with fewer, until nothing changes (default: 3)",
        )

    one = command("lfm", "raw LFM-1b files: user sequences of tracks in a window of days")
    one.add_argument("--input", type=Path, required=True, help="folder with LFM-1b_*.txt")
    one.add_argument(
        "--days", type=_count(36_500), default=3, metavar="N", help="whole UTC days (default: 3)"
    )
    one.add_argument(
        "--start",
        type=_day,
        metavar="DATE",
        help="first day of the window, such as 2014-06-16 (default: the busiest window)",
    )
    minimum(one)
    one.add_argument(
        "--drop-repeats", action="store_true", help="leave out consecutive repeats of a track"
    )

    one = command("amazon", "raw Amazon 2018 reviews and metadata")
    one.add_argument("--input", type=Path, required=True, help="folder with the .json.gz files")
    one.add_argument(
        "--category",
        default="Industrial_and_Scientific",
        metavar="NAME",
        help="as in meta_NAME.json.gz (default: Industrial_and_Scientific)",
    )
    minimum(one)

    one = command("sequences", "a user -> item list JSON file with item metadata")
    one.add_argument("--inter", type=Path, required=True, help="user -> item list JSON")
    one.add_argument("--items", type=Path, required=True, help="item -> text fields JSON")
    return parser


def _convert(args: argparse.Namespace) -> None:
    # Path("x/..").name is "..": the dataset takes its name from the folder really meant.
    output = Path(os.path.abspath(args.output))
    if args.command == "lfm":
        lfm.convert(
            args.input,
            output,
            days=args.days,
            start=args.start,
            minimum=args.min_interactions,
            drop_repeats=args.drop_repeats,
            max_bad=args.max_bad,
        )
    elif args.command == "amazon":
        amazon.convert(args.input, output, args.category, args.min_interactions, args.max_bad)
    else:
        sequences.convert(args.inter, args.items, output, args.max_bad)
    print(f"wrote {args.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, or 1 after one line on standard error.

    Args:
        argv: the arguments; by default those of the process.

    Raises:
        SystemExit: the arguments are wrong (status 2), or the process was told to stop.
    """
    args = _parser().parse_args(argv)
    # A terminated run then leaves through the clean-up of its half-made folder.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        _convert(args)
    except (PrepError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0
