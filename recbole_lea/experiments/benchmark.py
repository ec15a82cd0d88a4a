"""``python -m recbole_lea.benchmark``: the paper's tables and figures, and measurements of speed.

``--table 2 --dataset industrial --seeds 5`` does all runs of a table that are not finished yet and
writes the report into ``results/industrial/``; ``--speed`` prints one JSON object.
"""

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_lea import arguments
from recbole_lea.yaml_files import find_config_file, find_config_files, read_files

if TYPE_CHECKING:
    from recbole_lea.experiments.plan import Method, Search
    from recbole_lea.experiments.runner import Benchmark

logger = logging.getLogger(__name__)


def main() -> None:
    """Parse the command line and do what it asks for."""
    options = parsed(_parser())
    if options.speed:
        from recbole.config import Config

        from recbole_lea.experiments import speed

        files = find_config_files(options.config_files) or None
        keys = {"lea_method": "base", "show_progress": False}
        config = Config("SASRecSA2CLEA", options.dataset, files, config_dict=keys)
        print(json.dumps(speed.run(config, options.users)))
        return
    from recbole_lea.experiments import plan

    search = plan.Search.read(find_config_file(options.search), list(arguments.given_keys()))
    if options.table:
        name, methods = f"table{options.table}", plan.table(options.table)
    else:
        name, methods = f"figure{options.figure}", plan.figure(options.figure, search.sweeps)
    carry_out(prepared(name, methods, search, options, listed(options.methods)), name, options)


def _parser() -> arguments.Parser:
    parser = arguments.Parser(
        "python -m recbole_lea.benchmark",
        "The paper's tables and figures on a dataset, or measurements of speed. With "
        "--table and --figure, any --key=value or --key value of the YAML files goes to all runs.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    tables = "the paper's; ours: 6 LE embeddings, 7 shuffled feedback"
    what.add_argument("--table", type=int, choices=(2, 3, 4, 5, 6, 7), help=tables)
    what.add_argument("--figure", type=int, choices=(4, 5), help="figure of the paper")
    what.add_argument("--speed", action="store_true", help="measure speed")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--search", default="properties/benchmark.yaml", help="the search")
    parser.add_argument("--methods", default="", help="rows to run now, separated by commas")
    parser.add_argument("--users", type=int, default=100, help="--speed: users that the LLM reads")
    add_options(parser, seeds=5)
    return parser


def add_options(parser: arguments.Parser, seeds: int) -> None:
    """Options of every command that does runs and reports them."""
    add = parser.add_argument
    add("--seeds", type=int, default=seeds, help=f"reported runs a method; default {seeds}")
    add("--jobs", type=int, default=1, help="runs at a time")
    add("--dry-run", action="store_true", help="list the runs to be done, as far as known; stop")
    add("--report", action="store_true", help="report what is finished, and start nothing")
    add("--results", type=arguments.path, default="results", help="folder of the reports")
    add("--config_files", **arguments.CONFIG_FILES)


def parsed(parser: arguments.Parser) -> argparse.Namespace:
    """The options given, and ``command``, which is reported."""
    given = arguments.given()
    options = parser.read()
    kept = [argument for argument in given if argument != "--report"]
    options.command = f"{parser.prog} {shlex.join(kept)}"
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return options


def listed(names: str) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in names.split(",") if name.strip()]


def prepared(
    name: str, methods: Sequence["Method"], search: "Search", options: argparse.Namespace,
    only: Sequence[str] = (),
) -> "Benchmark":  # fmt: skip
    """The runs of ``methods``, those of the rows ``only`` now.

    Raises a ValueError if a key is given that the methods or seeds differ in.
    """
    if options.seeds < 1 or options.jobs < 1:
        raise ValueError("--seeds and --jobs have to be 1 or more")
    from recbole_lea.experiments.runner import Benchmark

    # what the runs differ in, and what would end them before the test
    own = {"model", "dataset", "seed", "lea_method", "lea_state", "lea_reward", "lea_augmentation"}
    own = own.union({"lea_stop_after"}, *({*m.keys, *m.changes} for m in methods if not m.stock))
    if both := sorted(own & set(arguments.given_keys())):
        raise ValueError(f"--{both[0]} cannot be given for all runs of {name}")
    files = tuple(str(Path(file).absolute()) for file in find_config_files(options.config_files))
    switches = ("lea_state", "lea_reward", "lea_augmentation")
    for key in (key for key in switches if read_files(files).get(key) is not None):
        raise ValueError(f"{key} in --config_files would make other methods of all: take it out")
    return Benchmark(
        options.dataset, methods, search, range(1, options.seeds + 1), Path(options.results),
        files, tuple(arguments.given()), options.jobs, only,
    )  # fmt: skip


def carry_out(benchmark: "Benchmark", name: str, options: argparse.Namespace) -> None:
    """Do the runs that are missing and write the report ``name``; ends with the exit code."""
    from filelock import FileLock, Timeout

    if options.dry_run:
        from recbole_lea.le.plan import minutes

        total = 0.0
        for run, seconds in benchmark.forecast():
            total += seconds
            name = f"{run.spec.kind:<7}{run.spec.method}, seed {run.spec.seed}"
            print(f"{name}, about {minutes(seconds)}", flush=True)
        if total:
            print(f"one after another about {minutes(total)}")
        sys.exit(0)
    benchmark.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(benchmark.folder / "lock", timeout=0):
            failed = [] if options.report else benchmark.run()
            _report(benchmark, name, options.command)
    except Timeout:
        raise ValueError(
            f"another benchmark is working in {benchmark.folder}: wait for it, or give another "
            "--results"
        ) from None
    sys.exit(f"{len(failed)} runs failed; their run.log says why" if failed else 0)


def _report(benchmark: "Benchmark", name: str, command: str) -> None:
    from recbole_lea.experiments import markdown, plots, report

    les = [record for run in benchmark.environments if (record := run.record())]
    left_out = {m.label: m.missing for m in benchmark.methods if m.missing}
    made = report.Report(
        name, benchmark.dataset, command, benchmark.outcomes(), les, left_out, len(benchmark.seeds)
    )
    if not made.done:
        logger.error("no method has a finished test: there is nothing to report")
        return
    made.write(benchmark.folder)
    markdown.write(made, benchmark.folder, plots.draw(made, benchmark.folder))
    for reason in made.reasons:
        logger.warning("not final: %s", reason)
    logger.info("%s\nreport: %s", markdown.summary(made), benchmark.folder / f"{name}.md")
