"""What the LLM's stages and a training step cost, and memory by the number of items.

``python -m recbole_lea.benchmark --speed --dataset industrial`` and ``... --load --items 1000000``
print one JSON object last.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from recbole.config import Config
from recbole.data import data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import init_seed
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from recbole_lea.engine.llm import load_llm, locate
from recbole_lea.engine.processes import processes
from recbole_lea.engine.stagelog import StageLog
from recbole_lea.le import finetune
from recbole_lea.le.environment import Environment
from recbole_lea.le.pipeline import Pipeline
from recbole_lea.le.sequences import Sequences
from recbole_lea.model import MODELS, SASRecSA2CLEA
from recbole_lea.model.fields import FIELD_PREFIX
from recbole_lea.plugin.dataset import LEADataset
from recbole_lea.plugin.trainer import fused

PASSES = 3
STEPS = 6  # of fine-tuning, and of training and ranking under load
RATIOS = 9  # of training steps

NAME = "load"  # the generated dataset
TRANSITIONS = 10  # training transitions of a user; two more interactions are held out

KEYS = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "train_neg_sample_args": None,
    "MAX_ITEM_LIST_LENGTH": 10, "train_batch_size": 64, "eval_batch_size": 64,
    "show_progress": False, "lea_llm_dtype": "float32", "lea_compile": False,
    "lea_item_sentence": "{item} is titled {title}.", "lea_item_iterations": 1,
    "lea_finetune_fraction": 1e-5, "lea_finetune_epochs": 1, "lea_finetune_eval": 100,
}  # fmt: skip

# Passes through the LLM's weights: fine-tuning also goes back to the adapters' inputs.
LLM_PASSES = {"fine-tuning": 2, "states": 1, "rewards": 1}


def run(config: Config, users: int) -> dict[str, Any]:
    """Speed on a dataset.

    Args:
        config: of a model of ours on the dataset.
        users: how many users' sequences the LLM reads.

    Returns:
        ``llm``: see ``llm_costs``; ``train_step_ratio``: see ``training_ratios``.
    """
    dataset = LEADataset(config)
    _, tokens = dataset.splits()
    pipeline = dataset.pipeline(dict(sorted(tokens.items())[:users]))
    costs, width = llm_costs(pipeline)
    ratios = training_ratios(config, pipeline.settings.state_dim or width)
    return {"llm": costs, "train_step_ratio": ratios}


def llm_costs(pipeline: Pipeline) -> tuple[dict[str, dict[str, float]], int]:
    """Each stage's speed beside that of the LLM's matrix products alone, its floor.

    The LLM is as the pipeline has it from 10,000 transitions on: compiled layers, and an adapter
    that is merged after fine-tuning. Item tokens are random numbers: they cost the same.

    Returns:
        Stage -> ``tokens`` (of packed rows, without padding), ``seconds`` (median of ``PASSES``)
        and ``share``: the floor's seconds over the stage's; and the width of the LLM.
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
    rate = matmul_rate(env.llm, s.row_length * s.batch_rows)
    for stage, n in LLM_PASSES.items():
        floor = n * found[stage]["tokens"] * flops_per_token(env.llm) / rate
        found[stage]["share"] = floor / found[stage]["seconds"]
    return found, llm.width


def finetuning(env: Environment, sequences: Sequences) -> Callable[[], None]:
    """What does a few steps of fine-tuning."""
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

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    start = now()
    work()
    return now() - start


def flops_per_token(model: Any) -> float:
    """Forward FLOPs a token: two per weight of the decoder's matrices (nanoGPT's estimate, after
    the appendix of https://arxiv.org/abs/2204.02311, without attention and vocabulary)."""
    return 2.0 * sum(p.numel() for p in _matrices(model))


def _matrices(model: Any) -> list[torch.Tensor]:
    return [p for p in model.get_decoder().layers.parameters() if p.dim() == 2]


def matmul_rate(model: Any, tokens: int) -> float:
    """FLOP/s of the decoder's own matrix products, ``tokens`` rows at a time, layer by layer."""
    matrices = _matrices(model)
    rows = {w: torch.randn(tokens, w).to(matrices[0]) for w in {p.shape[1] for p in matrices}}

    @torch.inference_mode()
    def products() -> None:
        for p in matrices:
            torch.nn.functional.linear(rows[p.shape[1]], p)

    products()
    seconds = statistics.median(timed(products) for _ in range(PASSES))
    return tokens * flops_per_token(model) / seconds


def training_ratios(config: Config, state_dim: int) -> dict[str, float]:
    """Seconds of a training step of each model over those of its RecBole backbone.

    The step is that of the costliest method, LEASR after the warm-up: LE states beside h_t, LE
    rewards, both augmented losses. The LE's part is random numbers of the right shape: a step
    costs the same whatever they hold.

    Args:
        config: of a model of ours on the dataset.
        state_dim: width of the LE's states.

    Returns:
        Model -> median ratio of alternating steps.
    """
    found = {}
    keys = dict(config.external_config_dict) | {"q_weight": 1.0}
    keys |= {"lea_state": None, "lea_reward": None, "lea_augmentation": None}
    for name, model_class in MODELS.items():
        cheapest, costliest = (
            Config(model=name, dataset=config["dataset"], config_dict=keys | {"lea_method": method})
            for method in ("base", "LEASR")  # base loads the data without an LE
        )
        init_seed(cheapest["seed"], True)
        train = data_preparation(cheapest, LEADataset(cheapest))[0]
        data, batch = train._dataset, next(iter(train))
        batch.update(_random_feedback(len(batch), state_dim, data.num(data.iid_field)))
        data.lea_feedback = SimpleNamespace(state_dim=state_dim)
        models = model_class(costliest, data), model_class.backbone_class()(cheapest, data)
        models[0].warmed_up = True
        ours, theirs = (partial(training_step(model), batch) for model in models)
        ours(), theirs()  # once without the clock
        found[name] = statistics.median(timed(ours) / timed(theirs) for _ in range(RATIOS))
    return found


def _random_feedback(rows: int, state_dim: int, n_items: int) -> Interaction:
    """What the transform adds to a batch under LEASR, as random numbers."""
    numbers = ("reward", "negative_reward", "augmented_reward")
    values = {name: torch.randn(rows) for name in numbers}
    values |= {name: torch.randint(1, n_items, (rows,)) for name in ("negative", "augmented")}
    values |= {name: torch.randn(rows, state_dim) for name in ("state", "next_state")}
    return Interaction({FIELD_PREFIX + name: value for name, value in values.items()})


def training_step(model: Any) -> Callable[[Any], None]:
    """What trains a model, ours or RecBole's, on one batch, with the optimizer of its trainer."""
    adam = torch.optim.Adam(model.parameters())
    optimizer = fused(adam) if type(model) in MODELS.values() else adam

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        loss: Any = model.calculate_loss(batch)
        loss = sum(loss) if isinstance(loss, tuple) else loss
        loss.backward()
        optimizer.step()

    return step


def load(llm: str, items: int, transitions: int) -> dict[str, dict[str, float]]:
    """Seconds and peak memory of every stage on generated data.

    What fills memory (sequences, item tokens, the store, the Q head) has its full size; the LLM is
    a tiny one with the tokenizer of ``llm``. Trained is SASRecSA2CLEA with LE states beside h_t, LE
    rewards and both augmented losses, after the warm-up.

    Raises:
        ValueError: there are not enough interactions for the items.
    """
    interactions = transitions // TRANSITIONS * (TRANSITIONS + 3)
    if items < 2 or interactions < items:
        raise ValueError(
            f"--items {items} --transitions {transitions}: {interactions} interactions are too few "
            "for so many items to occur, or there are fewer than 2 items"
        )
    log = StageLog()
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "data" / NAME, items, transitions)
        tiny_llm(Path(folder) / "llm", llm)
        places = {"data_path": "data", "lea_llm": "llm", "lea_cache_dir": "cache"}
        keys = KEYS | {key: f"{folder}/{place}" for key, place in places.items()}
        config = Config(SASRecSA2CLEA, NAME, config_dict=keys)
        with log.stage("read the interactions"):
            dataset = LEADataset(config)
            dataset.lea_stages = log
        with log.stage("prepare the data"):
            train, _, test = data_preparation(config, dataset)
            data, rng = train._dataset, np.random.default_rng(0)
            pipeline = data.lea_pipeline  # the LE chooses among random candidates
            shape = pipeline.sequences.n_transitions, min(5, items)
            candidates = rng.integers(0, len(pipeline.catalogue), shape)
            data.lea_feedback.augment(*pipeline.select(candidates, want_rewards=True))
        with log.stage("training steps"):
            model = SASRecSA2CLEA(config, data)
            model.warmed_up = True
            step = training_step(model)
            for batch in itertools.islice(train, STEPS):
                step(batch)
        model.eval()
        with log.stage("ranking"), torch.no_grad():
            for batch in itertools.islice(test, STEPS):
                model.full_sort_predict(batch[0]).topk(20)
    return log.stages


def generate(folder: Path, items: int, transitions: int) -> None:
    """Write a RecBole dataset, called like its folder, in which each item occurs.

    There have to be as many interactions; training transitions are those of leave-one-out.
    """
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, items, (transitions // TRANSITIONS, TRANSITIONS + 3))
    places = rng.permutation(drawn.size)[:items]
    drawn.flat[places] = np.arange(len(places))
    folder.mkdir(parents=True)
    with (folder / f"{folder.name}.inter").open("w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, row in enumerate(drawn.tolist()):
            file.writelines(f"u{user}\ti{item}\t{time}\n" for time, item in enumerate(row))
    with (folder / f"{folder.name}.item").open("w", encoding="utf-8") as file:
        file.write("item_id:token\ttitle:token_seq\n")
        file.writelines(f"i{item}\titem number {item}\n" for item in range(items))


def tiny_llm(folder: Path, tokenizer_of: str) -> None:
    """Write a one-layer Llama with random weights and the tokenizer of ``lea_llm``."""
    source, gguf = locate(tokenizer_of)
    file = {"gguf_file": gguf} if gguf else {}
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **file)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
