"""Prompts that share a prefix are computed once: rows of token trees with ancestor masks.

A row of fixed length holds a forest. Each token sees its ancestors only and has its depth as
position, so the hidden state at the end of a prompt is what the prompt alone would give,
while common prefixes (the template, a user's history, everything before the action) stand in
the row once. Rows all have the same shape, so the LLM meets one shape only.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np


class PromptRow:
    """A forest of at most ``length`` tokens, each known by (parent, token id)."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.ids: list[int] = []
        self.parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def insert(self, prompts: Sequence[Sequence[int]]) -> list[int] | None:
        """Add prompts, sharing prefixes.

        Returns:
            The index of each prompt's last token, or None (and the row as it was) if they do
            not all fit.
        """
        before = len(self.ids)
        last = []
        for prompt in prompts:
            node = -1
            for token in prompt:
                key = (node, token)
                child = self._children.get(key)
                if child is None:
                    child = len(self.ids)
                    if child == self.length:
                        self._undo(before)
                        return None
                    self._children[key] = child
                    self.ids.append(token)
                    self.parents.append(node)
                node = child
            last.append(node)
        return last

    def _undo(self, size: int) -> None:
        for node in range(size, len(self.ids)):
            del self._children[self.parents[node], self.ids[node]]
        del self.ids[size:], self.parents[size:]

    def layout(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids [L], positions [L] and the ancestor mask [L, L], padded to the length.

        A padding token sees itself only, so that its attention is finite.
        """
        ids = np.zeros(self.length, dtype=np.int64)
        positions = np.zeros(self.length, dtype=np.int64)
        mask = np.eye(self.length, dtype=bool)
        ids[: len(self.ids)] = self.ids
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask[node] |= mask[parent]
                positions[node] = positions[parent] + 1
        return ids, positions, mask


@dataclasses.dataclass
class PackedBatch:
    """Rows for one forward pass.

    Attributes:
        ids: token ids [B, L]; an id of ``vocab_size`` or more is an item.
        positions: [B, L].
        mask: True where the query (third axis) sees the key (last axis) [B, 1, L, L].
        reads: flat positions (row * L + column) of the prompts' last tokens.
        parents: flat position of each token's parent, -1 for a root or padding [B, L].
        prompts: index of each read's prompt in the order the prompts were given.
        n_tokens: tokens that are not padding.
    """

    ids: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    reads: np.ndarray
    parents: np.ndarray
    prompts: np.ndarray
    n_tokens: int


def pack(
    groups: Iterable[Sequence[Sequence[int]]],
    row_length: int,
    batch_rows: int,
    fill_batches: bool = True,
) -> Iterator[PackedBatch]:
    """Pack groups of prompts into batches; prompts of one group share a row.

    Args:
        groups: groups of prompts (lists of token ids), in the order to be read back.
        row_length: L, tokens a row.
        batch_rows: B, rows a batch.
        fill_batches: pad the last batch to B rows, so that all have the same shape.

    Raises:
        ValueError: a group does not fit into one row.
    """
    rows: list[PromptRow] = []
    reads: list[tuple[int, int]] = []  # (row, column)
    first_prompt = 0
    for group in groups:
        last = rows[-1].insert(group) if rows else None
        if last is None:
            if len(rows) == batch_rows:
                yield _batch(rows, reads, first_prompt, batch_rows)
                first_prompt += len(reads)
                rows, reads = [], []
            rows.append(PromptRow(row_length))
            last = rows[-1].insert(group)
            if last is None:
                size = max(len(prompt) for prompt in group)
                raise ValueError(
                    f"{len(group)} prompts of up to {size} tokens do not fit into a row of "
                    f"{row_length}: raise lea_row_length, or lower lea_max_history or negative_pool"
                )
        reads.extend((len(rows) - 1, column) for column in last)
    if rows:
        yield _batch(rows, reads, first_prompt, batch_rows if fill_batches else len(rows))


def _batch(
    rows: list[PromptRow], reads: list[tuple[int, int]], first_prompt: int, n_rows: int
) -> PackedBatch:
    length = rows[0].length
    layouts = [row.layout() for row in rows]
    layouts += [PromptRow(length).layout()] * (n_rows - len(rows))
    parents = np.full((n_rows, length), -1, dtype=np.int64)
    for r, row in enumerate(rows):
        own = np.asarray(row.parents)
        parents[r, : len(own)] = np.where(own >= 0, own + r * length, -1)
    return PackedBatch(
        ids=np.stack([layout[0] for layout in layouts]),
        positions=np.stack([layout[1] for layout in layouts]),
        mask=np.stack([layout[2] for layout in layouts])[:, None],
        reads=np.array([row * length + column for row, column in reads], dtype=np.int64),
        parents=parents,
        prompts=first_prompt + np.arange(len(reads)),
        n_tokens=sum(len(row.ids) for row in rows),
    )
