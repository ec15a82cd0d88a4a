"""Training sequences and their transitions, by LE item index."""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_lea.le.catalogue import Catalogue
from recbole_lea.store.files import DONE, write_array, write_json, write_record


class Sequences:
    """Users' item sequences in a fixed order (sorted by user token).

    A sequence x_1..x_T has the states of its prefixes x_{1:t}, t = 1..T, and the transitions
    (x_{1:t} -> x_{t+1}), t = 1..T-1. Both are numbered consecutively over all sequences, from
    ``state_starts`` and ``transition_starts`` [n_sequences + 1] on. They are made of user tokens ->
    item tokens in time order; a KeyError names an item that the catalogue lacks.
    """

    def __init__(self, tokens: Mapping[str, Sequence[str]], catalogue: Catalogue) -> None:
        self.users = sorted(tokens)
        self.item_tokens = catalogue.tokens
        self.items: list[np.ndarray] = []
        for user in self.users:
            if len(tokens[user]) == 0:
                raise ValueError(f"the sequence of user {user!r} is empty")
            unknown = [token for token in tokens[user] if token not in catalogue.index]
            if unknown:
                raise KeyError(f"item {unknown[0]!r} of user {user!r} is not in the LE's catalogue")
            ids = [catalogue.index[token] for token in tokens[user]]
            self.items.append(np.asarray(ids, dtype=np.int64))
        lengths = np.array([len(items) for items in self.items], dtype=np.int64)
        self.state_starts = np.concatenate([[0], np.cumsum(lengths)])
        self.transition_starts = np.concatenate([[0], np.cumsum(lengths - 1)])
        self.n_states = int(self.state_starts[-1])
        self.n_transitions = int(self.transition_starts[-1])

    def __len__(self) -> int:
        return len(self.users)

    @functools.cached_property
    def events(self) -> np.ndarray:
        """The items of all sequences, one after the other [n_states]."""
        return np.concatenate(self.items)

    @functools.cached_property
    def repeating(self) -> float:
        """Share of the sequences that hold an item twice."""
        return sum(len(np.unique(items)) < len(items) for items in self.items) / len(self)

    def locate(self, transitions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Transition numbers [B] to sequences and t, [B] each."""
        sequence = np.searchsorted(self.transition_starts, transitions, side="right") - 1
        return sequence, transitions - self.transition_starts[sequence] + 1

    def histories(
        self, first: int, end: int, whole: bool = False
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Number and history of each transition of some sequences; ``whole``: of each state."""
        row = int((self.state_starts if whole else self.transition_starts)[first])
        own = (items[:t] for items in self.items[first:end] for t in range(1, len(items) + whole))
        return enumerate(own, row)

    def history(self, sequence: int, t: int) -> np.ndarray:
        """x_{1:t}."""
        return self.items[sequence][:t]

    def action(self, sequence: int, t: int) -> int:
        """a_t = x_{t+1}."""
        return int(self.items[sequence][t])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest over users, their items, and the item tokens."""
        digest = hashlib.sha256(json.dumps(self.item_tokens).encode())
        for user, items in zip(self.users, self.items, strict=True):
            digest.update(f"{user}\n".encode())
            digest.update(items.tobytes())
        return digest.hexdigest()

    @property
    def name(self) -> str:
        """Of the folder that a cache keeps them in."""
        return f"sequences-{self.fingerprint[:16]}"

    def save(self, folder: Path) -> None:
        """Write the sequences in open formats; ``store/__init__.py`` says how to read them."""
        write_json(folder / "users.json", self.users)
        write_json(folder / "items.json", self.item_tokens)
        write_array(folder / "offsets.npy", self.state_starts)
        write_array(folder / "sequences.npy", self.events.astype(np.int32))
        content = {"users": len(self), "items": len(self.item_tokens), "states": self.n_states}
        files = ("users.json", "items.json", "offsets.npy", "sequences.npy")
        write_record(folder / DONE, content | {"fingerprint": self.fingerprint}, files)


def sample_negatives(sequences: Sequences, n_items: int, pool: int, seed: int) -> np.ndarray:
    """Uniform negatives, not the positive: LE item indices [n_transitions, pool] (deviation 7).

    Each sequence has its own random stream, whatever the other sequences are.
    """
    if n_items < 2:
        raise ValueError("a negative action needs at least two items")
    rows = []
    for user, items in zip(sequences.users, sequences.items, strict=True):
        stream = int.from_bytes(hashlib.sha256(user.encode()).digest()[:8], "little")
        rng = np.random.default_rng([seed, stream])
        rows.append(uniform_except(rng, items[1:, None], n_items, (len(items) - 1, pool)))
    return np.concatenate(rows)


def uniform_except(
    rng: np.random.Generator, excluded: np.ndarray, n_items: int, shape: tuple[int, ...]
) -> np.ndarray:
    """Uniform draws from 0..n_items-1 without the (broadcast) excluded index."""
    return leave_out(excluded, rng.integers(0, n_items - 1, size=shape))


def popular_except(
    rng: np.random.Generator, excluded: np.ndarray, sequences: Sequences, shape: tuple[int, ...]
) -> np.ndarray:
    """Draws by an item's count in training plus one, without the (broadcast) excluded index."""
    events, n = sequences.events, sequences.n_states
    draws, again = np.empty(shape, dtype=np.int64), np.ones(shape, dtype=bool)
    while again.any():
        place = rng.integers(0, n + len(sequences.item_tokens), size=int(again.sum()))
        draws[again] = np.where(place < n, events[np.minimum(place, n - 1)], place - n)
        again = draws == excluded
    return draws


def leave_out(excluded: Any, draws: Any) -> Any:
    """Draws from one index fewer, arrays or tensors, moved past the (broadcast) excluded index."""
    return draws + (draws >= excluded)
