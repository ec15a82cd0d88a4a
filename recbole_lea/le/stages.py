"""The LE's stages as a table: what each is made of, what it needs, and what computes it.

A stage's cache key changes with what it is made of and with nothing else.
"""

import dataclasses
import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recbole_lea.engine.llm import PLACEMENT
from recbole_lea.engine.versions import versions
from recbole_lea.le import answers
from recbole_lea.le.environment import Environment
from recbole_lea.le.finetune import HISTORY
from recbole_lea.le.item_keys import DEPTH, item_keys, key_bounds
from recbole_lea.le.item_tokens import TOKENIZATION, TOKENS, sentence_ids, tokenize
from recbole_lea.le.prompts import action_prompt
from recbole_lea.le.settings import LESettings
from recbole_lea.le.text import DECAY, measure
from recbole_lea.store.arrays import pieces
from recbole_lea.store.cache import Layout, Stage

if TYPE_CHECKING:
    from recbole_lea.le.pipeline import Pipeline

# Bumped when a stage computes something else from the same inputs.
FORMAT = 3

ADAPTER = "adapter.safetensors"


def table(le: "Pipeline") -> dict[str, Stage]:
    """The stages that no list of candidates changes, in the paper's order."""
    s, n, n_items = le.settings, le.sequences, len(le.catalogue)
    reader = (lambda: None) if s.item_init == "tfidf" else le.llm
    items = Stage("items", TOKENIZATION, item_parts(le), reader, partial(tokenize, le), (TOKENS,))
    keys = Stage(
        "keys", "item keys", parts(**item_text(le), max_tokens=s.item_max_tokens, depth=DEPTH),
        lambda: Environment(le.llm(), torch.zeros(1, le.llm().width), s, adapted=False),
        partial(_key_shards, le), array="keys",
        layout=lambda: Layout((n_items, le.llm_width), "float32", key_bounds(n_items)),
    )  # fmt: skip
    made_of, files = environment_parts(le, items.key), (ADAPTER, HISTORY)
    if s.state_keys == "hidden":
        made_of["keys"] = keys.key
    environment = Stage("environment", "LE fine-tuning", made_of, le.llm, le.finetune, files)
    if s.environment == "text":
        text = {"decay": DECAY, "max_history": s.max_history}
        made_of = parts(items=items.key, sequences=n.fingerprint, text=text)
        environment = Stage(
            "environment", "text similarity", made_of,
            lambda: le.adapted, partial(measure, n), (HISTORY,),
        )  # fmt: skip
    states = Stage(
        "states", "states", parts(environment=environment.key),
        le.environment, partial(answers.states, n, le.bar("states")),
        array="states", layout=lambda: _by_shard(le, n.state_starts, le.llm_width, "float16"),
    )  # fmt: skip
    made_of = parts(environment=environment.key, negative_pool=s.negative_pool)
    rewards = rewards_of(le, le.actions, "rewards", "rewards", made_of, reuse=False)
    stages = [items, *[keys] * (s.state_keys == "hidden"), environment, states, rewards]
    if (dim := s.state_dim) is not None:
        bounds = answers.projection_bounds(n.n_states, dim)
        stages += [Stage(
            "projection", f"projection to {dim}", parts(states=states.key, state_dim=dim),
            le.full_states, partial(answers.project, dim),
            array="states", layout=lambda: Layout((n.n_states, dim), "float16", bounds),
        )]  # fmt: skip
    return {stage.name: stage for stage in stages}


def _key_shards(le: "Pipeline", environment: Environment, missing: list[int]) -> answers.Filled:
    ids, _ = sentence_ids(le.sentences, environment, le.llm().tokenizer)
    return item_keys(ids, le.bar("item keys"), environment, missing)


def rewards_of(
    le: "Pipeline", actions: np.ndarray, name: str, title: str, made_of: Any, reuse: bool = True
) -> Stage:
    """Rewards of actions [n_transitions, k]; ``reuse`` those that other stages hold."""

    def needs() -> tuple[Environment | None, np.ndarray]:
        nothing = np.broadcast_to(np.float32(np.nan), actions.shape)
        known = known_rewards(le, actions) if reuse else nothing
        return le.environment() if np.isnan(known).any() else None, known

    return of_actions(le, actions, name, title, made_of, needs, answers.rewards, "rewards")


def both(le: "Pipeline") -> Stage:
    """The stage ``rewards``, which also fills what the stage ``states`` has on disk."""
    title, states = "states and rewards", le.cache.store(le.cache.table["states"])
    asked = (le.sequences, le.actions, le.bar(title), states)
    compute, rewards = partial(answers.states_and_rewards, *asked), le.cache.table["rewards"]
    return dataclasses.replace(rewards, title=title, needs=le.environment, compute=compute)


def of_actions(
    le: "Pipeline", actions: np.ndarray, name, title, made_of, needs, ask, array: str
) -> Stage:
    """One number for each action [n_transitions, k]; the actions are stored beside them."""
    starts, k = le.sequences.transition_starts, actions.shape[1]
    compute = partial(ask, le.sequences, actions, le.bar(title))
    return Stage(
        name, title, made_of, needs, compute, array=array,
        layout=lambda: _by_shard(le, starts, k, "float32", actions=actions.astype(np.int32)),
    )  # fmt: skip


def known_rewards(le: "Pipeline", actions: np.ndarray) -> np.ndarray:
    """What finished stages of this LE say of actions [n_transitions, k]; NaN for nothing.

    Such a reward equals one that is computed now up to the rounding of another row's layout.
    """
    known = np.full(actions.shape, np.nan, dtype=np.float32)
    for store in le.cache.stores({"actions", "rewards"}, environment=le.keys["environment"]):
        arrays = (known, actions, store.array("actions"), store.array("rewards"))
        for part, wanted, scored, scores in zip(*map(pieces, arrays), strict=True):
            for column in range(scored.shape[1]):
                new = np.isnan(part) & (wanted == scored[:, column, None])  # [m, k]
                np.copyto(part, scores[:, column, None], where=new)
    return known


def _by_shard(le, starts, width, dtype, **beside) -> Layout:
    """Shards are ranges of sequences, whose rows begin at ``starts`` [n_sequences + 1]."""
    bounds = starts[answers.shard_bounds(le.sequences)].tolist()
    return Layout((bounds[-1], width), dtype, bounds, beside)


def parts(**made_of: Any) -> dict[str, Any]:
    """What a stage is made of, with the format."""
    return {"format": FORMAT, **made_of}


def item_parts(le: "Pipeline") -> dict[str, Any]:
    """What item tokens are made of."""
    s = le.settings
    seed = s.seed if s.item_init == "random" else None
    return parts(**item_text(le), settings=_of(s, "item_"), seed=seed)


def item_text(le: "Pipeline") -> dict[str, Any]:
    """The LLM, and the sentence of each item."""
    s = le.settings
    options = {k: v for k, v in (s.llm_options or {}).items() if k not in PLACEMENT}
    quantization = options.pop("quantization_config", None)
    return {
        "llm": le.llm_fingerprint, "tokens": le.catalogue.tokens, "sentences": le.sentences,
        "quantization": quantization, **({"llm_options": options} if options else {}),
    }  # fmt: skip


def environment_parts(le: "Pipeline", items: str) -> dict[str, Any]:
    """What the fine-tuned LE is made of, beside the item tokens with the key ``items``."""
    s = le.settings
    prompts: dict[str, Any] = {"prompt": s.user_prompt, "action": action_prompt(s)}
    prompts |= _of(s, "max_history", "history_hop", "state_input")
    prompts |= {"titles": le.titles} if le.titles is not None else {}
    learning = _of(s, "finetune_", "lora_", "state_loss")
    del learning["finetune_eval"]  # it measures only
    # left out where it is the default, so that LEs from before there was this setting are found
    drawn = _of(s, "negative_distribution") if s.negative_distribution != "uniform" else {}
    return parts(
        items=items, sequences=le.sequences.fingerprint, prompts=prompts, settings=learning,
        **_of(s, "state_weight", "state_head", "reward_head", "seed"), **drawn,
    )  # fmt: skip


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
    keys, of_items = le.keys, stage in ("items", "keys")
    fingerprint = None if of_items else le.sequences.fingerprint
    prints = {"llm": le.llm_fingerprint, "items": keys["items"], "sequences": fingerprint}
    prints |= {} if of_items or "keys" not in keys else {"keys": keys["keys"]}
    return {
        "stage": stage, "key": keys[stage], "environment": fingerprint and keys["environment"],
        "sequences": fingerprint and le.sequences.name, "fingerprints": prints,
        "llm_dtype": le.llm_dtype, "settings": settings, "versions": versions(), "code": le.code,
    }  # fmt: skip
