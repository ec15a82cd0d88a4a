"""``run_recbole_lea.py``: one model on one dataset, by RecBole's own ``run_recbole``.

What is wrong in the command line is said before anything heavy is imported.
"""

import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from recbole_lea import keys
from recbole_lea.arguments import CONFIG_FILES, Parser, given, given_keys, set_given
from recbole_lea.console import StoppedAfter
from recbole_lea.engine.versions import versions
from recbole_lea.methods import METHODS
from recbole_lea.yaml_files import find_config_files, properties_folder, read_files

logger = logging.getLogger(__name__)

EXAMPLE = (
    "python run_recbole_lea.py --model=SASRecSA2CLEA --dataset=ml-100k "
    "--config_files=properties/quick.yaml"
)


def main() -> dict[str, Any]:
    """RecBole's ``run_recbole.py`` for our models: the same flags, any key.

    Returns RecBole's result; an empty one after ``lea_stop_after``, ``--version`` and ``--list``.
    """
    parser = _parser()
    options = parser.read()
    if options.version:
        print(_versions())
        return {}
    if options.dry_run:
        set_given([*given(), "--lea_stop_after=plan"])
    files = find_config_files(options.config_files)
    values = read_files(files) | given_keys()
    if options.list:
        print(_list(values))
        return {}
    model, dataset = options.model or values.get("model"), options.dataset or values.get("dataset")
    if not model or not dataset:
        parser.error(f"a model and a dataset are needed, such as: {EXAMPLE}")
    keys.check_model_name(model)
    keys.check_dataset_name(dataset)
    parser.refuse_unread(model)
    if model.endswith("LEA"):
        keys.check_values(values, values)
    from recbole_lea.plugin.quick_start import protocol_keys, report  # isort: skip
    from recbole.quick_start import run_recbole

    shared = protocol_keys(model, dataset, files)
    try:
        result = run_recbole(model, dataset, files or None, shared)
    except StoppedAfter:
        key = "--dry-run" if options.dry_run else "lea_stop_after"
        logger.info("without %s, the same command goes on from here", key)
        return {}
    report(model, dataset, files, shared)
    return result


def _parser() -> Parser:
    parser = Parser(
        "run_recbole_lea.py",
        "Train and test a model of recbole_lea (or of RecBole). Every key of the YAML files can be "
        f"given as --key=value or --key value. For a first look: {EXAMPLE}",
    )
    names = "SASRec, GRU4Rec, Caser ..., then SNQN or SA2C, then LEA (docs/backbones.md)"
    parser.add_argument("--model", "-m", help=names)
    parser.add_argument("--dataset", "-d", help="name of the dataset, a folder in data_path")
    parser.add_argument("--config_files", **CONFIG_FILES)
    plan = "say what the cache holds, what is computed, and how long it takes; stop"
    parser.add_argument("--dry-run", action="store_true", help=plan)
    versions_help = "versions to name in a report of a problem, and stop"
    parser.add_argument("--version", action="store_true", help=versions_help)
    list_help = "list models, methods and datasets, and stop"
    parser.add_argument("--list", action="store_true", help=list_help)
    return parser


def _versions() -> str:
    """What a report of a problem needs; torch, which takes seconds to import, is not asked."""
    lines = [f"{name} {version or 'is not installed'}" for name, version in versions().items()]
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    names = [line.partition(": ")[2] for line in text.splitlines() if "model name" in line]
    cpu = names[0] if names else platform.processor() or platform.machine()
    lines.append(f"{platform.platform()}, CPU: {cpu}, {os.cpu_count()} cores")
    gpus = ""
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        gpus = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return "\n".join([*lines, f"GPU: {gpus or 'none that nvidia-smi knows'}"])


def _list(values: dict[str, Any]) -> str:
    """Models, methods, and datasets: prepared in ``data_path``, or with a YAML file of ours."""
    place = Path(keys.expanded_paths(values).get("data_path", "dataset"))
    prepared = {file.stem for file in place.glob("*/*.inter") if file.stem == file.parent.name}
    lines = ["models: one of these, then SNQNLEA or SA2CLEA (or RecBole's own, by its name)"]
    lines += [f"  {' '.join(keys.backbones())}", "methods: lea_method", f"  {' '.join(METHODS)}"]
    lines.append(f"datasets in {place}{os.sep}")
    lines += [f"  {name}" for name in sorted(prepared)] or ["  none"]
    lines.append("datasets with prompts")
    with_recbole = {file.name for file in keys.recbole_folder().glob("dataset_example/*")}
    for file in sorted(properties_folder().glob("dataset/*.yaml")):
        how = read_files([str(file)]).get("lea_prepare") or "see docs/data.md"
        ready = "in RecBole" if file.stem in with_recbole else "ready"
        done = file.stem in with_recbole | prepared
        lines.append(f"  {file.stem}: {ready if done else f'not prepared: {how}'}")
    return "\n".join(lines)
