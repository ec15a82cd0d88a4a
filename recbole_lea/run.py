"""``run_recbole_lea.py``: one model on one dataset, by RecBole's own ``run_recbole``.

What is wrong in the command line is said before anything heavy is imported.
"""

import argparse
import logging
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
    from recbole_lea.plugin.quick_start import protocol_keys, report  # isort: skip
    from recbole.quick_start import run_recbole

    keys = protocol_keys(options.model, options.dataset, files)
    try:
        result = run_recbole(options.model, options.dataset, files or None, keys)
    except StoppedAfter:
        logger.info("without lea_stop_after, the same command goes on from here")
        return {}
    report(options.model, options.dataset, files, keys, result)
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
    return parser
