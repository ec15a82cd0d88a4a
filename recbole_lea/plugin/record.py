"""``run.json``: what a run was and what came of it."""

import contextlib
import hashlib
import itertools
import json
import logging
from pathlib import Path
from typing import Any

import torch
from recbole.utils import get_local_time, set_color

from recbole_lea.engine.stagelog import StageLog
from recbole_lea.engine.versions import versions
from recbole_lea.keys import built_in_types
from recbole_lea.le.pipeline import Pipeline
from recbole_lea.store.files import write_json

logger = logging.getLogger(__name__)

# Stages that are no part of the LE
RECOMMENDER_STAGES = ("training", "top-5 of the warm-up model")

# What this process has written last, and where: RecBole's ``run_recbole`` returns no trainer.
last: tuple[dict[str, Any], Path] | None = None


def start(
    config: Any, dataset: Any, pipeline: Pipeline | None, stages: StageLog, code: dict[str, Any]
) -> dict[str, Any]:
    """The record of a run on the training split ``dataset``, without its test result.

    ``code`` is ``code_version()`` from before the run.
    """
    device = torch.device(config["device"])
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "config": built_in_types(config.final_config_dict),
        "code": code,
        "versions": versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": torch.backends.cpu.get_cpu_capability(),  # another one rounds otherwise
        "threads": torch.get_num_threads(),
        "stages": stages.stages,
        "fingerprints": {
            "dataset": dataset_fingerprint(dataset),
            "llm": pipeline.llm_fingerprint if pipeline else None,
            "feedback": pipeline.cache.used if pipeline else {},
        },
        "le": pipeline.diagnostics() if pipeline else {},
    }


def dataset_fingerprint(dataset: Any) -> str:
    """Hex digest over the training rows, and over users and items in RecBole's order."""
    digest = hashlib.sha256()
    for field in (dataset.uid_field, dataset.iid_field):
        digest.update("\n".join(map(str, dataset.field2id_token[field])).encode())
    history = dataset.iid_field + dataset.config["LIST_SUFFIX"]
    for field in (dataset.uid_field, dataset.iid_field, history):
        digest.update(dataset.inter_feat[field].contiguous().numpy())
    return digest.hexdigest()


def new_folder(config: Any) -> Path:
    """A folder for this run's ``run.json``, beside its log, if any, and named like it."""
    log = config["log_file"]
    stem = Path(log).with_suffix("") if log else Path("log") / config["model"] / get_local_time()
    for number in itertools.count(1):
        folder = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            break
    return folder


def write(content: dict[str, Any], folder: Path) -> None:
    """Write the record as ``run.json``."""
    global last
    last = content, folder
    write_json(folder / "run.json", json.loads(json.dumps(content, default=float)))
    logger.info("run.json: %s", folder / "run.json")


def protocol(config: Any) -> str:
    """One line that says how a result was measured, and by what its model was chosen."""
    args = config["eval_args"]
    return (
        f"protocol: {config['eval_protocol'] or 'of RecBole'}, split {args['split']}, ranking "
        f"{args['mode']['test']}, window {config['MAX_ITEM_LIST_LENGTH']}, batch "
        f"{config['train_batch_size']}, chosen by {config['valid_metric']}"
    )


def stage_report(stages: dict[str, dict[str, float]]) -> str:
    """Seconds and peak memory of each stage as lines for the log."""
    lines = [f"  {'stage':<32}{'seconds':>9}{'peak memory':>16}"]
    for name, entry in stages.items():
        lines.append(f"  {name:<32}{entry['seconds']:>9.1f}{entry['peak_memory_mb']:>13.0f} MB")
    total = sum(entry["seconds"] for entry in stages.values())
    lines.insert(0, set_color("time and memory of each stage", "blue"))
    return "\n".join([*lines, f"  {'sum':<32}{total:>9.1f}"])
