"""A RecBole sequential dataset that knows which of the LE's transitions each training row is."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.utils import FeatureSource, FeatureType

from recbole_lea.engine.stagelog import StageLog
from recbole_lea.keys import WHOLE_SEQUENCES, parts_of
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
            "its first line has to name each column as field:type, such as user_id:token, separated"
            f" by {self.config['field_separator']!r}, and each other line give them all"
        )
        with named(filepath, hint):
            if self._get_load_and_unload_col(source)[0] != set():
                self._check_types(filepath)
            frame = super()._load_feat(filepath, source)
            if frame is not None:
                refuse_shifted(frame)
            return frame

    def _check_types(self, path) -> None:
        """Refuse ids and times of another type, which RecBole would number or sort wrongly."""
        types = {"USER_ID_FIELD": "token", "ITEM_ID_FIELD": "token", "TIME_FIELD": "float"}
        wanted = {self.config[key]: (key, kind) for key, kind in types.items()}
        with open(path, encoding=self.config["encoding"]) as stream:
            columns = stream.readline().strip("\n").split(self.config["field_separator"])
        for field, _, found in (column.partition(":") for column in columns):
            key, kind = wanted.get(field, ("", found))
            if found not in ("", kind):
                raise ValueError(
                    f"column {field} is of type {found}, but what `{key}` names has to be {kind}: "
                    f"write {field}:{kind}"
                )

    def _check_interactions(self) -> None:
        """Name what RecBole would fill with a mean, or stumble over."""
        found = [] if self.inter_feat is None else list(self.inter_feat)
        for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD"):
            if self.config[key] not in found:
                raise self._refusal(
                    f"no column {self.config[key]}, which `{key}` names; of `load_col` it has: "
                    f"{', '.join(found)}"
                )
        if len(self.inter_feat) == 0:
            raise self._refusal("no interactions below the line that names the columns")
        untimed = np.flatnonzero(self.inter_feat[self.time_field].isna())
        if len(untimed):
            raise self._refusal(
                f"no {self.time_field} in {len(untimed)} rows, first in line {untimed[0] + 2}: the "
                "order within a user needs all; fill it in, or leave out the rows"
            )

    def _refusal(self, problem: str) -> ValueError:
        return ValueError(f"{self.dataset_path}/{self.dataset_name}.inter: {problem}")

    def _data_filtering(self) -> None:
        super()._data_filtering()
        items = self.inter_feat[self.iid_field].nunique()
        if items < 2:
            raise self._refusal(
                f"{items} different {self.iid_field} after filtering, but there is nothing to "
                "recommend with fewer than 2"
            )
        self._rank_time()
        if n := self.config["lea_newest"]:
            ordered = self.inter_feat.sort_values(self.time_field, kind="stable")
            kept = ordered.groupby(self.uid_field).tail(n).index
            self.inter_feat = self.inter_feat.loc[self.inter_feat.index.isin(kept)]
            self._reset_index()
            logger.info("lea_newest: %d keeps %d of %d interactions", n, len(kept), len(ordered))

    def _rank_time(self) -> None:
        """Replace the time by its rank, before RecBole casts it to float32.

        Today's timestamps are 128 s apart in float32: ml-100k would change its order.
        """
        rank = self.inter_feat[self.time_field].rank(method="dense") - 1
        if rank.max() >= EXACT_FLOAT32:  # too many moments for one global rank
            args = self.config["eval_args"] or {}
            by_user = args.get("group_by") == "user" and "TS" not in args.get("split", {})
            if not by_user and self.config["eval_protocol"] != "paper":
                raise self._refusal(
                    f"{int(rank.max()) + 1:,} different times are more than RecBole can order over "
                    "all users: split RS or LS with `group_by: user`, or round the times"
                )
            users = self.inter_feat.groupby(self.uid_field)[self.time_field]
            rank = users.rank(method="first") - 1  # the order within each user is what counts
        self.inter_feat[self.time_field] = rank

    def data_augmentation(self) -> None:
        """RecBole's prefixes, each with a row number."""
        if torch.bincount(self.inter_feat[self.uid_field]).max() < 2:
            raise self._refusal(
                f"no {self.uid_field} has two interactions: there is no next item to learn"
            )
        super().data_augmentation()
        self.inter_feat[ROW] = torch.arange(len(self.inter_feat))
        self.set_field_property(ROW, FeatureType.TOKEN, FeatureSource.INTERACTION, 1)

    def split_by_ratio(self, ratios: Sequence[float], group_by: str | None = None) -> list:
        """RecBole's split, or whole sequences: at random (seeded), or by their second moment."""
        if self.config["eval_protocol"] not in WHOLE_SEQUENCES:
            return super().split_by_ratio(ratios, group_by)
        users = self.inter_feat[self.uid_field].numpy()
        order = np.array(self._by_token(np.unique(users)))
        if self.config["eval_protocol"] == "paper_time":
            began = np.full(self.user_num, np.inf)  # the first item of a sequence is no row
            np.minimum.at(began, users, self.inter_feat[self.time_field].numpy())
            order = order[began[order].argsort(kind="stable")]
        else:
            order = np.random.default_rng(self.config["lea_split_seed"]).permutation(order)
        cuts = self._calcu_split_ids(len(order), [ratio / sum(ratios) for ratio in ratios])
        self._drop_unused_col()
        rows = [np.flatnonzero(np.isin(users, part)) for part in np.split(order, cuts)]
        return [self.copy(self.inter_feat[index]) for index in rows]

    def build(self) -> list:
        """RecBole's splits; training rows have transition numbers and end-of-session marks."""
        datasets = super().build()
        self._check_parts(datasets)
        train = datasets[0]
        rows = train.inter_feat[TRANSITION] = self._transitions(train)
        users = train.inter_feat[self.uid_field]
        last = torch.zeros(self.user_num, dtype=rows.dtype).scatter_reduce_(0, users, rows, "amax")
        train.inter_feat[DONE] = (rows == last[users]).float()  # deviation 6
        train.inter_feat.drop(ROW)  # one number is enough
        train.set_field_property(TRANSITION, FeatureType.TOKEN, FeatureSource.INTERACTION, 1)
        train.set_field_property(DONE, FeatureType.FLOAT, FeatureSource.INTERACTION, 1)
        return datasets

    def splits(self) -> tuple[list, dict[str, list[str]]]:
        """RecBole's splits, and the training items of each user in time order."""
        datasets = self.build()
        return datasets, datasets[0].training_sequences()

    def _by_token(self, users: Iterable[int]) -> list[int]:
        """Users in an order that does not depend on that of the file."""
        tokens = self.field2id_token[self.uid_field]
        return sorted(users, key=lambda user: str(tokens[user]))

    def _check_parts(self, datasets: list) -> None:
        """Make sure that each part of the split has the rows, and the data the items, asked for."""
        split = self.config["eval_args"]["split"]
        names = ("training", "validation", "test")
        for part, name, asked in zip(datasets, names, parts_of(split), strict=True):
            if asked and len(part) == 0:
                raise self._refusal(
                    f"too few or too short sequences: no row is left for {name} under `eval_args: "
                    f"split: {split}` and `eval_protocol: {self.config['eval_protocol']}`; a split "
                    "by ratio needs more users, leave-one-out needs users with 4 interactions"
                )
        items, wanted = self.item_num - 1, max(self.config["topk"])
        if wanted > items:
            raise self._refusal(
                f"`topk` asks for the best {wanted} of the {items} items: lower it, and "
                "`valid_metric` with it"
            )

    def _transitions(self, train) -> torch.Tensor:
        """The LE's number of each training row: users sorted by token, each in time order [n]."""
        numbers, own = self.inter_feat[ROW].numpy(), train.inter_feat[ROW].numpy()
        # rows of a user stand together in time order; the k-th has the target x_{k+2}
        users = self.inter_feat[self.uid_field].numpy()[np.argsort(numbers)]
        after = np.intersect1d(np.setdiff1d(numbers, own) + 1, own)  # right behind a held-out row
        gap = after[users[after] == users[after - 1]]
        if len(gap):
            user = self.id2token(self.uid_field, users[gap[0]])
            raise ValueError(
                f"user {user!r} has training interactions after held-out ones: this split would "
                "leak held-out items into the LE; use split LS or RS with group_by user"
            )
        place = np.empty(self.user_num, dtype=np.int64)
        place[self._by_token(range(self.user_num))] = range(self.user_num)
        transitions = np.empty(len(own), dtype=np.int64)
        transitions[np.lexsort((own, place[users[own]]))] = np.arange(len(own))
        return torch.from_numpy(transitions)

    def training_sequences(self) -> dict[str, list[str]]:
        """Of the training split: user token -> item tokens in time order."""
        order = self.inter_feat[TRANSITION].argsort()
        users = self.inter_feat[self.uid_field][order].numpy()
        targets = self.inter_feat[self.iid_field][order].numpy()
        history = self.iid_field + self.config["LIST_SUFFIX"]
        firsts = self.inter_feat[history][order, 0].numpy()
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
        first = self.inter_feat[self.iid_field + self.config["LIST_SUFFIX"]][own[0], 0]
        items = (first, *self.inter_feat[self.iid_field][own[:-1]])
        return [str(self.field2id_token[self.iid_field][i]) for i in items]

    def pipeline(self, tokens: dict[str, list[str]]) -> Pipeline:
        """The LE on training sequences, as ``training_sequences`` gives them; not computed yet."""
        config, name = self.config, self.dataset_name
        items = [str(token) for token in self.field2id_token[self.iid_field][1:]]
        path = Path(config["data_path"]) / f"{name}.item"
        separator, encoding = config["field_separator"], config["encoding"] or "utf-8"
        texts = read_item_texts(path, self.iid_field, items, separator, encoding)
        settings, catalogue = LESettings.from_config(config.final_config_dict), Catalogue(texts)
        sequences, bar = Sequences(tokens, catalogue), bool(config["show_progress"])
        return Pipeline(settings, catalogue, sequences, name, self.lea_stages, bar)
