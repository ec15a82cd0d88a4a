"""One run of a benchmark, in a process: ``python -m recbole_lea.experiments.run FOLDER``.

FOLDER, which is in ``results/DATASET/runs/``, holds ``spec.json`` and is where the run works. The
finished run is added to the dataset's ``runs.jsonl`` and ``users.npz``.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from recbole.config import Config
from recbole.data import data_preparation
from recbole.utils import init_seed

from recbole_lea import arguments
from recbole_lea.console import StoppedAfter
from recbole_lea.engine.versions import code_version
from recbole_lea.experiments.finished import FinishedRuns
from recbole_lea.keys import absolute_paths, built_in_types
from recbole_lea.plugin import record
from recbole_lea.plugin.dataset import LEADataset
from recbole_lea.plugin.evaluation import evaluate_rows
from recbole_lea.plugin.quick_start import backbone_config, prepare

# RecBole rounds to 4 places: too coarse for a difference between two seeds.
DECIMALS = 8

# An item is cold if training has seen it less often.
COLD = 5

# Keys that cannot change a result, and so are no part of a run's identity or record.
VOLATILE = {
    "gpu_id", "use_gpu", "worker", "device", "state", "data_path", "checkpoint_dir",
    "show_progress", "save_dataset", "save_dataloaders", "dataset_save_path",
    "dataloaders_save_path", "log_wandb", "wandb_project", "loss_decimal_place", "lea_prepare",
    "lea_note", "lea_compare", "lea_cache_dir", "lea_compile", "lea_stop_after",
}  # fmt: skip

# Defaults that were others when the committed runs were made, whose names go by them.
FORMER_DEFAULTS = {
    "lea_item_iterations": 10, "lea_state_keys": "tokens", "lea_state_head": "residual",
    "item_embedding_std": None, "lea_finetune_epochs": 3, "lea_finetune_negatives": 1,
    "lea_lora_dropout": 0.0,
    # of dataset industrial
    "lea_item_sentence": "{item} product[ is titled {title}][, its category is {category}]"
    "[, its brand is {brand}][, its description is {description}].",
}  # fmt: skip

# Steps of a plan that runs share
SHARED = ("items", "keys", "environment", "states", "rewards")

# A run's record, and of a test what `by_user` gives.
Result = tuple[dict[str, Any], dict[str, np.ndarray] | None]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a run is."""

    kind: str  # "le" builds the LE's feedback, "trial" trains and validates, "test" also tests
    model: str  # one of ours
    stock: bool  # train RecBole's own backbone of that model instead
    dataset: str
    seed: int  # of the training
    keys: dict[str, Any]  # config keys of this run
    config_files: tuple[str, ...] = ()  # of all runs
    arguments: tuple[str, ...] = ()  # --key=value of all runs
    method: str = ""  # the row that the run is made for, in clear text

    def config(self) -> Config:
        """RecBole's config; ``arguments`` have to be those that RecBole is given."""
        keys = {"seed": self.seed, "metric_decimal_place": DECIMALS, "show_progress": False}
        config = Config(
            self.model, self.dataset, list(self.config_files) or None, dict(self.keys) | keys
        )
        return backbone_config(config, list(self.config_files)) if self.stock else config

    def identity(self, data: str) -> tuple[str, dict[str, Any]]:
        """What a finished run is known by.

        Returns a hex digest over ``data`` (the fingerprint of the dataset's files) and the keys
        that differ from their defaults, so that a key that is new in the program makes no other
        run of it; and the values of all keys, which a finished run has to have had as far as it
        knew them.
        """
        config = self.config()
        values, defaults = map(lasting, (config.final_config_dict, config.internal_config_dict))
        defaults |= FORMER_DEFAULTS
        own = {key: value for key, value in values.items() if defaults.get(key) != value}
        content = json.dumps([self.kind, data, own], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest(), values


def lasting(values: dict[str, Any]) -> dict[str, Any]:
    """The keys that can change a result, in built-in types."""
    return {key: value for key, value in built_in_types(values).items() if key not in VOLATILE}


def main() -> None:
    """Do the run whose folder is given, and write it down as finished."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(message)s")
    folder = Path(arguments.given()[0])
    spec = Spec(**json.loads((folder / "spec.json").read_text(encoding="utf-8")))
    arguments.set_given(spec.arguments)
    FinishedRuns(folder.parent.parent).add(*execute(spec, folder))


def execute(spec: Spec, folder: Path) -> Result:
    """Do a run in ``folder``, called like it: its record, and of a test ``by_user``'s arrays."""
    start, code = time.perf_counter(), code_version()  # the files may change while it trains
    config = spec.config()
    about: dict[str, Any] = {
        "name": folder.name, "method": spec.method, "kind": spec.kind, "stock": spec.stock,
        "keys": spec.keys, "config_files": [os.path.relpath(file) for file in spec.config_files],
        "arguments": [own for own in spec.arguments if own[2:].split("=")[0] not in VOLATILE],
    }  # fmt: skip
    given = lasting(config.final_config_dict)
    for key, path in absolute_paths(config).items():
        config[key] = path
    folder.mkdir(parents=True, exist_ok=True)
    # RecBole leaves checkpoints and TensorBoard's files where it works
    with tempfile.TemporaryDirectory(dir=folder) as work, contextlib.chdir(work):
        found, users = _le(config, code) if spec.kind == "le" else _train(config, code, spec.kind)
    seconds = round(time.perf_counter() - start, 3)
    return about | found | {"config": given, "seconds": seconds}, users


def estimate(spec: Spec) -> float:
    """Seconds that a run will take here, measured as ``lea_stop_after: plan`` does.

    An "le" takes those of the LE's stages that the cache lacks, and the others none of them.
    """
    # without the RL part ours is as fast as RecBole's own class
    config = dataclasses.replace(spec, stock=False).config()
    config["lea_stop_after"], config["lea_compare"] = "plan", False
    init_seed(config["seed"], config["reproducibility"])
    logging.disable(logging.WARNING)  # what a run says of its data, and the plan
    try:
        with warnings.catch_warnings(action="ignore"):
            data_preparation(config, LEADataset(config))
    except StoppedAfter as plan:
        own = [step for step in plan.steps if (step.name in SHARED) == (spec.kind == "le")]
        return sum(step.seconds or 0.0 for step in own)
    finally:
        logging.disable(logging.NOTSET)
    raise AssertionError("a plan ends the run")


def _le(config: Config, code: dict[str, Any]) -> Result:
    """Build the feedback that the config asks for, and what the augmentation needs of the LE."""
    init_seed(config["seed"], config["reproducibility"])
    splits = [loader._dataset for loader in data_preparation(config, LEADataset(config))]
    pipeline = splits[0].lea_pipeline
    if config["lea_augmentation"] != "none":
        pipeline.prepare_selection()
    content = record.start(config, splits[0], pipeline, splits[0].lea_stages, code)
    return content | {"data": _counts(splits)}, None


def _train(config: Config, code: dict[str, Any], kind: str) -> Result:
    trainer, loaders = prepare(config)
    splits = [loader._dataset for loader in loaders]
    train, _, test = splits
    curve: list[list[float]] = []
    with train.lea_stages.stage("training"):
        score, result = trainer.fit(
            *loaders[:2], callback_fn=lambda epoch, value: curve.append([int(epoch), float(value)])
        )
    content = {
        "best_valid_score": float(score), "best_valid_result": dict(result), "valid_curve": curve,
        "best_is_warmup": getattr(trainer, "record", {}).get("best_is_warmup", False),
        "data": _counts(splits),
    }  # fmt: skip
    users = None
    if kind == "test":
        with train.lea_stages.stage("test"):
            content["test_result"], rows = evaluate_rows(trainer, loaders[2])
        content["cold"] = cold_result(train, test, rows)
        users = by_user(test, rows)
        content["data"]["test users"] = len(users["users"])
    return record.start(config, train, train.lea_pipeline, train.lea_stages, code) | content, users


def _counts(splits: list[Any]) -> dict[str, int]:
    names = ("training transitions", "validation rows", "test rows")
    own = dict(zip(names, map(len, splits), strict=True))
    return {"users": splits[0].user_num - 1, "items": splits[0].item_num - 1} | own


def cold_result(train: Any, test: Any, rows: dict[str, np.ndarray]) -> dict[str, Any]:
    """The result of the test rows whose item training has seen less than ``COLD`` times.

    ``rows`` has each metric [n_rows] in the order of the split ``test``. Returns ``below``, the
    number of ``rows``, and ``result``: metric -> mean, empty without any.
    """
    item, length = train.iid_field, train.item_list_length_field
    first = train.inter_feat[length].numpy() == 1  # a user's first item is no target
    histories = train.inter_feat[item + train.config["LIST_SUFFIX"]].numpy()
    seen = np.concatenate([train.inter_feat[item].numpy(), histories[first, 0]])
    counts = np.bincount(seen, minlength=train.item_num)
    cold = counts[test.inter_feat[item].numpy()] < COLD
    result = {name: float(own[cold].mean()) for name, own in rows.items()} if cold.any() else {}
    return {"below": COLD, "rows": int(cold.sum()), "result": result}


def by_user(dataset: Any, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Means over each user's rows of the test split; ``rows`` has each metric [n_rows].

    Returns ``users`` (tokens, sorted) [U], ``rows`` (how many) [U], and each metric [U].
    """
    ids = dataset.inter_feat[dataset.uid_field].numpy()
    tokens = np.asarray(dataset.id2token(dataset.uid_field, ids), dtype=str)
    users, owner, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    sums = {name: np.bincount(owner, weights=value) for name, value in rows.items()}
    return {"users": users, "rows": counts} | {n: total / counts for n, total in sums.items()}


if __name__ == "__main__":
    main()
