"""The paper's filter, and RecBole's atomic files: a reader sees the whole dataset or none of it."""

import csv
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from dataset_prep.report import PrepError, Problems
from dataset_prep.text import MAX_FIELD, TEXT_FIELDS, field

# The LEA paper's Table 1 on its own datasets
_TABLE_1 = {
    "lfm": ["paper (LFM)", "18,297", "11,073", "146,255", "13.21"],
    "industrial": ["paper (Industry)", "5,814", "10,935", "71,872", "6.57"],
}


def filter_events(events: pd.DataFrame, minimum: int, drop_repeats: bool = False) -> pd.DataFrame:
    """Drop sequences and items with fewer than ``minimum`` events until nothing changes.

    ``events`` has the columns ``user`` and ``item``, and maybe others, by user and then by place in
    the sequence. Each round counts once, drops both and is printed. With ``drop_repeats``
    consecutive repeats of an item are left out, also where what stood between was dropped.
    Raises PrepError where nothing is left.
    """
    total, rounds = 0, 0
    found, dropped = [events[name].nunique() for name in ("user", "item")], [1, 1]
    print("filtering:")
    while any(dropped):
        if drop_repeats:
            pairs = events[["user", "item"]]
            events = events[(pairs != pairs.shift()).any(axis=1)]
        counts = [events[name].value_counts() for name in ("user", "item")]
        users, items = (count.index[count >= minimum] for count in counts)
        # Users and items with no interaction left count as found, so that the rounds add up.
        dropped = [found[0] - len(users), found[1] - len(items)]
        rounds, total = rounds + 1, total or len(events)
        print(
            f"  round {rounds}: {found[0]:,} sequences, {found[1]:,} items, {len(events):,} "
            f"interactions; drops {dropped[0]:,} sequences, {dropped[1]:,} items"
        )
        found = [len(users), len(items)]
        events = events[events["user"].isin(users) & events["item"].isin(items)]
    if events.empty:
        raise PrepError(
            f"no interactions are left after {rounds} rounds of filtering at {minimum} per "
            f"sequence and item; there were {total:,}"
        )
    return events


@contextmanager
def staged_folder(output: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes ``output`` when the block ends without an error.

    The folder lies beside ``output`` under a hidden name, so that the last step is one rename on
    one file system. It is removed when the block fails; only a process killed outright leaves it.
    Raises PrepError where ``output``, an absolute path, exists already.
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


def product_table(texts: dict[str, list[str]], tokens: Iterable[str]) -> pd.DataFrame:
    """Return the text fields of the products ``tokens``, a row each; the unknown are empty."""
    table = pd.DataFrame.from_dict(texts, orient="index", columns=list(TEXT_FIELDS), dtype=object)
    return table.reindex(list(tokens), fill_value="")


def _write(path: Path, table: pd.DataFrame) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        table.to_csv(file, sep="\t", index=False, quoting=csv.QUOTE_NONE, lineterminator="\n")
        file.flush()
        # Without it a power cut could leave the renamed folder with empty files.
        os.fsync(file.fileno())


def write_dataset(
    stem: Path, events: pd.DataFrame, items: pd.DataFrame, problems: Problems, paper: str = ""
) -> None:
    """Write ``stem``.inter and ``stem``.item, and print problems and sizes.

    ``timestamp`` is the place in the sequence (0, 1, 2, ...): RecBole turns it into float32, which
    cannot tell today's unix seconds apart within 128 s. The original time goes to ``time``.

    Args:
        stem: folder and name of the dataset.
        events: tokens ``user`` and ``item``, ordered as for ``filter_events``, and where it is
            known ``time`` (seconds since 1970, UTC).
        items: text fields, each on one line; the index is the item's token.
        problems: those of the conversion; too many of them raise PrepError.
        paper: whose sizes to print beside: ``lfm``, ``industrial`` or "".
    """
    problems.check()
    inter = {"user_id:token": events["user"], "item_id:token": events["item"]}
    inter["timestamp:float"] = events.groupby("user", sort=False).cumcount()
    if "time" in events:
        inter["time:float"] = events["time"]
    _write(stem.with_name(f"{stem.name}.inter"), pd.DataFrame(inter))
    texts = {f"{name}:token_seq": items[name].map(field) for name in items}
    table = pd.DataFrame({"item_id:token": items.index, **texts}, index=items.index)
    _write(stem.with_name(f"{stem.name}.item"), table)
    print(*problems.lines(), *_statistics(events, items, paper), sep="\n")


def _statistics(events: pd.DataFrame, items: pd.DataFrame, paper: str) -> Iterator[str]:
    """Yield a line for each number of what was written, beside the paper's where it has any."""
    sequences = events["user"].nunique()
    ours = {
        "": "this run",
        "items": f"{len(items):,}",
        "sequences": f"{sequences:,}",
        "interactions": f"{len(events):,}",
        "mean length": f"{len(events) / sequences:.2f}",
    }
    ours |= {f"with {name}": f"{(items[name] != '').mean():.1%}" for name in items}
    theirs = iter(_TABLE_1.get(paper, []))
    for label, value in ours.items():
        yield f"{label:<18}{value:>12}{next(theirs, ''):>20}".rstrip()
    if cut := sum((items[name].str.len() > MAX_FIELD).sum() for name in items):
        yield f"{cut:,} text fields were too long for RecBole's reader and were cut"
