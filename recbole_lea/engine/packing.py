"""Prompts that share a prefix are computed once: rows of token trees with ancestor masks.

A row of fixed length holds a forest. Each token sees its ancestors only and has its depth as
position, so the hidden state at the end of a prompt is what the prompt alone would give,
while common prefixes (the template, a user's history, everything before the action) stand in
the row once. Rows have few lengths, so the LLM meets few shapes.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

LENGTH_STEP = 32  # tokens

LEAST_TOKENS = 1024  # of a batch that is filled: fewer would be one more shape for little


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
        sizes: tokens of each row that are not padding [B].
    """

    ids: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    reads: np.ndarray
    parents: np.ndarray
    prompts: np.ndarray
    sizes: np.ndarray

    @property
    def n_tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.sizes.sum())

    def item_above(self, nodes: np.ndarray, vocab_size: int) -> np.ndarray:
        """The nearest item before each token of its prompt.

        Args:
            nodes: flat positions [N].
            vocab_size: ids from it on are items.

        Returns:
            Flat positions [N], -1 where no item comes before.
        """
        ids, parents = self.ids.ravel(), self.parents.ravel()
        above = np.where(nodes >= 0, parents[nodes], -1)
        while (words := (above >= 0) & (ids[above] < vocab_size)).any():
            above[words] = parents[above[words]]
        return above

    def halves(self) -> "tuple[PackedBatch, PackedBatch]":
        """The first and the second half of the rows, of which there are at least two."""
        rows, length = self.ids.shape
        return self._rows(0, rows // 2, length), self._rows(rows // 2, rows, length)

    def _rows(self, first: int, end: int, length: int) -> "PackedBatch":
        before = first * length
        read = (self.reads >= before) & (self.reads < end * length)
        parents = self.parents[first:end]
        return PackedBatch(
            ids=self.ids[first:end],
            positions=self.positions[first:end],
            mask=self.mask[first:end],
            reads=self.reads[read] - before,
            parents=np.where(parents >= 0, parents - before, -1),
            prompts=self.prompts[read],
            sizes=self.sizes[first:end],
        )


class _Open:
    """The rows of one length that are being filled."""

    def __init__(self, length: int, batch_rows: int, filled: bool) -> None:
        self.length = length
        self.batch_rows = batch_rows
        self.filled = filled
        self.clear()

    def clear(self) -> None:
        self.rows: list[PromptRow] = []
        self.reads: list[int] = []  # row * L + column
        self.prompts: list[int] = []

    def batch(self) -> PackedBatch:
        n_rows = len(self.rows)
        if self.filled:
            n_rows = max(1 << (n_rows - 1).bit_length(), LEAST_TOKENS // self.length)
            n_rows = min(n_rows, self.batch_rows)
        padding = [PromptRow(self.length)] * (n_rows - len(self.rows))
        return _batch(self.rows + padding, self.reads, self.prompts)


def pack(
    groups: Iterable[Sequence[Sequence[int]]],
    row_length: int,
    batch_rows: int,
    snug: bool = False,
) -> Iterator[PackedBatch]:
    """Pack groups of prompts into batches; prompts of one group share a row.

    A group that is too large for a row of ``row_length`` goes to rows of twice, four times ...
    that length, of which a batch holds as many fewer. So a few shapes are all that the LLM meets.

    Args:
        groups: groups of prompts (lists of token ids).
        row_length: L, tokens of the shortest row.
        batch_rows: B, rows of that length a batch.
        snug: for a few groups, such as those of a training step: rows of about ``row_length``,
            as long as the groups need (``snug_length``). Otherwise the last batch of a length
            gets rows of padding up to a power of two, at least ``LEAST_TOKENS`` in all.

    Yields:
        Batches in which each prompt has the number it has in the order of ``groups``.
    """
    if snug:
        groups = list(groups)
        row_length = snug_length(groups, row_length)
    buckets: list[_Open] = []
    n_prompts = 0
    for group in groups:
        for size in itertools.count():
            if size == len(buckets):
                rows = max(1, batch_rows >> size)
                buckets.append(_Open(row_length << size, rows, not snug))
            bucket = buckets[size]
            last = bucket.rows[-1].insert(group) if bucket.rows else None
            if last is None:
                row = PromptRow(bucket.length)
                last = row.insert(group)
                if last is None:
                    continue
                if len(bucket.rows) == bucket.batch_rows:
                    yield bucket.batch()
                    bucket.clear()
                bucket.rows.append(row)
            first = (len(bucket.rows) - 1) * bucket.length
            bucket.reads.extend(first + column for column in last)
            bucket.prompts.extend(range(n_prompts, n_prompts + len(last)))
            n_prompts += len(last)
            break
    for bucket in buckets:
        if bucket.rows:
            yield bucket.batch()


def snug_length(groups: Sequence[Sequence[Sequence[int]]], row_length: int) -> int:
    """The row length near ``row_length`` that leaves little padding.

    Rows of a fixed length left a fifth of a fine-tuning step to padding. Lengths are multiples of
    ``LENGTH_STEP``, so that a run still meets few shapes.
    """
    tree = PromptRow(sum(len(prompt) for group in groups for prompt in group))
    for group in groups:
        tree.insert(group)
    n_rows = max(1, round(len(tree.ids) / row_length))
    length = -(-len(tree.ids) // (n_rows * LENGTH_STEP)) * LENGTH_STEP
    while _rows_needed(groups, length) > n_rows:  # each row repeats what its groups share
        length += LENGTH_STEP
    return length


def _rows_needed(groups: Sequence[Sequence[Sequence[int]]], length: int) -> float:
    n_rows, row = 0, PromptRow(0)
    for group in groups:
        if row.insert(group) is None:
            n_rows, row = n_rows + 1, PromptRow(length)
            if row.insert(group) is None:
                return float("inf")
    return n_rows


def _batch(rows: list[PromptRow], reads: list[int], prompts: list[int]) -> PackedBatch:
    length = rows[0].length
    layouts = [row.layout() for row in rows]
    parents = np.full((len(rows), length), -1, dtype=np.int64)
    for r, row in enumerate(rows):
        own = np.asarray(row.parents)
        parents[r, : len(own)] = np.where(own >= 0, own + r * length, -1)
    return PackedBatch(
        ids=np.stack([layout[0] for layout in layouts]),
        positions=np.stack([layout[1] for layout in layouts]),
        mask=np.stack([layout[2] for layout in layouts])[:, None],
        reads=np.array(reads, dtype=np.int64),
        parents=parents,
        prompts=np.array(prompts, dtype=np.int64),
        sizes=np.array([len(row.ids) for row in rows]),
    )
