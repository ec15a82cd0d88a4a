"""Which LLM a cache was made with."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recbole_lea.engine.llm import fingerprint, pick_dtype
from recbole_lea.store.cache import locked
from recbole_lea.store.files import read_record, write_record

logger = logging.getLogger(__name__)


def identify_llm(
    spec: str, dtype: str, options: Mapping[str, Any] | None, folder: Path, device: torch.device
) -> tuple[str, str, str | None]:
    """What ``lea_llm``, ``lea_llm_dtype`` and ``lea_llm_options`` stand for.

    ``llm.json`` in the dataset's cache ``folder`` remembers it, so that a copied cache is
    recognised on a machine without the LLM, or where ``auto`` is another dtype.

    Returns:
        Fingerprint and dtype, and what is wrong where the LLM is not on this machine.

    Raises:
        OSError: the LLM is not here, and unknown to the cache.
    """
    path = folder / "llm.json"
    revision = (options or {}).get("revision")
    name = {"llm": f"{spec}@{revision}" if revision else spec, "llm_dtype": dtype}
    recorded = next((entry for entry in _known_llms(path) if entry | name == entry), None)
    here = str(pick_dtype(dtype, device)).removeprefix("torch.")
    try:
        found = fingerprint(spec, f"torch.{here}", revision)
        if recorded and recorded["dtype"] != here:
            as_recorded = fingerprint(spec, f"torch.{recorded['dtype']}", revision)
            if as_recorded == recorded["fingerprint"]:
                logger.info(
                    "lea_llm_dtype: %s is %s here, but the cache was made with %s: using that",
                    dtype, here, recorded["dtype"],
                )  # fmt: skip
                return as_recorded, recorded["dtype"], None
    except OSError as error:
        if recorded is None:
            raise
        logger.info("the LLM is not here: using what the cache was made with (%s)", error)
        return recorded["fingerprint"], recorded["dtype"], str(error)
    entry = name | {"dtype": here, "fingerprint": found}
    if entry != recorded:
        with locked(folder) as writable:
            others = [other for other in _known_llms(path) if other | name != other]
            if writable:  # else this machine is not remembered
                write_record(path, {"known": [*others, entry]})
    return found, here, None


def _known_llms(path: Path) -> list[dict[str, str]]:
    """The entries of ``llm.json``."""
    known = (read_record(path) or {}).get("known")
    keys = {"llm", "llm_dtype", "dtype", "fingerprint"}
    entries = known if isinstance(known, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and entry.keys() == keys]
