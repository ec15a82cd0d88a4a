"""``python -m recbole_lea.benchmark``: the paper's tables and figures, and measurements of speed.

``--table 2 --dataset industrial --seeds 5`` does all runs of a table that are not finished yet and
writes the report into ``results/industrial/``; ``--speed`` and ``--load`` print one JSON object.
"""

import argparse
import itertools
import json
import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_lea import arguments
from recbole_lea.yaml_files import find_config_file, find_config_files

if TYPE_CHECKING:
    from recbole_lea.experiments.runner import Benchmark

logger = logging.getLogger(__name__)


def main() -> None:
    """Parse the command line and do what it asks for."""
    given = arguments.given()
    options = _parser().read()
    kept = [argument for argument in given if argument != "--report"]
    command = shlex.join(["python", "-m", "recbole_lea.benchmark", *kept])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.speed or options.load:
        print(json.dumps(_measure(options)))
        return
    failed = _reproduce(options, command)
    sys.exit(f"{failed} runs failed; their run.log says why" if failed else 0)


def _parser() -> arguments.Parser:
    parser = arguments.Parser(
        "python -m recbole_lea.benchmark",
        "The paper's tables and figures on a dataset, or measurements of speed. With "
        "--table and --figure, any --key=value or --key value of the YAML files goes to all runs.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    add, choose = parser.add_argument, what.add_argument
    tables = "the paper's; ours: 6 LE embeddings, 7 shuffled feedback"
    choose("--table", type=int, choices=(2, 3, 4, 5, 6, 7), help=tables)
    choose("--figure", type=int, choices=(4, 5), help="figure of the paper")
    choose("--speed", action="store_true", help="measure speed")
    choose("--load", action="store_true", help="measure memory by the number of items")
    add("--dataset", default="ml-100k")
    add("--seeds", type=int, default=5, help="reported runs a method")
    add("--jobs", type=int, default=1, help="runs at a time")
    add("--dry-run", action="store_true", help="list the runs to be done, as far as known; stop")
    add("--report", action="store_true", help="report what is finished, and start nothing")
    add("--rerun-old", action="store_true", help="repeat runs made by another training code")
    add("--search", default="properties/benchmark.yaml", help="the search")
    add("--results", type=arguments.path, default="results", help="folder of the reports")
    add("--config_files", **arguments.CONFIG_FILES)
    add("--methods", default="", help="rows to run now, separated by commas")
    add("--users", type=int, default=100, help="--speed: users whose sequences the LLM reads")
    add("--items", type=int, default=10**5, help="--load: items")
    add("--transitions", type=int, default=10**6, help="--load: training transitions")
    return parser


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    from recbole.config import Config

    from recbole_lea.experiments import speed

    keys = {"lea_method": "base", "show_progress": False}
    files = find_config_files(options.config_files) or None
    config = Config("SASRecSA2CLEA", options.dataset, files, config_dict=keys)
    if options.load:
        return speed.load(config["lea_llm"], options.items, options.transitions)
    return speed.run(config, options.users)


def _reproduce(options: argparse.Namespace, command: str) -> int:
    """Do the runs and write the report; returns how many runs failed."""
    from filelock import FileLock, Timeout

    name, benchmark = _benchmark(options)
    if options.dry_run:
        for run in itertools.chain(*benchmark.phases()):
            print(f"{run.spec.kind:<7}{run.spec.method}, seed {run.spec.seed}")
        return 0
    folder = benchmark.folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            failed = [] if options.report else benchmark.run()
            _report(benchmark, name, command)
    except Timeout:
        raise ValueError(
            f"another benchmark is working in {folder}: wait for it, or give another --results"
        ) from None
    return len(failed)


def _benchmark(options: argparse.Namespace) -> tuple[str, "Benchmark"]:
    """The name of the table or figure, and its runs."""
    if options.seeds < 1 or options.jobs < 1:
        raise ValueError("--seeds and --jobs have to be 1 or more")
    from recbole_lea.experiments import plan, runner

    given = list(arguments.given_keys())
    search = plan.Search.read(find_config_file(options.search), given)
    if options.table:
        name, methods = f"table{options.table}", plan.table(options.table)
    else:
        name, methods = f"figure{options.figure}", plan.figure(options.figure, search.sweeps)
    # what the runs differ in, and what would end them before the test
    own = {"model", "dataset", "seed", "lea_method", "lea_state", "lea_reward", "lea_augmentation"}
    own = own.union({"lea_stop_after"}, *({*m.keys, *m.changes} for m in methods))
    if both := sorted(own & set(given)):
        raise ValueError(f"--{both[0]} cannot be given for all runs of {name}")
    files = tuple(str(Path(file).absolute()) for file in find_config_files(options.config_files))
    only = tuple(label.strip() for label in options.methods.split(",") if label.strip())
    return name, runner.Benchmark(
        options.dataset, methods, search, range(1, options.seeds + 1), Path(options.results),
        files, tuple(arguments.given()), options.jobs, options.rerun_old, only,
    )  # fmt: skip


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
    logger.info("report: %s", benchmark.folder / f"{name}.md")
