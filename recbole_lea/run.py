"""``run_recbole_lea.py``: one model on one dataset, by RecBole's own ``run``.

What is wrong in the command line is said before anything heavy is imported.
"""

import argparse
import functools
import logging
import socket
from typing import Any

from recbole_lea import arguments
from recbole_lea.console import StoppedAfter
from recbole_lea.keys import check_model_name, check_values
from recbole_lea.yaml_files import find_config_files, read_files

logger = logging.getLogger(__name__)


def main() -> dict[str, Any]:
    """RecBole's ``run_recbole.py`` for our models: the same flags, any ``--key=value``.

    Returns RecBole's result; an empty one after ``lea_stop_after``.
    """
    options, _ = _parser().parse_known_args(arguments.given())
    files = find_config_files(options.config_files or "")
    check_model_name(options.model)
    if options.model.endswith("LEA"):
        values = read_files(files) | arguments.read_arguments(arguments.given())[0]
        check_values(values, values)
    several = _processes(options)
    if several:  # the log is the main process's
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    from recbole_lea.plugin.quick_start import report  # isort: skip
    from recbole.quick_start import run

    try:
        result = run(options.model, options.dataset, config_file_list=files or None, **several)
    except StoppedAfter:
        result = None  # as of several processes that have ended well
    if result is None:
        logger.info("without lea_stop_after, the same command goes on from here")
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
    names = "SASRec, GRU4Rec, Caser ..., then SNQN or SA2C, then LEA (docs/backbones.md)"
    parser.add_argument("--model", "-m", default="SASRecSA2CLEA", help=names)
    parser.add_argument("--dataset", "-d", default="ml-100k", help="name of the dataset")
    parser.add_argument("--config_files", help="YAML files, separated by blanks; later ones win")
    count = functools.partial(parser.add_argument, type=int)
    count("--nproc", default=1, help="processes on this machine")
    count("--world_size", default=-1, help="processes on all machines; default: nproc")
    count("--group_offset", default=0, help="processes on the machines before this one")
    parser.add_argument("--ip", default="localhost", help="address of the first machine")
    parser.add_argument("--port", help="a free port there; with one machine it is found, else 5678")
    return parser


def _processes(options: argparse.Namespace) -> dict[str, Any]:
    """RecBole's arguments for a training in several processes; empty for one."""
    here, everywhere = options.nproc, options.world_size
    if here == 1 and everywhere <= 0:
        return {}
    names = ("nproc", "group_offset", "world_size", "ip")
    if not 0 < here <= (everywhere if everywhere > 0 else here) - options.group_offset:
        given = " ".join(f"--{name}={getattr(options, name)}" for name in names[:3])
        raise ValueError(f"{given}: more processes than `world_size`, or none")
    port = options.port or ("5678" if everywhere > 0 else str(free_port()))
    return {name: getattr(options, name) for name in names} | {"port": port}


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
