"""What each stage of an LE is made of; its cache key changes with this and with nothing else."""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from recbole_lea.engine.llm import PLACEMENT
from recbole_lea.le.prompts import action_prompt
from recbole_lea.le.settings import LESettings

# Bumped when a stage computes something else from the same inputs.
FORMAT = 3


def parts(**made_of: Any) -> dict[str, Any]:
    """What a stage is made of, and the format."""
    return {"format": FORMAT, **made_of}


def item_parts(
    settings: LESettings, llm: str, tokens: list[str], sentences: list[str]
) -> dict[str, Any]:
    """Of item tokens: the LLM's fingerprint, and the sentence of each item."""
    options = {k: v for k, v in (settings.llm_options or {}).items() if k not in PLACEMENT}
    return parts(
        llm=llm,
        tokens=tokens,
        sentences=sentences,
        settings=_of(settings, "item_"),
        quantization=options.pop("quantization_config", None),
        seed=settings.seed if settings.item_init == "random" else None,
        **({"llm_options": options} if options else {}),
    )


def environment_parts(
    settings: LESettings, items: str, sequences: str, titles: list[str] | None
) -> dict[str, Any]:
    """Of the fine-tuned LE: the key of its item tokens, its sequences' fingerprint, its prompts."""
    s = settings
    prompts: dict[str, Any] = {"prompt": s.user_prompt, "action": action_prompt(s)[0]}
    prompts |= _of(s, "max_history", "history_hop", "state_input")
    if titles is not None:
        prompts["titles"] = titles
    learning = _of(s, "finetune_", "lora_", "state_loss")
    del learning["finetune_eval"]  # it measures only
    if s.selection_weight:
        learning["selection"] = {"weight": s.selection_weight, **_question(s)}
    return parts(
        items=items,
        sequences=sequences,
        prompts=prompts,
        settings=learning,
        **_of(s, "state_weight", "state_head", "reward_head", "seed"),
    )


def selection_parts(
    settings: LESettings, environment: str, candidates: np.ndarray
) -> dict[str, Any]:
    """Of the LE's answers about lists of candidates [n_transitions, k]."""
    by = settings.selection_by
    asked = _question(settings) if by == "label" else {"by": by}
    return parts(environment=environment, candidates=digest(candidates), **asked)


def digest(array: np.ndarray) -> str:
    """Hex digest of an array's numbers."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _question(settings: LESettings) -> dict[str, Any]:
    prompt = settings.selection_prompt + settings.selection_suffix
    return {"prompt": prompt, "labels": settings.selection_labels}


def _of(settings: LESettings, *prefixes: str) -> dict[str, Any]:
    """The settings whose names begin so."""
    values = dataclasses.asdict(settings)
    return {name: value for name, value in values.items() if name.startswith(prefixes)}
