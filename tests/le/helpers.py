"""A small LE on the tiny LLM, and what a file holds of this process's memory."""

from pathlib import Path

import pytest
import torch

from recbole_lea.engine.llm import load_llm
from recbole_lea.le.catalogue import Catalogue
from recbole_lea.le.environment import Environment
from recbole_lea.le.pipeline import Pipeline
from recbole_lea.le.sequences import Sequences

CATALOGUE = Catalogue({f"i{n:02}": {"title": "red green" if n % 2 else "blue"} for n in range(12)})
SEQUENCES = Sequences(
    {f"u{u}": [f"i{(u * 5 + t * (1 + u % 2)) % 12:02}" for t in range(2 + u)] for u in range(8)},
    CATALOGUE,
)


SMAPS = Path("/proc/self/smaps")
needs_smaps = pytest.mark.skipif(not SMAPS.exists(), reason="Linux tells it")


def resident(path):
    """kB of a mapped file that stay in memory."""
    maps = SMAPS.read_text().split(str(path))[1:]
    return sum(int(part.split("Rss:")[1].split()[0]) for part in maps)


def environment(settings, adapted=True):
    llm = load_llm(settings.llm, settings.llm_dtype, torch.device("cpu"))
    torch.manual_seed(1)
    tokens = torch.randn(len(CATALOGUE), llm.width) * 0.3
    titles = CATALOGUE.titles(settings.title) if settings.prompt_items == "title" else None
    env = Environment(llm, tokens, settings, adapted, titles)
    if adapted:  # peft starts B at zero: give the adapter something to do
        for name, parameter in env.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return env.eval()


def pipeline(settings, sequences=SEQUENCES, catalogue=CATALOGUE):
    return Pipeline(settings, catalogue, sequences, "tiny", progress_bar=False)


def computed(caplog):
    """The stages that were computed since the last call."""
    lines = [record.message for record in caplog.records]
    caplog.clear()
    return [line.split(":")[0] for line in lines if ": computing into" in line]
