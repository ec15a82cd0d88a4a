"""A trained model from its file, without dataset, LLM or LE: what serves, and what made it."""

import dataclasses
import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from recbole_lea.methods import switches
from recbole_lea.model.q_head import QHead
from recbole_lea.model.recommender import LEARecommender
from recbole_lea.model.registry import lea_model
from recbole_lea.plugin.checkpoints import refuse_damaged

# The files of ``recbole_lea.export``
WEIGHTS, CONFIG, ITEMS = "model.safetensors", "config.json", "items.json"


class Ranker(nn.Module):
    """The model as it serves: RecBole's backbone, with its own scores or ``output_head``'s."""

    def __init__(self, backbone: SequentialRecommender, output_head: nn.Linear | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.output_head = output_head

    def forward(self, item_ids: Tensor, lengths: Tensor) -> Tensor:
        """Scores of all items, the padding item 0 included [B, n_items].

        ``item_ids`` [B, L] are RecBole's, oldest first, right-padded with 0; ``lengths`` are [B].
        """
        if self.output_head is not None:
            return self.output_head(self.backbone(item_ids, lengths))
        fields = (self.backbone.ITEM_SEQ, self.backbone.ITEM_SEQ_LEN)
        return self.backbone.full_sort_predict(dict(zip(fields, (item_ids, lengths), strict=True)))


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A trained model."""

    path: Path  # the file or folder it was read from
    config: dict[str, Any]  # all keys of the run, in built-in types
    item_tokens: list[str]  # in the order of RecBole's ids; the first is the padding item's
    state: dict[str, Tensor]  # the model's state dict, on the CPU

    @classmethod
    def read(cls, path: str | Path) -> "Checkpoint":
        """Read a checkpoint, or a folder that ``recbole_lea.export --to safetensors`` made.

        Nothing is unpickled but tensors and built-in types. Raises a FileNotFoundError if it is
        not there, and a ValueError if it is no checkpoint of a model of this package.
        """
        path = Path(path)
        if path.is_dir():
            return cls._exported(path)
        refuse_damaged(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's unpickler may stumble over a foreign file anyhow
            why = "torch cannot read it as tensors and built-in types"
            raise ValueError(f"{path} is no checkpoint of recbole_lea: {why}") from error
        config: Any = content.get("config") if isinstance(content, dict) else None
        _model_class(path, config)
        return cls(path, config, content["other_parameter"]["item_tokens"], content["state_dict"])

    @classmethod
    def _exported(cls, folder: Path) -> "Checkpoint":
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["config"]
            tokens = json.loads((folder / ITEMS).read_text(encoding="utf-8"))
            _model_class(folder, config)
            return cls(folder, config, tokens, load_file(folder / WEIGHTS))
        except (KeyError, TypeError, json.JSONDecodeError, SafetensorError) as error:
            raise ValueError(f"{folder} was not made by --to safetensors: {error}") from error

    @property
    def backbone_class(self) -> type:
        """RecBole's own class."""
        return _model_class(self.path, self.config).backbone_class()

    def ranker(self) -> Ranker:
        """The model that serves, in evaluation mode, on the CPU.

        Raises a ValueError if the backbone needs more than item histories, such as the user.
        """
        # a mapping that, like RecBole's, answers None for what it does not hold
        config = defaultdict(lambda: None, self.config) | {"device": torch.device("cpu")}
        field, n_items = config["ITEM_ID_FIELD"], len(self.item_tokens)
        # all that a backbone may ask of a dataset
        lengths = {field + config["LIST_SUFFIX"]: config["MAX_ITEM_LIST_LENGTH"]}
        histories = SimpleNamespace(num={field: n_items}.__getitem__, field2seqlen=lengths)
        dense, head = self.part("output_head."), None  # ``lea_output_head: dense``
        with torch.random.fork_rng(devices=[]):  # starts no CUDA in a process that may fork
            try:
                backbone = self.backbone_class(config, histories)
            except (AttributeError, KeyError) as error:
                lacks = getattr(error, "name", None) or error.args[0]
                needs = f"the model needs {lacks} of its dataset beside item histories"
                raise ValueError(f"{needs}: it cannot be served") from error
            if dense:
                head = nn.Linear(dense["weight"].shape[1], n_items)
                head.load_state_dict(dense)
        backbone.load_state_dict({name: self.state[name] for name in backbone.state_dict()})
        return Ranker(backbone, head).eval()

    def serving_state(self) -> dict[str, Tensor]:
        """The part of the state dict that serves: no Q head, no second copy."""
        serve = {n: t for n, t in self.state.items() if not n.startswith(("q_head.", "twin."))}
        return {name: tensor.contiguous() for name, tensor in serve.items()}

    def q_head(self) -> QHead | None:
        """The Q head of the copy that is evaluated; None under ``q_weight: 0`` or if exported."""
        own = self.part("q_head.")
        if not own:
            return None
        state = switches(self.config, _model_class(self.path, self.config).rl_loss).state
        n_items, width = own["linear.weight"].shape
        le_size = len(own.get("norm.weight", ())) or width * (state == "LE")
        norms = (self.config["state_layernorm"], "hidden_norm.weight" in own)
        head = QHead(state, width - le_size, le_size, n_items, *norms)
        head.load_state_dict(own)
        return head.eval()

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The entries of the state dict whose names start so, without that start."""
        state = self.state.items()
        return {name.removeprefix(prefix): t for name, t in state if name.startswith(prefix)}


def _model_class(path: Path, config: Any) -> type[LEARecommender]:
    name = config.get("model") if isinstance(config, dict) else None
    model = lea_model(name) if isinstance(name, str) else None
    if model is None:
        what = f"the model {name}" if name else "no model"
        wanted = "has to hold one of recbole_lea, such as SASRecSA2CLEA"
        raise ValueError(f"{path} holds {what}, but {wanted}")
    return model
