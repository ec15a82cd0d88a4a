"""The LE's trained tensors: LoRA adapter and heads.

peft is imported where it is used: it imports bitsandbytes where that is installed, which looks for
GPUs, and CUDA would start before RecBole has hidden those that `gpu_id` does not name.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from recbole_lea.le.settings import LESettings

HEADS = ("score_head", "state_head")


def with_adapter(model: Any, settings: LESettings) -> Any:
    """The LLM with a LoRA adapter, drawn from the LE's seed."""
    from peft import LoraConfig, get_peft_model

    targets = settings.lora_targets
    config = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    torch.manual_seed(settings.seed)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ValueError(
            f"lea_lora_targets: {targets!r} fits no layer of this LLM ({error}): use "
            f"all-linear, or names among {', '.join(_linear_layers(model))}"
        ) from error


def _linear_layers(model: nn.Module) -> list[str]:
    """Last parts of the names of the decoder's matrices that LoRA can adapt."""
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    return sorted({name.rpartition(".")[2] for name in names if "." in name})


def trained_state(environment: Any) -> dict[str, Tensor]:
    """Adapter and heads of an ``Environment``: the tensors that fine-tuning changes."""
    from peft import get_peft_model_state_dict

    adapter = get_peft_model_state_dict(environment.llm)
    state = {f"adapter.{name}": tensor for name, tensor in adapter.items()}
    for head in HEADS:
        own = getattr(environment, head).state_dict()
        state |= {f"{head}.{name}": tensor for name, tensor in own.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def load_trained_state(environment: Any, state: dict[str, Tensor]) -> None:
    """The inverse of ``trained_state``; a KeyError where a tensor is missing."""
    missing = set(trained_state(environment)) - set(state)
    if missing:
        raise KeyError(f"the saved LE lacks {sorted(missing)[0]} ({len(missing)} tensors)")
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(environment.llm, _below(state, "adapter"))
    for head in HEADS:
        getattr(environment, head).load_state_dict(_below(state, head))


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix and a dot, without it."""
    prefix += "."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
