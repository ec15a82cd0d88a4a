"""Our YAML keys: where their defaults stand, and what values they take."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from recbole_lea.data.transform import TRANSFORMS
from recbole_lea.methods import METHODS

# Section 4: whole sequences 8:1:1, every interaction of a test sequence, full ranking
PAPER_EVAL_ARGS = {
    "split": {"RS": [0.8, 0.1, 0.1]},
    "group_by": "user",
    "order": "TO",
    "mode": "full",
}


def properties_folder() -> Path:
    """``properties/``: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "properties"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "properties"


def find_config_file(name: str) -> str:
    """A path to a YAML file; ``properties/...`` is also looked up in the installed package.

    Raises:
        FileNotFoundError: neither exists.
    """
    path = Path(name)
    if path.is_file():
        return str(path)
    parts = path.parts[1:] if path.parts and path.parts[0] == "properties" else path.parts
    packaged = properties_folder().joinpath(*parts)
    if packaged.is_file():
        return str(packaged)
    raise FileNotFoundError(f"config file {name}: not found here and not in {properties_folder()}")


def internal_files(model: str, dataset: str) -> list[Path]:
    """Our YAML files for a model and dataset, later ones overriding earlier ones."""
    folder = properties_folder()
    names = ["lea.yaml", f"dataset/{dataset}.yaml", f"model/{model}.yaml"]
    return [folder / name for name in names if (folder / name).is_file()]


Check = Callable[[Any], bool]


def _one_of(*values: Any) -> tuple[Check, str]:
    return (lambda v: v in values), "one of " + ", ".join(map(str, values))


def _number(low: float, high: float, kind: type | tuple = (int, float)) -> tuple[Check, str]:
    def check(value: Any) -> bool:
        right_type = isinstance(value, kind) and not isinstance(value, bool)
        return right_type and low <= value <= high

    name = "a whole number" if kind is int else "a number"
    return check, f"{name} from {low:g} to {high:g}"


def _optional(rule: tuple[Check, str]) -> tuple[Check, str]:
    return (lambda v: v is None or rule[0](v)), f"~ or {rule[1]}"


def _is(kind: type, text: str) -> tuple[Check, str]:
    return (lambda v: isinstance(v, kind)), text


def _strings(value: Any) -> bool:
    return (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(v, str) for v in value)
    )


def _clip(value: Any) -> bool:
    numbers = isinstance(value, list | tuple) and len(value) == 2
    return numbers and all(_number(-1e9, 1e9)[0](v) for v in value) and value[0] <= value[1]


def _llm_options(value: Any) -> bool:
    ours = ("trust_remote_code", "dtype", "torch_dtype", "attn_implementation", "gguf_file")
    return isinstance(value, dict) and not any(key in value for key in ours)


_WARMUP = re.compile(r"(\d+) (epochs?|steps?)")
_COUNT = _number(1, 10**9, int)
_WEIGHT = _number(0, 1e6)
_TEXT = _is(str, "a text")
_FLAG = _is(bool, "True or False")

RULES: dict[str, tuple[Check, str]] = {
    "lea_method": _one_of(*METHODS),
    "lea_state": _optional(_one_of("hidden", "LE", "both")),
    "lea_reward": _optional(_one_of("constant", "LE")),
    "lea_augmentation": _optional(_one_of("none", "supervised", "Q", "both")),
    "q_weight": _WEIGHT,
    "gamma": _number(0, 1),
    "td_scale": _number(0, 1e6),
    "r_pos": _number(-1e6, 1e6),
    "r_neg": _number(-1e6, 1e6),
    "negative_pool": _COUNT,
    "advantage_clip": (_clip, "two numbers, [lowest, highest]"),
    "warmup": (
        lambda v: isinstance(v, str) and _WARMUP.fullmatch(v) is not None,
        '"N epochs" or "N steps"',
    ),
    "optimizer_reset": _FLAG,
    "w_ah": _WEIGHT,
    "w_aq": _WEIGHT,
    "exclude_target": _FLAG,
    "augmentation_refresh": _number(0, 10**9, int),
    "selection_calibration": _one_of("prior", "none"),
    "reward_scale": _one_of("standardize", "raw", "sigmoid"),
    "state_dim": _optional(_COUNT),
    "state_layernorm": _FLAG,
    "lea_output_head": _one_of("tied", "dense"),
    "eval_protocol": _one_of("leave_one_out", "paper"),
    "lea_split_seed": _number(0, 2**31, int),
    "lea_valid_steps": _optional(_COUNT),
    "lea_prepare": _optional(_TEXT),
    "lea_note": _optional(_TEXT),
    "lea_seed": _number(0, 2**31, int),
    "lea_newest": _optional(_number(3, 10**9, int)),
    "lea_compare": _FLAG,
    "lea_llm": _TEXT,
    "lea_llm_dtype": _one_of("auto", "float32", "bfloat16", "float16"),
    "lea_llm_options": _optional((_llm_options, "keys of from_pretrained, such as device_map")),
    "lea_compile": _one_of("auto", True, False),
    "lea_cache_dir": _TEXT,
    "lea_stop_after": _optional(_one_of("items", "finetune", "states", "rewards", "feedback")),
    "lea_row_length": _number(16, 10**6, int),
    "lea_batch_rows": _COUNT,
    "lea_max_history": _COUNT,
    "lea_history_hop": _number(0, 10**6, int),
    "lea_item_sentence": _TEXT,
    "lea_user_prompt": _TEXT,
    "lea_reward_prompt": _one_of("paper", "item_last"),
    "lea_action_prompt": _TEXT,
    "lea_action_prompt_item_last": _TEXT,
    "lea_selection_prompt": _TEXT,
    "lea_selection_suffix": _TEXT,
    "lea_selection_labels": (lambda v: _strings(v) and len(v) == 5, "a list of five words"),
    "lea_item_init": _one_of("text", "random"),
    "lea_item_iterations": _number(0, 10**6, int),
    "lea_item_lr": _number(0, 10),
    "lea_item_patience": _optional(_COUNT),
    "lea_item_max_tokens": _number(4, 10**6, int),
    "lea_finetune_fraction": (lambda v: _number(0, 1)[0](v) and v > 0, "above 0, at most 1"),
    "lea_finetune_epochs": _COUNT,
    "lea_finetune_batch_size": _COUNT,
    "lea_finetune_negatives": _COUNT,
    "lea_finetune_lr": _number(0, 1),
    "lea_finetune_warmup": _number(0, 10**9, int),
    "lea_finetune_schedule": _one_of("cosine", "constant"),
    "lea_finetune_clip": _optional(_number(0, 1e9)),
    "lea_finetune_eval": _number(0, 10**9, int),
    "lea_lora_r": _COUNT,
    "lea_lora_alpha": _COUNT,
    "lea_lora_dropout": _number(0, 0.99),
    "lea_lora_targets": (lambda v: isinstance(v, str) or _strings(v), "a name or a list of names"),
    "lea_state_loss": _one_of("softmax", "pairwise"),
    "lea_state_weight": _WEIGHT,
    "lea_state_input": _one_of("items", "prompt"),
    "lea_state_head": _one_of("residual", "none"),
}


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" for the nearest known name, or nothing."""
    lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.6)
    return f"; did you mean `{lower[found[0]]}`?" if found else ""


def validate(config: Mapping[str, Any], given: Iterable[str]) -> None:
    """Check our keys before anything is loaded.

    Args:
        config: all keys with their values.
        given: the keys that the user gave, by file, dict or command line.

    Raises:
        ValueError: an unknown ``lea_*`` key, a value of the wrong type or range, or values
            that contradict each other.
    """
    given = set(given)
    for key in given:
        if key.startswith("lea_") and key not in RULES:
            raise ValueError(f"unknown key `{key}`{nearest(key, RULES)}")
    for key, (check, wanted) in RULES.items():
        value = config.get(key)
        if not check(value):
            raise ValueError(f"`{key}` is {value!r}, but has to be {wanted}")
    transform = config.get("transform")
    if isinstance(transform, str) and transform.startswith("lea_") and transform not in TRANSFORMS:
        raise ValueError(f"unknown `transform: {transform}`{nearest(transform, TRANSFORMS)}")
    split = (config.get("eval_args") or {}).get("split") or {}
    if config["eval_protocol"] == "paper" and "eval_args" in given and "RS" not in split:
        raise ValueError(
            "`eval_protocol: paper` splits whole sequences by ratio, but `eval_args` asks for "
            f"{split}: give a split RS, or eval_protocol: leave_one_out"
        )
    if config.get("worker"):
        raise ValueError(
            "`worker` has to be 0: a worker process would see neither the augmentation that starts "
            "during an epoch nor the LLM (and is slower here)"
        )


def warmup_steps(warmup: str, steps_per_epoch: int) -> int:
    """ "N epochs" or "N steps" in optimiser steps."""
    count, unit = _WARMUP.fullmatch(warmup).groups()
    return int(count) * (steps_per_epoch if unit.startswith("epoch") else 1)
