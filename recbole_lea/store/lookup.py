"""Rows of a cache by user and item token, without an LE."""

from pathlib import Path

import numpy as np

from recbole_lea.store.files import MANIFEST, is_name, read_array, read_json


def read_state(folder: str | Path, user: str, n: int) -> np.ndarray:
    """The state of a user after the first ``n`` items, read from a cache without an LE.

    Args:
        folder: ``lea_cache/<dataset>/states-<key>`` or ``projection-<key>``.
        user: user token.
        n: 1 to the length of the user's training sequence.

    Returns:
        The state [width], float16.

    Raises:
        KeyError: there is no such user.
        IndexError: the sequence is shorter than ``n``.
        ValueError: the folder holds anything but numbers, or points to another one.
    """
    folder = Path(folder)
    _, start, end = _sequence_of(folder, user)
    if not 1 <= n <= end - start:
        raise IndexError(f"user {user!r} has states after 1 to {end - start} items, not {n}")
    return np.array(read_array(folder / "states.npy", mapped=True)[start + n - 1])


def read_rewards(folder: str | Path, user: str, n: int) -> dict[str, float]:
    """The scores of the actions after the first ``n`` items of a user, by item token.

    Args:
        folder: ``lea_cache/<dataset>/rewards-<key>`` or ``selection_rewards-<key>``.
        user: user token.
        n: 1 to the length of the user's training sequence minus 1.

    Returns:
        Item token -> unscaled reward; in ``rewards-<key>`` the item that followed comes first.

    Raises:
        KeyError, IndexError, ValueError: as by ``read_state``.
    """
    folder = Path(folder)
    number, start, end = _sequence_of(folder, user)
    if not 1 <= n < end - start:
        raise IndexError(f"user {user!r} has actions after 1 to {end - start - 1} items, not {n}")
    row = start - number + n - 1
    actions, scores = (read_array(folder / f"{n}.npy", True)[row] for n in ("actions", "rewards"))
    items = read_json(_sequences_folder(folder) / "items.json")
    return {items[a]: float(score) for a, score in zip(actions, scores, strict=True)}


def _sequence_of(folder: Path, user: str) -> tuple[int, int, int]:
    """Number of a user, and the rows at which the user's sequence starts and ends."""
    path = _sequences_folder(folder) / "users.json"
    users = read_json(path)
    if user not in users:
        raise KeyError(f"{path} has no user {user!r}")
    number = users.index(user)
    start, end = read_array(path.with_name("offsets.npy"), mapped=True)[number : number + 2]
    return number, int(start), int(end)


def _sequences_folder(folder: Path) -> Path:
    name = read_json(folder / MANIFEST)["sequences"]
    if not is_name(name):
        raise ValueError(f"{folder / MANIFEST}: `sequences` is {name!r}, which is not beside it")
    return folder.parent / name
