"""``python -m recbole_lea.benchmark``: the paper's tables and figures, and measurements of speed.

``--table 2 --dataset industrial --seeds 5`` does all runs of a table that are not finished yet and
writes the report into ``results/industrial/``; ``--speed``, ``--growth`` and ``--load`` print one
JSON object.
"""

import argparse
import contextlib
import json
import logging
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def main() -> None:
    """Parse the command line and do what it asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_lea.benchmark",
        description="The paper's tables and figures on a dataset, or measurements of speed. With "
        "--table and --figure, any --key=value of the YAML files goes to all runs.",
        allow_abbrev=False,  # --seed is a key, not short for --seeds
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", type=int, choices=(2, 3, 4, 5, 6, 7),
                      help="the paper's; ours: 6 LE embeddings, 7 shuffled feedback")  # fmt: skip
    what.add_argument("--figure", type=int, choices=(4, 5), help="figure of the paper")
    what.add_argument("--speed", action="store_true", help="measure speed")
    what.add_argument("--growth", action="store_true", help="feedback for up to a million rows")
    what.add_argument("--load", action="store_true", help="part of all stages at a million items")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--seeds", type=int, default=5, help="reported runs a method")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--dry-run", action="store_true", help="list what is to be done, and stop")
    parser.add_argument(
        "--report", action="store_true", help="report what is finished, and start nothing"
    )
    parser.add_argument(
        "--rerun-old", action="store_true", help="repeat runs made by another training code"
    )
    parser.add_argument("--search", default="properties/benchmark.yaml", help="the search")
    parser.add_argument("--results", default="results", help="folder of the reports")
    parser.add_argument("--config_files", default="", help="YAML files, separated by blanks")
    parser.add_argument("--methods", default="", help="rows to run now, separated by commas")
    parser.add_argument(
        "--rows",
        type=int,
        default=200,
        help="--speed: transitions in the paper's wording; with item_last eight times more",
    )
    parser.add_argument("--items", type=int, default=10**6, help="--load: items")
    parser.add_argument(
        "--transitions", type=int, default=10**7, help="--load: training transitions"
    )
    options, rest = parser.parse_known_args()
    kept = [argument for argument in sys.argv[1:] if argument != "--report"]
    command = shlex.join(["python", "-m", "recbole_lea.benchmark", *kept])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.speed or options.growth or options.load:
        print(json.dumps(_measure(options, rest)))
        return
    failed = _reproduce(options, rest, command)
    sys.exit(f"{failed} runs failed; their run.log says why" if failed else 0)


def _measure(options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    sys.argv = [sys.argv[0], *arguments]  # what RecBole is to read

    from recbole.config import Config

    from recbole_lea.experiments import growth, load, speed
    from recbole_lea.le import LESettings
    from recbole_lea.yaml_files import find_config_files

    config = Config(
        "SASRecSA2CLEA",
        options.dataset,
        find_config_files(options.config_files) or None,
        config_dict={"lea_method": "base", "show_progress": False},
    )
    if options.load:
        return load.run(config["lea_llm"], options.items, options.transitions)
    if options.growth:
        return growth.run(LESettings.from_config(config.final_config_dict))
    return speed.run(config, options.rows)


def _reproduce(options: argparse.Namespace, arguments: list[str], command: str) -> int:
    """Do the runs and write the report; returns how many runs failed."""
    if options.seeds < 1 or options.jobs < 1:
        raise ValueError("--seeds and --jobs have to be 1 or more")
    from recbole_lea.arguments import given_keys
    from recbole_lea.yaml_files import find_config_file, find_config_files

    given = given_keys(arguments)
    sys.argv = [sys.argv[0], *arguments]  # what RecBole is to read

    from recbole_lea.experiments import plan
    from recbole_lea.experiments.runner import Benchmark

    search = plan.Search.read(find_config_file(options.search), given)
    if options.table:
        name, methods = f"table{options.table}", plan.table(options.table)
    else:
        name, methods = f"figure{options.figure}", plan.figure(options.figure, search.sweeps)
    own = {"model", "dataset", "seed", "lea_method", "lea_state", "lea_reward", "lea_augmentation"}
    own = own.union(*({*m.keys, *m.changes} for m in methods))
    for key in given:
        if key in own or key == "lea_stop_after":
            why = "the runs differ in it" if key in own else "the runs would end before the test"
            raise ValueError(f"--{key} cannot be given for all runs of {name}: {why}")
    benchmark = Benchmark(
        options.dataset,
        methods,
        search,
        range(1, options.seeds + 1),
        Path(options.results),
        tuple(str(Path(file).absolute()) for file in find_config_files(options.config_files)),
        tuple(arguments),
        options.jobs,
        options.rerun_old,
        tuple(name.strip() for name in options.methods.split(",") if name.strip()),
    )
    if options.dry_run:
        print(f"{name} on {options.dataset}\n{benchmark.plan()}")
        return 0
    with _alone(benchmark.folder):
        failed = [] if options.report else benchmark.run()
        _report(benchmark, name, command)
    return len(failed)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(
            f"another benchmark is working in {folder}: wait for it, or give another --results"
        ) from None


def _report(benchmark, name: str, command: str) -> None:
    from recbole_lea.experiments import plots, report

    les = [content for run in benchmark.environments() if (content := run.record())]
    left_out = {m.label: m.missing for m in benchmark.methods if m.missing}
    made = report.Report(
        name,
        benchmark.dataset,
        command,
        benchmark.outcomes(),
        les,
        left_out,
        len(benchmark.seeds),
    )
    if not made.done:
        logger.error("no method has a finished test: there is nothing to report")
        return
    made.write(benchmark.folder, plots.draw(made, benchmark.folder))
    report.write_overview(benchmark.results)
    for reason in made.reasons:
        logger.warning("not final: %s", reason)
    logger.info("report: %s", benchmark.folder / f"{name}.md")
