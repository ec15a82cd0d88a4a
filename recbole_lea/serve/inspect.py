"""``python -m recbole_lea.inspect CHECKPOINT --user U``: one recommendation as model and LE see it.

It prints the history, the top-10 with Q values and the LE's rewards, the LE's choice among the
top-5, and where the true next item stood. ``--plot FILE.png`` draws the LE's rewards and states
of held-out transitions. The LE comes from ``lea_cache_dir``; nothing is trained here.

This file has the command line and what is shown; ``inspector`` asks model and LE. What is heavy is
imported where it is used: ``--help`` and mistakes need neither torch nor RecBole.
"""

import argparse
import dataclasses
import io
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recbole_lea.arguments import set_given

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

COLOURS = 7  # kinds of items that have a colour of their own


def main() -> None:
    """Parse the command line, print and draw."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_lea.inspect",
        description="One recommendation as model and LE see it. Keys of the YAML files, such as "
        "--data_path=DIR or --lea_cache_dir=DIR, say where things are if they have moved.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", help="a .pth file that training has saved")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--user", help="user token: the history before the held-out test item")
    who.add_argument("--history", help="item tokens, oldest first, separated by |")
    parser.add_argument("--plot", metavar="FILE.png", help="draw rewards and states of the LE")
    parser.add_argument("--sample", type=int, default=200, help="--plot: held-out transitions")
    parser.add_argument("--category", help="--plot: the field of the .item file that colours")
    options, rest = parser.parse_known_args()
    if options.user is None and options.history is None and options.plot is None:
        raise ValueError("give --user, --history or --plot")
    if options.sample < 3:
        raise ValueError(f"--sample is {options.sample}, but has to be 3 or more")
    if options.plot and Path(options.plot).suffix.lower() != ".png":
        raise ValueError(f"--plot {options.plot}: the file has to end with .png")
    from recbole_lea.arguments import given_keys

    given_keys(rest)
    set_given(rest)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    from recbole_lea.serve.inspector import Inspector
    from recbole_lea.store.files import write_bytes

    inspector = Inspector(options.checkpoint)
    if options.user is not None:
        print(inspector.user(options.user).text())
    elif options.history is not None:
        print(inspector.look(options.history.split("|")).text())
    if options.plot:
        picture = io.BytesIO()
        inspector.draw(options.sample, options.category).savefig(picture, dpi=150)
        Path(options.plot).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(Path(options.plot), picture.getvalue())
        print(f"picture: {options.plot}")


@dataclasses.dataclass(frozen=True)
class View:
    """What ``Inspector.look`` found.

    Attributes:
        name: whose history it is.
        history: (token, title), oldest first.
        top: the model's best items by token, best first: ``title``; ``score`` and ``Q`` (none under
            ``q_weight: 0``) with their ranks from 1; ``LE reward``, unscaled; ``LE label``, by
            which the LE picks one of the first five.
        truth: the same columns of the item that followed; empty if it is not known.
        note: what the label is.
        n_items: items that were ranked.
    """

    name: str
    history: list[tuple[str, str]]
    top: "DataFrame"
    truth: "DataFrame"
    note: str
    n_items: int

    def text(self) -> str:
        """Lines for the terminal."""
        chosen = self.top.index == self.top["LE label"].idxmax()
        shown = self.top.assign(**{"": np.where(chosen, "<- the LE's choice", "")})
        lines = [
            f"{self.name}: {len(self.history)} items of history, oldest first",
            *(f"  {token:<12}{title}" for token, title in self.history),
            f"\nthe model's top {len(shown)}\n{_table(shown)}",
            f"\nLE label: {self.note}\nLE reward: unscaled",
        ]
        for item in self.truth.to_dict("records"):
            by_q = f", {item['Q rank']} by Q" if "Q" in item else ""
            lines += [
                f"\nthe true next item: rank {item['rank']} of {self.n_items} by score{by_q}",
                _table(self.truth.drop(columns="LE label")),
            ]
        return "\n".join(lines)


def _table(items: "DataFrame") -> str:
    shown = items.drop(columns=["rank", "Q rank"], errors="ignore")
    return shown.to_string(float_format="{:.2f}".format, na_rep="", max_colwidth=42)


def kinds_of(values: Sequence[str]) -> list[str]:
    """One kind for each item from a field such as "Comedy Drama" or "Industry,Tools,Saws".

    A field of few values is taken as it is. Else it is split at commas, or at blanks where it has
    none, and the first part counts that fewer than nine items in ten have.
    """
    if len(set(values)) <= COLOURS:
        return [value or "none" for value in values]
    separator = "," if any("," in value for value in values) else None
    parts = [[p.strip() for p in value.split(separator) if p.strip()] for value in values]
    common = Counter(part for own in parts for part in set(own))
    telling = {part for part, count in common.items() if count < 0.9 * len(values)}
    return [next((p for p in own if p in telling), "none") for own in parts]


def picture_of(
    rewards: np.ndarray, states: np.ndarray, kinds: Sequence[str], legend: str | None, title: str
) -> "Figure":
    """The LE on held-out transitions: histograms of rewards, states in two dimensions.

    Args:
        rewards: unscaled, of the true next item and of a random one [n, 2].
        states: [n, d].
        kinds: of the newest items, which colour the states [n].
        legend: what the kinds are; None draws no legend.
        title: of the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from sklearn.decomposition import PCA

    figure = Figure(figsize=(12, 5.2), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    bins = np.linspace(rewards.min(), rewards.max() + 1e-6, 31)
    left.hist(rewards[:, 1], bins, color="0.6", alpha=0.8, label="a random item")
    left.hist(rewards[:, 0], bins, color="C0", alpha=0.6, label="the true next item")
    above = (rewards[:, 0] > rewards[:, 1]).mean()
    left.set_title(f"the true next item is rewarded more in {above:.0%}", fontsize=11)
    left.set(xlabel="the LE's reward, unscaled", ylabel="transitions")
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(frameon=False)

    pca = PCA(2)
    points = pca.fit_transform(states)
    frequent = [kind for kind, _ in Counter(kinds).most_common(COLOURS)]
    shown = np.array([kind if kind in frequent else "other" for kind in kinds])
    for number, kind in enumerate([*frequent, "other"]):
        if (shown == kind).any():
            colour = f"C{number}" if kind != "other" else "0.75"
            right.scatter(*points[shown == kind].T, s=16, color=colour, alpha=0.8, label=kind)
    first, second = pca.explained_variance_ratio_
    right.set_title("the LE's states", fontsize=11)
    right.set_xlabel(f"principal component 1 ({first:.0%} of the variance)")
    right.set_ylabel(f"principal component 2 ({second:.0%} of the variance)")
    if legend:
        right.legend(
            title=legend, fontsize=8, title_fontsize=8, frameon=False, loc="center left",
            bbox_to_anchor=(1, 0.5),
        )  # fmt: skip
    return figure
