"""A trained model from its file, without dataset, LLM or LE: what serves, and what made it."""

import dataclasses
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from recbole_lea.keys import RULES
from recbole_lea.methods import switches
from recbole_lea.model.q_head import QHead
from recbole_lea.model.recommender import LEARecommender
from recbole_lea.model.registry import lea_model
from recbole_lea.plugin.checkpoints import refuse_damaged

# The files of ``recbole_lea.export``
WEIGHTS, CONFIG, ITEMS = "model.safetensors", "config.json", "items.json"


class Ranker(nn.Module):
    """The sequential model as it serves: RecBole's own backbone, with its own scores or a dense
    head (``lea_output_head``)."""

    def __init__(self, backbone: SequentialRecommender, output_head: nn.Linear | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.output_head = output_head

    def forward(self, item_ids: Tensor, lengths: Tensor) -> Tensor:
        """Scores of all items, the padding item 0 included [B, n_items].

        Args:
            item_ids: RecBole's ids, oldest item first, right-padded with 0 [B, L], int64.
            lengths: items in each history [B], int64.
        """
        if self.output_head is not None:
            return self.output_head(self.backbone(item_ids, lengths))
        fields = (self.backbone.ITEM_SEQ, self.backbone.ITEM_SEQ_LEN)
        return self.backbone.full_sort_predict(dict(zip(fields, (item_ids, lengths), strict=True)))


class _HistoriesAlone:
    """What a backbone may ask a RecBole dataset while it is built, if item histories are all that
    it is to serve: the number of items, and the length of the histories."""

    def __init__(self, item_field: str, n_items: int, lengths: dict[str, int]) -> None:
        self._item_field, self._n_items = item_field, n_items
        self.field2seqlen = lengths

    def num(self, field: str) -> int:
        return self._n_items if field == self._item_field else self.__getattr__(field)

    def __getattr__(self, name: str) -> Any:
        needs = f"the model needs {name} of its dataset beside item histories"
        raise ValueError(f"{needs}: it cannot be served")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A trained model.

    Attributes:
        path: the file or folder it was read from.
        config: all keys of the run, in built-in types.
        item_tokens: item tokens in the order of RecBole's ids; the first is the padding item's.
        state: the model's state dict, on the CPU.
        training: the rest of RecBole's checkpoint (epoch, optimiser ...); empty if exported.
    """

    path: Path
    config: dict[str, Any]
    item_tokens: list[str]
    state: dict[str, Tensor]
    training: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> "Checkpoint":
        """Read a checkpoint, or a folder that ``recbole_lea.export --to safetensors`` made.

        Nothing is unpickled but tensors and built-in types.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is no checkpoint of a model of this package.
        """
        path = Path(path)
        if path.is_dir():
            return cls._exported(path)
        refuse_damaged(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # torch's unpickler may stumble over a foreign file anyhow
            why = "torch cannot read it as tensors and built-in types"
            raise ValueError(f"{path} is no checkpoint of recbole_lea: {why}") from error
        config: Any = content.pop("config", None) if isinstance(content, dict) else None
        _model_class(path, config)
        other = content.pop("other_parameter", None) or {}
        if "item_tokens" not in other:
            raise ValueError(f"{path} lacks the item tokens, which newer ones hold: train again")
        state, _ = content.pop("state_dict"), content.pop("resume", None)
        return cls(path, config, other["item_tokens"], state, content)

    @classmethod
    def _exported(cls, folder: Path) -> "Checkpoint":
        try:
            about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            tokens = json.loads((folder / ITEMS).read_text(encoding="utf-8"))
            _model_class(folder, about["config"])
            return cls(folder, about["config"], tokens, load_file(folder / WEIGHTS), {})
        except (KeyError, TypeError, json.JSONDecodeError, SafetensorError) as error:
            raise ValueError(f"{folder} was not made by --to safetensors: {error}") from error

    @property
    def backbone_class(self) -> type:
        """RecBole's own class."""
        return _model_class(self.path, self.config).backbone_class()

    @property
    def dense(self) -> bool:
        """Whether the scores come from a head of their own (``lea_output_head: dense``)."""
        return "output_head.weight" in self.state

    @property
    def max_length(self) -> int:
        """Newest items of a history that the model reads."""
        return self.config["MAX_ITEM_LIST_LENGTH"]

    def ranker(self) -> Ranker:
        """The model that serves, in evaluation mode, on the CPU.

        Raises:
            ValueError: the backbone needs more than item histories, such as the user.
        """
        # a mapping that, like RecBole's, answers None for what it does not hold
        config = defaultdict(lambda: None, self.config) | {"device": torch.device("cpu")}
        field, n_items = config["ITEM_ID_FIELD"], len(self.item_tokens)
        lengths = {field + config["LIST_SUFFIX"]: self.max_length}
        with torch.random.fork_rng(devices=[]):  # starts no CUDA in a process that may fork
            backbone = self.backbone_class(config, _HistoriesAlone(field, n_items, lengths))
            width = self.state["output_head.weight"].shape[1] if self.dense else 0
            head = nn.Linear(width, n_items) if self.dense else None
        backbone.load_state_dict({name: self.state[name] for name in backbone.state_dict()})
        if head is not None:
            head.load_state_dict(self._part("output_head."))
        return Ranker(backbone, head).eval()

    def serving_state(self) -> dict[str, Tensor]:
        """The part of the state dict that serves: no Q head, no second copy."""
        serve = {n: t for n, t in self.state.items() if not n.startswith(("q_head.", "twin."))}
        return {name: tensor.contiguous() for name, tensor in serve.items()}

    def q_head(self) -> QHead | None:
        """The Q head of the copy that is evaluated; None under ``q_weight: 0`` or if exported."""
        own = self._part("q_head.")
        if not own:
            return None
        state = switches(self.config, _model_class(self.path, self.config).rl_loss).state
        n_items, width = own["linear.weight"].shape
        le_size = len(own.get("norm.weight", ())) or width * (state == "LE")
        norms = (self.config["state_layernorm"], "hidden_norm.weight" in own)
        head = QHead(state, width - le_size, le_size, n_items, *norms)
        head.load_state_dict(own)
        return head.eval()

    def _part(self, prefix: str) -> dict[str, Tensor]:
        state = self.state.items()
        return {name.removeprefix(prefix): t for name, t in state if name.startswith(prefix)}

    def backbone_config(self) -> dict[str, Any]:
        """The keys of the run that plain RecBole knows, for the backbone."""
        keys = {name: value for name, value in self.config.items() if name not in RULES}
        return keys | {"model": self.backbone_class.__name__, "transform": None}


def _model_class(path: Path, config: Any) -> type[LEARecommender]:
    name = config.get("model") if isinstance(config, dict) else None
    model = lea_model(name) if isinstance(name, str) else None
    if model is None:
        what = f"the model {name}" if name else "no model"
        wanted = "has to hold one of recbole_lea, such as SASRecSA2CLEA"
        raise ValueError(f"{path} holds {what}, but {wanted}")
    return model
