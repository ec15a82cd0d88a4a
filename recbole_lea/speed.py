"""What the LE and a training step cost, against plain implementations in the same run.

``python -m recbole_lea.benchmark --speed --dataset industrial`` prints one JSON object last.
"""

import dataclasses
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import data_preparation
from recbole.utils import init_seed
from torch import Tensor

from recbole_lea.data.dataset import LEADataset
from recbole_lea.le import finetune, tokenization
from recbole_lea.le.environment import Environment
from recbole_lea.le.llm import load_llm, pick_device
from recbole_lea.le.packing import pack
from recbole_lea.le.pipeline import Pipeline
from recbole_lea.le.settings import LESettings
from recbole_lea.le.stages import StageLog
from recbole_lea.model import MODELS

logger = logging.getLogger(__name__)

TEMPLATES = ("paper", "item_last")
PLAIN_BATCH = 32  # prompts a batch of the plain Hugging Face loop


@dataclasses.dataclass
class Cost:
    """Tokens computed (padding included) and seconds."""

    tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def flops_per_token(model: Any) -> float:
    """Forward FLOPs a token: two per weight of the decoder's matrices (nanoGPT's estimate, after
    the appendix of https://arxiv.org/abs/2204.02311, without attention and vocabulary)."""
    matrices = (p for p in model.get_decoder().layers.parameters() if p.dim() == 2)
    return 2.0 * sum(p.numel() for p in matrices)


def matmul_rate(model: Any, tokens: int) -> float:
    """FLOP/s of products of the decoder layer's own shapes, ``tokens`` rows at a time."""
    layer = [p for p in model.get_decoder().layers[0].parameters() if p.dim() == 2]
    inputs = [torch.randn(tokens, p.shape[1], dtype=p.dtype, device=p.device) for p in layer]

    def products() -> None:
        for _ in range(len(model.get_decoder().layers)):
            for x, p in zip(inputs, layer, strict=True):
                x @ p.T

    flops = 2.0 * tokens * sum(p.numel() for p in layer) * len(model.get_decoder().layers)
    return flops / best_of(products, 3)


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
def plain_rewards(env: Environment, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, int]:
    """Rewards by plain Hugging Face batches: sorted by length, right-padded.

    Returns:
        Rewards in the given order, and the tokens computed with padding.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    rewards, tokens = np.zeros(len(prompts), dtype=np.float32), 0
    for start in range(0, len(order), PLAIN_BATCH):
        members = order[start : start + PLAIN_BATCH]
        hidden = plain_hidden(env, [prompts[i] for i in members])
        rewards[members] = env.reward_of(hidden).cpu().numpy()
        tokens += len(members) * len(prompts[members[-1]])
    return rewards, tokens


def plain_hidden(env: Environment, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Last hidden state of each prompt of one padded batch [n, d], float32."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
    output = env.decoder(
        inputs_embeds=env.embed(ids.to(env.device), env.item_tokens),
        attention_mask=mask.to(env.device),
        use_cache=False,
    )
    return output.last_hidden_state[torch.arange(len(prompts)), lengths - 1].float()


def feedback_cost(env: Environment, groups: list[list[list[int]]]) -> dict[str, Any]:
    """Packed rewards against plain ones on the same prompts."""
    prompts = [prompt for group in groups for prompt in group]
    settings = env.settings
    packed_tokens = sum(b.n_tokens for b in pack(groups, settings.row_length, settings.batch_rows))
    rewards: dict[str, np.ndarray] = {}

    def packed() -> None:
        rewards["packed"] = env.read(groups, env.reward_of)

    def plain() -> None:
        rewards["plain"], rewards["tokens"] = plain_rewards(env, prompts)

    warm = groups[: max(1, len(groups) // 20)]
    env.read(warm, env.reward_of)
    plain_rewards(env, [prompt for group in warm for prompt in group])
    ours, theirs = Cost(packed_tokens, timed(packed)), Cost(0, timed(plain))
    theirs.tokens = int(rewards["tokens"])
    difference = np.abs(rewards["packed"] - rewards["plain"])
    return {
        "packed": dataclasses.asdict(ours),
        "plain": dataclasses.asdict(theirs),
        "speedup": theirs.seconds / ours.seconds,
        "token_ratio": theirs.tokens / ours.tokens,
        "max_abs_diff": float(difference.max()),
        "reward_deviation": float(rewards["plain"].std()),
    }


def finetune_cost(env: Environment, sequences: Any, steps: int) -> dict[str, float]:
    """Steps of fine-tuning, packed against chosen and rejected prompts concatenated."""
    settings = env.settings
    learned = [s for s in range(len(sequences)) if len(sequences.items[s]) > 1]
    rng = np.random.default_rng(0)
    batches = finetune.epoch_batches(sequences, learned, settings.finetune_batch_size, rng)
    parameters = [p for p in env.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-5)

    def packed(batch: list) -> None:
        finetune._train_step(env, optimizer, sequences, batch, rng, settings)

    def plain(batch: list) -> None:
        env.train()
        positives = np.array([sequences.action(s, t) for s, t in batch])
        groups = finetune._triples(env, sequences, batch, positives, (positives + 1) % 9)
        both = [group[0] for group in groups] + [group[1] for group in groups]
        optimizer.zero_grad()
        rewards = env.reward_of(plain_hidden(env, both))
        states = plain_hidden(env, [group[2] for group in groups])
        n = len(batch)
        loss = finetune.reward_loss(rewards[:n], rewards[n:]).mean()
        items = torch.from_numpy(positives).to(env.device)
        losses = finetune.state_softmax_loss(states, env.item_tokens, items)
        (loss + settings.state_weight * losses.mean()).backward()
        optimizer.step()

    ratios, seconds = [], []
    for batch in (batches * (1 + steps // len(batches)))[: steps + 1]:
        theirs, ours = timed(lambda b=batch: plain(b)), timed(lambda b=batch: packed(b))
        ratios.append(theirs / ours)
        seconds.append(ours)
    return {
        "speedup": statistics.median(ratios[1:]),
        "step_seconds": statistics.median(seconds[1:]),
    }


def training_ratios(config: Config, steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """A training step and full-sort scoring of each model against its plain RecBole backbone.

    The LE's part is random numbers of the right shape: reading them costs the same.
    """
    train_ratio, inference_ratio = {}, {}
    for name, model_class in MODELS.items():
        keys = dict(config.external_config_dict) | {"lea_method": "base"}
        made = Config(model=name, dataset=config["dataset"], config_dict=keys)
        init_seed(made["seed"], True)
        loaders = data_preparation(made, LEADataset(made))
        ours = model_class(made, loaders[0]._dataset)
        stock = model_class.backbone_class()(made, loaders[0]._dataset)
        ours.warmed_up = True
        batch, rows = next(iter(loaders[0])), next(iter(loaders[2]))[0]
        steps_of = [_training_step(model, batch) for model in (ours, stock)]
        train_ratio[name] = _ratio(*steps_of, steps)
        inference_ratio[name] = _ratio(*[_scoring(model, rows) for model in (ours, stock)], steps)
    return train_ratio, inference_ratio


def _training_step(model: Any, batch: Any) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss = model.calculate_loss(batch)
        (sum(loss) if isinstance(loss, tuple) else loss).backward()
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
    ours(), theirs()
    return statistics.median(timed(ours) / timed(theirs) for _ in range(n))


def run(config: Config, rows: int) -> dict[str, Any]:
    """All measurements on a sample of ``rows`` training transitions.

    Args:
        config: of a model of ours on the dataset.
        rows: transitions for feedback; fine-tuning takes a few steps.
    """
    stages = StageLog()
    dataset = LEADataset(config)
    train = dataset.build()[0]
    tokens, _ = dataset._training_sequences(train)
    chosen, n = {}, 0
    for user in sorted(tokens):
        if n >= rows:
            break
        chosen[user] = tokens[user]
        n += len(tokens[user]) - 1
    pipeline = dataset._pipeline(chosen)
    report: dict[str, Any] = {"rows": n}
    llm = load_llm(pipeline.settings.llm, pipeline.settings.llm_dtype, pick_device())
    peak = matmul_rate(llm.model, pipeline.settings.row_length * pipeline.settings.batch_rows)
    per_token = flops_per_token(llm.model)
    costs, tunings = {}, {}
    for template in TEMPLATES:
        settings = dataclasses.replace(pipeline.settings, reward_prompt=template)
        env = _environment(llm, pipeline, settings)
        groups = _reward_groups(env, pipeline)
        with stages.stage(f"feedback {template}"):
            costs[template] = feedback_cost(env, groups)
        logger.info("feedback, %s: %s", template, costs[template])
        with stages.stage(f"fine-tuning {template}"):
            tunings[template] = finetune_cost(env, pipeline.sequences, steps=4)
        logger.info("fine-tuning, %s: %s", template, tunings[template])
        llm = load_llm(settings.llm, settings.llm_dtype, pick_device())  # without the adapter
    rate = {t: Cost(**costs[t]["packed"]).rate for t in TEMPLATES}
    train_ratio, inference_ratio = training_ratios(config, steps=9)
    return report | {
        "feedback_speedup": {t: costs[t]["speedup"] for t in TEMPLATES},
        "feedback_token_ratio": {t: costs[t]["token_ratio"] for t in TEMPLATES},
        "feedback_tokens_per_second": rate,
        "finetune_speedup": {t: tunings[t]["speedup"] for t in TEMPLATES},
        "utilisation": {t: rate[t] * per_token / peak for t in TEMPLATES},
        "train_step_ratio": train_ratio,
        "inference_ratio": inference_ratio,
        "max_abs_diff": {t: costs[t]["max_abs_diff"] for t in TEMPLATES},
        "reward_deviation": {t: costs[t]["reward_deviation"] for t in TEMPLATES},
        "peak_memory_mb": max(s["peak_memory_mb"] for s in stages.stages.values()),
    }


def _environment(llm: Any, pipeline: Pipeline, settings: LESettings) -> Environment:
    """An LE with untrained item tokens: speed does not depend on what they hold."""
    plain = Environment(llm, torch.zeros(len(pipeline.catalogue), llm.width), settings, False)
    ids, _ = tokenization.sentence_ids(pipeline.sentences, plain, llm.tokenizer)
    start = tokenization.initial_tokens(ids, plain, settings)
    return Environment(llm, start, settings).eval()


def _reward_groups(env: Environment, pipeline: Pipeline) -> list[list[list[int]]]:
    groups, row = [], 0
    for s, items in enumerate(pipeline.sequences.items):
        for t in range(1, len(items)):
            actions = [items[t], *pipeline.negatives[row]]
            history = pipeline.sequences.history(s, t)
            groups.append([env.prompts.reward(history, a) for a in actions])
            row += 1
    return groups
