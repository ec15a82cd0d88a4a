"""Several processes (``accelerate launch`` or ``torchrun``) do what one does.

Every process runs the same code on the same inputs. The LE's forward passes are dealt out and the
results collected, so they equal one process's bit for bit; gradients are summed. Only the main
process writes. A recommender is trained by a ``Share`` of each batch in every process.
"""

import datetime
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
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


def collected(parts: list[Any]) -> list[Any]:
    """The lists of all processes one after the other, in every process."""
    return gather_object(parts)


def own_part(items: Part) -> Part:
    """This process's contiguous share of a list."""
    state = processes()
    first, end = (len(items) * (state.process_index + i) // state.num_processes for i in (0, 1))
    return items[first:end]


class Share:
    """This process's rows of each batch that all processes train on, or score, together.

    Every process runs through the same batches; the k-th row of a batch belongs to process k mod n.

    Args:
        batches: row numbers of each batch.
        even: give every process as many batches, as gradients are averaged: of a batch with fewer
            rows than processes, those without one get the first, at weight 0.

    Attributes:
        size: rows of the present batch in all processes.
        own: which of these rows are this process's.
        weight: of the mean over the own rows in the mean over the whole batch, times the processes.
    """

    def __init__(self, batches: Collection[list[int]], even: bool) -> None:
        self._batches, self._even = batches, even
        self.size, self.own, self.weight = 0, slice(0), 0.0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        index, n = processes().process_index, processes().num_processes
        for batch in self._batches:
            self.size, self.own = len(batch), slice(index, None, n)
            self.weight = len(batch[self.own]) * n / len(batch)
            if self._even and not self.weight:
                self.own = slice(1)
            if rows := batch[self.own]:
                yield rows


def drawn(share: Share | None, n: int, draw: Callable[[int], Any]) -> Any:
    """Random numbers of the ``n`` rows of a share (None for one process), as one process draws.

    ``draw`` makes random numbers for a number of rows, the same ones in all processes.
    """
    return draw(n) if share is None else draw(share.size)[share.own]


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
