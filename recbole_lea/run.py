"""``run_recbole_lea.py``: one model on one dataset, by RecBole's own ``run``.

What is wrong in the command line is said before anything heavy is imported.
"""

import argparse
import logging
import shlex
import socket
from typing import Any

from recbole_lea import arguments
from recbole_lea.console import StoppedAfter
from recbole_lea.keys import check_model_name, check_values
from recbole_lea.yaml_files import find_config_files, read_files

logger = logging.getLogger(__name__)


def main() -> dict[str, Any]:
    """RecBole's ``run_recbole.py`` for our models: the same flags, any ``--key=value``.

    Returns:
        RecBole's result; empty after ``lea_stop_after``.
    """
    options, _ = _parser().parse_known_args(arguments.given())
    files = find_config_files(options.config_files or "")
    check_model_name(options.model)
    if options.model.endswith("LEA"):
        values = read_files(files) | arguments.read_arguments(arguments.given())[0]
        check_values(values, values)
    several = _of_several_processes(options)
    if several:
        # the log is the main process's
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    from recbole_lea.plugin.quick_start import report  # isort: skip
    from recbole.quick_start import run

    try:
        result = run(options.model, options.dataset, config_file_list=files or None, **several)
        if result is None:  # the processes have ended well, without one
            raise StoppedAfter
    except StoppedAfter:
        command = [*arguments.program(), *_without_stop(arguments.given())]
        logger.info("go on by: %s", shlex.join(command))
        return {}
    if options.group_offset == 0:
        report(options.model, options.dataset, files, result)
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_recbole_lea.py",
        description="Train and test a model of recbole_lea (or of RecBole). Every key of the "
        "YAML files can be given as --key=value.",
    )
    parser.add_argument(
        "--model", "-m", default="SASRecSA2CLEA",
        help="SASRec, GRU4Rec, Caser ..., then SNQN or SA2C, then LEA (docs/backbones.md)",
    )  # fmt: skip
    parser.add_argument("--dataset", "-d", default="ml-100k", help="name of the dataset")
    parser.add_argument("--config_files", help="YAML files, separated by blanks; later ones win")
    parser.add_argument("--nproc", type=int, default=1, help="processes on this machine")
    parser.add_argument(
        "--world_size", type=int, default=-1, help="processes on all machines; default: nproc"
    )
    parser.add_argument("--ip", default="localhost", help="address of the first machine")
    parser.add_argument("--port", help="a free port there; with one machine it is found, else 5678")
    parser.add_argument(
        "--group_offset", type=int, default=0, help="processes on the machines before this one"
    )
    return parser


def _of_several_processes(options: argparse.Namespace) -> dict[str, Any]:
    """RecBole's arguments for a training in several processes; empty for one."""
    here, offset = options.nproc, options.group_offset
    everywhere = options.world_size if options.world_size > 0 else here
    if here == 1 and options.world_size <= 0:
        return {}
    if not (here > 0 and 0 <= offset <= everywhere - here):
        raise ValueError(
            f"--nproc={here} --group_offset={offset} --world_size={everywhere}: the processes of "
            "this machine and those before it have to be some of the `world_size` in all"
        )
    port = options.port or ("5678" if everywhere > here else str(free_port()))
    return {
        "nproc": here, "world_size": everywhere, "ip": options.ip, "port": port,
        "group_offset": offset,
    }  # fmt: skip


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def _without_stop(given: list[str]) -> list[str]:
    """The arguments that go on where ``lea_stop_after`` ended."""
    kept = [a for a in given if not a.startswith("--lea_stop_after=")]
    # else it stands in a YAML file, which the command line overrides
    return kept if len(kept) < len(given) else [*kept, "--lea_stop_after=None"]
