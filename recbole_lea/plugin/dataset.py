"""A RecBole sequential dataset that knows which of the LE's transitions each training row is."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.utils import FeatureSource, FeatureType

from recbole_lea.engine.stagelog import StageLog
from recbole_lea.keys import parts_of
from recbole_lea.le import Catalogue, LESettings, Pipeline
from recbole_lea.le.feedback import Feedback
from recbole_lea.le.sequences import Sequences
from recbole_lea.model.fields import DONE, ROW, TRANSITION
from recbole_lea.plugin.item_text import named, read_item_texts, refuse_shifted

logger = logging.getLogger(__name__)

# float32 tells integers apart up to here
EXACT_FLOAT32 = 2**24


class LEADataset(SequentialDataset):
    """Sequential dataset with exact time order, whose rows and transitions are numbered.

    Attributes:
        lea_stages: seconds and memory of the stages of this run.
        lea_pipeline: on the training split, the LE; None where ``attach`` found no use for it.
        lea_feedback: on the training split, what the LE says of the transitions, or None.
        lea_item_ids: with ``lea_pipeline``, RecBole's item ids by LE index, int64 tensor.
        lea_item_tokens: under ``item_embedding_init: le``, the LE's item tokens [n, d] by LE index.
    """

    inter_feat: Any
    lea_pipeline: Pipeline | None = None
    lea_feedback: Feedback | None = None
    lea_item_ids: torch.Tensor
    lea_item_tokens: np.ndarray

    def __init__(self, config) -> None:
        self.lea_stages = StageLog()
        super().__init__(config)

    def _load_data(self, token, dataset_path) -> None:
        prepare = self.config["lea_prepare"]
        if prepare and not (Path(dataset_path) / f"{token}.inter").is_file():
            raise FileNotFoundError(f"{dataset_path} holds no {token}.inter; make it by: {prepare}")
        super()._load_data(token, dataset_path)
        self._check_interactions()

    def _load_feat(self, filepath, source):
        hint = (
            "its first line has to name each column as field:type, such as user_id:token, "
            f"separated by {self.config['field_separator']!r}, and each other line has to give "
            "them all, a float as a number"
        )
        with named(filepath, hint):
            frame = super()._load_feat(filepath, source)
            if frame is not None:
                refuse_shifted(frame)
            return frame

    def _check_interactions(self) -> None:
        """Name what RecBole would fill with a mean, or stumble over."""
        path = self._inter_path
        found = [] if self.inter_feat is None else list(self.inter_feat)
        for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD"):
            if self.config[key] not in found:
                raise ValueError(
                    f"{path}: no column {self.config[key]}, which `{key}` names; of `load_col` it "
                    f"has: {', '.join(found)}"
                )
        if len(self.inter_feat) == 0:
            raise ValueError(f"{path}: no interactions below the line that names the columns")
        untimed = np.flatnonzero(self.inter_feat[self.time_field].isna())
        if len(untimed):
            raise ValueError(
                f"{path}: no {self.time_field} in {len(untimed)} rows, first in line "
                f"{untimed[0] + 2}: the order within a user needs all; fill it in, such as the "
                "position in the sequence, or leave out the rows"
            )

    def _data_filtering(self) -> None:
        super()._data_filtering()
        items = self.inter_feat[self.iid_field].nunique()
        if items < 2:
            raise ValueError(
                f"{self._inter_path}: {items} different {self.iid_field} after filtering, but "
                "there is nothing to recommend with fewer than 2"
            )
        self._rank_time()
        if self.config["lea_newest"]:
            self._keep_newest(self.config["lea_newest"])

    def _rank_time(self) -> None:
        """Replace the time by its rank, before RecBole casts it to float32.

        Today's timestamps are 128 s apart in float32: ml-100k would change its order.
        """
        rank = self.inter_feat[self.time_field].rank(method="dense") - 1
        if rank.max() >= EXACT_FLOAT32:  # too many moments for one global rank
            args = self.config["eval_args"] or {}
            by_user = args.get("group_by") == "user" and "TS" not in args.get("split", {})
            if not by_user and self.config["eval_protocol"] != "paper":
                raise ValueError(
                    f"{self._inter_path}: {int(rank.max()) + 1:,} different times are more than "
                    f"the {EXACT_FLOAT32:,} that RecBole can order over all users: split RS or LS "
                    "with `group_by: user`, or round the times"
                )
            # the order within each user is what counts
            users = self.inter_feat.groupby(self.uid_field)[self.time_field]
            rank = users.rank(method="first") - 1
        self.inter_feat[self.time_field] = rank

    def _keep_newest(self, n: int) -> None:
        """Keep each user's newest interactions (``lea_newest``)."""
        before = len(self.inter_feat)
        ordered = self.inter_feat.sort_values(self.time_field, kind="stable")
        kept = ordered.groupby(self.uid_field).tail(n).index
        self.inter_feat = self.inter_feat.loc[self.inter_feat.index.isin(kept)]
        self._reset_index()
        logger.info("lea_newest: %d keeps %d of %d interactions", n, len(self.inter_feat), before)

    def data_augmentation(self) -> None:
        """RecBole's prefixes, each with a row number."""
        if torch.bincount(self.inter_feat[self.uid_field]).max() < 2:
            raise ValueError(
                f"{self._inter_path}: no {self.uid_field} has two interactions: there is no next "
                "item to learn"
            )
        super().data_augmentation()
        self.inter_feat[ROW] = torch.arange(len(self.inter_feat))
        self.set_field_property(ROW, FeatureType.TOKEN, FeatureSource.INTERACTION, 1)

    def split_by_ratio(self, ratios: Sequence[float], group_by: str | None = None) -> list:
        """RecBole's split, or under ``eval_protocol: paper`` whole sequences (seeded)."""
        if self.config["eval_protocol"] != "paper":
            return super().split_by_ratio(ratios, group_by)
        users = self.inter_feat[self.uid_field].numpy()
        tokens = self.field2id_token[self.uid_field]
        # by token, so that the split does not depend on the order of the file
        order = sorted(np.unique(users), key=lambda user: str(tokens[user]))
        shuffled = np.random.default_rng(self.config["lea_split_seed"]).permutation(order)
        cuts = self._calcu_split_ids(len(shuffled), [ratio / sum(ratios) for ratio in ratios])
        self._drop_unused_col()
        rows = [np.flatnonzero(np.isin(users, part)) for part in np.split(shuffled, cuts)]
        return [self.copy(self.inter_feat[index]) for index in rows]

    def build(self) -> list:
        """RecBole's splits; training rows have transition numbers and end-of-session marks."""
        datasets = super().build()
        self._check_parts(datasets)
        train = datasets[0]
        train.inter_feat[TRANSITION] = self._transitions(train)
        train.inter_feat[DONE] = self._ends(train)
        train.inter_feat.drop(ROW)  # one number is enough
        train.set_field_property(TRANSITION, FeatureType.TOKEN, FeatureSource.INTERACTION, 1)
        train.set_field_property(DONE, FeatureType.FLOAT, FeatureSource.INTERACTION, 1)
        return datasets

    def splits(self) -> tuple[list, dict[str, list[str]]]:
        """RecBole's splits, and the training items of each user in time order."""
        datasets = self.build()
        return datasets, datasets[0].training_sequences()

    @property
    def _history_field(self) -> str:
        return self.iid_field + self.config["LIST_SUFFIX"]

    @property
    def _inter_path(self) -> str:
        return f"{self.dataset_path}/{self.dataset_name}.inter"

    def _check_parts(self, datasets: list) -> None:
        """Make sure that each part of the split has the rows, and the data the items, asked for."""
        asked_for = self.config["eval_args"]["split"]
        ((kind, split),) = asked_for.items()
        names = ("training", "validation", "test")
        for part, name, asked in zip(datasets, names, parts_of(asked_for), strict=True):
            if asked and len(part) == 0:
                raise ValueError(
                    f"{self._inter_path}: too few or too short sequences: no row is left for "
                    f"{name} under `eval_args: split: {{{kind}: {split}}}` and `eval_protocol: "
                    f"{self.config['eval_protocol']}`; a split by ratio needs more users, leave-"
                    "one-out needs users with 4 interactions"
                )
        items, wanted = self.item_num - 1, max(self.config["topk"])
        if wanted > items:
            raise ValueError(
                f"`topk` asks for the best {wanted} of the {items} items of {self._inter_path}: "
                "lower it, and `valid_metric` with it"
            )

    def _transitions(self, train) -> torch.Tensor:
        """The LE's number of each training row: users sorted by token, each in time order [n]."""
        numbers = self.inter_feat[ROW].numpy()
        # rows of a user stand together in time order; the k-th has the target x_{k+2}
        users = self.inter_feat[self.uid_field].numpy()[np.argsort(numbers)]
        own = train.inter_feat[ROW].numpy()
        training = np.zeros(len(users), dtype=bool)
        training[own] = True
        gap = np.flatnonzero(training[1:] & ~training[:-1] & (users[1:] == users[:-1]))
        if len(gap):
            user = self.id2token(self.uid_field, users[gap[0]])
            raise ValueError(
                f"user {user!r} has training interactions after held-out ones: this split would "
                "leak held-out items into the LE; use split LS or RS with group_by user"
            )
        tokens = self.field2id_token[self.uid_field]
        place = np.empty(len(tokens), dtype=np.int64)
        place[sorted(range(len(tokens)), key=lambda user: str(tokens[user]))] = range(len(tokens))
        rows = np.flatnonzero(training)
        transitions = np.empty(len(users), dtype=np.int64)
        transitions[rows[np.argsort(place[users[rows]], kind="stable")]] = np.arange(len(rows))
        return torch.from_numpy(transitions[own])

    def _ends(self, train) -> torch.Tensor:
        """1 for each user's last training row, else 0 (deviation 6) [n_rows]."""
        rows, users = train.inter_feat[TRANSITION], train.inter_feat[self.uid_field]
        last = torch.zeros(self.user_num, dtype=rows.dtype).scatter_reduce_(0, users, rows, "amax")
        return (rows == last[users]).float()

    def training_sequences(self) -> dict[str, list[str]]:
        """Of the training split: user token -> item tokens in time order."""
        order = self.inter_feat[TRANSITION].argsort()
        users = self.inter_feat[self.uid_field][order].numpy()
        targets = self.inter_feat[self.iid_field][order].numpy()
        firsts = self.inter_feat[self._history_field][order, 0].numpy()
        names = self.field2id_token[self.uid_field]
        # one text an item, not one an interaction
        item = [str(token) for token in self.field2id_token[self.iid_field]]
        starts = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])
        return {
            str(names[users[start]]): [item[i] for i in (firsts[start], *targets[start:stop])]
            for start, stop in zip(starts, [*starts[1:], len(users)], strict=True)
        }

    def before(self, row: int) -> list[str]:
        """Tokens of a user's items before the target of a row: all, in time order."""
        numbers = self.inter_feat[ROW].numpy()
        users = self.inter_feat[self.uid_field].numpy()
        own = np.flatnonzero((users == users[numbers == row]) & (numbers <= row))
        own = own[numbers[own].argsort()]
        first = self.inter_feat[self._history_field][own[0], 0]
        items = self.field2id_token[self.iid_field]
        targets = self.inter_feat[self.iid_field][own[:-1]]
        return [str(items[i]) for i in (first, *targets)]

    def pipeline(self, tokens: dict[str, list[str]]) -> Pipeline:
        """The LE on training sequences, as ``training_sequences`` gives them; not computed yet."""
        config = self.config
        items = [str(token) for token in self.field2id_token[self.iid_field][1:]]
        path = Path(config["data_path"]) / f"{self.dataset_name}.item"
        encoding = config["encoding"] or "utf-8"
        separator = config["field_separator"]
        texts = read_item_texts(path, self.iid_field, items, separator, encoding)
        catalogue = Catalogue(texts)
        return Pipeline(
            LESettings.from_config(config.final_config_dict),
            catalogue,
            Sequences(tokens, catalogue),
            self.dataset_name,
            self.lea_stages,
            bool(config["show_progress"]),
        )
