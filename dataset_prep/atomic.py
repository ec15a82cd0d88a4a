"""Writing RecBole atomic files so that a reader sees the whole dataset or none of it."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np

from dataset_prep.report import PrepError
from dataset_prep.text import MAX_FIELD, field

# What is said of a dataset, and the LEA paper's Table 1 on its own ones
_LABELS = ["", "items", "sequences", "interactions", "mean length"]
_TABLE_1 = {
    "lfm": ["paper (LFM)", "18,297", "11,073", "146,255", "13.21"],
    "industrial": ["paper (Industry)", "5,814", "10,935", "71,872", "6.57"],
}


@contextmanager
def staged_folder(output: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes ``output`` when the block ends without an error.

    The folder lies beside ``output`` under a hidden name, so that the last step is one rename on
    one file system. It is removed when the block fails; only a process killed outright leaves it.

    Raises:
        PrepError: ``output``, an absolute path, exists already.
    """
    refused = PrepError(f"{output}: exists already; remove it or name another --output")
    if os.path.lexists(output):
        raise refused
    output.parent.mkdir(parents=True, exist_ok=True)
    stage = output.with_name(f".{output.name}.{os.getpid()}.partial")
    # A folder of this name can only come from a killed process that had the same id.
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
        if os.path.lexists(output):
            raise refused
        os.replace(stage, output)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def _text_file(path: Path, header: list[str]) -> Iterator[TextIO]:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(header) + "\n")
        yield file
        file.flush()
        # Without it a power cut could leave the renamed folder with empty files.
        os.fsync(file.fileno())


def write_inter(
    path: Path, events: Iterable[np.ndarray], users: np.ndarray, items: np.ndarray, with_time: bool
) -> dict[str, int]:
    """Write a ``.inter`` file and return its numbers of sequences and interactions.

    ``timestamp`` is the place in the sequence (0, 1, 2, ...): RecBole turns it into float32, which
    cannot tell today's unix seconds apart within 128 s. The original time goes to ``time``.

    Args:
        path: the file to write.
        events: chunks of ``EVENT``, ordered by user and then by place in the sequence.
        users: token of each user index.
        items: token of each item index.
        with_time: write the ``time`` column (seconds since 1970, UTC).
    """
    header = ["user_id:token", "item_id:token", "timestamp:float"] + ["time:float"] * with_time
    user, place, counts = -1, 0, {"sequences": 0, "interactions": 0}
    with _text_file(path, header) as file:
        for chunk in events:
            places = []
            for one in chunk["user"].tolist():
                place = place + 1 if one == user else 0
                user = one
                places.append(place)
            counts["sequences"] += places.count(0)
            counts["interactions"] += len(places)
            columns = [users[chunk["user"]].tolist(), items[chunk["item"]].tolist(), places]
            columns += [chunk["time"].tolist()] * with_time
            file.writelines("\t".join(map(str, row)) + "\n" for row in zip(*columns, strict=True))
    return counts


def write_items(
    path: Path, fields: Iterable[str], rows: Iterable[tuple[str, ...]]
) -> dict[str, int]:
    """Write an ``.item`` file: for each item its token and its text fields, each on one line.

    Returns the number of ``items``, of items ``with`` each field, and of fields ``cut`` because
    they are longer than RecBole's reader accepts.
    """
    counts = {"items": 0, "cut": 0} | {f"with {name}": 0 for name in fields}
    with _text_file(path, ["item_id:token"] + [f"{name}:token_seq" for name in fields]) as file:
        for token, *texts in rows:
            counts["items"] += 1
            counts["cut"] += sum(len(text) > MAX_FIELD for text in texts)
            for name, text in zip(fields, texts, strict=True):
                counts[f"with {name}"] += bool(text)
            file.write("\t".join([token, *map(field, texts)]) + "\n")
    return counts


def statistics_table(counts: dict[str, int], paper: str) -> list[str]:
    """Return a line for each number of what was written, beside the paper's where it has any.

    ``counts`` are those of ``write_inter`` and ``write_items``; ``paper`` is ``lfm``,
    ``industrial`` or "".
    """
    items, sequences, interactions = (counts[label] for label in _LABELS[1:4])
    sizes = [f"{items:,}", f"{sequences:,}", f"{interactions:,}", f"{interactions / sequences:.2f}"]
    rows = list(zip(_LABELS, ["this run", *sizes], _TABLE_1.get(paper, [""] * 5), strict=True))
    texts = [label for label in counts if label.startswith("with ")]
    rows += [(label, f"{counts[label] / items:.1%}", "") for label in texts]
    lines = [f"{label:<18}{ours:>12}{theirs:>20}".rstrip() for label, ours, theirs in rows]
    if cut := counts["cut"]:
        lines.append(f"{cut:,} text fields were too long for RecBole's reader and were cut")
    return lines
