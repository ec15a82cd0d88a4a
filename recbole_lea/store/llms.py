"""What a cache keeps of LLMs: which one it was made with, and the weights of a ``.gguf`` file."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from recbole_lea.engine.llm import LLM, compile_layers, fingerprint, load_llm, locate, pick_dtype
from recbole_lea.engine.processes import processes
from recbole_lea.engine.versions import versions
from recbole_lea.store.cache import held
from recbole_lea.store.files import DONE, read_record, write_record

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

    def entries() -> list[dict[str, str]]:
        return (read_record(path) or {}).get("known", [])

    revision = (options or {}).get("revision")
    name = {"llm": f"{spec}@{revision}" if revision else spec, "llm_dtype": dtype}
    known = [entry for entry in entries() if entry | name == entry]
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
        others = [entry for entry in entries() if entry | name != entry]
        if writable:  # else this machine is not remembered
            write_record(path, {"known": [*others, name | {"dtype": here, "fingerprint": found}]})
    return found, here, None


def load_unpacked(
    folder: Path, spec: str, dtype: str, device: torch.device, options: Any, compiled: bool
) -> LLM:
    """``engine.llm.load_llm``, whose arguments follow ``folder``.

    What a ``.gguf`` file holds is kept in ``folder``, which is for this LLM in this dtype alone.
    How it reads packed prompts is checked once for each device and set of versions.
    """
    if locate(spec)[1] is None or options:
        return load_llm(spec, dtype, device, options, compiled)
    here = versions() | {"device": device.type}
    with held(folder) as writable:
        record = read_record(folder / DONE)
        source, checked = spec if record is None else str(folder), (record or {}).get("checked")
        llm = load_llm(source, dtype, device, None, False, checked == here)
        if writable and processes().is_main_process and checked != here:
            try:
                if record is None:
                    llm.model.save_pretrained(folder)
                    llm.tokenizer.save_pretrained(folder)
                files = [path.name for path in folder.iterdir() if path.name not in (DONE, "lock")]
                write_record(folder / DONE, {"llm": spec, "checked": here}, files)
            except (OSError, SafetensorError) as error:  # a full disk: the run needs none of it
                logger.warning("%s cannot hold the unpacked LLM: %s", folder, error)
    if compiled:
        compile_layers(llm.model)
    return llm
