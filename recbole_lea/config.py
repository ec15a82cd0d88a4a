"""Our YAML keys: where their defaults stand, and what values they take."""

import difflib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from recbole_lea.data.transform import TRANSFORMS
from recbole_lea.le.catalogue import check_sentence, check_title
from recbole_lea.le.prompts import check_item_last, check_placeholders
from recbole_lea.le.settings import LESettings
from recbole_lea.methods import METHODS, needs_warmup, switches

logger = logging.getLogger(__name__)

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


def find_config_files(names: str) -> list[str]:
    """``find_config_file`` of each of several names, separated by blanks."""
    return [find_config_file(name) for name in names.split()]


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
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(v, str) and v.strip() for v in value)
    )


def _labels(value: Any) -> bool:
    return _strings(value) and len({label.strip() for label in value}) == len(value) == 5


def _clip(value: Any) -> bool:
    numbers = isinstance(value, list | tuple) and len(value) == 2
    return numbers and all(_number(-1e9, 1e9)[0](v) for v in value) and value[0] <= value[1]


def _llm_options(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(isinstance(key, str) for key in value)
        and not any(key in value for key in (*LLM_OPTIONS_OF_OURS, *UNSAFE_LLM_OPTIONS))
    )


def _load_col(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(source, str) and (columns == "*" or _strings(columns))
        for source, columns in value.items()
    )


def _path(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _ratios(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 3  # RecBole wants a list
    return numbers and all(_number(0, 1e9)[0](v) for v in value) and value[0] > 0


def _eval_args(value: Any) -> bool:
    if not isinstance(value, dict) or not value.keys() <= {"split", "group_by", "order", "mode"}:
        return False
    split, mode = value.get("split", {"RS": [8, 1, 1]}), value.get("mode", "full")
    if not isinstance(split, dict) or len(split) != 1:
        return False
    modes = mode if isinstance(mode, dict) else {"valid": mode, "test": mode}
    return (
        (_ratios(split.get("RS")) or _ratios(split.get("TS")) or _leave_one_out(split.get("LS")))
        and value.get("group_by") in (None, "user", "none")
        and value.get("order") == "TO"  # RecBole's own default, RO, is no order
        and modes.keys() <= {"valid", "test"}
        and all(isinstance(m, str) and _EVAL_MODE.fullmatch(m) for m in modes.values())
    )


def parts_of(split: Mapping[str, Any]) -> list[bool]:
    """Whether a split of ``eval_args`` asks for training, validation and test rows."""
    ((kind, how),) = split.items()
    if kind == "LS":
        return [True, how != "test_only", how != "valid_only"]
    return [ratio > 0 for ratio in how]


def _leave_one_out(value: Any) -> bool:
    return value in ("valid_and_test", "valid_only", "test_only")


def _topk(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(_COUNT[0](k) for k in values)


def _metrics(value: Any) -> bool:
    values = [value] if isinstance(value, str) else value
    return _strings(values) and all(metric.lower() in METRICS for metric in values)


# RecBole's ranking metrics; those of single values (AUC, MAE, ...) do not go with full sort
METRICS = (
    "averagepopularity", "gauc", "giniindex", "hit", "itemcoverage", "map", "mrr", "ndcg",
    "precision", "recall", "shannonentropy", "tailpercentage",
)  # fmt: skip

# What recbole_lea passes to from_pretrained itself.
LLM_OPTIONS_OF_OURS = ("dtype", "torch_dtype", "attn_implementation", "gguf_file")

# Options of from_pretrained that let a downloaded model bring code along.
UNSAFE_LLM_OPTIONS = ("trust_remote_code", "weights_only", "use_kernels", "kernel_config")

_EVAL_MODE = re.compile(r"full|(uni|pop)[1-9]\d*")


_WARMUP = re.compile(r"(\d+) (epochs?|steps?)")
_COUNT = _number(1, 10**9, int)
_WEIGHT = _number(0, 1e6)
_TEXT = _is(str, "a text")
_PATH = (_path, "a text without control characters")
_SHARE = _number(0, 0.999999)
_FLAG = _is(bool, "True or False")

RULES: dict[str, tuple[Check, str]] = {
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
    "advantage_clip": (_clip, "two numbers, [lowest, highest]"),
    "warmup": (
        lambda v: isinstance(v, str) and _WARMUP.fullmatch(v) is not None,
        '"N epochs" or "N steps"',
    ),
    "optimizer_reset": _FLAG,
    "w_ah": _WEIGHT,
    "w_aq": _WEIGHT,
    "exclude_target": _FLAG,
    "exclude_history": _one_of("auto", True, False),
    "augmentation_refresh": _number(0, 10**9, int),
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
    "lea_llm_options": _optional(
        (
            _llm_options,
            "options of from_pretrained such as device_map, but not "
            + ", ".join(LLM_OPTIONS_OF_OURS + UNSAFE_LLM_OPTIONS),
        )
    ),
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
    "lea_lora_targets": (
        lambda v: _path(v) or _strings(v),
        "a name or a list of names",
    ),
    "lea_state_loss": _one_of("softmax", "pairwise"),
    "lea_state_weight": _WEIGHT,
    "lea_selection_weight": _WEIGHT,
    "lea_state_input": _one_of("items", "prompt"),
    "lea_state_head": _one_of("residual", "none"),
    "lea_reward_head": _one_of("state", "none"),
}


# RecBole's keys that our models depend on, and that RecBole checks late, by another error, or not.
RECBOLE_RULES: dict[str, tuple[Check, str]] = {
    "transform": _optional(_TEXT),
    "epochs": _number(0, 10**9, int),
    "train_batch_size": _COUNT,
    "eval_batch_size": _COUNT,
    "learning_rate": _number(0, 1e3),
    "weight_decay": _optional(_number(0, 1e6)),
    "learner": _TEXT,
    "clip_grad_norm": _optional(_is(dict, "the options of clip_grad_norm_, such as {max_norm: 5}")),
    "eval_step": _number(0, 10**9, int),
    "stopping_step": _number(0, 10**9, int),
    "seed": _number(0, 2**32 - 1, int),
    "reproducibility": _FLAG,
    "shuffle": _FLAG,
    "show_progress": _FLAG,
    "loss_decimal_place": _number(0, 100, int),
    "metric_decimal_place": _number(0, 100, int),
    "data_path": _PATH,
    "checkpoint_dir": _PATH,
    "field_separator": _is(str, "a text"),
    "seq_separator": _is(str, "a text"),
    "USER_ID_FIELD": _PATH,
    "ITEM_ID_FIELD": _PATH,
    "TIME_FIELD": _PATH,
    "LIST_SUFFIX": _PATH,
    "MAX_ITEM_LIST_LENGTH": _COUNT,
    "load_col": _optional((_load_col, "a dict such as {inter: [user_id, item_id, timestamp]}")),
    "additional_feat_suffix": _optional((lambda v: _path(v) or _strings(v), "a list of suffixes")),
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
    "inner_size": _COUNT,
    "n_layers": _COUNT,
    "n_heads": _COUNT,
    "num_layers": _COUNT,
    "hidden_dropout_prob": _SHARE,
    "attn_dropout_prob": _SHARE,
    "dropout_prob": _SHARE,
    "hidden_act": _one_of("gelu", "relu", "swish", "tanh", "sigmoid"),
    "layer_norm_eps": _number(0, 1),
    "initializer_range": _number(0, 1e3),
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
    "benchmark_filename": "it gives rows without their order within the user, which the LE's "
    "feedback needs: give one .inter file and let eval_args split it",
}


def given_keys(arguments: Iterable[str]) -> list[str]:
    """Keys of arguments that a program leaves to RecBole.

    Raises:
        ValueError: an argument is not of the form ``--key=value``.
    """
    keys = []
    for argument in arguments:
        key, equals, _ = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals:
            raise ValueError(f"{argument}: not an option; keys are given as --key=value")
        keys.append(key)
    return keys


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" for the nearest known name, or nothing."""
    lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.6)
    return f"; did you mean `{lower[found[0]]}`?" if found else ""


def validate(config: Mapping[str, Any], given: Iterable[str], model: Any = None) -> None:
    """Check our keys, and RecBole's as far as our models depend on them.

    Nothing has been loaded by then: neither data nor a model.

    Args:
        config: all keys with their values.
        given: the keys that the user gave, by file, dict or command line.
        model: our model class; without it, what depends on the model is not checked.

    Raises:
        ValueError: an unknown ``lea_*`` key, a value of the wrong type or range, or values
            that contradict each other. The message names the key.
    """
    given = set(given)
    for key in given:
        if not isinstance(key, str):
            raise ValueError(f"`{key}` is no key: keys are texts")
        if key.startswith("lea_") and key not in RULES:
            raise ValueError(f"unknown key `{key}`{nearest(key, RULES)}")
    rules = RULES | {key: rule for key, rule in RECBOLE_RULES.items() if key in config}
    for key, (check, wanted) in rules.items():
        value = config.get(key)
        if not check(value):
            raise ValueError(f"`{key}` is {_short(value)}, but has to be {wanted}")
    for key, why in REFUSED.items():
        if config.get(key):
            raise ValueError(f"`{key}` is {_short(config[key])}, but has to be left out: {why}")
    _check_prompts(config)
    LESettings.from_config(config)  # checks how its values go together
    _check_protocol(config, given)
    transform = config.get("transform")
    if transform and transform.startswith("lea_") and transform not in TRANSFORMS:
        raise ValueError(f"unknown `transform: {transform}`{nearest(transform, TRANSFORMS)}")
    if model is not None:
        _check_method(config, model)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _check_prompts(config: Mapping[str, Any]) -> None:
    """Placeholders, which the LE itself sees only once the LLM is loaded."""
    check_sentence(config["lea_item_sentence"])
    if config["lea_prompt_items"] == "title":
        check_title(config["lea_title"])
    check_placeholders(config["lea_user_prompt"], ["history"], "lea_user_prompt")
    check_placeholders(config["lea_action_prompt"], ["item"], "lea_action_prompt")
    selection = config["lea_selection_prompt"] + config["lea_selection_suffix"]
    check_placeholders(selection, ["list"], "lea_selection_prompt")
    if config["lea_reward_prompt"] == "item_last":
        check_item_last(config["lea_action_prompt_item_last"])


def _check_protocol(config: Mapping[str, Any], given: set[str]) -> None:
    """What is read, how it is split, and what is measured."""
    split = (config.get("eval_args") or {}).get("split") or {}
    if config["eval_protocol"] == "paper" and "eval_args" in given and "RS" not in split:
        raise ValueError(
            "`eval_protocol: paper` splits whole sequences by ratio, but `eval_args` asks for "
            f"{split}: give a split RS, or eval_protocol: leave_one_out"
        )
    if "RS" not in split and (config.get("eval_args") or {}).get("group_by", "user") != "user":
        raise ValueError(f"`eval_args`: the split {split} needs `group_by: user`")
    if config["lea_compare"] and split and not parts_of(split)[-1]:
        raise ValueError(
            f"`lea_compare` compares test results, but `eval_args` has the split {split}, without "
            "a test part: set lea_compare: False, or another split"
        )
    columns = (config.get("load_col") or {}).get("inter", "*")
    for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD"):
        field = config.get(key)
        if field is not None and columns != "*" and field not in columns:
            raise ValueError(
                f"`load_col`: inter: {_short(columns)} lacks {field}, the field that `{key}` names"
            )
    name, at, k = config["valid_metric"].partition("@")
    metrics, topk = config["metrics"], config["topk"]
    names = [m.lower() for m in ([metrics] if isinstance(metrics, str) else metrics)]
    cuts = topk if isinstance(topk, list) else [topk]
    no_cut = name.lower() == "gauc"
    right = not at if no_cut else k in map(str, cuts)
    if name.lower() not in names or not right:
        raise ValueError(
            f"`valid_metric` is {config['valid_metric']!r}, but has to be one of `metrics` "
            f"({', '.join(names)}) at one of `topk` ({', '.join(map(str, cuts))}), such as "
            f"{names[0]}@{cuts[0]}"
        )


def _check_method(config: Mapping[str, Any], model: Any) -> None:
    """What the method, the model and the way the LE is asked have to do with each other."""
    chosen = switches(config, model.rl_loss)
    method, transform = config["lea_method"], config.get("transform")
    stop = config["lea_stop_after"]
    if stop == "feedback" and not chosen.needs_le:
        raise ValueError(
            f"`lea_stop_after: {stop}`: lea_method {method} uses nothing of the LE; choose another "
            "method, or one stage to build"
        )
    if (chosen.needs_le or stop) and transform not in TRANSFORMS:
        raise ValueError(
            f"lea_method {method} needs the LE's feedback, but the key `transform` is {transform}: "
            "set `transform: lea_feedback` (precomputed) or `transform: lea_live`"
        )
    if transform == "lea_live" and config["state_dim"] is not None and chosen.needs_le:
        raise ValueError(
            "`state_dim` needs all states beforehand: leave it out, or set transform: lea_feedback"
        )
    if transform == "lea_live" and chosen.needs_le and config.get("local_rank") is not None:
        raise ValueError(
            "`transform: lea_live` works in one process: leave out nproc, or set transform: "
            "lea_feedback"
        )
    # a file of keys for several models may give n_heads to those that have none
    if model.backbone_class().__name__ == "SASRec" and config["hidden_size"] % config["n_heads"]:
        raise ValueError(
            f"`hidden_size` is {config['hidden_size']}, but has to be a multiple of `n_heads`, "
            f"which is {config['n_heads']}"
        )
    count, unit = config["warmup"].split()
    in_epochs = unit.startswith("epoch") and not config["lea_valid_steps"]
    warms_up = needs_warmup(chosen, model.rl_loss, config["q_weight"]) and not stop
    if warms_up and in_epochs and config["epochs"] <= int(count):
        logger.warning(
            "`epochs` is %d and `warmup` %s: the training will end before what starts after the "
            "warm-up (the advantage, the augmentation)", config["epochs"], config["warmup"],
        )  # fmt: skip


def warn_of_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    """Say which of the keys that the user gave nobody reads: RecBole takes any silently.

    Args:
        given: the keys that the user gave.
        known: the keys of RecBole and of the model.
    """
    known = {*known, *RULES, *RECBOLE_RULES, *REFUSED}
    for key in sorted(set(given) - known):
        logger.warning("unknown key `%s`: neither RecBole nor recbole_lea reads it%s",
                       key, nearest(key, known))  # fmt: skip


def warmup_steps(warmup: str, steps_per_epoch: int) -> int:
    """ "N epochs" or "N steps" in optimiser steps."""
    count, unit = warmup.split()
    return int(count) * (steps_per_epoch if unit.startswith("epoch") else 1)


def absolute_paths(config: Mapping[str, Any]) -> dict[str, str]:
    """The paths among a config's values, for a run that works in another folder.

    Args:
        config: RecBole's, of a model of ours or (without the LE's keys) of RecBole's.
    """
    paths = {"data_path": str(Path(config["data_path"]).absolute())}
    if config["lea_cache_dir"]:
        paths["lea_cache_dir"] = str(Path(config["lea_cache_dir"]).absolute())
    if config["lea_llm"] and Path(config["lea_llm"]).exists():
        paths["lea_llm"] = str(Path(config["lea_llm"]).absolute())
    return paths
