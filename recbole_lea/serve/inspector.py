"""What model and LE say after a history."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from pandas import DataFrame, Series
from recbole.utils import init_seed
from sklearn.decomposition import PCA

from recbole_lea.le.catalogue import item_fields
from recbole_lea.model.fields import ROW
from recbole_lea.model.recommender import difference
from recbole_lea.plugin.checkpoints import restored_config
from recbole_lea.plugin.dataset import LEADataset
from recbole_lea.serve.recommend import Recommender

TOP, LISTED = 10, 5  # items shown, and of these given to the LE to choose from
DRAWN, COLOURS = 200, 7  # histories whose states are drawn, and kinds of items with a colour


@dataclasses.dataclass(frozen=True)
class View:
    """What ``Inspector.look`` found."""

    name: str  # whose history it is
    history: list[tuple[str, str]]  # token and title, oldest first
    # the model's best items by token, best first, and the item that followed: title; score and Q
    # (none under ``q_weight: 0``) with their ranks from 1; the LE's reward, unscaled; the label, by
    # which the LE picks one of the first five; what was picked
    items: DataFrame
    note: str  # what the label is

    def text(self) -> str:
        """Lines for the terminal."""
        lines = [f"  {token:<12}{title}" for token, title in self.history]
        table = self.items.to_string(float_format="{:.2f}".format, na_rep="", max_colwidth=42)
        return "\n".join([
            f"{self.name}: {len(lines)} items of history, oldest first",
            *lines,
            f"\nthe model's top {TOP}\n{table}",
            f"\nLE label: {self.note}\nLE reward: unscaled; ranks are among all items",
        ])  # fmt: skip


class Inspector:
    """A trained model, its data and its LE.

    Raises a FileNotFoundError if the checkpoint, the dataset, the LLM or the LE's cache is not
    there, and a ValueError if the dataset is not the one of the training.
    """

    def __init__(self, checkpoint: str | Path) -> None:
        self.recommender = Recommender(checkpoint)
        read = self.recommender.checkpoint
        self.config = config = restored_config(read.config)
        init_seed(config["seed"], config["reproducibility"])  # of a random split
        self.dataset = LEADataset(config)
        splits, sequences = self.dataset.splits()
        items = self.dataset.field2id_token[self.dataset.iid_field]
        if list(items) != read.item_tokens:
            raise ValueError(
                f"the dataset {config['dataset']} in {config['data_path']} is not the one that "
                f"{read.path} was trained on: {difference(read.item_tokens, list(map(str, items)))}"
            )
        self.test = splits[-1].inter_feat
        self.q_head = read.q_head()
        config["lea_compile"] = False  # it pays for many prompts
        config["show_progress"] = False
        self.pipeline = self.dataset.pipeline(sequences)
        self._require_le(read.path)
        self.environment = self.pipeline.environment()
        self.catalogue = self.pipeline.catalogue

    def _require_le(self, path: Path) -> None:
        needed = {"items": "finetune", "environment": "finetune"}  # stage -> lea_stop_after
        if self.q_head is not None and self.q_head.state != "hidden" and self.config["state_dim"]:
            needed["states"] = "states"  # the projection is fitted to them
        missing = [stage for stage in needed if not self.pipeline.cache.is_built(stage)]
        if missing:
            raise FileNotFoundError(
                f"{self.pipeline.cache.folder} lacks the LE of {path} ({', '.join(missing)}): "
                "give --lea_cache_dir=DIR if it lies elsewhere, or make it by the command of the "
                f"training with --lea_stop_after={needed[missing[-1]]}"
            )
        self.pipeline.require_llm("looking at the LE")

    def user(self, user: str) -> View:
        """The newest held-out test transition of a user; a ValueError where there is none."""
        data = self.dataset
        number = data.field2token_id[data.uid_field].get(user)
        if not number:  # 0 is padding
            raise ValueError(f"the dataset {data.dataset_name} has no user {user}")
        own = self.test[self.test[data.uid_field] == number]
        if len(own) == 0:
            raise ValueError(f"nothing of user {user} is in the test split: give --history")
        newest = own[own[ROW].argmax()]
        truth = data.id2token(data.iid_field, newest[data.iid_field])
        return self.look(data.before(int(newest[ROW])), str(truth), f"user {user}")

    @torch.inference_mode()
    def look(
        self, history: Sequence[str], truth: str | None = None, of: str = "given history"
    ) -> View:
        """Model and LE after a history of item tokens, oldest first; ``truth`` followed, if known.

        Raises a ValueError if the model knows none of the tokens.
        """
        ask = self.recommender
        known, _ = ask.known(history)
        items = DataFrame({"score": ask.scores([known])[0].numpy()}, index=ask.tokens)
        items["rank"] = items["score"].rank(ascending=False, method="min").astype(int)
        if (q := self._q_values(known)) is not None:
            items["Q"] = q.numpy()
            items["Q rank"] = items["Q"].rank(ascending=False, method="min").astype(int)
        best = list(items["score"].nlargest(min(TOP, len(items) - 1)).index)  # no padding item
        shown = items.loc[best if truth is None or truth in best else [*best, truth]]
        shown.insert(0, "title", [self._title(token) for token in shown.index])
        shown["LE reward"] = self._rewards(known, shown.index)
        labels, note = self.label_scores(known, best[:LISTED])
        shown["LE label"] = Series(labels, best[:LISTED])
        marks = {shown["LE label"].idxmax(): " <- the LE's choice"}
        if truth is not None:
            marks[truth] = marks.get(truth, "") + " <- the true next item"
        shown[""] = [marks.get(token, "") for token in shown.index]
        return View(of, [(token, self._title(token)) for token in known], shown, note)

    def draw(self, category: str | None = None) -> Figure:
        """The LE's states of held-out histories in two dimensions.

        ``category`` is the field of the items that colours them; a ValueError if there is none.
        """
        texts = self.catalogue.texts
        fields = sorted({name for text in texts for name in text})
        if category and category not in fields:
            raise ValueError(f"--category {category}: the .item file has only {', '.join(fields)}")
        generator = np.random.default_rng(self.config["lea_seed"])
        rows = generator.permutation(np.sort(self.test[ROW].numpy()))[:DRAWN]
        histories = [self.dataset.before(row) for row in rows.tolist()]
        states = DataFrame(PCA(2).fit_transform(self._states(histories)))
        newest = self._indices([history[-1] for history in histories])
        # of "Industry,Tools,Saws" the first two
        kinds = Series([",".join(texts[i].get(category or "", "").split(",")[:2]) for i in newest])
        kinds[~kinds.isin(kinds.value_counts().index[:COLOURS])] = "other"
        figure = Figure(figsize=(8, 6), layout="constrained")
        axes = figure.subplots()
        for kind, points in states.groupby(kinds):
            axes.scatter(points[0], points[1], s=16, label=kind)
        axes.set_title(f"the LE's states after {len(states)} held-out histories: two components")
        if category:
            axes.legend(title=f"{category} of the newest item")
        else:
            axes.set_xlabel("--category FIELD colours them by a field of the newest item")
        return figure

    def label_scores(self, history: list[str], listed: Sequence[str]) -> tuple[np.ndarray, str]:
        """What the LE picks from the listed items by [k], and what these numbers are."""
        if self.config["selection_by"] == "reward":
            return self._rewards(history, listed), "the item's reward"
        if self.config["selection_by"] == "state":
            state = torch.from_numpy(self._states([history])).to(self.environment.device)
            near = self.environment.state_scores(state)[0, self._indices(listed)]
            near[torch.tensor([token == history[-1] for token in listed])] = -torch.inf
            note = "how near the item is to the LE's state; -inf: the history's newest item, "
            return near.detach().cpu().numpy(), note + "which is never picked"
        prompt = self.environment.prompts.select(self._indices(history), self._indices(listed))
        (scores,) = self.environment.answer([[prompt]], self.environment.label_scores_of)
        note = "log-probability of the item's label word, before selection_calibration"
        return scores[: len(listed)], note

    def _q_values(self, history: list[str]) -> torch.Tensor | None:
        """Q of all items after a history [n_items] (Eq. 9); the padding item has -inf."""
        if self.q_head is None:
            return None
        hidden = state = None
        if self.q_head.state != "LE":
            hidden = self.recommender.ranker.backbone(*self.recommender.inputs([history]))
        if self.q_head.state != "hidden":
            found = self.pipeline.like_training(self._states([history]))
            state = torch.from_numpy(np.asarray(found, dtype=np.float32))
        (q,) = self.q_head(self.q_head.join(hidden, state))
        q[0] = -torch.inf
        return q

    def _rewards(self, history: list[str], items: Sequence[str]) -> np.ndarray:
        """The LE's unscaled reward of each item after a history [k]."""
        seen, reward = self._indices(history), self.environment.prompts.reward
        prompts = [reward(seen, item) for item in self._indices(items)]
        return self.environment.answer([prompts], self.environment.reward_of)

    def _states(self, histories: Sequence[list[str]]) -> np.ndarray:
        """The LE's state after each history [n, d]."""
        groups = [[self.environment.prompts.state(self._indices(seen))] for seen in histories]
        return self.environment.answer(groups, self.environment.state_of)

    def _indices(self, tokens: Sequence[str]) -> list[int]:
        return [self.catalogue.index[token] for token in tokens]

    def _title(self, token: str) -> str:
        """The first field that ``lea_item_sentence`` names, or the token where it is empty."""
        texts = self.catalogue.texts[self.catalogue.index[token]]
        fields = item_fields(self.config["lea_item_sentence"])
        return (texts.get(fields[0]) if fields else None) or token
