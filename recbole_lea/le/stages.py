"""The LE's stages as a table: what each is made of, what it needs, and what computes it.

A stage's cache key changes with what it is made of and with nothing else.
"""

import dataclasses
import hashlib
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_lea.engine.llm import PLACEMENT
from recbole_lea.engine.versions import versions
from recbole_lea.le import answers
from recbole_lea.le.environment import Environment
from recbole_lea.le.projection import project, projection_bounds
from recbole_lea.le.prompts import action_prompt
from recbole_lea.le.settings import LESettings
from recbole_lea.le.text import DECAY
from recbole_lea.store.cache import Layout, Stage

if TYPE_CHECKING:
    from recbole_lea.le.pipeline import Pipeline

logger = logging.getLogger(__name__)

# Bumped when a stage computes something else from the same inputs.
FORMAT = 3

TOKENS, ADAPTER, HISTORY = "tokens.npy", "adapter.safetensors", "history.json"


def table(le: "Pipeline") -> dict[str, Stage]:
    """The stages that no list of candidates changes, in the paper's order."""
    s, n = le.settings, le.sequences
    items = Stage(
        "items", "item tokenization", item_parts(le), le.llm, le.tokenize, files=(TOKENS,)
    )
    environment = Stage(
        "environment", "LE fine-tuning", environment_parts(le, items.key), le.llm, le.finetune,
        files=(ADAPTER, HISTORY),
    )  # fmt: skip
    if s.environment == "text":
        made_of = parts(items=items.key, sequences=n.fingerprint, text=text_parts(s))
        environment = Stage(
            "environment", "text environment", made_of, le.text_environment, le.measure_text,
            files=(HISTORY,),
        )  # fmt: skip
    states = Stage(
        "states", "states", parts(environment=environment.key),
        le.environment, partial(answers.states, n, le.bar("states")),
        array="states", layout=lambda: _by_shard(le, n.state_starts, le.llm_width, "float16", {}),
    )  # fmt: skip
    rewards = rewards_of(
        le, le.actions, "rewards", "rewards",
        parts(environment=environment.key, negative_pool=s.negative_pool), reuse=False,
    )  # fmt: skip
    stages = [items, environment, states, rewards]
    if (dim := s.state_dim) is not None:
        bounds = projection_bounds(n.n_states, dim)
        stages += [Stage(
            "projection", f"projection to {dim}", parts(states=states.key, state_dim=dim),
            le.full_states, partial(project, dim),
            array="states", layout=lambda: Layout((n.n_states, dim), "float16", bounds),
        )]  # fmt: skip
    return {stage.name: stage for stage in stages}


def rewards_of(
    le: "Pipeline", actions: np.ndarray, name: str, title: str, made_of: Any, reuse: bool = True
) -> Stage:
    """Rewards of actions [n_transitions, k]; ``reuse`` those that other stages hold."""

    def needs() -> tuple[Environment | None, np.ndarray]:
        known = np.broadcast_to(np.float32(np.nan), actions.shape)
        if reuse:
            known = le.known_rewards(actions)
            share = 100 * (1 - np.isnan(known).mean())
            logger.info("%s: %.0f %% of the rewards are in the cache", title, share)
        return le.environment() if np.isnan(known).any() else None, known

    return Stage(
        name, title, made_of, needs, partial(answers.rewards, le.sequences, actions, le.bar(title)),
        array="rewards", layout=lambda: about_transitions(le, actions),
    )  # fmt: skip


def about_transitions(le: "Pipeline", actions: np.ndarray) -> Layout:
    """One number for each action [n_transitions, k]; the actions are stored beside them."""
    beside = {"actions": actions.astype(np.int32)}
    return _by_shard(le, le.sequences.transition_starts, actions.shape[1], "float32", beside)


def _by_shard(le, starts, width, dtype, beside) -> Layout:
    """Shards are ranges of sequences, whose rows begin at ``starts`` [n_sequences + 1]."""
    bounds = starts[answers.shard_bounds(le.sequences)].tolist()
    return Layout((bounds[-1], width), dtype, bounds, beside)


def parts(**made_of: Any) -> dict[str, Any]:
    """What a stage is made of, and the format."""
    return {"format": FORMAT, **made_of}


def item_parts(le: "Pipeline") -> dict[str, Any]:
    """What item tokens are made of: the LLM, and the sentence of each item."""
    s = le.settings
    options = {k: v for k, v in (s.llm_options or {}).items() if k not in PLACEMENT}
    return parts(
        llm=le.llm_fingerprint,
        tokens=le.catalogue.tokens,
        sentences=le.sentences,
        settings=_of(s, "item_"),
        quantization=options.pop("quantization_config", None),
        seed=s.seed if s.item_init == "random" else None,
        **({"llm_options": options} if options else {}),
    )


def environment_parts(le: "Pipeline", items: str) -> dict[str, Any]:
    """What the fine-tuned LE is made of, beside the item tokens with the key ``items``."""
    s = le.settings
    prompts: dict[str, Any] = {"prompt": s.user_prompt, "action": action_prompt(s)[0]}
    prompts |= _of(s, "max_history", "history_hop", "state_input")
    if le.titles is not None:
        prompts["titles"] = le.titles
    learning = _of(s, "finetune_", "lora_", "state_loss")
    del learning["finetune_eval"]  # it measures only
    if s.selection_weight:
        learning["selection"] = {"weight": s.selection_weight, **question(s)}
    return parts(
        items=items,
        sequences=le.sequences.fingerprint,
        prompts=prompts,
        settings=learning,
        **_of(s, "state_weight", "state_head", "reward_head", "seed"),
    )


def text_parts(settings: LESettings) -> dict[str, Any]:
    """What the states and rewards of ``lea_environment: text`` are made of, beside texts."""
    return {"decay": DECAY, "max_history": settings.max_history}


def question(settings: LESettings) -> dict[str, Any]:
    """What the positive-action model is asked."""
    prompt = settings.selection_prompt + settings.selection_suffix
    return {"prompt": prompt, "labels": settings.selection_labels}


def _of(settings: LESettings, *prefixes: str) -> dict[str, Any]:
    """The settings whose names begin so."""
    values = dataclasses.asdict(settings)
    return {name: value for name, value in values.items() if name.startswith(prefixes)}


def digest(array: np.ndarray) -> str:
    """Hex digest of an array's numbers."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def origin(le: "Pipeline", stage: str) -> dict[str, Any]:
    """What a stage's record tells about where it comes from."""
    settings = dataclasses.asdict(le.settings)
    del settings["cache_dir"]  # a cache may be copied
    keys, fingerprint = le.keys, None if stage == "items" else le.sequences.fingerprint
    return {
        "stage": stage,
        "key": keys[stage],
        "environment": fingerprint and keys["environment"],
        "sequences": fingerprint and le.sequences.name,
        "fingerprints": {
            "llm": le.llm_fingerprint, "items": keys["items"], "sequences": fingerprint,
        },
        "llm_dtype": le.llm_dtype,
        "settings": settings,
        "versions": versions(),
        "code": le.code,
    }  # fmt: skip
