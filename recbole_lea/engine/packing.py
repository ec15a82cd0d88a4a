"""Prompts that share a prefix are computed once: rows of token trees with ancestor masks.

Each token of a row sees its ancestors only and has its depth as position. So the hidden state at
the end of a prompt is what the prompt alone would give, while common prefixes (the template, a
user's history) stand in the row once. Rows have few lengths, so the LLM meets few shapes.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

Prompts = Sequence[Sequence[int]]  # token ids of each

LENGTH_STEP = 32  # tokens

LEAST_TOKENS = 1024  # of a batch that is filled: fewer would be one more shape for little


class PromptRow:
    """A forest of at most ``length`` tokens, each known by (parent, token id)."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.ids: list[int] = []
        self.parents: list[int] = []  # column of each token's parent, -1 for a root
        self.ends: list[int] = []  # column of each prompt's last token
        self.prompts: list[int] = []  # number of each prompt
        self._children: dict[tuple[int, int], int] = {}

    def insert(self, prompts: Prompts, number: int = 0) -> list[int] | None:
        """Add prompts, sharing prefixes; ``number`` is the first one's, and the others count on.

        Returns the column of each prompt's last token; None, and the row as it was, if not all fit.
        """
        before, ends = len(self.ids), []
        for prompt in prompts:
            node = -1
            for token in prompt:
                child = self._children.setdefault((node, token), len(self.ids))
                if child == len(self.ids):
                    self.ids.append(token)
                    self.parents.append(node)
                node = child
            ends.append(node)
            if len(self.ids) > self.length:
                for key in zip(self.parents[before:], self.ids[before:], strict=True):
                    del self._children[key]
                del self.ids[before:], self.parents[before:]
                return None
        self.ends += ends
        self.prompts += range(number, number + len(ends))
        return ends

    def layout(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids [L], positions [L] and the ancestor mask [L, L], padded to the length."""
        ids, positions = np.zeros((2, self.length), dtype=np.int64)
        mask = np.eye(self.length, dtype=bool)  # padding sees itself, so its attention is finite
        ids[: len(self.ids)] = self.ids
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask[node] |= mask[parent]
                positions[node] = positions[parent] + 1
        return ids, positions, mask


class PackedBatch:
    """Rows of one length for one forward pass.

    Attributes:
        ids: token ids [B, L]; an id of ``vocab_size`` or more is an item.
        positions: [B, L].
        mask: True where the query (third axis) sees the key (last axis) [B, 1, L, L].
        parents: flat position (row * L + column) of each token's parent or -1 [B, L].
        ends: flat positions of the prompts' last tokens [N].
        prompts: number of each prompt in the order the prompts were given [N].
    """

    def __init__(self, rows: list[PromptRow]) -> None:
        self.rows = rows
        ids, positions, mask = zip(*(row.layout() for row in rows), strict=True)
        self.ids, self.positions = np.stack(ids), np.stack(positions)
        self.mask = np.stack(mask)[:, None]
        self.parents = np.full(self.ids.shape, -1, dtype=np.int64)
        ends: list[int] = []
        for r, row in enumerate(rows):
            first, own = r * row.length, np.asarray(row.parents)
            self.parents[r, : len(own)] = np.where(own >= 0, own + first, -1)
            ends += [first + column for column in row.ends]
        self.ends = np.array(ends, dtype=np.int64)
        self.prompts = np.array([n for row in rows for n in row.prompts], dtype=np.int64)

    @property
    def n_tokens(self) -> int:
        """Tokens that are not padding."""
        return sum(len(row.ids) for row in self.rows)

    def item_above(self, nodes: np.ndarray, vocab_size: int) -> np.ndarray:
        """The nearest item before each token in its prompt: flat positions [N], -1 without one."""
        ids, parents = self.ids.ravel(), self.parents.ravel()
        above = np.where(nodes >= 0, parents[nodes], -1)
        while (words := (above >= 0) & (ids[above] < vocab_size)).any():
            above[words] = parents[above[words]]
        return above


def pack(groups: Iterable[Prompts], row_length: int, batch_rows: int) -> Iterator[PackedBatch]:
    """Pack groups of prompts into batches; prompts of one group share a row.

    A group that is too large for a row of ``row_length`` goes to rows of twice, four times ...
    that length, of which a batch holds as many fewer. The last batch of a length gets rows of
    padding up to a power of two, at least ``LEAST_TOKENS`` in all. A batch has ``batch_rows`` rows
    of ``row_length``; prompts are numbered in the order of ``groups``.
    """
    unfinished: list[list[PromptRow]] = []  # by length: the rows of the next batch
    number = 0
    for group in groups:
        for size in itertools.count():
            if size == len(unfinished):
                unfinished.append([])
            rows = unfinished[size]
            if rows and rows[-1].insert(group, number) is not None:
                break
            row = PromptRow(row_length << size)
            if row.insert(group, number) is None:
                continue
            if len(rows) == max(1, batch_rows >> size):
                yield PackedBatch(rows)
                rows = unfinished[size] = []
            rows.append(row)
            break
        number += len(group)
    for size, rows in enumerate(unfinished):
        if rows:
            length, n_rows = row_length << size, 1 << (len(rows) - 1).bit_length()
            n_rows = min(max(n_rows, LEAST_TOKENS // length), max(1, batch_rows >> size))
            yield PackedBatch(rows + [PromptRow(length)] * (n_rows - len(rows)))


def pack_snugly(
    groups: Sequence[Prompts], row_length: int, batch_rows: int
) -> Iterator[PackedBatch]:
    """As ``pack``, for the few groups of a training step: rows as long as these need.

    Their length is near ``row_length``, which left a fifth of a step to padding, and a multiple of
    ``LENGTH_STEP``, so that a run still meets few shapes.
    """
    tree = PromptRow(sum(len(prompt) for group in groups for prompt in group))
    for group in groups:
        tree.insert(group)
    n_rows = max(1, round(len(tree.ids) / row_length))
    length = -(-len(tree.ids) // (n_rows * LENGTH_STEP)) * LENGTH_STEP
    while (rows := _filled(groups, length)) is None or len(rows) > n_rows:
        length += LENGTH_STEP  # each row repeats what its groups share
    for first in range(0, len(rows), batch_rows):
        yield PackedBatch(rows[first : first + batch_rows])


def _filled(groups: Sequence[Prompts], length: int) -> list[PromptRow] | None:
    """Rows of that length; None if a group is too large for one."""
    rows: list[PromptRow] = []
    number = 0
    for group in groups:
        if not rows or rows[-1].insert(group, number) is None:
            rows.append(PromptRow(length))
            if rows[-1].insert(group, number) is None:
                return None
        number += len(group)
    return rows
