"""What the LE and a training step cost, against plain implementations in the same run.

``python -m recbole_lea.benchmark --speed --dataset industrial`` prints one JSON object last.
"""

import dataclasses
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import init_seed

from recbole_lea.engine.llm import compile_layers, load_llm, pick_device
from recbole_lea.engine.packing import pack
from recbole_lea.engine.stagelog import StageLog
from recbole_lea.le import finetune, quality
from recbole_lea.le import item_tokens as tokenization
from recbole_lea.le.environment import Environment, PromptEnds
from recbole_lea.le.pipeline import Pipeline
from recbole_lea.le.prompts import Prompts
from recbole_lea.le.sequences import Sequences, sample_negatives
from recbole_lea.le.settings import LESettings
from recbole_lea.model import MODELS
from recbole_lea.model.fields import FIELD_PREFIX
from recbole_lea.plugin.dataset import LEADataset
from recbole_lea.plugin.trainer import fused

logger = logging.getLogger(__name__)

# The loss of the plain fine-tuning loop.
PLAIN: dict[str, Any] = {"finetune_negatives": 1, "state_loss": "softmax"}
# What is measured: the paper's prompts, and ours as the settings have them.
TEMPLATES: dict[str, dict[str, Any]] = {
    "paper": PLAIN | {"reward_prompt": "paper", "state_input": "items", "reward_head": "none"},
    "item_last": PLAIN | {"reward_prompt": "item_last"},
}
# Times --rows for feedback: a packed transition has a seventh of the tokens of the paper's wording,
# and a batch or two that are not full would be most of what is measured.
SAMPLES = {"paper": 1, "item_last": 8}
PLAIN_BATCH = 32  # prompts a batch of the plain Hugging Face loop
PASSES = 3


def flops_per_token(model: Any) -> float:
    """Forward FLOPs a token: two per weight of the decoder's matrices (nanoGPT's estimate, after
    the appendix of https://arxiv.org/abs/2204.02311, without attention and vocabulary)."""
    matrices = (p for p in model.get_decoder().layers.parameters() if p.dim() == 2)
    return 2.0 * sum(p.numel() for p in matrices)


def matmul_rate(model: Any, tokens: int) -> float:
    """FLOP/s of the decoder's own matrix products, ``tokens`` rows at a time, layer by layer."""
    matrices = [p for p in model.get_decoder().layers.parameters() if p.dim() == 2]
    widths = {p.shape[1] for p in matrices}
    like = matrices[0]
    rows = {w: torch.randn(tokens, w, dtype=like.dtype, device=like.device) for w in widths}

    def products() -> None:
        with torch.inference_mode():
            for p in matrices:
                torch.nn.functional.linear(rows[p.shape[1]], p)

    return 2.0 * tokens * sum(p.numel() for p in matrices) / best_of(products, 3)


def best_of(work: Callable[[], Any], n: int) -> float:
    """Seconds of the fastest of ``n`` runs, the first one not counted."""
    work()
    return min(timed(work) for _ in range(n))


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one run."""
    _synchronize()
    start = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@torch.inference_mode()
def plain_rewards(env: Environment, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """Rewards by plain Hugging Face batches: sorted by length, right-padded."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    rewards = np.zeros(len(prompts), dtype=np.float32)
    for start in range(0, len(order), PLAIN_BATCH):
        members = order[start : start + PLAIN_BATCH]
        reads = plain_reads(env, [prompts[i] for i in members])
        rewards[members] = env.reward_of(reads).cpu().numpy()
    return rewards


def plain_reads(env: Environment, prompts: Sequence[Sequence[int]]) -> PromptEnds:
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


def feedback_cost(env: Environment, groups: list[list[list[int]]]) -> dict[str, Any]:
    """Packed rewards against plain ones: same prompts, LLM (adapter merged), dtype, attention.

    Alternating passes, of which the medians count: one pass alone is off by a third on a shared
    machine. Last come passes with compiled layers, as the pipeline has them from 10,000
    transitions on (the compilation itself is not counted), and matrix products between them.
    """
    prompts = [prompt for group in groups for prompt in group]
    s = env.settings
    tokens = sum(batch.n_tokens for batch in pack(groups, s.row_length, s.batch_rows))
    rewards: dict[str, np.ndarray] = {}

    def packed() -> None:
        rewards["packed"] = env.answer(groups, env.reward_of)

    def plain() -> None:
        rewards["plain"] = plain_rewards(env, prompts)

    packed()  # every shape once
    plain()
    passes = [(timed(packed), timed(plain)) for _ in range(PASSES)]
    packed_seconds, plain_seconds = (
        statistics.median(times) for times in zip(*passes, strict=True)
    )
    difference = np.abs(rewards["packed"] - rewards["plain"])
    compile_layers(env.llm)
    packed()
    peak = [matmul_rate(env.llm, s.row_length * s.batch_rows) for _ in range(PASSES)]
    compiled_seconds = statistics.median(timed(packed) for _ in range(PASSES))
    floor = tokens * flops_per_token(env.llm) / statistics.median(peak)  # seconds
    return {
        "tokens": tokens,
        "seconds": compiled_seconds,
        "seconds_plain": plain_seconds,
        "token_ratio": sum(map(len, prompts)) / tokens,
        "tokens_per_second": tokens / compiled_seconds,
        "speedup": plain_seconds / compiled_seconds,
        "speedup_uncompiled": plain_seconds / packed_seconds,
        "utilisation": floor / compiled_seconds,
        "utilisation_uncompiled": floor / packed_seconds,
        "max_abs_diff": float(difference.max()),
        "reward_deviation": float(rewards["plain"].std()),
        "same_ranking": same_ranking(rewards["packed"], rewards["plain"]),
    }


def same_ranking(a: np.ndarray, b: np.ndarray) -> float:
    """Share of all pairs of entries that two vectors rank alike."""
    upper = np.triu_indices(len(a), 1)
    order_a, order_b = (np.sign(x[:, None] - x[None])[upper] for x in (a, b))
    return float((order_a == order_b).mean())


def pool_seconds(env: Environment, pipeline: Pipeline, pool: int) -> float:
    """Seconds of rewards with so many scored negatives."""
    drawn = sample_negatives(pipeline.sequences, len(pipeline.catalogue), pool, seed=0)
    groups = reward_groups(env, pipeline.sequences, drawn)
    env.answer(groups[: len(groups) // 8], env.reward_of)
    return timed(partial(env.answer, groups, env.reward_of))


def finetune_cost(env: Environment, sequences: Any, steps: int) -> dict[str, float]:
    """Steps of fine-tuning, packed against chosen and rejected prompts concatenated.

    The plain loop has the same remedies: no upcast in peft, the same attention, a state that
    stands in a reward prompt is read there. As the pipeline does from 10,000 transitions on, the
    packed steps are then timed with compiled layers too.
    """
    settings = env.settings
    learned = [s for s in range(len(sequences)) if len(sequences.items[s]) > 1]
    rng = np.random.default_rng(0)
    batches = finetune.epoch_batches(sequences, learned, settings.finetune_batch_size, rng)
    parameters = [p for p in env.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-5, fused=True)

    def packed(batch: list) -> None:
        finetune._train_step(env, optimizer, sequences, batch, rng, settings)

    def plain(batch: list) -> None:
        env.train()
        positives = np.array([sequences.action(s, t) for s, t in batch])
        negatives = (positives[:, None] + 1) % 9
        groups = quality.comparisons(env, sequences, batch, positives, negatives)
        both = [group[0] for group in groups] + [group[1] for group in groups]
        optimizer.zero_grad()
        n, reads = len(batch), plain_reads(env, both)
        rewards = env.reward_of(reads)
        if settings.state_input == "items":
            ends = plain_reads(env, [group[2] for group in groups])
        else:  # the chosen prompts hold the states already
            assert reads.before is not None and reads.before_items is not None
            ends = PromptEnds(reads.before[:n], reads.before_items[:n])
        states = env.state_head.query(env.state_of(ends))
        loss = finetune.reward_loss(rewards[:n], rewards[n:]).mean()
        items = torch.from_numpy(positives).to(env.device)
        losses = finetune.state_softmax_loss(states, env.state_head.keys, items)
        (loss + settings.state_weight * losses.mean()).backward()
        optimizer.step()

    plain_seconds, packed_seconds = [], []
    measured = (batches * (1 + steps // len(batches)))[: steps + 1]
    for batch in measured:
        theirs, ours = timed(partial(plain, batch)), timed(partial(packed, batch))
        plain_seconds.append(theirs)
        packed_seconds.append(ours)
    compile_layers(env.llm.base_model.model)
    compiled = [timed(partial(packed, batch)) for batch in measured + measured]
    plain_step = statistics.median(plain_seconds[1:])
    compiled_step = statistics.median(compiled[len(measured) :])
    return {
        "speedup": plain_step / compiled_step,
        "step_seconds": compiled_step,
        "speedup_uncompiled": plain_step / statistics.median(packed_seconds[1:]),
        "plain_step_seconds": plain_step,
    }


def training_ratios(
    config: Config, state_dim: int, steps: int
) -> tuple[dict[str, float], dict[str, float]]:
    """A training step and full-sort scoring of each model against its plain RecBole backbone.

    The step is that of the costliest method, LEASR after the warm-up: LE states beside h_t, LE
    rewards, both augmented losses. The LE's part is random numbers of the right shape: a step
    costs the same whatever they hold.

    Args:
        config: of a model of ours on the dataset.
        state_dim: width of the LE's states.
        steps: runs of each that the median is taken over.

    Returns:
        Median ratios of seconds, ours over RecBole's, by model: training steps, scoring.
    """
    train_ratio, inference_ratio = {}, {}
    keys = dict(config.external_config_dict) | {"q_weight": 1.0}
    keys |= {"lea_state": None, "lea_reward": None, "lea_augmentation": None}
    for name, model_class in MODELS.items():
        plain, costly = (
            Config(model=name, dataset=config["dataset"], config_dict=keys | {"lea_method": method})
            for method in ("base", "LEASR")  # base loads the data without an LE
        )
        init_seed(plain["seed"], True)
        loaders = data_preparation(plain, LEADataset(plain))
        data = loaders[0]._dataset
        batch, rows = next(iter(loaders[0])), next(iter(loaders[2]))[0]
        batch.update(_random_feedback(len(batch), state_dim, data.num(data.iid_field)))
        data.lea_feedback = SimpleNamespace(state_dim=state_dim)
        ours = model_class(costly, data)
        stock = model_class.backbone_class()(plain, data)
        ours.warmed_up = True
        adam = torch.optim.Adam
        step = training_step(ours, batch, fused(adam(ours.parameters())))  # as LEATrainer's
        stock_step = training_step(stock, batch, adam(stock.parameters()))
        train_ratio[name] = _ratio(step, stock_step, steps)
        inference_ratio[name] = _ratio(_scoring(ours, rows), _scoring(stock, rows), steps)
    return train_ratio, inference_ratio


def _random_feedback(rows: int, state_dim: int, n_items: int) -> Interaction:
    """What the transform adds to a batch under LEASR, as random numbers."""
    numbers = ("reward", "negative_reward", "augmented_reward")
    values = {name: torch.randn(rows) for name in numbers}
    values |= {name: torch.randint(1, n_items, (rows,)) for name in ("negative", "augmented")}
    values |= {name: torch.randn(rows, state_dim) for name in ("state", "next_state")}
    return Interaction({FIELD_PREFIX + name: value for name, value in values.items()})


def training_step(model: Any, batch: Any, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """A step on one batch, to be called as often as it is to be measured."""

    def step() -> None:
        optimizer.zero_grad()
        loss: Any = model.calculate_loss(batch)
        loss = sum(loss) if isinstance(loss, tuple) else loss
        loss.backward()
        optimizer.step()

    return step


def _scoring(model: Any, rows: Any) -> Callable[[], None]:
    def score() -> None:
        model.eval()
        with torch.no_grad():
            model.full_sort_predict(rows)

    return score


def _ratio(ours: Callable[[], Any], theirs: Callable[[], Any], n: int) -> float:
    """Median ratio of alternating runs."""
    ours()
    theirs()
    return statistics.median(timed(ours) / timed(theirs) for _ in range(n))


def run(config: Config, rows: int) -> dict[str, Any]:
    """All measurements on a sample of ``rows`` training transitions.

    Args:
        config: of a model of ours on the dataset.
        rows: transitions for feedback, times ``SAMPLES``; fine-tuning takes a few steps.
    """
    stages = StageLog()
    dataset = LEADataset(config)
    _, tokens = dataset.splits()
    costs, tunings = {}, {}
    n_rows: dict[str, int] = {}
    pools: dict[tuple[str, int], float] = {}
    for template, changes in TEMPLATES.items():
        pipeline = dataset.pipeline(first_sequences(tokens, SAMPLES[template] * rows))
        n_rows[template] = len(pipeline.negatives)
        settings = dataclasses.replace(pipeline.settings, **changes)
        llm = load_llm(settings.llm, settings.llm_dtype, pick_device(), settings.llm_options)
        env = _environment(llm, pipeline, settings)
        groups = reward_groups(env, pipeline.sequences, pipeline.negatives)
        with stages.stage(f"fine-tuning {template}"):
            tunings[template] = finetune_cost(env, pipeline.sequences, steps=6)
        logger.info("fine-tuning, %s: %s", template, tunings[template])
        # a fresh one: fine-tuning has compiled its layers
        llm = load_llm(settings.llm, settings.llm_dtype, pick_device(), settings.llm_options)
        env = _environment(llm, pipeline, settings).merge()
        with stages.stage(f"feedback {template}"):
            for pool in (1, 10):
                pools[template, pool] = pool_seconds(env, pipeline, pool)
            costs[template] = feedback_cost(env, groups)
        logger.info("feedback, %s: %s", template, costs[template])
    options = option_token_ratios(env, pipeline, llm.tokenizer)
    train_ratio, inference_ratio = training_ratios(
        config, pipeline.settings.state_dim or llm.width, steps=9
    )

    def by_template(results: dict[str, dict[str, float]], name: str) -> dict[str, float]:
        return {template: results[template][name] for template in TEMPLATES}

    ten = pools["item_last", 10] / n_rows["item_last"]
    return {
        "rows": n_rows,
        "pool_of_10_ratio": {name: pools[name, 10] / pools[name, 1] for name in TEMPLATES},
        "item_last_pool_of_10_over_paper_pool_of_1": ten / (pools["paper", 1] / n_rows["paper"]),
        "feedback_speedup": by_template(costs, "speedup"),
        "feedback_speedup_uncompiled": by_template(costs, "speedup_uncompiled"),
        "feedback_token_ratio": by_template(costs, "token_ratio"),
        "feedback_tokens": by_template(costs, "tokens"),
        "feedback_seconds": by_template(costs, "seconds"),
        "feedback_tokens_per_second": by_template(costs, "tokens_per_second"),
        "finetune_speedup": by_template(tunings, "speedup"),
        "finetune_step_seconds": by_template(tunings, "step_seconds"),
        "finetune_speedup_uncompiled": by_template(tunings, "speedup_uncompiled"),
        "utilisation": by_template(costs, "utilisation"),
        "utilisation_uncompiled": by_template(costs, "utilisation_uncompiled"),
        "train_step_ratio": train_ratio,
        "inference_ratio": inference_ratio,
        "max_abs_diff": by_template(costs, "max_abs_diff"),
        "reward_deviation": by_template(costs, "reward_deviation"),
        "same_ranking": by_template(costs, "same_ranking"),
        "option_token_ratio": options,
        "peak_memory_mb": max(s["peak_memory_mb"] for s in stages.stages.values()),
    }


def first_sequences(tokens: dict[str, list[str]], rows: int) -> dict[str, list[str]]:
    """The first users' sequences that have ``rows`` transitions, or all."""
    chosen, n = {}, 0
    for user in sorted(tokens):
        if n >= rows:
            break
        chosen[user] = tokens[user]
        n += len(tokens[user]) - 1
    return chosen


def option_token_ratios(
    env: Environment, pipeline: Pipeline, tokenizer: Any
) -> dict[str, dict[str, float]]:
    """Packed tokens of fine-tuning and of feedback under an option over those without it."""
    items: dict[str, Any] = {"state_input": "items", "reward_head": "none", "history_hop": 0}
    options = {
        "state_input: prompt": items | {"state_input": "prompt"},
        "history_hop: 5": items | {"history_hop": 5},
    }

    def tokens(changes: dict[str, Any]) -> dict[str, int]:
        settings = dataclasses.replace(env.settings, **changes)
        prompts = Prompts(tokenizer, env.vocab_size, settings)
        states, rewards, both, row = [], [], [], 0
        for user in pipeline.sequences.items:
            for t in range(1, len(user) + 1):
                states.append([prompts.state(user[:t])])
                if t < len(user):
                    actions = (user[t], *pipeline.negatives[row])
                    rewards.append([prompts.reward(user[:t], action) for action in actions])
                    both.append(rewards[-1] + states[-1])
                    row += 1

        def packed(groups: list) -> int:
            return sum(b.n_tokens for b in pack(groups, settings.row_length, settings.batch_rows))

        return {"finetune": packed(both), "feedback": packed(states) + packed(rewards)}

    plain = tokens(items)
    found = {name: tokens(changes) for name, changes in options.items()}
    return {name: {k: n / plain[k] for k, n in own.items()} for name, own in found.items()}


def _environment(llm: Any, pipeline: Pipeline, settings: LESettings) -> Environment:
    """An LE with untrained item tokens: speed does not depend on what they hold."""
    plain = Environment(llm, torch.zeros(len(pipeline.catalogue), llm.width), settings, False)
    ids, _ = tokenization.sentence_ids(pipeline.sentences, plain, llm.tokenizer)
    start = tokenization.initial_tokens(ids, plain, settings)
    return Environment(llm, start, settings, titles=pipeline.titles).eval()


def reward_groups(env: Environment, sequences: Sequences, negatives: np.ndarray) -> list:
    """The reward prompts of each transition: the positive's and its negatives'."""
    groups, row = [], 0
    for s, items in enumerate(sequences.items):
        for t in range(1, len(items)):
            history = sequences.history(s, t)
            groups.append([env.prompts.reward(history, a) for a in (items[t], *negatives[row])])
            row += 1
    return groups
