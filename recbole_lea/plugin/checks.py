"""How the values of our keys, and of RecBole's, have to go together."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from recbole_lea.keys import (
    RECBOLE_RULES,
    REFUSED,
    RULES,
    TRANSFORMS,
    check_values,
    nearest,
    parts_of,
)
from recbole_lea.le.settings import LESettings
from recbole_lea.methods import needs_warmup, switches

logger = logging.getLogger(__name__)


def validate(config: Mapping[str, Any], given: Iterable[str], model: Any = None) -> None:
    """Check all keys, before data or a model are loaded.

    Args:
        config: all keys with their values.
        given: the keys that the user gave, by file, dict or command line.
        model: our model class; without it, what depends on the model is not checked.

    Raises:
        ValueError: a key or a value is wrong, or values contradict each other; names the key.
    """
    check_values(config, given)
    LESettings.from_config(config)  # checks the prompts, and how its values go together
    _check_protocol(config, set(given))
    transform = config.get("transform")
    if transform and transform.startswith("lea_") and transform not in TRANSFORMS:
        raise ValueError(f"unknown `transform: {transform}`{nearest(transform, TRANSFORMS)}")
    if model is not None:
        _check_method(config, model)


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
    name, at, k = config["valid_metric"].partition("@")
    metrics, topk = config["metrics"], config["topk"]
    names = [m.lower() for m in ([metrics] if isinstance(metrics, str) else metrics)]
    cuts = topk if isinstance(topk, list) else [topk]
    cut_is_right = not at if name.lower() == "gauc" else k in map(str, cuts)
    if name.lower() not in names or not cut_is_right:
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
    """Say which given keys are not among those of RecBole or the model: RecBole takes any."""
    known = {*known, *RULES, *RECBOLE_RULES, *REFUSED}
    for key in sorted(set(given) - known):
        logger.warning("unknown key `%s`: neither RecBole nor recbole_lea reads it%s",
                       key, nearest(key, known))  # fmt: skip
