"""What the LLM's stages and a training step cost.

``python -m recbole_lea.benchmark --speed --dataset industrial`` prints one JSON object last.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from recbole.config import Config
from recbole.data import data_preparation

from recbole_lea.engine.llm import load_llm
from recbole_lea.engine.processes import processes
from recbole_lea.le import finetune, item_tokens
from recbole_lea.le.environment import Environment
from recbole_lea.le.pipeline import Pipeline
from recbole_lea.le.sequences import Sequences
from recbole_lea.model import MODELS
from recbole_lea.model.fields import FIELD_PREFIX
from recbole_lea.plugin.dataset import LEADataset
from recbole_lea.plugin.plan import training_step

PASSES = 3
STEPS = 6  # of fine-tuning
RATIOS = 9  # of training steps
SENTENCES = item_tokens.BUCKET  # of items

# Passes through the LLM's weights: what learns also goes back, to the adapters' or items' inputs.
LLM_PASSES = {"item tokenization": 2, "fine-tuning": 2, "states": 1, "rewards": 1}


def run(config: Config, users: int) -> dict[str, dict[str, Any]]:
    """``llm_costs`` of a config of ours, and ``training_ratios``.

    The LLM reads the sequences of the first ``users``.
    """
    dataset = LEADataset(config)
    _, tokens = dataset.splits()
    pipeline = dataset.pipeline(dict(sorted(tokens.items())[:users]))
    ratios = training_ratios(config, pipeline.settings.state_dim or pipeline.llm_width)
    return {"llm": llm_costs(pipeline), "training step": ratios}


def training_ratios(config: Config, width: int) -> dict[str, float]:
    """Model -> median seconds of its training step over those of its RecBole backbone.

    The method is the costliest, LEASR after the warm-up. The LE's part of the batch is random
    numbers, states of that ``width``: they cost the same.
    """
    train, found = data_preparation(config, LEADataset(config))[0], {}
    data, batch = train._dataset, next(iter(train)).to(config["device"])
    n, n_items = len(batch), data.num(data.iid_field)
    feedback = {name: torch.randn(n, width) for name in ("state", "next_state")}
    for name in ("reward", "negative_reward", "augmented_reward"):
        feedback[name] = torch.randn(n)
    for name in ("negative", "augmented"):
        feedback[name] = torch.randint(1, n_items, (n,))
    for name, values in feedback.items():
        batch.interaction[FIELD_PREFIX + name] = values.to(config["device"])
    data.lea_feedback = SimpleNamespace(state_dim=width)
    keys = config.external_config_dict | {"lea_method": "LEASR"}
    for name, model in MODELS.items():
        own = Config(name, config["dataset"], config_dict=keys)
        ours, plain = (
            partial(training_step(made(own, data).to(own["device"])), batch)
            for made in (model, model.backbone_class())
        )
        ours(), plain()  # once without the clock
        found[name] = statistics.median(timed(ours) / timed(plain) for _ in range(RATIOS))
    return found


def llm_costs(pipeline: Pipeline) -> dict[str, dict[str, float]]:
    """Each stage's speed beside that of the LLM's matrix products alone, its floor.

    The LLM is as the pipeline has it from 10,000 transitions on: compiled layers, and an adapter
    that is merged after fine-tuning. Item tokens are random numbers: they cost the same. Their own
    stage is measured, by one step of some items, where ``lea_item_iterations`` is above 0.

    Returns stage -> ``tokens`` (of packed rows, without padding), ``seconds`` (median of
    ``PASSES``) and ``share``: the floor's seconds over the stage's.
    """
    s, sequences = pipeline.settings, pipeline.sequences
    llm = load_llm(s.llm, s.llm_dtype, processes().device, s.llm_options, compiled=True)
    items = torch.randn(len(pipeline.catalogue), llm.width)
    env = Environment(llm, items, s, titles=pipeline.titles)

    def states() -> Iterator[list[list[int]]]:
        for _, history in sequences.histories(0, len(sequences), whole=True):
            yield [env.prompts.state(history)]

    def rewards() -> Iterator[list[list[int]]]:
        for row, history in sequences.histories(0, len(sequences)):
            yield [env.prompts.reward(history, action) for action in pipeline.actions[row]]

    found = {"fine-tuning": measured(env, finetuning(env, sequences))}
    env.merge()
    found["states"] = measured(env, lambda: env.answer(states(), env.state_of))
    found["rewards"] = measured(env, lambda: env.answer(rewards(), env.reward_of))
    if s.item_iterations:
        ids, _ = item_tokens.sentence_ids(pipeline.sentences[:SENTENCES], env, llm.tokenizer)
        table = torch.randn(len(ids), llm.width, device=env.device, requires_grad=True)
        work = partial(item_tokens._losses, env, ids, table, backward=True)
        found["item tokenization"] = measured(env, work)
    token = matmul_seconds(env.llm, s.row_length * s.batch_rows)
    for stage, cost in found.items():
        cost["share"] = LLM_PASSES[stage] * cost["tokens"] * token / cost["seconds"]
    return found


def finetuning(env: Environment, sequences: Sequences) -> Callable[[], None]:
    """What does ``STEPS`` of fine-tuning."""
    settings, rng = env.settings, np.random.default_rng(0)
    learned = [s for s in range(len(sequences)) if len(sequences.items[s]) > 1]
    batches = finetune.epoch_batches(sequences, learned, settings.finetune_batch_size, rng)
    parameters = [p for p in env.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-5, fused=True)

    def steps() -> None:
        for batch in batches[:STEPS]:
            finetune._train_step(env, optimizer, sequences, batch, rng)

    return steps


def measured(env: Environment, work: Callable[[], Any]) -> dict[str, float]:
    """Tokens that the LLM reads in a run of ``work``, and the median seconds of ``PASSES``."""
    work()  # compiles the layers for every shape
    with mock.patch.object(env, "hidden", wraps=env.hidden) as hidden:
        seconds = statistics.median(timed(work) for _ in range(PASSES))
    tokens = sum(call.args[0].n_tokens for call in hidden.call_args_list) / PASSES
    return {"tokens": tokens, "seconds": seconds}


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one run."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def matmul_seconds(model: Any, tokens: int) -> float:
    """Seconds a token of the decoder's matrix products alone, ``tokens`` at a time (forward)."""
    matrices = [p for p in model.get_decoder().layers.parameters() if p.dim() == 2]
    rows = {w: torch.randn(tokens, w).to(matrices[0]) for w in {p.shape[1] for p in matrices}}

    @torch.inference_mode()
    def products() -> None:
        for p in matrices:
            torch.nn.functional.linear(rows[p.shape[1]], p)

    products()
    return statistics.median(timed(products) for _ in range(PASSES)) / tokens
