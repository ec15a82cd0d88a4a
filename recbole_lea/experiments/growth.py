"""How time and memory of the feedback grow with the number of transitions.

``python -m recbole_lea.benchmark --growth`` builds states and rewards for 10 thousand, 100
thousand and 1 million transitions. What is measured is everything around the LLM: packing,
storing, checksums; so the LLM is a tiny one with random weights.
"""

import dataclasses
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from recbole_lea.engine.llm import locate
from recbole_lea.le import Catalogue, LESettings, Pipeline, Sequences

logger = logging.getLogger(__name__)

SIZES = (10_000, 100_000, 1_000_000)
LENGTH = 11  # items of a user: ten transitions
N_ITEMS = 500


def tiny_llm(folder: Path, tokenizer_of: str) -> None:
    """Write a one-layer Llama with random weights and the tokenizer of ``lea_llm``."""
    source, gguf = locate(tokenizer_of)
    file = {"gguf_file": gguf} if gguf else {}
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **file)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def measure(settings: LESettings, transitions: int) -> dict[str, Any]:
    """Seconds and peak memory of each stage for one size.

    Args:
        settings: with the tiny LLM.
        transitions: a multiple of ten.
    """
    rng = np.random.default_rng(0)
    catalogue = Catalogue({f"i{i}": {"title": f"item {i}"} for i in range(N_ITEMS)})
    items = rng.integers(0, N_ITEMS, (transitions // (LENGTH - 1), LENGTH))
    sequences = Sequences(
        {f"u{u}": [f"i{i}" for i in row] for u, row in enumerate(items)}, catalogue
    )
    pipeline = Pipeline(settings, catalogue, sequences, f"growth-{transitions}", progress_bar=False)
    pipeline.precomputed(want_states=True, want_rewards=True)
    return pipeline.stages.stages


def run(settings: LESettings, sizes: tuple[int, ...] = SIZES) -> dict[str, dict[str, Any]]:
    """Each size in a process of its own, so that its peak memory is its own.

    Returns:
        Size -> seconds and peak memory of the states and of the rewards.
    """
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        tiny_llm(Path(folder) / "llm", settings.llm)
        small = dataclasses.replace(
            settings,
            llm=str(Path(folder) / "llm"),
            llm_dtype="float32",
            item_sentence="{item} is titled {title}.",
            compile=False,
            cache_dir=f"{folder}/cache",
            item_iterations=0,
            finetune_epochs=1,
            finetune_fraction=1e-9,
            finetune_eval=0,
        )
        for size in sizes:
            job = json.dumps({"settings": dataclasses.asdict(small), "transitions": size})
            done = subprocess.run(
                [sys.executable, "-m", "recbole_lea.experiments.growth"],
                input=job,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            stages = json.loads(done.stdout.splitlines()[-1])
            report[str(size)] = {name: stages[name] for name in ("states", "rewards")}
            logger.info("%d transitions: %s", size, report[str(size)])
    return report


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    print(json.dumps(measure(LESettings(**asked["settings"]), asked["transitions"])))
