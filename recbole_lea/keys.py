"""Our YAML keys and what values they take, RecBole's where LEA depends on them; no RecBole."""

import contextlib
import difflib
import functools
import importlib.util
import json
import os
import re
import runpy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from recbole_lea.methods import METHODS
from recbole_lea.yaml_files import read_files

Check = Callable[[Any], bool]
Rule = tuple[Check, str]  # what a value has to pass, and how an error says so

# Protocols that put each user's whole sequence into one part: at random, or the earliest first
WHOLE_SEQUENCES = ("paper", "paper_time")

# Section 4: whole sequences 8:1:1, every interaction of a test sequence, full ranking
PAPER_EVAL_ARGS = {
    "split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user", "order": "TO", "mode": "full",
}  # fmt: skip

# Keys of ours that RecBole's own models take too
PROTOCOL_KEYS = (
    "lea_prepare", "lea_newest", "eval_protocol", "lea_split_seed", "lea_valid_steps",
)  # fmt: skip

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


def _word(*words: str) -> Rule:
    """One of the words, in capitals or not, as RecBole reads it."""
    return (lambda v: isinstance(v, str) and v.lower() in words), "one of " + ", ".join(words)


def _clip(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() <= {"max_norm", "norm_type"}
        and _number(0, 1e9)[0](value.get("max_norm"))
        and _number(0, float("inf"))[0](value.get("norm_type", 2))
    )


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
_LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop")  # sparse_adam needs other gradients
_LEVELS = ("debug", "info", "warning", "error", "critical")

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
    "eval_protocol": _one_of("leave_one_out", *WHOLE_SEQUENCES),
    "lea_output_head": _one_of("tied", "dense"),
    "lea_llm_dtype": _one_of("auto", "float32", "bfloat16", "float16"),
    "lea_stop_after": _optional(
        _one_of("plan", "items", "finetune", "states", "rewards", "feedback")
    ),
    "lea_prompt_items": _one_of("token", "title"),
    "lea_reward_prompt": _one_of("paper", "item_last"),
    "lea_item_init": _one_of("text", "random", "tfidf"),
    "lea_negative_distribution": _one_of("uniform", "popularity"),
    "lea_finetune_schedule": _one_of("cosine", "constant"),
    "lea_state_loss": _one_of("softmax", "pairwise"),
    "lea_state_input": _one_of("items", "prompt"),
    "lea_state_head": _one_of("recency", "residual", "none"),
    "lea_state_keys": _one_of("hidden", "tokens"),
    "lea_reward_head": _one_of("state", "none"),
    **_same(_one_of("auto", True, False), "exclude_history lea_compile"),
    **_same(_FLAG, "optimizer_reset state_layernorm lea_compare lea_shuffle lea_allow_no_text"),
    # how much
    **_same(_WEIGHT, "q_weight w_ah w_aq td_scale lea_state_weight"),
    **_same(_number(-1e6, 1e6), "r_pos r_neg"),
    **_same(_number(0, 1), "gamma lea_finetune_lr"),
    "lea_item_lr": _number(0, 10),
    "learning_rate_after_warmup": _optional(_number(0, 1e3)),
    "item_embedding_std": _optional(_number(1e-6, 1e3)),
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
    **_same(_COUNT, "n_layers num_layers inner_size"),
    **_same(_number(0, 1), "layer_norm_eps initializer_range"),
    "hidden_act": _one_of("gelu", "relu", "swish", "tanh", "sigmoid"),
    **_same(_number(0, 0.999999), "dropout_prob hidden_dropout_prob attn_dropout_prob"),
    **_same(_PATH, "USER_ID_FIELD ITEM_ID_FIELD TIME_FIELD"),
    **_same(_number(0, 1e3), "learning_rate weight_decay"),
    "learner": _word(*_LEARNERS),
    "state": _optional(_word(*_LEVELS)),
    "clip_grad_norm": _optional((_clip, "{max_norm: N}, with norm_type: N if wanted")),
    "log_wandb": (
        (lambda v: v is False or (v is True and importlib.util.find_spec("wandb") is not None)),
        "False, or True where the package wandb is installed (pip install wandb)",
    ),
    **_same(_FLAG, "show_progress reproducibility use_gpu enable_amp enable_scaler shuffle"),
    **_same(_number(0, 100, int), "loss_decimal_place metric_decimal_place"),
    **_same(_PATH, "data_path checkpoint_dir"),
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

# Keys with a path: `~` is the user's folder.
PATH_KEYS = ("data_path", "checkpoint_dir", "lea_cache_dir", "lea_llm")

# Keys that RecBole reads, but that no YAML file of its has.
_WITHOUT_DEFAULT = {
    "encoding", "tail_ratio", "reg_weight", "numerical_features", "eta", "contrast", "sim",
    "use_filter",
}  # fmt: skip

# RecBole's sequential models that LEA cannot train; a model that is built would find out the same.
REFUSED_BACKBONES = (
    "BERT4Rec", "DIEN", "DIN", "FDSA", "FPMC", "GRU4RecCPR", "GRU4RecF", "GRU4RecKG", "KSR",
    "RepeatNet", "S3Rec", "SASRecCPR", "SASRecF", "SHAN", "TransRec",
)  # fmt: skip


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
    folder = recbole_folder()
    files = {file.stem for file in folder.glob("model/*/*.py")}
    stock = [file.stem for file in folder.glob("properties/model/*.yaml")]
    ours = [f"{m}{rl}LEA" for m in _sequential() for rl in ("SNQN", "SA2C")]
    if name.lower() not in files and name not in ours:
        raise ValueError(f"unknown model `{name}`{nearest(name, [*ours, *stock])}")


def check_dataset_name(name: str) -> None:
    """Raise a ValueError if a dataset is given as a path."""
    path = Path(name)
    if path.name != name or name == "..":
        raise ValueError(
            f"`dataset` is {name!r}, but has to be a name; `data_path` is the folder that holds "
            f"the dataset's folder: --dataset={path.stem} --data_path={path.parent}"
        )


def recbole_folder() -> Path:
    """Where RecBole is installed, which is not imported.

    Raises a ModuleNotFoundError that names the remedy, if it is not.
    """
    found = None
    with contextlib.suppress(ModuleNotFoundError):
        found = importlib.util.find_spec("recbole")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            "RecBole is not installed: pip install --no-deps recbole==1.2.1", name="recbole"
        )
    return Path(found.origin).parent


def _sequential() -> list[str]:
    """RecBole's sequential models."""
    folder = recbole_folder()
    files = {file.stem for file in folder.glob("model/sequential_recommender/*.py")}
    models = sorted(file.stem for file in folder.glob("properties/model/*.yaml"))
    return [model for model in models if model.lower() in files]


def backbones() -> list[str]:
    """RecBole's models that LEA can train."""
    return [model for model in _sequential() if model not in REFUSED_BACKBONES]


@functools.cache
def known_keys(model: str | None = None) -> frozenset[str]:
    """The keys that RecBole or this package reads, of one model or of all.

    RecBole is not imported; a ModuleNotFoundError says that it is not installed.
    """
    folder = recbole_folder()
    backbone = re.sub("(SNQN|SA2C)LEA$", "", model or "*")
    parts = ("*", "dataset/*", "quick_start_config/sequential", f"model/{backbone}")
    files = [file for part in parts for file in folder.glob(f"properties/{part}.yaml")]
    lists = runpy.run_path(str(folder / "utils" / "argument_list.py")).values()
    known = {*read_files([str(file) for file in files]), *_WITHOUT_DEFAULT}
    known = known.union(*(names for names in lists if isinstance(names, list)))
    ours = {*RULES, *REFUSED} if backbone != model else {*PROTOCOL_KEYS}
    return frozenset(known | ours)


def backbone_keys(backbone: str) -> list[str]:
    """Names of the hyperparameters in RecBole's own YAML file of a model."""
    return list(read_files([str(recbole_folder() / "properties" / "model" / f"{backbone}.yaml")]))


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


def expanded_paths(values: Mapping[str, Any]) -> dict[str, str]:
    """Those of ``PATH_KEYS`` that are given, with `~` as the user's folder."""
    given = {key: values.get(key) for key in PATH_KEYS}
    return {key: os.path.expanduser(path) for key, path in given.items() if isinstance(path, str)}


def absolute_paths(config: Mapping[str, Any]) -> dict[str, str]:
    """The paths among a config's values, for a run that works in another folder."""
    keys = [key for key in ("data_path", "lea_cache_dir") if config[key]]
    if config["lea_llm"] and Path(config["lea_llm"]).exists():
        keys.append("lea_llm")
    return {key: str(Path(config[key]).absolute()) for key in keys}
