"""Our YAML keys and what values they take, RecBole's where LEA depends on them; no RecBole."""

import difflib
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from recbole_lea.methods import METHODS
from recbole_lea.yaml_files import read_files

Check = Callable[[Any], bool]
Rule = tuple[Check, str]  # what a value has to pass, and how an error says so

# Section 4: whole sequences 8:1:1, every interaction of a test sequence, full ranking
PAPER_EVAL_ARGS = {
    "split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user", "order": "TO", "mode": "full",
}  # fmt: skip

# Values of RecBole's `transform` that bring the LE's feedback
TRANSFORMS = ("lea_feedback", "lea_live")

# Options of from_pretrained: those that we pass, and those that let a model bring code along
_REFUSED_LLM_OPTIONS = {
    "dtype", "torch_dtype", "attn_implementation", "gguf_file",
    "trust_remote_code", "weights_only", "use_kernels", "kernel_config",
}  # fmt: skip


def _one_of(*values: Any) -> Rule:
    return (lambda v: v in values), "one of " + ", ".join(map(str, values))


def _number(low: float, high: float, kind: type | tuple = (int, float)) -> Rule:
    def check(value: Any) -> bool:
        right_type = isinstance(value, kind) and not isinstance(value, bool)
        return right_type and low <= value <= high

    name = "a whole number" if kind is int else "a number"
    return check, f"{name} from {low:g} to {high:g}"


def _optional(rule: Rule) -> Rule:
    return (lambda v: v is None or rule[0](v)), f"~ or {rule[1]}"


def _same(rule: Rule, names: str) -> dict[str, Rule]:
    """The same rule for several keys."""
    return dict.fromkeys(names.split(), rule)


def _numbers(value: Any, n: int, low: float) -> bool:
    right = isinstance(value, list | tuple) and len(value) == n
    return right and all(_number(low, 1e9)[0](v) for v in value)


def _strings(value: Any) -> bool:
    right = isinstance(value, list | tuple) and len(value) > 0
    return right and all(isinstance(v, str) and v.strip() for v in value)


def _path(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _eval_args(value: Any) -> bool:
    if not isinstance(value, dict) or not value.keys() <= {"split", "group_by", "order", "mode"}:
        return False
    split = value.get("split", {"RS": [8, 1, 1]})
    if not isinstance(split, dict) or len(split) != 1:
        return False
    ratios = split.get("RS", split.get("TS"))
    by_ratio = isinstance(ratios, list) and _numbers(ratios, 3, 0) and ratios[0] > 0
    return (
        (by_ratio or split.get("LS") in ("valid_and_test", "valid_only", "test_only"))
        and value.get("group_by") in (None, "user", "none")
        and value.get("order") == "TO"  # RecBole's own default, RO, is no order
    )


_FLAG = _one_of(True, False)
_TEXT = (lambda v: isinstance(v, str)), "a text"
_PATH = _path, "a text without control characters"
_COUNT = _number(1, 10**9, int)
_COUNT_OR_0 = _number(0, 10**9, int)
_WEIGHT = _number(0, 1e6)

RULES: dict[str, Rule] = {
    # which way
    "lea_method": _one_of(*METHODS),
    "lea_state": _optional(_one_of("hidden", "LE", "both")),
    "lea_reward": _optional(_one_of("constant", "LE")),
    "lea_advantage": _one_of("Q", "reward"),
    "lea_environment": _one_of("llm", "text"),
    "lea_augmentation": _optional(_one_of("none", "supervised", "Q", "both")),
    "selection_by": _one_of("label", "reward", "state"),
    "selection_calibration": _one_of("prior", "none"),
    "reward_scale": _one_of("standardize", "raw", "sigmoid"),
    "item_embedding_init": _one_of("random", "le"),
    "eval_protocol": _one_of("leave_one_out", "paper"),
    "lea_output_head": _one_of("tied", "dense"),
    "lea_llm_dtype": _one_of("auto", "float32", "bfloat16", "float16"),
    "lea_stop_after": _optional(_one_of("items", "finetune", "states", "rewards", "feedback")),
    "lea_prompt_items": _one_of("token", "title"),
    "lea_reward_prompt": _one_of("paper", "item_last"),
    "lea_item_init": _one_of("text", "random"),
    "lea_finetune_schedule": _one_of("cosine", "constant"),
    "lea_state_loss": _one_of("softmax", "pairwise"),
    "lea_state_input": _one_of("items", "prompt"),
    "lea_state_head": _one_of("residual", "none"),
    "lea_reward_head": _one_of("state", "none"),
    **_same(_one_of("auto", True, False), "exclude_history lea_compile"),
    **_same(_FLAG, "optimizer_reset state_layernorm lea_compare lea_shuffle"),
    # how much
    **_same(_WEIGHT, "q_weight w_ah w_aq td_scale lea_state_weight"),
    **_same(_number(-1e6, 1e6), "r_pos r_neg"),
    **_same(_number(0, 1), "gamma lea_finetune_lr"),
    "lea_item_lr": _number(0, 10),
    "learning_rate_after_warmup": _optional(_number(0, 1e3)),
    "lea_lora_dropout": _number(0, 0.99),
    "lea_finetune_fraction": ((lambda v: _number(0, 1)[0](v) and v > 0), "above 0, at most 1"),
    "lea_finetune_clip": _optional(_number(0, 1e9)),
    "advantage_clip": (
        (lambda v: _numbers(v, 2, -1e9) and v[0] <= v[1]),
        "two numbers, [lowest, highest]",
    ),
    # how many
    "warmup": (
        (lambda v: isinstance(v, str) and bool(re.fullmatch(r"\d+ (epochs?|steps?)", v))),
        '"N epochs" or "N steps"',
    ),
    "q_max_chunk": _optional(_number(2, 10**9, int)),
    "lea_newest": _optional(_number(3, 10**9, int)),
    "lea_row_length": _number(16, 10**6, int),
    "lea_item_max_tokens": _number(4, 10**6, int),
    **_same(_number(0, 2**31, int), "lea_seed lea_split_seed"),
    **_same(_COUNT, "negative_pool lea_batch_rows lea_max_history lea_lora_r lea_lora_alpha"),
    **_same(_COUNT, "lea_finetune_epochs lea_finetune_batch_size lea_finetune_negatives"),
    **_same(_COUNT_OR_0, "augmentation_refresh lea_history_hop lea_item_iterations"),
    **_same(_COUNT_OR_0, "lea_finetune_warmup lea_finetune_eval"),
    **_same(_optional(_COUNT), "state_dim lea_valid_steps lea_item_patience"),
    # words
    **_same(_TEXT, "lea_item_sentence lea_title lea_user_prompt lea_action_prompt"),
    **_same(_TEXT, "lea_action_prompt_item_last lea_selection_prompt lea_selection_suffix"),
    **_same(_optional(_TEXT), "lea_prepare lea_note"),
    **_same(_PATH, "lea_llm lea_cache_dir"),
    "lea_selection_labels": (
        (lambda v: _strings(v) and len({word.strip() for word in v}) == len(v) == 5),
        "a list of five different words",
    ),
    "lea_lora_targets": ((lambda v: _path(v) or _strings(v)), "a name or a list of names"),
    "lea_llm_options": (
        (lambda v: v is None or (isinstance(v, dict) and not v.keys() & _REFUSED_LLM_OPTIONS)),
        "~ or options of from_pretrained such as device_map, but not "
        + ", ".join(sorted(_REFUSED_LLM_OPTIONS)),
    ),
}

# RecBole's keys whose wrong values once trained or measured something else, or failed after hours.
RECBOLE_RULES: dict[str, Rule] = {
    **_same(_COUNT, "train_batch_size eval_batch_size MAX_ITEM_LIST_LENGTH"),
    **_same(_COUNT, "hidden_size embedding_size n_heads"),
    **_same(_COUNT_OR_0, "epochs eval_step stopping_step"),
    # a search draws from them: a number that is none of theirs would end hours later
    **_same(_number(0, 0.999999), "dropout_prob hidden_dropout_prob attn_dropout_prob"),
    **_same(_PATH, "USER_ID_FIELD ITEM_ID_FIELD TIME_FIELD"),
    "learning_rate": _number(0, 1e3),
    "seed": _number(0, 2**32 - 1, int),
    "transform": _optional(_TEXT),
    "valid_metric": _TEXT,
    "metrics": ((lambda v: _path(v) or _strings(v)), "a list of RecBole's ranking metrics"),
    "topk": (
        (lambda v: all(_COUNT[0](k) for k in (v if isinstance(v, list) and v else [v]))),
        "a whole number from 1, or a list of them",
    ),
    "loss_type": ((lambda v: v == "CE"), "CE (Eq. 8)"),
    "train_neg_sample_args": ((lambda v: v is None), "~: LEA draws its own negatives"),
    "eval_args": (
        _eval_args,
        "a dict with `split` ({RS: [8, 1, 1]} or {LS: valid_and_test}), `group_by: user`, "
        "`order: TO` and `mode` (full, uniN or popN)",
    ),
}

# RecBole's keys that an LEA model cannot have, and why.
REFUSED = {
    "worker": "a worker process would see neither the augmentation that starts during an epoch "
    "nor the LLM (and is slower here)",
    "nproc": "RecBole's processes would train something else than one does: `accelerate launch` "
    "shares the LE, which is what takes long, among processes (docs/running.md)",
    "benchmark_filename": "it gives rows without their order within the user, which the LE's "
    "feedback needs: give one .inter file and let eval_args split it",
    **dict.fromkeys(
        ("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path"),
        "RecBole keeps datasets and loaders as pickles, which can run any code when they are "
        "read; what costs time is kept in lea_cache_dir",
    ),
}


def check_values(values: Mapping[str, Any], given: Iterable[str]) -> None:
    """Check the names of the given keys, and each value by itself; absent ones are not asked for.

    Raises a ValueError that names an unknown ``lea_*`` key, or one of a wrong type or range.
    """
    for key in given:
        if not isinstance(key, str):
            raise ValueError(f"`{key}` is no key: keys are texts")
        if key.startswith("lea_") and key not in RULES:
            raise ValueError(f"unknown key `{key}`{nearest(key, RULES)}")
    refused = {key: ((lambda v: not v), f"left out: {why}") for key, why in REFUSED.items()}
    for key, (check, wanted) in (RULES | RECBOLE_RULES | refused).items():
        if key in values and not check(values[key]):
            text = repr(values[key])
            short = text if len(text) <= 100 else f"{text[:97]}..."
            raise ValueError(f"`{key}` is {short}, but has to be {wanted}")


def check_model_name(name: str) -> None:
    """Compare a model's name with the files of the installed RecBole, which is not imported.

    Raises a ValueError that suggests the nearest name, if there is no such model or backbone.
    """
    if (folder := _recbole_folder()) is None:
        return
    files = {file.stem for file in folder.glob("model/*/*.py")}
    stock = [file.stem for file in folder.glob("properties/model/*.yaml")]
    backbones = {file.stem for file in folder.glob("model/sequential_recommender/*.py")}
    ours = [f"{m}{rl}LEA" for m in stock if m.lower() in backbones for rl in ("SNQN", "SA2C")]
    if name.lower() not in files and name not in ours:
        raise ValueError(f"unknown model `{name}`{nearest(name, [*ours, *stock])}")


def _recbole_folder() -> Path | None:
    found = importlib.util.find_spec("recbole")
    return Path(found.origin).parent if found and found.origin else None


def backbone_keys(backbone: str) -> list[str]:
    """Names of the hyperparameters in RecBole's own YAML file of a model."""
    folder = _recbole_folder()
    assert folder is not None
    return list(read_files([str(folder / "properties" / "model" / f"{backbone}.yaml")]))


def parts_of(split: Mapping[str, Any]) -> list[bool]:
    """Whether a split of ``eval_args`` asks for training, validation and test rows."""
    ((kind, how),) = split.items()
    if kind == "LS":
        return [True, how != "test_only", how != "valid_only"]
    return [ratio > 0 for ratio in how]


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" for the nearest known name, or nothing."""
    lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.6)
    return f"; did you mean `{lower[found[0]]}`?" if found else ""


def built_in_types(value: Any) -> Any:
    """The value in built-in types, as YAML and a checkpoint without pickled classes hold them."""
    plain = json.dumps(value, default=lambda v: list(v) if isinstance(v, set) else str(v))
    return json.loads(plain)


def warmup_updates(warmup: str, per_epoch: int) -> int:
    """ "N epochs" or "N steps" in updates of the evaluated network, of an epoch's batches."""
    count, unit = warmup.split()
    return int(count) * (per_epoch if unit.startswith("epoch") else 1)


def absolute_paths(config: Mapping[str, Any]) -> dict[str, str]:
    """The paths among a config's values, for a run that works in another folder."""
    keys = [key for key in ("data_path", "lea_cache_dir") if config[key]]
    if config["lea_llm"] and Path(config["lea_llm"]).exists():
        keys.append("lea_llm")
    return {key: str(Path(config[key]).absolute()) for key in keys}
