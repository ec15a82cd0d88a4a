"""Several processes (``accelerate launch`` or ``torchrun``) do what one does.

Every process runs the same code on the same inputs. The LE's forward passes are dealt out and the
results collected, so they equal one process's bit for bit; gradients are summed. Only the main
process writes.
"""

import datetime
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from torch import Tensor, nn

Part = TypeVar("Part", list[Any], range)


def processes() -> PartialState:
    """Number of this process, how many there are, and its device; one without a launcher."""
    no_accelerator = not torch.accelerator.is_available()
    # a process may wait for the main one as long as a recommender trains
    return PartialState(cpu=no_accelerator, timeout=datetime.timedelta(days=30))


def from_main(value: Any) -> Any:
    """The main process's value, in every process."""
    return broadcast_object_list([value])[0] if processes().num_processes > 1 else value


def own_part(items: Part) -> Part:
    """This process's contiguous share of a list."""
    state = processes()
    first, end = (len(items) * (state.process_index + i) // state.num_processes for i in (0, 1))
    return items[first:end]


def sum_gradients(parameters: Sequence[nn.Parameter], totals: Tensor) -> Tensor:
    """Sum the gradients, in place, and further float32 numbers [k] over all processes.

    The parameters have the same shapes in every process. Returns the summed numbers [k].
    """
    if processes().num_processes == 1:
        return totals
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    parts = [*(gradient.flatten().float() for gradient in gradients), totals]
    *sums, totals = reduce(torch.cat(parts), "sum").split([len(part) for part in parts])
    for gradient, summed in zip(gradients, sums, strict=True):
        gradient.copy_(summed.view_as(gradient))
    return totals
