"""Writing RecBole atomic files so that a reader sees the whole dataset or none of it."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset_prep.problems import PrepError
from dataset_prep.text import MAX_FIELD, field


@contextmanager
def staged_folder(output: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes ``output`` when the block ends without an error.

    The folder lies beside ``output`` under a hidden name, so that the last step is one rename on
    one file system. It is removed when the block fails; only a process killed outright leaves it.

    Raises:
        PrepError: ``output`` exists already.
    """
    output = Path(os.path.abspath(output))
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
def _text_file(path: Path) -> Iterator:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        yield file
        file.flush()
        # Without it a power cut could leave the renamed folder with empty files.
        os.fsync(file.fileno())


def write_inter(
    path: Path,
    events: Iterable[np.ndarray],
    users: np.ndarray,
    items: np.ndarray,
    with_time: bool,
) -> None:
    """Write a ``.inter`` file.

    ``timestamp`` is the place in the sequence (0, 1, 2, ...): RecBole turns it into float32, which
    cannot tell today's unix seconds apart within 128 s. The original time goes to ``time``.

    Args:
        path: the file to write.
        events: chunks of interactions, ordered by user and then by place in the sequence.
        users: token of each user index.
        items: token of each item index.
        with_time: write the ``time`` column (seconds since 1970, UTC).
    """
    header = ["user_id:token", "item_id:token", "timestamp:float"] + ["time:float"] * with_time
    user, position = -1, 0
    with _text_file(path) as file:
        file.write("\t".join(header) + "\n")
        for chunk in events:
            columns = [users[chunk["user"]].tolist(), items[chunk["item"]].tolist()]
            places = []
            for one in chunk["user"].tolist():
                position = position + 1 if one == user else 0
                user = one
                places.append(position)
            columns += [places] + [chunk["time"].tolist()] * with_time
            file.writelines("\t".join(map(str, row)) + "\n" for row in zip(*columns, strict=True))


@dataclass(frozen=True)
class TextCounts:
    """What an ``.item`` file holds.

    Attributes:
        items: number of rows.
        with_text: text field -> number of items where it is not empty.
        cut: number of fields longer than RecBole's reader accepts, which were cut.
    """

    items: int
    with_text: dict[str, int]
    cut: int


def write_items(path: Path, fields: list[str], rows: Iterable[tuple[str, ...]]) -> TextCounts:
    """Write an ``.item`` file and count its text.

    Args:
        path: the file to write.
        fields: names of the text fields.
        rows: for each item its token and its text fields, each already on one line.
    """
    items, cut, with_text = 0, 0, dict.fromkeys(fields, 0)
    with _text_file(path) as file:
        file.write("\t".join(["item_id:token"] + [f"{name}:token_seq" for name in fields]) + "\n")
        for token, *texts in rows:
            items += 1
            cut += sum(len(text) > MAX_FIELD for text in texts)
            for name, text in zip(fields, texts, strict=True):
                with_text[name] += bool(text)
            file.write("\t".join([token, *map(field, texts)]) + "\n")
    return TextCounts(items, with_text, cut)
