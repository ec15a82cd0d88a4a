"""How the values of our keys, and of RecBole's, have to go together."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from recbole_lea import keys
from recbole_lea.le.settings import LESettings
from recbole_lea.methods import switches

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
    keys.check_values(config, given)
    LESettings.from_config(config)  # checks the prompts, and how its values go together
    _refuse(_of_protocol(config, set(given)))
    if model is not None:
        _refuse(_of_method(config, model))


def _refuse(contradictions: Iterable[tuple[bool, str]]) -> None:
    for holds, message in contradictions:
        if holds:
            raise ValueError(message)


def _of_protocol(config: Mapping[str, Any], given: set[str]) -> list[tuple[bool, str]]:
    """Contradictions in what is read, how it is split, and what is measured."""
    args = config.get("eval_args") or {}
    split, transform = args.get("split") or {}, config.get("transform") or ""
    by_ratio = "RS" in split
    name, at, k = config["valid_metric"].partition("@")
    metrics, topk = config["metrics"], config["topk"]
    names = [m.lower() for m in ([metrics] if isinstance(metrics, str) else metrics)]
    cuts = topk if isinstance(topk, list) else [topk]
    measured = not at if name.lower() == "gauc" else k in map(str, cuts)
    return [
        (config["eval_protocol"] in keys.WHOLE_SEQUENCES and "eval_args" in given and not by_ratio,
         f"`eval_protocol: {config['eval_protocol']}` splits whole sequences by ratio, but "
         f"`eval_args` asks for {split}: give a split RS, or eval_protocol: leave_one_out"),
        (not by_ratio and args.get("group_by", "user") != "user",
         f"`eval_args`: the split {split} needs `group_by: user`"),
        (config["lea_compare"] and bool(split) and not keys.parts_of(split)[-1],
         f"`lea_compare` compares test results, but `eval_args` has the split {split}, without a "
         "test part: set lea_compare: False, or another split"),
        (name.lower() not in names or not measured,
         f"`valid_metric` is {config['valid_metric']!r}, but has to be one of `metrics` "
         f"({', '.join(names)}) at one of `topk` ({', '.join(map(str, cuts))}), such as "
         f"{names[0]}@{cuts[0]}"),
        (transform.startswith("lea_") and transform not in keys.TRANSFORMS,
         f"unknown `transform: {transform}`{keys.nearest(transform, keys.TRANSFORMS)}"),
    ]  # fmt: skip


def _of_method(config: Mapping[str, Any], model: Any) -> list[tuple[bool, str]]:
    """Contradictions of the method, the model and the way the LE is asked."""
    chosen = switches(config, model.rl_loss)
    method, transform, stop = (config[key] for key in ("lea_method", "transform", "lea_stop_after"))
    # a file of keys for several models may give n_heads to those that have none
    width, heads = config.get("hidden_size", 1), config.get("n_heads", 1)
    has_heads = model.backbone_class().__name__ == "SASRec"
    return [
        (stop == "feedback" and not chosen.needs_le,
         f"`lea_stop_after: {stop}`: lea_method {method} uses nothing of the LE; choose another "
         "method, or one stage to build"),
        ((chosen.needs_le or stop is not None) and transform not in keys.TRANSFORMS,
         f"lea_method {method} needs the LE's feedback, but the key `transform` is {transform}: "
         "set `transform: lea_feedback` (precomputed) or `transform: lea_live`"),
        (transform == "lea_live" and config["state_dim"] is not None and chosen.needs_le,
         "`state_dim` needs all states beforehand: leave it out, or set transform: lea_feedback"),
        (has_heads and width % heads > 0,
         f"`hidden_size` is {width}, but has to be a multiple of `n_heads`, which is {heads}"),
    ]  # fmt: skip


def warn_of_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    """Say which given keys are not among those of RecBole or the model: RecBole takes any."""
    known = {*known, *keys.RULES, *keys.RECBOLE_RULES, *keys.REFUSED}
    for key in sorted(set(given) - known):
        logger.warning("unknown key `%s`: neither RecBole nor recbole_lea reads it%s",
                       key, keys.nearest(key, known))  # fmt: skip
