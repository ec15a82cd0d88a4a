"""What model and LE say after a history: asked here, shown by ``inspect``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from pandas import DataFrame
from recbole.utils import init_seed

from recbole_lea.le.catalogue import item_fields
from recbole_lea.le.sequences import uniform_except
from recbole_lea.model.fields import ROW
from recbole_lea.model.recommender import difference
from recbole_lea.plugin.checkpoints import restored_config
from recbole_lea.plugin.dataset import LEADataset
from recbole_lea.serve.checkpoint import Checkpoint
from recbole_lea.serve.inspect import View, kinds_of, picture_of
from recbole_lea.serve.recommend import Recommender

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOP, LISTED = 10, 5  # items shown, and of these given to the LE to choose from

# Held-out transitions whose label scores give each label's mean (``selection_calibration: prior``)
PRIOR = 64

# Names of a field that sorts items into kinds
CATEGORIES = ("category", "categories", "class", "genre", "genres")


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
        self.config = config = restored_config(read.config)
        init_seed(config["seed"], config["reproducibility"])  # of a random split
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
            what = f"nothing of user {user} is in the test split"
            raise ValueError(f"{what}: choose another user, or give --history")
        history, truth = self._transition(int(rows.max()))
        return self.look(history, truth, f"user {user}")

    @torch.inference_mode()
    def look(
        self, history: Sequence[str], truth: str | None = None, name: str = "given history"
    ) -> View:
        """Model and LE after a history of item tokens, oldest first.

        Args:
            history: of which a token has to be known.
            truth: the item that followed, if known.
            name: whose history it is.
        """
        ask = self.recommender
        known, _ = ask.known(history)
        scores, q = ask.scores([known])[0], self._q_values(known)  # [n_items]
        n_items = len(ask.tokens) - 1
        ids = scores.topk(min(TOP, n_items)).indices.tolist()
        labels, note = self.label_scores(known, [ask.tokens[i] for i in ids[:LISTED]])
        ids += [] if truth is None else [ask.ids[truth]]
        tokens = [ask.tokens[i] for i in ids]
        columns = {"title": [self._title(token) for token in tokens], "score": scores[ids].numpy()}
        columns["rank"] = _ranks(scores, ids)
        if q is not None:
            columns |= {"Q": q[ids].numpy(), "Q rank": _ranks(q, ids)}
        columns["LE reward"] = self._rewards([known], [tokens])
        columns["LE label"] = [*labels, *[np.nan] * (len(ids) - len(labels))]
        items = DataFrame(columns, index=tokens)
        best = len(ids) - (truth is not None)
        titles = [(token, self._title(token)) for token in known]
        return View(name, titles, items[:best], items[best:], note, n_items)

    def draw(self, n: int, category: str | None = None) -> "Figure":
        """The LE on held-out transitions: rewards, and states in two dimensions.

        Args:
            n: transitions to sample.
            category: field of the items that colours the states; by default one of
                ``CATEGORIES``, if the items have it.

        Raises:
            ValueError: the items have no such field.
        """
        texts = self.catalogue.texts
        fields = sorted({name for text in texts for name in text})
        field = category or next((name for name in CATEGORIES if name in fields), None)
        if category and category not in fields:
            raise ValueError(f"--category {category}: the .item file has only {', '.join(fields)}")
        kinds = kinds_of([text.get(field, "") for text in texts]) if field else ["all"] * len(texts)
        histories, truths = zip(*self.held_out(n), strict=True)
        generator = np.random.default_rng(self.config["lea_seed"])
        positive = np.array(self._indices(truths))
        random = uniform_except(generator, positive, len(texts), positive.shape)
        pairs = [[true, self.catalogue.tokens[i]] for true, i in zip(truths, random, strict=True)]
        rewards = self._rewards(histories, pairs).reshape(-1, 2)
        newest = [kinds[i] for i in self._indices([history[-1] for history in histories])]
        return picture_of(
            rewards, self._states(histories), newest, field and f"{field} of the newest item",
            f"The LE on {len(rewards)} held-out transitions of {self.config['dataset']}",
        )  # fmt: skip

    def held_out(self, n: int) -> list[tuple[list[str], str]]:
        """History and next item of some test transitions, always the same ones."""
        rows = np.sort(self.test[ROW].numpy())
        generator = np.random.default_rng(self.config["lea_seed"])
        chosen = generator.choice(rows, size=min(n, len(rows)), replace=False)
        return [self._transition(row) for row in chosen.tolist()]

    def _transition(self, row: int) -> tuple[list[str], str]:
        feat, items = self.dataset.inter_feat, self.dataset.field2id_token[self.dataset.iid_field]
        target = feat[self.dataset.iid_field][feat[ROW] == row]
        return self.dataset.before(row), str(items[int(target)])

    def label_scores(self, history: list[str], listed: list[str]) -> tuple[np.ndarray, str]:
        """What the LE picks from the listed items by [k], and what these numbers are."""
        if self.config["selection_by"] == "reward":
            return self._rewards([history], [listed]), "the item's reward"
        if self.config["selection_by"] == "state":
            state = torch.from_numpy(self._states([history])).to(self.environment.device)
            near = self.environment.state_scores(state)[0, self._indices(listed)]
            near[torch.tensor([token == history[-1] for token in listed])] = -torch.inf
            return near.detach().cpu().numpy(), "how near the item is to the LE's state"
        lists = [(history, listed)]
        if self.config["selection_calibration"] == "prior":
            others = [seen for seen, _ in self.held_out(PRIOR)]
            best = self.recommender.recommend(others, len(listed))
            lists += [(other, made.items) for other, made in zip(others, best, strict=True)]
        indices = self._indices
        groups = [[self.prompts.select(indices(seen), indices(items))] for seen, items in lists]
        scores = self._answers(groups, "label_scores_of")[:, : len(listed)]  # [n_lists, k]
        note = "log-probability of the item's label word"
        if len(lists) == 1:
            return scores[0], note
        return scores[0] - scores[1:].mean(0), (
            f"{note}, minus its mean over {len(lists) - 1} held-out histories with their own top-5"
        )

    def _q_values(self, history: list[str]) -> torch.Tensor | None:
        """Q of all items after a history [n_items] (Eq. 9); the padding item has -inf."""
        if self.q_head is None:
            return None
        hidden = state = None
        if self.q_head.state != "LE":
            hidden = self.recommender.hidden([history])
        if self.q_head.state != "hidden":
            found = self.pipeline.like_training(self._states([history]))
            state = torch.from_numpy(np.asarray(found, dtype=np.float32))
        (q,) = self.q_head(self.q_head.join(hidden, state))
        q[0] = -torch.inf
        return q

    def _rewards(self, histories: Sequence[list[str]], items: Sequence[list[str]]) -> np.ndarray:
        """The LE's unscaled reward of each item after its history, one history after the other."""
        groups = [
            [self.prompts.reward(self._indices(history), item) for item in self._indices(actions)]
            for history, actions in zip(histories, items, strict=True)
        ]
        return self._answers(groups, "reward_of")

    def _states(self, histories: Sequence[list[str]]) -> np.ndarray:
        """The LE's state after each history [n, d]."""
        groups = [[self.prompts.state(self._indices(history))] for history in histories]
        return self._answers(groups, "state_of")

    def _answers(self, groups: list[list], head: str) -> np.ndarray:
        """What a head of the LE says about each prompt."""
        return self.environment.answer(groups, getattr(self.environment, head))

    def _indices(self, tokens: Sequence[str]) -> list[int]:
        return [self.catalogue.index[token] for token in tokens]

    def _title(self, token: str) -> str:
        """The first field that ``lea_item_sentence`` names, or the token where it is empty."""
        texts = self.catalogue.texts[self.catalogue.index[token]]
        fields = item_fields(self.config["lea_item_sentence"])
        return (texts.get(fields[0]) if fields else None) or token


def _ranks(scores: torch.Tensor, items: list[int]) -> list[int]:
    return [int((scores > scores[item]).sum()) + 1 for item in items]
