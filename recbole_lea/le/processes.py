"""One LE built by several processes (``accelerate launch`` or ``torchrun``).

Every process runs the same code on the same inputs. Forward passes are dealt out batch by batch
and their results collected, so they are those of one process bit for bit; gradients are summed.
Only the main process writes, into a cache folder that all of them see.
"""

import datetime
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import Tensor, nn

Part = TypeVar("Part", list[Any], range)


def processes() -> PartialState:
    """Rank, number of processes and device; alone, without a launcher.

    A process may wait for the main one as long as a recommender trains.
    """
    no_accelerator = not torch.accelerator.is_available()
    return PartialState(cpu=no_accelerator, timeout=datetime.timedelta(days=30))


def from_main(value: Any) -> Any:
    """The main process's value, in every process."""
    if processes().num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def collected(parts: list[Any]) -> list[Any]:
    """The lists of all processes one after the other, in every process."""
    return gather_object(parts)


def own_part(items: Part) -> Part:
    """This process's contiguous share of a list."""
    state = processes()
    bounds = [len(items) * i // state.num_processes for i in range(state.num_processes + 1)]
    return items[bounds[state.process_index] : bounds[state.process_index + 1]]


def sum_gradients(parameters: Sequence[nn.Parameter], totals: Tensor) -> Tensor:
    """Sum the gradients over all processes, in place.

    Args:
        parameters: all with the same shapes in every process.
        totals: further numbers to sum [k], float32.

    Returns:
        The summed totals [k].
    """
    if processes().num_processes == 1:
        return totals
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    parts = [gradient.flatten().float() for gradient in gradients]
    summed = reduce(torch.cat([*parts, totals]), "sum")
    sizes = [part.numel() for part in parts]
    for gradient, part in zip(gradients, summed.split([*sizes, len(totals)]), strict=False):
        gradient.copy_(part.view_as(gradient))
    return summed[sum(sizes) :]
