"""The weights of a ``.gguf`` file, unpacked once: from then on an LLM is there in seconds."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from recbole_lea.engine.llm import LLM, compile_layers, load_llm, locate
from recbole_lea.engine.processes import processes
from recbole_lea.store.cache import held
from recbole_lea.store.files import DONE, read_record, write_record

logger = logging.getLogger(__name__)


def load_unpacked(
    folder: Path,
    spec: str,
    dtype: str,
    device: torch.device,
    options: Mapping[str, Any] | None,
    compiled: bool,
) -> LLM:
    """``engine.llm.load_llm``; what a ``.gguf`` file holds is kept as safetensors.

    Args:
        folder: for this LLM in this dtype alone; it holds a Hugging Face model.
        spec: this and the following as for ``load_llm``.
        dtype: see there.
        device: see there.
        options: see there.
        compiled: see there.
    """
    if locate(spec)[1] is None or options:
        return load_llm(spec, dtype, device, options, compiled)
    with held(folder) as writable:
        if read_record(folder / DONE) is not None:
            return load_llm(str(folder), dtype, device, options, compiled)
        llm = load_llm(spec, dtype, device)
        if writable and processes().is_main_process:
            _save(llm, spec, folder)
    if compiled:
        compile_layers(llm.model)
    return llm


def _save(llm: LLM, spec: str, folder: Path) -> None:
    try:
        llm.model.save_pretrained(folder)
        llm.tokenizer.save_pretrained(folder)
        files = [path.name for path in folder.iterdir() if path.name not in (DONE, "lock")]
        write_record(folder / DONE, {"llm": spec}, files)
    except (OSError, SafetensorError) as error:  # such as a full disk: the run needs none of it
        logger.warning("%s cannot hold the unpacked LLM: %s", folder, error)
