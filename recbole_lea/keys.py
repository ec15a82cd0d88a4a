"""Our YAML keys and what values they take, RecBole's where LEA depends on them; no RecBole."""

import difflib
import importlib.util
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

# RecBole's ranking metrics; those of single values (AUC, MAE, ...) do not go with full sort
METRICS = (
    "averagepopularity", "gauc", "giniindex", "hit", "itemcoverage", "map", "mrr", "ndcg",
    "precision", "recall", "shannonentropy", "tailpercentage",
)  # fmt: skip

# Values of RecBole's `transform` that bring the LE's feedback
TRANSFORMS = ("lea_feedback", "lea_live")

# Options of from_pretrained: those that we pass, and those that let a model bring code along
_REFUSED_LLM_OPTIONS = (
    "dtype", "torch_dtype", "attn_implementation", "gguf_file",
    "trust_remote_code", "weights_only", "use_kernels", "kernel_config",
)  # fmt: skip
_LLM_OPTIONS = "options of from_pretrained such as device_map, but not " + ", ".join(
    _REFUSED_LLM_OPTIONS
)


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


def _is(kind: type, text: str) -> Rule:
    return (lambda v: isinstance(v, kind)), text


def _pattern(pattern: str, text: str) -> Rule:
    return (lambda v: isinstance(v, str) and re.fullmatch(pattern, v) is not None), text


def _strings(value: Any) -> bool:
    texts = isinstance(value, list | tuple) and all(isinstance(v, str) and v.strip() for v in value)
    return bool(value) and texts


def _labels(value: Any) -> bool:
    return _strings(value) and len({label.strip() for label in value}) == len(value) == 5


def _numbers(value: Any, n: int, low: float) -> bool:
    right = isinstance(value, list | tuple) and len(value) == n
    return right and all(_number(low, 1e9)[0](v) for v in value)


def _llm_options(value: Any) -> bool:
    names = isinstance(value, dict) and all(isinstance(key, str) for key in value)
    return names and not any(key in value for key in _REFUSED_LLM_OPTIONS)


def _load_col(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(source, str) and (columns == "*" or _strings(columns))
        for source, columns in value.items()
    )


def _path(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _eval_args(value: Any) -> bool:
    if not isinstance(value, dict) or not value.keys() <= {"split", "group_by", "order", "mode"}:
        return False
    split, mode = value.get("split", {"RS": [8, 1, 1]}), value.get("mode", "full")
    if not isinstance(split, dict) or len(split) != 1:
        return False
    ratios = split.get("RS", split.get("TS"))
    by_ratio = isinstance(ratios, list) and _numbers(ratios, 3, 0) and ratios[0] > 0
    modes = mode if isinstance(mode, dict) else {"valid": mode, "test": mode}
    return (
        (by_ratio or split.get("LS") in ("valid_and_test", "valid_only", "test_only"))
        and value.get("group_by") in (None, "user", "none")
        and value.get("order") == "TO"  # RecBole's own default, RO, is no order
        and modes.keys() <= {"valid", "test"}
        and all(isinstance(m, str) and _EVAL_MODE.fullmatch(m) for m in modes.values())
    )


def _topk(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(_COUNT[0](k) for k in values)


def _metrics(value: Any) -> bool:
    values = [value] if isinstance(value, str) else value
    return _strings(values) and all(metric.lower() in METRICS for metric in values)


_EVAL_MODE = re.compile(r"full|(uni|pop)[1-9]\d*")
_COUNT = _number(1, 10**9, int)
_WEIGHT = _number(0, 1e6)
_TEXT = _is(str, "a text")
_PATH = (_path, "a text without control characters")
_SHARE = _number(0, 0.999999)
_FLAG = _is(bool, "True or False")

RULES: dict[str, Rule] = {
    "lea_method": _one_of(*METHODS),
    "lea_state": _optional(_one_of("hidden", "LE", "both")),
    "lea_reward": _optional(_one_of("constant", "LE")),
    "lea_augmentation": _optional(_one_of("none", "supervised", "Q", "both")),
    "q_weight": _WEIGHT,
    "gamma": _number(0, 1),
    "td_scale": _number(0, 1e6),
    "q_max_chunk": _optional(_number(2, 10**9, int)),
    "r_pos": _number(-1e6, 1e6),
    "r_neg": _number(-1e6, 1e6),
    "negative_pool": _COUNT,
    "advantage_clip": (
        lambda v: _numbers(v, 2, -1e9) and v[0] <= v[1],
        "two numbers, [lowest, highest]",
    ),
    "warmup": _pattern(r"(\d+) (epochs?|steps?)", '"N epochs" or "N steps"'),
    "optimizer_reset": _FLAG,
    "w_ah": _WEIGHT,
    "w_aq": _WEIGHT,
    "exclude_history": _one_of("auto", True, False),
    "selection_by": _one_of("label", "reward", "state"),
    "selection_calibration": _one_of("prior", "none"),
    "reward_scale": _one_of("standardize", "raw", "sigmoid"),
    "state_dim": _optional(_COUNT),
    "state_layernorm": _FLAG,
    "lea_output_head": _one_of("tied", "dense"),
    "item_embedding_init": _one_of("random", "le"),
    "eval_protocol": _one_of("leave_one_out", "paper"),
    "lea_split_seed": _number(0, 2**31, int),
    "lea_valid_steps": _optional(_COUNT),
    "lea_prepare": _optional(_TEXT),
    "lea_note": _optional(_TEXT),
    "lea_seed": _number(0, 2**31, int),
    "lea_newest": _optional(_number(3, 10**9, int)),
    "lea_compare": _FLAG,
    "lea_llm": _PATH,
    "lea_llm_dtype": _one_of("auto", "float32", "bfloat16", "float16"),
    "lea_llm_options": _optional((_llm_options, _LLM_OPTIONS)),
    "lea_compile": _one_of("auto", True, False),
    "lea_cache_dir": _PATH,
    "lea_stop_after": _optional(_one_of("items", "finetune", "states", "rewards", "feedback")),
    "lea_shuffle": _FLAG,
    "lea_row_length": _number(16, 10**6, int),
    "lea_batch_rows": _COUNT,
    "lea_max_history": _COUNT,
    "lea_history_hop": _number(0, 10**6, int),
    "lea_item_sentence": _TEXT,
    "lea_prompt_items": _one_of("token", "title"),
    "lea_title": _TEXT,
    "lea_user_prompt": _TEXT,
    "lea_reward_prompt": _one_of("paper", "item_last"),
    "lea_action_prompt": _TEXT,
    "lea_action_prompt_item_last": _TEXT,
    "lea_selection_prompt": _TEXT,
    "lea_selection_suffix": _TEXT,
    "lea_selection_labels": (_labels, "a list of five different words"),
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
    "lea_lora_targets": (lambda v: _path(v) or _strings(v), "a name or a list of names"),
    "lea_state_loss": _one_of("softmax", "pairwise"),
    "lea_state_weight": _WEIGHT,
    "lea_selection_weight": _WEIGHT,
    "lea_state_input": _one_of("items", "prompt"),
    "lea_state_head": _one_of("residual", "none"),
    "lea_reward_head": _one_of("state", "none"),
}

# RecBole's keys whose wrong values once trained or measured something else, or failed after hours.
RECBOLE_RULES: dict[str, Rule] = {
    "transform": _optional(_TEXT),
    "epochs": _number(0, 10**9, int),
    "train_batch_size": _COUNT,
    "eval_batch_size": _COUNT,
    "learning_rate": _number(0, 1e3),
    "eval_step": _number(0, 10**9, int),
    "stopping_step": _number(0, 10**9, int),
    "seed": _number(0, 2**32 - 1, int),
    "USER_ID_FIELD": _PATH,
    "ITEM_ID_FIELD": _PATH,
    "TIME_FIELD": _PATH,
    "MAX_ITEM_LIST_LENGTH": _COUNT,
    "load_col": _optional((_load_col, "a dict such as {inter: [user_id, item_id, timestamp]}")),
    "repeatable": (lambda v: v is True, "True: a sequence may hold an item again"),
    "eval_args": (
        _eval_args,
        "a dict with `split` ({RS: [8, 1, 1]} or {LS: valid_and_test}), `group_by: user`, "
        "`order: TO` and `mode` (full, uniN or popN)",
    ),
    "loss_type": (lambda v: v == "CE", "CE (Eq. 8)"),
    "train_neg_sample_args": (lambda v: v is None, "~: LEA draws its own negatives"),
    "metrics": (_metrics, "a list of ranking metrics: " + ", ".join(METRICS)),
    "topk": (_topk, "a whole number from 1, or a list of them"),
    "valid_metric": _TEXT,
    "hidden_size": _COUNT,
    "embedding_size": _COUNT,
    # a search draws from them: a number that is none of theirs would end hours later
    **dict.fromkeys(("dropout_prob", "hidden_dropout_prob", "attn_dropout_prob"), _SHARE),
    "n_heads": _COUNT,
}

# RecBole's keys that an LEA model cannot have, and why.
_PICKLES = (
    "RecBole keeps datasets and loaders as pickles, which can run any code when they are read; "
    "what costs time is kept in lea_cache_dir"
)
REFUSED = {
    "save_dataset": _PICKLES,
    "dataset_save_path": _PICKLES,
    "save_dataloaders": _PICKLES,
    "dataloaders_save_path": _PICKLES,
    "worker": "a worker process would see neither the augmentation that starts during an epoch "
    "nor the LLM (and is slower here)",
    "nproc": "RecBole's processes would train something else than one does: `accelerate launch` "
    "shares the LE, which is what takes long, among processes (docs/running.md)",
    "benchmark_filename": "it gives rows without their order within the user, which the LE's "
    "feedback needs: give one .inter file and let eval_args split it",
}


def check_values(values: Mapping[str, Any], given: Iterable[str]) -> None:
    """Check the names of the given keys, and each value by itself; absent ones are not asked for.

    Raises:
        ValueError: an unknown ``lea_*`` key, or a value of the wrong type or range; names the key.
    """
    for key in given:
        if not isinstance(key, str):
            raise ValueError(f"`{key}` is no key: keys are texts")
        if key.startswith("lea_") and key not in RULES:
            raise ValueError(f"unknown key `{key}`{nearest(key, RULES)}")
    for key, (check, wanted) in (RULES | RECBOLE_RULES).items():
        if key in values and not check(values[key]):
            raise ValueError(f"`{key}` is {short(values[key])}, but has to be {wanted}")
    for key, why in REFUSED.items():
        if values.get(key):
            raise ValueError(f"`{key}` is {short(values[key])}, but has to be left out: {why}")


def check_model_name(name: str) -> None:
    """Compare a model's name with the files of the installed RecBole, which is not imported.

    Raises:
        ValueError: there is neither such a file nor such a backbone; suggests the nearest name.
    """
    folder = _recbole_folder()
    if folder is None:
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


def short(value: Any) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def built_in_types(value: Any) -> Any:
    """The value in built-in types, as YAML and a checkpoint without pickled classes hold them."""
    if isinstance(value, dict):
        return {str(key): built_in_types(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [built_in_types(item) for item in value]
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        return float(value) if isinstance(value, float) else int(value)
    return str(value)


def warmup_steps(warmup: str, steps_per_epoch: int) -> int:
    """ "N epochs" or "N steps" in optimiser steps."""
    count, unit = warmup.split()
    return int(count) * (steps_per_epoch if unit.startswith("epoch") else 1)


def absolute_paths(config: Mapping[str, Any]) -> dict[str, str]:
    """The paths among a config's values, for a run that works in another folder."""
    paths = {"data_path": str(Path(config["data_path"]).absolute())}
    if config["lea_cache_dir"]:
        paths["lea_cache_dir"] = str(Path(config["lea_cache_dir"]).absolute())
    if config["lea_llm"] and Path(config["lea_llm"]).exists():
        paths["lea_llm"] = str(Path(config["lea_llm"]).absolute())
    return paths
