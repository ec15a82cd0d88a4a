"""Which LLM a cache was made with."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recbole_lea.engine.llm import fingerprint, pick_dtype
from recbole_lea.store.cache import held
from recbole_lea.store.files import read_record, write_record

logger = logging.getLogger(__name__)


def identify_llm(
    spec: str, dtype: str, options: Mapping[str, Any] | None, folder: Path, device: torch.device
) -> tuple[str, str, str | None]:
    """What ``lea_llm``, ``lea_llm_dtype`` and ``lea_llm_options`` stand for; for the main process.

    ``llm.json`` in the dataset's cache ``folder`` remembers it, so that a copied cache is
    recognised on a machine without the LLM, or where ``auto`` is another dtype.

    Returns fingerprint and dtype, and what is wrong where the LLM is not on this machine. Raises an
    OSError if it is not here and unknown to the cache.
    """
    path = folder / "llm.json"
    revision = (options or {}).get("revision")
    name = {"llm": f"{spec}@{revision}" if revision else spec, "llm_dtype": dtype}
    known = [entry for entry in _known_llms(path) if entry | name == entry]
    here = str(pick_dtype(dtype, device)).removeprefix("torch.")
    try:
        for entry in known:
            same = fingerprint(spec, f"torch.{entry['dtype']}", revision) == entry["fingerprint"]
            if same and entry["dtype"] != here:
                logger.info("lea_llm_dtype: %s is %s here, but the cache was made with %s: using "
                            "that", dtype, here, entry["dtype"])  # fmt: skip
            if same:
                return entry["fingerprint"], entry["dtype"], None
        found = fingerprint(spec, f"torch.{here}", revision)
    except OSError as error:
        if not known:
            raise
        logger.info("the LLM is not here: using what the cache was made with (%s)", error)
        return known[0]["fingerprint"], known[0]["dtype"], str(error)
    with held(folder) as writable:
        others = [entry for entry in _known_llms(path) if entry | name != entry]
        if writable:  # else this machine is not remembered
            write_record(path, {"known": [*others, name | {"dtype": here, "fingerprint": found}]})
    return found, here, None


def _known_llms(path: Path) -> list[dict[str, str]]:
    """The entries of ``llm.json``: llm, llm_dtype, dtype and fingerprint of each."""
    return (read_record(path) or {}).get("known", [])
