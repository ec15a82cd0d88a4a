"""Time and memory of every stage at a million items and ten million transitions.

``python -m recbole_lea.benchmark --load`` generates items and sequences and runs, through RecBole's
data loading, a part of each stage: what fills memory (sequences, item tokens, the store, the Q
heads) has its full size; the LLM, a tiny one with random weights, answers for the first items and
shards of a stage alone, and the rest are random numbers. RecBole's own data and models are measured
beside it, in a process of their own.
"""

import contextlib
import itertools
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from recbole.config import Config
from recbole.data import data_preparation
from recbole.data.dataset import SequentialDataset
from recbole.model.sequential_recommender import GRU4Rec, SASRec
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from recbole_lea.engine.llm import locate
from recbole_lea.engine.stagelog import StageLog
from recbole_lea.experiments.training_speed import training_step
from recbole_lea.le import Pipeline, answers
from recbole_lea.le import item_tokens as tokenization
from recbole_lea.model import GRU4RecSNQNLEA, SASRecSA2CLEA
from recbole_lea.plugin.dataset import LEADataset
from recbole_lea.plugin.record import stage_report
from recbole_lea.plugin.trainer import fused

logger = logging.getLogger(__name__)

NAME = "load"
TRANSITIONS = 10  # training transitions of a user; two more interactions are held out
ASKED = 3  # shards of a stage, and batches of items, for which the LLM is asked
STEPS = 5  # of training and of full-sort scoring

KEYS = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "train_neg_sample_args": None,
    "MAX_ITEM_LIST_LENGTH": 10, "train_batch_size": 64, "eval_batch_size": 64,
    "show_progress": False, "lea_llm_dtype": "float32", "lea_compile": False,
    "lea_item_sentence": "{item} is titled {title}.", "lea_item_iterations": 1,
    "lea_finetune_fraction": 1e-5, "lea_finetune_epochs": 1, "lea_finetune_eval": 100,
}  # fmt: skip


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


@contextlib.contextmanager
def mostly_random() -> Iterator[None]:
    """The LLM is asked for the first of a stage's shards, and for the first batches of items."""
    bucket = tokenization.tokenize_bucket
    asked = itertools.count()
    rng = np.random.default_rng(0)

    def first_buckets(environment, ids, start, *others):
        if next(asked) < ASKED:
            return bucket(environment, ids, start, *others)
        return start.numpy(), np.zeros((len(ids), 2), dtype=np.float32)

    def first_shards(compute, starts_of, sequences, *others):
        *given, missing = others
        rows = np.diff(getattr(sequences, starts_of)[answers.shard_bounds(sequences)])
        for shard, values in compute(sequences, *given, missing[:ASKED]):
            yield shard, values
        for shard in missing[ASKED:]:
            yield shard, rng.standard_normal((rows[shard], values.shape[1]), np.float32)

    with (
        mock.patch.object(tokenization, "tokenize_bucket", first_buckets),
        mock.patch.object(answers, "states", partial(first_shards, answers.states, "state_starts")),
        mock.patch.object(
            answers, "rewards", partial(first_shards, answers.rewards, "transition_starts")
        ),
    ):
        yield


def measure(who: str, keys: dict[str, Any], steps: int) -> dict[str, dict[str, float]]:
    """Seconds and peak memory of each stage.

    ``RecBole``'s are those of its own SASRec and GRU4Rec; ``LEA``'s of SASRecSA2CLEA and
    GRU4RecSNQNLEA with LE states beside h_t, LE rewards and both augmented losses, after the
    warm-up.
    """
    ours = who == "LEA"
    models = (SASRecSA2CLEA, GRU4RecSNQNLEA) if ours else (SASRec, GRU4Rec)
    configs = [Config(model, NAME, config_dict=keys) for model in models]
    log = StageLog()
    with log.stage("read the interactions"):
        dataset = (LEADataset if ours else SequentialDataset)(configs[0])
    if ours:
        dataset.lea_stages = log
    with mostly_random(), log.stage("prepare the data"):
        train, _, test = data_preparation(configs[0], dataset)
        del dataset
        if ours:
            _augment(train._dataset, log)
    for model_class, config in zip(models, configs, strict=True):
        name = model_class.__name__
        with log.stage(f"build {name}"):
            model = model_class(config, train._dataset)
            model.warmed_up = True
            adam = torch.optim.Adam(model.parameters())
            step = training_step(model, fused(adam) if ours else adam)  # as the trainers have them
        batches = iter(train)
        for what, n in (("first step", 1), (f"{steps} more steps", steps)):
            with log.stage(f"{name}: {what}"):
                for batch in itertools.islice(batches, n):
                    step(batch)
        del batch, batches, step, adam
        model.eval()
        with log.stage(f"{name}: rank {steps} batches"), torch.no_grad():
            for batch in itertools.islice(test, steps):
                model.full_sort_predict(batch[0]).topk(20)
        del model
    return log.stages


def _augment(data: Any, log: StageLog) -> None:
    """The LE chooses among random candidates; then another run reads its cache."""
    pipeline, n_items = data.lea_pipeline, len(data.lea_item_ids)
    first = np.random.default_rng(0).integers(0, n_items, pipeline.sequences.n_transitions)
    candidates = (first[:, None] + np.arange(min(5, n_items))) % n_items
    data.lea_feedback.augment(*pipeline.select(candidates, want_rewards=True))
    del candidates
    with log.stage("a second run: the LE from its cache"):
        again = Pipeline(
            pipeline.settings, pipeline.catalogue, pipeline.sequences, NAME, progress_bar=False
        )
        again.precomputed(want_states=True, want_rewards=True)


def run(llm: str, items: int, transitions: int, steps: int = STEPS) -> dict[str, dict[str, Any]]:
    """Both measurements on generated data, each in a process of its own.

    The tiny LLM gets the tokenizer of ``llm``; each model makes ``steps`` steps of training and
    of full-sort scoring.

    Returns:
        ``RecBole`` and ``LEA`` -> stage -> seconds and peak memory.

    Raises:
        ValueError: there are not enough interactions for the items.
    """
    interactions = transitions // TRANSITIONS * (TRANSITIONS + 3)
    if items < 2 or interactions < items:
        raise ValueError(
            f"--items {items} --transitions {transitions}: {interactions} interactions are too few "
            "for so many items to occur, or there are fewer than 2 items"
        )
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "data" / NAME, items, transitions)
        tiny_llm(Path(folder) / "llm", llm)
        places = {"data_path": "data", "lea_llm": "llm", "lea_cache_dir": "cache"}
        keys = KEYS | {key: f"{folder}/{place}" for key, place in places.items()}
        for who in ("RecBole", "LEA"):
            done = subprocess.run(
                [sys.executable, "-m", "recbole_lea.experiments.load"], check=True, text=True,
                input=json.dumps({"who": who, "keys": keys, "steps": steps}),
                stdout=subprocess.PIPE,
            )  # fmt: skip
            report[who] = json.loads(done.stdout.splitlines()[-1])
            logger.info("%s: %s", who, stage_report(report[who]))
    return report


if __name__ == "__main__":
    print(json.dumps(measure(**json.load(sys.stdin))))
