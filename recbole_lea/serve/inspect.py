"""``python -m recbole_lea.inspect CHECKPOINT --user U``: one recommendation as model and LE see it.

It prints the history, the top-10 with Q values and the LE's rewards, the LE's choice among the
top-5, and where the true next item stood. ``--plot FILE.png`` draws the LE's rewards and states
of held-out transitions. The LE comes from ``lea_cache_dir``; nothing is trained here.
"""

import argparse
import dataclasses
import io
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from recbole.utils import init_seed
from sklearn.decomposition import PCA

from recbole_lea.arguments import given_keys
from recbole_lea.le.catalogue import item_fields
from recbole_lea.le.sequences import uniform_except
from recbole_lea.model.fields import ROW
from recbole_lea.model.recommender import difference
from recbole_lea.plugin.checkpoints import restored_config
from recbole_lea.plugin.dataset import LEADataset
from recbole_lea.serve.checkpoint import Checkpoint
from recbole_lea.serve.recommend import Recommender
from recbole_lea.store.files import write_bytes

logger = logging.getLogger(__name__)

TOP, LISTED = 10, 5  # items shown, and of these given to the LE to choose from

# Held-out transitions whose label scores give each label's mean (``selection_calibration: prior``)
PRIOR = 64

# Names of a field that sorts items into kinds, and how many kinds have a colour of their own
CATEGORIES = ("category", "categories", "class", "genre", "genres")
COLOURS = 7


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
    given_keys(rest)
    if options.user is None and options.history is None and options.plot is None:
        raise ValueError("give --user, --history or --plot")
    if options.sample < 3:
        raise ValueError(f"--sample is {options.sample}, but has to be 3 or more")
    if options.plot and Path(options.plot).suffix.lower() != ".png":
        raise ValueError(f"--plot {options.plot}: the file has to end with .png")
    sys.argv = [sys.argv[0], *rest]  # what RecBole is to read
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
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
class Judged:
    """An item as model and LE judge it after a history.

    Attributes:
        token: its token.
        title: its title, or the token where it has none.
        score: of the sequential model.
        q: of the Q head of the copy that is evaluated; None without one (``q_weight: 0``).
        reward: of the LE, unscaled.
    """

    token: str
    title: str
    score: float
    q: float | None
    reward: float


@dataclasses.dataclass(frozen=True)
class View:
    """What ``Inspector.look`` found.

    Attributes:
        name: whose history it is.
        history: (token, title), oldest first.
        windows: newest items that the model and the LE read.
        top: the model's best items, best first.
        labels: the LE's score of each of the first items of ``top``, by ``selection_by``: nearness
            to the state, reward, or the label's log-probability, calibrated as in training.
        chosen: the LE's choice, a position in ``top``.
        note: what ``labels`` are.
        truth: the item that followed, if known.
        ranks: its rank from 1 by score and by Q (None without a Q head).
        n_items: items that were ranked.
    """

    name: str
    history: list[tuple[str, str]]
    windows: tuple[int, int]
    top: list[Judged]
    labels: list[float]
    chosen: int
    note: str
    truth: Judged | None
    ranks: tuple[int, int | None] | None
    n_items: int

    def text(self) -> str:
        """Lines for the terminal."""
        model, le = self.windows
        lines = [
            f"{self.name}: {len(self.history)} items of history, oldest first; the model reads the "
            f"newest {model}, the LE the newest {le}"
        ]
        lines += [f"  {token:<12}{title}" for token, title in self.history]
        lines += [
            "",
            f"the model's top {len(self.top)}",
            f"      {'item':<12}{'title':<44}{'score':>8}{'Q':>8}{'LE reward':>11}{'LE label':>10}",
        ]
        for place, item in enumerate(self.top):
            label = f"{self.labels[place]:>10.2f}" if place < len(self.labels) else ""
            mark = "  <- the LE's choice" if place == self.chosen else ""
            lines.append(f"  {place + 1:>2}  {_line(item)}{label}{mark}")
        lines += ["", f"LE label: {self.note}", "LE reward: unscaled"]
        if self.truth is None or self.ranks is None:
            return "\n".join(lines)
        rank, q_rank = self.ranks
        by_q = f", {q_rank} by Q" if q_rank else ""
        lines += [
            "",
            f"the true next item: rank {rank} of {self.n_items} by score{by_q}",
            f"      {_line(self.truth)}",
        ]
        return "\n".join(lines)


def _line(item: Judged) -> str:
    title = item.title if len(item.title) <= 42 else f"{item.title[:41]}…"
    q = f"{item.q:>8.2f}" if item.q is not None else f"{'-':>8}"
    return f"{item.token:<12}{title:<44}{item.score:>8.2f}{q}{item.reward:>11.2f}"


class Inspector:
    """A trained model, its data and its LE.

    Args:
        checkpoint: of a model of this package.

    Raises:
        FileNotFoundError: the checkpoint, the dataset, the LLM or the LE's cache is not there.
        ValueError: the dataset is not the one of the training.
    """

    def __init__(self, checkpoint: str | Path) -> None:
        self.recommender = Recommender(checkpoint)
        read = self.recommender.checkpoint
        if not read.training:
            raise ValueError(f"{read.path} is an export without the Q head: give the checkpoint")
        config = restored_config(read.config)
        init_seed(config["seed"], config["reproducibility"])  # of a random split
        self.config = config
        self.dataset = LEADataset(config)
        splits, sequences = self.dataset.splits()
        here = [str(token) for token in self.dataset.field2id_token[self.dataset.iid_field]]
        if here != read.item_tokens:
            raise ValueError(
                f"the dataset {config['dataset']} in {config['data_path']} is not the one that "
                f"{read.path} was trained on: {difference(read.item_tokens, here)}"
            )
        self.test = splits[-1].inter_feat
        self.q_head = read.q_head()
        config["lea_compile"] = False  # it pays for many prompts
        config["show_progress"] = False
        self.pipeline = self.dataset.pipeline(sequences)
        self._require_le(read)
        self.environment = self.pipeline.environment()
        self.catalogue = self.pipeline.catalogue
        self.prompts = self.environment.prompts

    def _require_le(self, read: Checkpoint) -> None:
        needed = ["items", "environment"]
        if self.q_head is not None and self.q_head.state != "hidden" and self.config["state_dim"]:
            needed.append("states")  # the projection is fitted to them
        missing = [stage for stage in needed if not self.pipeline.cache.is_built(stage)]
        if missing:
            stop = "states" if "states" in needed else "finetune"
            raise FileNotFoundError(
                f"{self.pipeline.cache.folder} lacks the LE of {read.path} ({', '.join(missing)}): "
                "give --lea_cache_dir=DIR if it lies elsewhere, or make it by the command of the "
                f"training with --lea_stop_after={stop}"
            )
        self.pipeline.require_llm("looking at the LE")

    def title(self, token: str) -> str:
        """The first field that ``lea_item_sentence`` names, or the token where it is empty."""
        texts = self.catalogue.texts[self.catalogue.index[token]]
        fields = item_fields(self.config["lea_item_sentence"])
        return (texts.get(fields[0]) if fields else None) or token

    def user(self, user: str) -> View:
        """The newest held-out test transition of a user.

        Raises:
            ValueError: there is no such user, or nothing of the user is in the test split.
        """
        data = self.dataset
        number = data.field2token_id[data.uid_field].get(user)
        if not number:  # 0 is padding
            raise ValueError(f"the dataset {data.dataset_name} has no user {user}")
        rows = self.test[ROW][self.test[data.uid_field] == number]
        if len(rows) == 0:
            raise ValueError(
                f"nothing of user {user} is in the test split: choose another user, or give "
                "--history"
            )
        history, truth = self._transition(int(rows.max()))
        return self.look(history, truth, f"user {user}")

    def _transition(self, row: int) -> tuple[list[str], str]:
        feat, items = self.dataset.inter_feat, self.dataset.field2id_token[self.dataset.iid_field]
        target = feat[self.dataset.iid_field][feat[ROW] == row]
        return self.dataset.before(row), str(items[int(target)])

    @torch.inference_mode()
    def look(
        self, history: Sequence[str], truth: str | None = None, name: str = "given history"
    ) -> View:
        """Model and LE after a history.

        Args:
            history: item tokens, oldest first.
            truth: the item that followed, if known.
            name: whose history it is.

        Raises:
            ValueError: no item of the history is known.
        """
        known, unknown = self.recommender.known(history)
        if not known:
            names = ", ".join(map(str, unknown))
            raise ValueError(f"the history has no item that the model knows: {names}")
        (scores,) = self.recommender.scores([known])
        q = self._q_values(known)
        n_items = len(self.recommender.tokens) - 1
        top = scores.topk(min(TOP, n_items)).indices.tolist()
        wanted = top + ([self.recommender.ids[truth]] if truth is not None else [])
        tokens = [self.recommender.tokens[i] for i in wanted]
        rewards = self.rewards([known], [tokens])
        judged = [
            Judged(token, self.title(token), float(scores[i]), None if q is None else float(q[i]),
                   float(reward))
            for i, token, reward in zip(wanted, tokens, rewards, strict=True)
        ]  # fmt: skip
        labels, note = self._labels(known, tokens[:LISTED])
        ranks = None
        if truth is not None:
            own = wanted[-1]
            ranks = (_rank(scores, own), None if q is None else _rank(q, own))
        length = self.recommender.checkpoint.max_length
        windows = (min(len(known), length), len(self.prompts.window(self._indices(known))))
        return View(
            name, [(token, self.title(token)) for token in known], windows,
            judged[: len(top)], labels.tolist(), int(labels.argmax()), note,
            judged[-1] if truth is not None else None, ranks, n_items,
        )  # fmt: skip

    def _indices(self, tokens: Sequence[str]) -> list[int]:
        """LE item indices."""
        return [self.catalogue.index[token] for token in tokens]

    def rewards(self, histories: Sequence[list[str]], items: Sequence[list[str]]) -> np.ndarray:
        """The LE's unscaled reward of each item after its history, one history after the other."""
        groups = []
        for history, actions in zip(histories, items, strict=True):
            seen = self._indices(history)
            groups.append([self.prompts.reward(seen, item) for item in self._indices(actions)])
        return self.environment.answer(groups, self.environment.reward_of)

    def states(self, histories: Sequence[list[str]]) -> np.ndarray:
        """The LE's state after each history [n, d]."""
        groups = [[self.prompts.state(self._indices(history))] for history in histories]
        return self.environment.answer(groups, self.environment.state_of)

    def _q_values(self, history: list[str]) -> torch.Tensor | None:
        """Q of all items after a history [n_items] (Eq. 9); the padding item has -inf."""
        if self.q_head is None:
            return None
        hidden = state = None
        if self.q_head.state != "LE":
            hidden = self.recommender.hidden([history])
        if self.q_head.state != "hidden":
            found = self.pipeline.like_training(self.states([history]))
            state = torch.from_numpy(np.asarray(found, dtype=np.float32))
        (q,) = self.q_head(self.q_head.join(hidden, state))
        q[0] = -torch.inf
        return q

    def _labels(self, history: list[str], listed: list[str]) -> tuple[np.ndarray, str]:
        """What the LE picks from the listed items by [k], and what these numbers are."""
        if self.config["selection_by"] == "reward":
            return self.rewards([history], [listed]), "the item's reward"
        if self.config["selection_by"] == "state":
            state = torch.from_numpy(self.states([history])).to(self.environment.device)
            near = self.environment.state_scores(state)[0, self._indices(listed)]
            near[torch.tensor([token == history[-1] for token in listed])] = -torch.inf
            return near.detach().cpu().numpy(), "how near the item is to the LE's state"
        lists = [(history, listed)]
        if self.config["selection_calibration"] == "prior":
            others = [self._transition(row)[0] for row in self.sample(PRIOR)]
            best = self.recommender.recommend(others, len(listed))
            lists += [(other, made.items) for other, made in zip(others, best, strict=True)]
        groups = [
            [self.prompts.select(self._indices(seen), self._indices(items))]
            for seen, items in lists
        ]
        read = self.environment.answer(groups, self.environment.label_scores_of)[:, : len(listed)]
        if len(lists) == 1:
            return read[0], "log-probability of the item's label word"
        return read[0] - read[1:].mean(0), (
            f"log-probability of the item's label word, minus its mean over {len(lists) - 1} "
            "held-out histories with their own top-5"
        )

    def sample(self, n: int) -> list[int]:
        """Row numbers of some test transitions, always the same ones."""
        rows = np.sort(self.test[ROW].numpy())
        generator = np.random.default_rng(self.config["lea_seed"])
        return generator.choice(rows, size=min(n, len(rows)), replace=False).tolist()

    def draw(self, n: int, category: str | None = None) -> Figure:
        """The LE on held-out transitions: rewards, and states in two dimensions.

        Args:
            n: transitions to sample.
            category: field of the items that colours the states; by default one of
                ``CATEGORIES``, if the items have it.

        Raises:
            ValueError: the items have no such field.
        """
        histories, truths = zip(*map(self._transition, self.sample(n)), strict=True)
        generator = np.random.default_rng(self.config["lea_seed"])
        positive = np.array(self._indices(truths))
        random = uniform_except(generator, positive, len(self.catalogue), positive.shape)
        tokens = self.catalogue.tokens
        pairs = [[truth, tokens[i]] for truth, i in zip(truths, random, strict=True)]
        rewards = self.rewards(histories, pairs).reshape(-1, 2)
        figure = Figure(figsize=(12, 5.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_rewards(left, rewards)
        newest = [history[-1] for history in histories]
        _draw_states(right, self.states(histories), self._kinds(newest, category))
        figure.suptitle(
            f"The LE on {len(rewards)} held-out transitions of {self.config['dataset']}"
        )
        return figure

    def _kinds(self, items: Sequence[str], field: str | None) -> tuple[str | None, list[str]]:
        """The field that sorts items into kinds, and each given item's kind."""
        known = {name for text in self.catalogue.texts for name in text}
        if field is None:
            field = next((name for name in CATEGORIES if name in known), None)
            if field is None:
                return None, []
        elif field not in known:
            raise ValueError(
                f"--category {field}: the .item file has only {', '.join(sorted(known))}"
            )
        kinds = kinds_of([text.get(field, "") for text in self.catalogue.texts])
        return field, [kinds[i] for i in self._indices(items)]


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


def _rank(scores: torch.Tensor, item: int) -> int:
    return int((scores > scores[item]).sum()) + 1


def _draw_rewards(axes, rewards: np.ndarray) -> None:
    """Histograms of rewards [n, 2]: of the true next item and of a random one."""
    bins = np.linspace(rewards.min(), rewards.max() + 1e-6, 31)
    axes.hist(rewards[:, 1], bins, color="0.6", alpha=0.8, label="a random item")
    axes.hist(rewards[:, 0], bins, color="C0", alpha=0.6, label="the true next item")
    above = (rewards[:, 0] > rewards[:, 1]).mean()
    axes.set_title(f"the true next item is rewarded more in {above:.0%}", fontsize=11)
    axes.set_xlabel("the LE's reward, unscaled")
    axes.set_ylabel("transitions")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)


def _draw_states(axes, states: np.ndarray, kinds: tuple[str | None, list[str]]) -> None:
    """Principal components of states [n, d], coloured by the newest item's kind."""
    pca = PCA(2)
    points = pca.fit_transform(states)
    field, names = kinds
    frequent = [name for name, _ in Counter(names).most_common(COLOURS)]
    groups = [name if name in frequent else "other" for name in names] or ["all"] * len(points)
    for number, group in enumerate([*frequent, "other"] if field else ["all"]):
        own = np.array([name == group for name in groups])
        if own.any():
            colour = f"C{number}" if group != "other" else "0.75"
            axes.scatter(*points[own].T, s=16, color=colour, alpha=0.8, label=group)
    for name, axis, share in zip("xy", "12", pca.explained_variance_ratio_, strict=True):
        axes.set(**{f"{name}label": f"principal component {axis} ({share:.0%} of the variance)"})
    axes.set_title("the LE's states", fontsize=11)
    if field:
        axes.legend(
            title=f"{field} of the newest item", fontsize=8, title_fontsize=8, frameon=False,
            loc="center left", bbox_to_anchor=(1, 0.5),
        )  # fmt: skip
