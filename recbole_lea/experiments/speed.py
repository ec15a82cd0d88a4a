"""What the LE costs, against padded batches in the same run.

``python -m recbole_lea.benchmark --speed --dataset industrial`` prints one JSON object last.
"""

import dataclasses
import itertools
import logging
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from recbole.config import Config

from recbole_lea.engine.llm import compile_layers, load_llm, pick_device
from recbole_lea.engine.packing import pack
from recbole_lea.engine.stagelog import StageLog
from recbole_lea.experiments.training_speed import timed, training_ratios
from recbole_lea.le import finetune, quality
from recbole_lea.le import item_tokens as tokenization
from recbole_lea.le.environment import Environment, PromptEnds
from recbole_lea.le.pipeline import Pipeline
from recbole_lea.le.prompts import Prompts
from recbole_lea.le.sequences import Sequences, sample_negatives
from recbole_lea.le.settings import LESettings
from recbole_lea.plugin.dataset import LEADataset

logger = logging.getLogger(__name__)

# The loss of the unpacked fine-tuning loop.
LOSS: dict[str, Any] = {"finetune_negatives": 1, "state_loss": "softmax"}
# What is measured: the paper's prompts, and ours as the settings have them.
TEMPLATES: dict[str, dict[str, Any]] = {
    "paper": LOSS | {"reward_prompt": "paper", "state_input": "items", "reward_head": "none"},
    "item_last": LOSS | {"reward_prompt": "item_last"},
}
# Times --rows for feedback: a packed transition has a seventh of the tokens of the paper's wording,
# and a batch or two that are not full would be most of what is measured.
SAMPLES = {"paper": 1, "item_last": 8}
PADDED_BATCH = 32  # prompts a batch of the unpacked Hugging Face loop
PASSES = 3
STEPS = 6  # of fine-tuning


def flops_per_token(model: Any) -> float:
    """Forward FLOPs a token: two per weight of the decoder's matrices (nanoGPT's estimate, after
    the appendix of https://arxiv.org/abs/2204.02311, without attention and vocabulary)."""
    return 2.0 * sum(p.numel() for p in _matrices(model))


def _matrices(model: Any) -> list[torch.Tensor]:
    return [p for p in model.get_decoder().layers.parameters() if p.dim() == 2]


def matmul_rate(model: Any, tokens: int) -> float:
    """FLOP/s of the decoder's own matrix products, ``tokens`` rows at a time, layer by layer."""
    matrices = _matrices(model)
    widths = {p.shape[1] for p in matrices}
    rows = {w: torch.randn(tokens, w).to(matrices[0]) for w in widths}

    @torch.inference_mode()
    def products() -> None:
        for p in matrices:
            torch.nn.functional.linear(rows[p.shape[1]], p)

    products()
    return tokens * flops_per_token(model) / min(timed(products) for _ in range(3))


@torch.inference_mode()
def padded_rewards(env: Environment, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """Rewards by Hugging Face batches: sorted by length, right-padded."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    rewards = np.zeros(len(prompts), dtype=np.float32)
    for start in range(0, len(order), PADDED_BATCH):
        members = order[start : start + PADDED_BATCH]
        ends = padded_ends(env, [prompts[i] for i in members])
        rewards[members] = env.reward_of(ends).cpu().numpy()
    return rewards


def padded_ends(env: Environment, prompts: Sequence[Sequence[int]]) -> PromptEnds:
    """What stands at the end of each prompt of one padded batch."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
    with env.precision():
        output = env.decoder(
            inputs_embeds=env.embed(ids.to(env.device), env.item_tokens),
            attention_mask=mask.to(env.device),
            use_cache=False,
        )
    rows = torch.arange(len(prompts))

    def at(columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        items = ids[rows, columns].to(env.device) - env.vocab_size
        return output.last_hidden_state[rows, columns].float(), items

    ends = at(lengths - 1)
    if env.settings.state_input == "items":
        return PromptEnds(*ends)
    places = [[i for i, t in enumerate(p) if t >= env.vocab_size][-2:] for p in prompts]
    actions, before = (torch.tensor([p[k] for p in places]) for k in (-1, 0))
    return PromptEnds(*ends, at(actions)[1], *at(before))


def packed_tokens(groups: list, settings: LESettings) -> int:
    """Tokens of the packed rows of groups of prompts."""
    batches = pack(groups, settings.row_length, settings.batch_rows)
    return sum(batch.n_tokens for batch in batches)


def feedback_cost(env: Environment, groups: list[list[list[int]]]) -> dict[str, Any]:
    """Packed rewards against padded ones: same prompts, LLM (adapter merged), dtype, attention.

    Alternating passes, of which the medians count: one pass alone is off by a third on a shared
    machine. Last come passes with compiled layers, as the pipeline has them from 10,000
    transitions on (the compilation itself is not counted), and matrix products between them.
    """
    prompts = [prompt for group in groups for prompt in group]
    s = env.settings
    tokens = packed_tokens(groups, s)
    rewards: dict[str, np.ndarray] = {}

    def packed() -> None:
        rewards["packed"] = env.answer(groups, env.reward_of)

    def padded() -> None:
        rewards["padded"] = padded_rewards(env, prompts)

    packed()  # every shape once
    padded()
    passes = [(timed(packed), timed(padded)) for _ in range(PASSES)]
    uncompiled, unpacked = (statistics.median(times) for times in zip(*passes, strict=True))
    difference = np.abs(rewards["packed"] - rewards["padded"])
    compile_layers(env.llm)
    packed()
    peak = [matmul_rate(env.llm, s.row_length * s.batch_rows) for _ in range(PASSES)]
    seconds = statistics.median(timed(packed) for _ in range(PASSES))
    floor = tokens * flops_per_token(env.llm) / statistics.median(peak)  # seconds
    return {
        "feedback_speedup": unpacked / seconds,
        "feedback_speedup_uncompiled": unpacked / uncompiled,
        "feedback_token_ratio": sum(map(len, prompts)) / tokens,
        "feedback_tokens": tokens,
        "feedback_seconds": seconds,
        "feedback_tokens_per_second": tokens / seconds,
        "utilisation": floor / seconds,
        "utilisation_uncompiled": floor / uncompiled,
        "max_abs_diff": float(difference.max()),
        "reward_deviation": float(rewards["padded"].std()),
        "same_ranking": same_ranking(rewards["packed"], rewards["padded"]),
    }


def same_ranking(a: np.ndarray, b: np.ndarray) -> float:
    """Share of all pairs of entries that two vectors rank alike."""
    upper = np.triu_indices(len(a), 1)
    order_a, order_b = (np.sign(x[:, None] - x[None])[upper] for x in (a, b))
    return float((order_a == order_b).mean())


def pool_seconds(env: Environment, pipeline: Pipeline, pool: int) -> float:
    """Seconds of rewards with so many scored negatives."""
    drawn = sample_negatives(pipeline.sequences, len(pipeline.catalogue), pool, seed=0)
    groups = reward_groups(env.prompts, pipeline.sequences, drawn)
    env.answer(groups[: len(groups) // 8], env.reward_of)
    return timed(partial(env.answer, groups, env.reward_of))


def finetune_cost(env: Environment, sequences: Sequences) -> dict[str, float]:
    """Steps of fine-tuning, packed against chosen and rejected prompts concatenated.

    The unpacked loop has the same remedies: no upcast in peft, the same attention, a state that
    stands in a reward prompt is read there. As the pipeline does from 10,000 transitions on, the
    packed steps are then timed with compiled layers too.
    """
    settings = env.settings
    learned = [s for s in range(len(sequences)) if len(sequences.items[s]) > 1]
    rng = np.random.default_rng(0)
    batches = finetune.epoch_batches(sequences, learned, settings.finetune_batch_size, rng)
    parameters = [p for p in env.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-5, fused=True)

    def packed(batch: list) -> float:
        step = partial(finetune._train_step, env, optimizer, sequences, batch, rng)
        return timed(step)

    measured = list(itertools.islice(itertools.cycle(batches), STEPS + 1))
    unpacked = partial(_unpacked_step, env, optimizer, sequences)
    pairs = [(timed(partial(unpacked, batch)), packed(batch)) for batch in measured]
    theirs, ours = (statistics.median(times[1:]) for times in zip(*pairs, strict=True))
    compile_layers(env.llm.base_model.model)
    compiled = statistics.median([packed(batch) for batch in measured * 2][len(measured) :])
    return {
        "finetune_speedup": theirs / compiled,
        "finetune_step_seconds": compiled,
        "finetune_speedup_uncompiled": theirs / ours,
    }


def _unpacked_step(
    env: Environment, optimizer: torch.optim.Optimizer, sequences: Sequences, batch: list
) -> None:
    env.train()
    positives = np.array([sequences.action(s, t) for s, t in batch])
    negatives = (positives[:, None] + 1) % 9
    groups = quality.comparisons(env, sequences, batch, np.c_[positives, negatives])
    optimizer.zero_grad()
    n = len(batch)
    read = padded_ends(env, [group[0] for group in groups] + [group[1] for group in groups])
    rewards = env.reward_of(read)
    if env.settings.state_input == "items":
        ends = padded_ends(env, [group[2] for group in groups])
    else:  # the chosen prompts hold the states already
        assert read.before is not None and read.before_items is not None
        ends = PromptEnds(read.before[:n], read.before_items[:n])
    states = env.state_head.query(env.state_of(ends))
    loss = finetune.reward_loss(rewards[:n], rewards[n:]).mean()
    items = torch.from_numpy(positives).to(env.device)
    losses = finetune.state_softmax_loss(states, env.state_head.keys, items)
    (loss + env.settings.state_weight * losses.mean()).backward()
    optimizer.step()


def run(config: Config, rows: int) -> dict[str, Any]:
    """All measurements on a sample of ``rows`` training transitions.

    Args:
        config: of a model of ours on the dataset.
        rows: transitions for feedback, times ``SAMPLES``; fine-tuning takes a few steps.
    """
    stages = StageLog()
    dataset = LEADataset(config)
    _, tokens = dataset.splits()
    costs: dict[str, dict[str, Any]] = {}
    a_row: dict[tuple[str, int], float] = {}  # seconds, by template and scored negatives
    for template, changes in TEMPLATES.items():
        pipeline = dataset.pipeline(first_sequences(tokens, SAMPLES[template] * rows))
        settings = dataclasses.replace(pipeline.settings, **changes)
        env, _ = _environment(pipeline, settings)
        with stages.stage(f"fine-tuning {template}"):
            costs[template] = finetune_cost(env, pipeline.sequences)
        # a fresh one: fine-tuning has compiled its layers
        env, tokenizer = _environment(pipeline, settings)
        env.merge()
        n_rows = len(pipeline.negatives)
        groups = reward_groups(env.prompts, pipeline.sequences, pipeline.negatives)
        with stages.stage(f"feedback {template}"):
            for pool in (1, 10):
                a_row[template, pool] = pool_seconds(env, pipeline, pool) / n_rows
            costs[template] |= feedback_cost(env, groups) | {"rows": n_rows}
        logger.info("%s: %s", template, costs[template])
    state_dim = pipeline.settings.state_dim or env.item_tokens.shape[1]
    return {
        **{name: {t: costs[t][name] for t in TEMPLATES} for name in costs["paper"]},
        "pool_of_10_ratio": {t: a_row[t, 10] / a_row[t, 1] for t in TEMPLATES},
        "item_last_pool_of_10_over_paper_pool_of_1": a_row["item_last", 10] / a_row["paper", 1],
        "option_token_ratio": option_token_ratios(env, pipeline, tokenizer),
        **training_ratios(config, state_dim, steps=9),
        "peak_memory_mb": max(s["peak_memory_mb"] for s in stages.stages.values()),
    }


def first_sequences(tokens: dict[str, list[str]], rows: int) -> dict[str, list[str]]:
    """The first users' sequences that have ``rows`` transitions, or all."""
    users = sorted(tokens)
    before = itertools.accumulate((len(tokens[user]) - 1 for user in users), initial=0)
    return {user: tokens[user] for user, n in zip(users, before, strict=False) if n < rows}


def option_token_ratios(
    env: Environment, pipeline: Pipeline, tokenizer: Any
) -> dict[str, dict[str, float]]:
    """Packed tokens of fine-tuning and of feedback under an option over those without it."""
    without: dict[str, Any] = {"state_input": "items", "reward_head": "none", "history_hop": 0}
    options = {
        "state_input: prompt": without | {"state_input": "prompt"},
        "history_hop: 5": without | {"history_hop": 5},
    }

    def tokens(changes: dict[str, Any]) -> dict[str, int]:
        settings = dataclasses.replace(env.settings, **changes)
        prompts = Prompts(tokenizer, env.vocab_size, settings)
        rewards = reward_groups(prompts, pipeline.sequences, pipeline.negatives)
        states, both = [], []
        left = iter(rewards)
        for user in pipeline.sequences.items:
            for t in range(1, len(user) + 1):
                states.append([prompts.state(user[:t])])
                if t < len(user):
                    both.append(next(left) + states[-1])
        feedback = packed_tokens(states, settings) + packed_tokens(rewards, settings)
        return {"finetune": packed_tokens(both, settings), "feedback": feedback}

    fewest = tokens(without)
    found = {name: tokens(changes) for name, changes in options.items()}
    return {name: {k: n / fewest[k] for k, n in own.items()} for name, own in found.items()}


def _environment(pipeline: Pipeline, settings: LESettings) -> tuple[Environment, Any]:
    """An LE with untrained item tokens (speed does not depend on what they hold); its tokenizer."""
    llm = load_llm(settings.llm, settings.llm_dtype, pick_device(), settings.llm_options)
    bare = Environment(llm, torch.zeros(len(pipeline.catalogue), llm.width), settings, False)
    ids, _ = tokenization.sentence_ids(pipeline.sentences, bare, llm.tokenizer)
    start = tokenization.initial_tokens(ids, bare)
    return Environment(llm, start, settings, titles=pipeline.titles).eval(), llm.tokenizer


def reward_groups(prompts: Prompts, sequences: Sequences, negatives: np.ndarray) -> list:
    """The reward prompts of each transition: the positive's and its negatives'."""
    transitions = [(s, t) for s, own in enumerate(sequences.items) for t in range(1, len(own))]
    return [
        [prompts.reward(sequences.history(s, t), a) for a in (sequences.items[s][t], *row)]
        for (s, t), row in zip(transitions, negatives, strict=True)
    ]
