"""The LE's trained tensors: LoRA adapter and heads.

peft is imported where it is used: it imports bitsandbytes where that is installed, which looks for
GPUs, and CUDA would start before RecBole has hidden those that `gpu_id` does not name.
"""

import re
from typing import Any

import torch
from torch import Tensor

from recbole_lea.le.settings import LESettings

HEADS = ("score_head", "state_head")


def check_targets(model: Any, targets: tuple[str, ...] | str) -> None:
    """Compare ``lea_lora_targets`` with the linear layers that the LLM's decoder repeats.

    Raises:
        ValueError: one fits none of them, or something else as well; gives the names that fit.
    """
    if targets == "all-linear":
        return
    modules = {name: own for name, own in model.named_modules() if name}
    repeated = [name for name in modules if re.search(r"\.\d+\.", name)]
    # nf: of GPT-2's layers
    linear = {
        n for n in repeated if hasattr(modules[n], "in_features") or hasattr(modules[n], "nf")
    }
    for target in [targets] if isinstance(targets, str) else targets:
        # as peft reads them: a text is a pattern of the whole name, a list has ends of names
        pattern = target if isinstance(targets, str) else rf"(.*\.)?{re.escape(target)}"
        try:
            found = {name for name in modules if re.fullmatch(pattern, name)}
        except re.error as error:
            raise ValueError(f"lea_lora_targets: {target!r} is no pattern: {error}") from error
        if not found or found - linear:
            fit = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise ValueError(
                f"lea_lora_targets: {target!r} fits {min(found - linear, default='nothing')} of "
                f"this LLM, but has to fit linear layers of its decoder: use all-linear or [{fit}]"
            )


def with_adapter(model: Any, settings: LESettings) -> Any:
    """The LLM with a LoRA adapter, drawn from the LE's seed."""
    from peft import LoraConfig, get_peft_model

    targets = settings.lora_targets
    config = LoraConfig(
        r=settings.lora_r, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )  # fmt: skip
    torch.manual_seed(settings.seed)
    return get_peft_model(model, config)


def trained_state(environment: Any) -> dict[str, Tensor]:
    """Adapter and heads of an ``Environment``: the tensors that fine-tuning changes."""
    from peft import get_peft_model_state_dict

    parts = {"adapter": get_peft_model_state_dict(environment.llm)}
    parts |= {head: getattr(environment, head).state_dict() for head in HEADS}
    return {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part, own in parts.items()
        for name, tensor in own.items()
    }


def load_trained_state(environment: Any, state: dict[str, Tensor]) -> None:
    """The inverse of ``trained_state``; a KeyError where a tensor is missing."""
    missing = set(trained_state(environment)) - set(state)
    if missing:
        raise KeyError(f"the saved LE lacks {min(missing)} ({len(missing)} tensors)")
    from peft import set_peft_model_state_dict

    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    set_peft_model_state_dict(environment.llm, parts["adapter"])
    for head in HEADS:
        getattr(environment, head).load_state_dict(parts.get(head, {}))
