"""Every setting of the LE in one place; the defaults live in ``properties/lea.yaml``."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from recbole_lea.le.catalogue import check_sentence, check_title
from recbole_lea.yaml_files import find_config_file


@dataclasses.dataclass(frozen=True)
class LESettings:
    """What the LE is built from. Field ``x`` is the YAML key ``lea_x``, or ``x`` (``BARE_KEYS``).

    ``properties/lea.yaml`` says what each means.
    """

    environment: str
    llm: str
    llm_dtype: str
    llm_options: dict[str, Any] | None
    compile: str | bool
    item_sentence: str
    allow_no_text: bool
    prompt_items: str
    title: str
    user_prompt: str
    reward_prompt: str
    action_prompt: str
    action_prompt_item_last: str
    selection_prompt: str
    selection_suffix: str
    selection_labels: tuple[str, ...]
    max_history: int
    history_hop: int
    item_init: str
    item_iterations: int
    item_lr: float
    item_patience: int | None
    item_max_tokens: int
    finetune_fraction: float
    finetune_epochs: int
    finetune_batch_size: int
    finetune_negatives: int
    negative_distribution: str
    finetune_lr: float
    finetune_warmup: int
    finetune_schedule: str
    finetune_clip: float | None
    finetune_eval: int
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    lora_targets: tuple[str, ...] | str
    state_loss: str
    state_weight: float
    state_input: str
    state_head: str
    state_keys: str
    reward_head: str
    row_length: int
    batch_rows: int
    shuffle: bool
    cache_dir: str
    seed: int
    negative_pool: int
    selection_by: str
    selection_calibration: str
    reward_scale: str
    state_dim: int | None

    def __post_init__(self) -> None:
        """Check what would otherwise show only once the LLM is loaded."""
        check_sentence(self.item_sentence)
        if self.prompt_items == "title":
            check_title(self.title)
        selection = self.selection_prompt + self.selection_suffix
        _check_placeholder("lea_user_prompt", self.user_prompt, "history")
        _check_placeholder("lea_action_prompt", self.action_prompt, "item")
        _check_placeholder("lea_selection_prompt", selection, "list")
        if self.reward_prompt == "item_last":
            key, text = "lea_action_prompt_item_last", self.action_prompt_item_last
            _check_placeholder(key, text, "item")
            if not text.endswith("{item}"):
                raise ValueError(f"`{key}` has to end with {{item}}, but is {text!r}")
        if self.reward_head == "state" and self.state_input != "prompt":
            raise ValueError(
                "`lea_reward_head: state` reads the state in the reward prompt: it needs "
                "`lea_state_input: prompt`"
            )
        if self.item_init == "tfidf" and self.environment != "text":
            raise ValueError(
                "`lea_item_init: tfidf` makes vectors that no LLM can read: it needs "
                "`lea_environment: text`"
            )
        if self.environment == "text" and self.selection_by == "label":
            raise ValueError(
                "`lea_environment: text` cannot be asked for a label: set `selection_by` to state "
                "or reward"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "LESettings":
        """Read YAML keys, such as RecBole's ``Config``; a KeyError names a missing one."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            key = field.name if field.name in BARE_KEYS else f"lea_{field.name}"
            if key not in config:
                raise KeyError(f"the LE needs the key `{key}`; properties/lea.yaml has its default")
            value = config[key]
            values[field.name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)

    @classmethod
    def for_dataset(cls, dataset: str, **changes: Any) -> "LESettings":
        """The settings of ``properties/lea.yaml`` and ``properties/dataset/NAME.yaml``.

        ``changes`` are fields with other values, such as ``llm="/path/to/llm"``. An unknown dataset
        is a FileNotFoundError.
        """
        keys: dict[str, Any] = {}
        for name in ("lea.yaml", f"dataset/{dataset}.yaml"):
            path = Path(find_config_file(f"properties/{name}"))
            keys |= yaml.safe_load(path.read_text(encoding="utf-8"))
        return dataclasses.replace(cls.from_config(keys), **changes)


def _check_placeholder(key: str, text: str, name: str) -> None:
    if re.findall(r"\{([^{}]*)\}", text) != [name]:
        raise ValueError(f"`{key}` needs exactly the placeholder {{{name}}}, but is {text!r}")


BARE_KEYS = (
    "negative_pool", "selection_by", "selection_calibration", "reward_scale", "state_dim",
)  # fmt: skip
