"""A trained model in a form that other programs read; docs/serving.md lists the files."""

import io
import json
import logging
from pathlib import Path

import torch
import yaml
from safetensors.torch import save

from recbole_lea.keys import RULES
from recbole_lea.plugin.checkpoints import DERIVED
from recbole_lea.serve.checkpoint import CONFIG, ITEMS, WEIGHTS, Checkpoint
from recbole_lea.store.files import write_bytes, write_json

logger = logging.getLogger(__name__)


def export(checkpoint: str | Path, to: str, output: str | Path | None = None) -> Path:
    """Write a trained model in another form, with its item tokens, and return the folder.

    ``to`` is ``recbole``, ``onnx`` or ``safetensors``; the folder ``output`` is by default
    ``<checkpoint>-<to>`` beside the checkpoint. Raises as ``Checkpoint.read`` does, a ValueError if
    it cannot be written in this form, and a ModuleNotFoundError if a package for ONNX is missing.
    """
    read = Checkpoint.read(checkpoint)
    read.ranker()  # a model that cannot be served is not exported
    folder = Path(output) if output else read.path.with_name(f"{read.path.stem}-{to}")
    contents = FORMATS[to](read)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_bytes(folder / name, content)
    write_json(folder / ITEMS, read.item_tokens)
    return folder


def to_recbole(checkpoint: Checkpoint) -> dict[str, bytes]:
    """A checkpoint of RecBole's own backbone, and its YAML file, by file name."""
    backbone, config = checkpoint.backbone_class.__name__, checkpoint.config
    if checkpoint.part("output_head."):
        raise ValueError(
            f"{checkpoint.path} was trained with lea_output_head: dense, but RecBole's own "
            f"{backbone} has no such head: export --to onnx or safetensors, or train with "
            "lea_output_head: tied"
        )
    for key, usual in (("lea_newest", None), ("eval_protocol", "leave_one_out")):
        if config[key] != usual:
            logger.warning(
                "%s: %s is unknown to plain RecBole, which builds other data from these keys: "
                "compare dataset.field2id_token with items.json before you trust a score",
                key, config[key],
            )  # fmt: skip
    keys = {name: value for name, value in config.items() if name not in RULES}
    keys |= {"model": backbone, "transform": None}
    content = {"config": keys, "state_dict": checkpoint.serving_state(), "other_parameter": {}}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    # RecBole works these out itself
    dropped = {*DERIVED, "valid_metric_bigger", "valid_neg_sample_args", "test_neg_sample_args"}
    given = {key: value for key, value in keys.items() if key not in dropped | {"log_file"}}
    given |= {"train_neg_sample_args": None, "data_path": str(Path(keys["data_path"]).parent)}
    return {
        f"{backbone}.pth": buffer.getvalue(),
        "recbole.yaml": yaml.safe_dump(given, allow_unicode=True).encode(),
    }


def to_onnx(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The model as an ONNX graph with any batch size, by file name."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        what = f"--to onnx needs the package {error.name}"
        raise ModuleNotFoundError(f"{what}: pip install 'recbole_lea[export]'") from None
    # two rows: a batch of one would be taken for a constant
    longest = checkpoint.config["MAX_ITEM_LIST_LENGTH"]
    lengths, ids = torch.tensor([1, longest]), torch.ones(2, longest, dtype=torch.int64)
    ids[0, 1:] = 0
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        checkpoint.ranker(), (ids, lengths), dynamo=True, verbose=False,
        input_names=["item_ids", "lengths"], output_names=["scores"],
        dynamic_shapes={"item_ids": {0: batch}, "lengths": {0: batch}},
    )  # fmt: skip
    assert program is not None
    return {"model.onnx": program.model_proto.SerializeToString()}


def to_safetensors(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The model's tensors, and all that builds it, by file name."""
    config = json.dumps({"config": checkpoint.config}, indent=1)
    return {WEIGHTS: save(checkpoint.serving_state()), CONFIG: config.encode()}


FORMATS = {"recbole": to_recbole, "onnx": to_onnx, "safetensors": to_safetensors}
