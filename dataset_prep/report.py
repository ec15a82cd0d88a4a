"""What a conversion says on standard output."""

from collections.abc import Iterable
from dataclasses import dataclass

from dataset_prep.atomic import TextCounts
from dataset_prep.filtering import Round


@dataclass(frozen=True)
class PaperRow:
    """A row of Table 1 of the LEA paper."""

    name: str
    items: int
    sequences: int
    interactions: int


TABLE_1 = {
    "lfm": PaperRow("LFM", 18_297, 11_073, 146_255),
    "industrial": PaperRow("Industry", 5_814, 10_935, 71_872),
}


def filter_report(rounds: Iterable[Round]) -> list[str]:
    """Return a line for every round of filtering."""
    return ["filtering:"] + [f"  round {n}: {one}" for n, one in enumerate(rounds, start=1)]


def statistics_table(
    texts: TextCounts, sequences: int, interactions: int, paper: PaperRow | None
) -> list[str]:
    """Return the dataset's statistics, beside the paper's where it has such a dataset.

    Args:
        texts: counts over the items written.
        sequences: number of user sequences written.
        interactions: number of interactions written.
        paper: the row of Table 1 to compare with.
    """
    rows = [
        ("", "this run", f"paper ({paper.name})" if paper else ""),
        ("items", f"{texts.items:,}", f"{paper.items:,}" if paper else ""),
        ("sequences", f"{sequences:,}", f"{paper.sequences:,}" if paper else ""),
        ("interactions", f"{interactions:,}", f"{paper.interactions:,}" if paper else ""),
        (
            "mean length",
            f"{interactions / sequences:.2f}",
            f"{paper.interactions / paper.sequences:.2f}" if paper else "",
        ),
    ]
    rows += [
        (f"with {name}", f"{count / texts.items:.1%}", "")
        for name, count in texts.with_text.items()
    ]
    lines = [f"{label:<18}{ours:>12}{theirs:>20}".rstrip() for label, ours, theirs in rows]
    if texts.cut:
        lines.append(f"{texts.cut:,} text fields were too long for RecBole's reader and were cut")
    return lines
