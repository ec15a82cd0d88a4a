"""Running out of memory: known by its errors, and without half a gradient left behind."""

from collections.abc import Sequence

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

# Messages that accelerate does not know: of Windows and macOS, CUDA and Triton, CUBLAS.
MESSAGES = (
    "DefaultCPUAllocator: not enough memory", "CUDA error: out of memory", "[CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)  # fmt: skip


def add_gradients(loss: Tensor, parameters: Sequence[Tensor]) -> None:
    """What ``loss.backward()`` does, but all or nothing: running out of memory adds no gradient."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and parameter.grad is not None:
            parameter.grad += gradient
        elif gradient is not None:
            parameter.grad = gradient


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on an accelerator or the CPU."""
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or should_reduce_batch_size(error)
        or any(message in str(error) for message in MESSAGES)
    )
