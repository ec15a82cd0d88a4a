"""One LE built by several processes (``accelerate launch`` or ``torchrun``).

Every process runs the same code on the same inputs. Forward passes are dealt out batch by batch
and their results collected, so they are those of one process bit for bit; gradients are summed.
Only the main process writes, into a cache folder that all of them see. ``Share`` serves the
training of a recommender in all of them.
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


class Share:
    """This process's rows of each batch that all processes train on, or score, together.

    Each of them runs through the same batches; the k-th row of a batch belongs to process
    k mod n. All rows together are those of one process, each once.

    Args:
        batches: row numbers of each batch.
        even: give every process as many batches, as gradients are averaged: where a batch has
            fewer rows than there are processes, the others get its first row, at weight 0.

    Attributes:
        size: rows of the present batch in all processes.
        own: which of them are this process's.
        weight: by which the mean over the own rows has to be multiplied for the mean over all
            processes to be that over the whole batch.
    """

    def __init__(self, batches: Collection[list[int]], even: bool) -> None:
        self._batches = batches
        self._even = even
        self.size, self.own, self.weight = 0, slice(0), 0.0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        rank, n = processes().process_index, processes().num_processes
        for batch in self._batches:
            self.size, self.own = len(batch), slice(rank, None, n)
            rows = batch[self.own]
            self.weight = len(rows) * n / len(batch)
            if not rows and self._even:
                self.own = slice(1)
                rows = batch[self.own]
            if rows:
                yield rows


def drawn(share: Share | None, n: int, draw: Callable[[int], Any]) -> Any:
    """Random numbers of ``n`` rows that do not depend on the number of processes.

    Args:
        share: whose rows they are; None for one process.
        n: rows.
        draw: makes random numbers for a number of rows, the same ones in all processes.
    """
    return draw(n) if share is None else draw(share.size)[share.own]


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
