"""``python -m recbole_lea.export CHECKPOINT --to recbole|onnx|safetensors``: a model to take away.

The folder that it writes holds ``items.json``, whose i-th entry is the token of the item with
RecBole's id i (0 is the padding item), and

- ``recbole``: ``<Backbone>.pth``, which RecBole reads without this package, and ``recbole.yaml``,
  the keys to build the same data and model from;
- ``onnx``: ``model.onnx``: ``item_ids`` [batch, max_length] int64, oldest item first and
  right-padded with 0, and ``lengths`` [batch] int64, to ``scores`` [batch, n_items] float32;
- ``safetensors``: ``model.safetensors`` and ``config.json``, which ``recbole_lea.recommend`` reads.

What is heavy is imported where it is used: ``--help`` and mistakes need neither torch nor RecBole.
"""

import argparse
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_lea.arguments import set_given

if TYPE_CHECKING:
    from recbole_lea.serve.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

# Keys that change RecBole's item ids or splits and that RecBole alone does not know
OUR_DATA = {"lea_newest": None, "eval_protocol": "leave_one_out"}


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_lea.export",
        description="Write the trained sequential model in a form that other programs read.",
    )
    parser.add_argument("checkpoint", help="a .pth file that training has saved")
    parser.add_argument("--to", required=True, choices=FORMATS)
    parser.add_argument("--output", help="folder; default: beside the checkpoint")
    parser.add_argument(
        "--pickle-config", action="store_true",
        help="--to recbole: RecBole's pickled Config, for its load_data_and_model, which torch "
        "2.6 and newer runs under TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 only",
    )  # fmt: skip
    options = parser.parse_args()
    if options.pickle_config and options.to != "recbole":
        raise ValueError("--pickle-config is for --to recbole")
    set_given([])  # nothing of this is for RecBole
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)  # torch's exporter tells much at this level
    more = {"pickle_config": True} if options.pickle_config else {}
    export(options.checkpoint, options.to, options.output, **more)


def export(
    checkpoint: str | Path, to: str, output: str | Path | None = None, **options: Any
) -> Path:
    """Write a trained model in another form, with its item tokens, and return the folder.

    Args:
        checkpoint: see ``Checkpoint.read``.
        to: ``recbole``, ``onnx`` or ``safetensors``.
        output: folder; default ``<checkpoint>-<to>`` beside the checkpoint.
        options: ``pickle_config`` of ``to_recbole``.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is something else, or cannot be written in this form.
        ModuleNotFoundError: a package for ONNX is missing.
    """
    from recbole_lea.serve.checkpoint import ITEMS, Checkpoint
    from recbole_lea.store.files import write_bytes, write_json

    read = Checkpoint.read(checkpoint)
    read.ranker()  # a model that cannot be served is not exported
    folder = Path(output) if output else read.path.with_name(f"{read.path.stem}-{to}")
    contents = FORMATS[to](read, **options)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_bytes(folder / name, content)
    write_json(folder / ITEMS, read.item_tokens)
    logger.info("%s: %s", folder, ", ".join(sorted([*contents, ITEMS])))
    return folder


def to_recbole(checkpoint: "Checkpoint", pickle_config: bool = False) -> dict[str, bytes]:
    """A checkpoint of RecBole's own backbone, and its YAML file, by file name.

    With ``pickle_config`` it holds RecBole's Config as an object, as RecBole's own does.
    """
    import torch
    import yaml
    from torch.serialization import DEFAULT_PROTOCOL

    from recbole_lea.keys import built_in_types
    from recbole_lea.plugin.checkpoints import DERIVED, restored_config

    if checkpoint.dense:
        raise ValueError(
            f"{checkpoint.path} was trained with lea_output_head: dense, but RecBole's own "
            f"{checkpoint.backbone_class.__name__} has no such head: export --to onnx or "
            "safetensors, or train with lea_output_head: tied"
        )
    for key, recbole in OUR_DATA.items():
        if checkpoint.config[key] != recbole:
            logger.warning(
                "%s: %s is unknown to plain RecBole, which builds other data from these keys: "
                "compare dataset.field2id_token with items.json before you trust a score",
                key, checkpoint.config[key],
            )  # fmt: skip
    keys = checkpoint.backbone_config()
    config = restored_config(keys)
    content = checkpoint.training | {
        "config": config if pickle_config else built_in_types(config.final_config_dict),
        "state_dict": checkpoint.serving_state(),
        "other_parameter": {},
    }
    if "optimizer" in content:
        saved, n = content["optimizer"], len(list(checkpoint.ranker().backbone.parameters()))
        groups = saved["param_groups"]
        content["optimizer"] = {  # of the backbone, whose parameters are the first ones
            "state": {p: state for p, state in saved["state"].items() if p < n},
            "param_groups": [g | {"params": [p for p in g["params"] if p < n]} for g in groups],
        }
    buffer = io.BytesIO()
    # a pickled Config needs the protocol that RecBole uses
    torch.save(content, buffer, pickle_protocol=4 if pickle_config else DEFAULT_PROTOCOL)
    dropped = {*DERIVED, "valid_metric_bigger", "valid_neg_sample_args", "test_neg_sample_args"}
    given = {k: v for k, v in keys.items() if k not in dropped | {"log_file"}}
    given |= {"train_neg_sample_args": None, "data_path": str(Path(keys["data_path"]).parent)}
    return {
        f"{keys['model']}.pth": buffer.getvalue(),
        "recbole.yaml": yaml.safe_dump(given, allow_unicode=True).encode(),
    }


def to_onnx(checkpoint: "Checkpoint") -> dict[str, bytes]:
    """The model as an ONNX graph with any batch size, by file name."""
    import torch

    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        remedy = "pip install 'recbole_lea[export]', or pip install onnx onnxscript onnxruntime"
        raise ModuleNotFoundError(f"--to onnx needs the package {error.name}: {remedy}") from None
    # two rows: a batch of one would be taken for a constant
    lengths = torch.tensor([1, checkpoint.max_length])
    ids = torch.ones(2, checkpoint.max_length, dtype=torch.int64)
    ids[0, 1:] = 0
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        checkpoint.ranker(), (ids, lengths), dynamo=True, verbose=False,
        input_names=["item_ids", "lengths"], output_names=["scores"],
        dynamic_shapes={"item_ids": {0: batch}, "lengths": {0: batch}},
    )  # fmt: skip
    assert program is not None
    return {"model.onnx": program.model_proto.SerializeToString()}


def to_safetensors(checkpoint: "Checkpoint") -> dict[str, bytes]:
    """The model's tensors, and all that builds it, by file name."""
    from safetensors.torch import save

    from recbole_lea.serve.checkpoint import CONFIG, WEIGHTS

    about = {
        "backbone": checkpoint.backbone_class.__name__,
        "output_head": "dense" if checkpoint.dense else "tied",
        "n_items": len(checkpoint.item_tokens),
        "config": checkpoint.config,
    }
    weights = save(checkpoint.serving_state())
    return {WEIGHTS: weights, CONFIG: json.dumps(about, indent=1).encode()}


FORMATS: dict[str, Callable[..., dict[str, bytes]]] = {
    "recbole": to_recbole,
    "onnx": to_onnx,
    "safetensors": to_safetensors,
}
