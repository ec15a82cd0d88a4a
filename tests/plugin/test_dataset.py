"""Rows, order and splits: the LE's feedback reaches the right training rows and no others."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import SequentialDataset

from recbole_lea.le.pipeline import Pipeline
from recbole_lea.model import MODELS
from recbole_lea.model.fields import DONE, ROW


@pytest.fixture
def planted(monkeypatch):
    """Replace the LE's arrays by the number of the state or transition they belong to."""
    n_calls = []

    def states(self, and_rewards=False):
        n_calls.append("states")
        return np.arange(self.sequences.n_states, dtype=np.float32)[:, None]

    def rewards(self):
        k = np.arange(self.sequences.n_transitions, dtype=np.float32)[:, None]
        return np.concatenate([k] + [1000 + k] * self.settings.negative_pool, axis=1)

    monkeypatch.setattr(Pipeline, "states", states)
    monkeypatch.setattr(Pipeline, "rewards", rewards)
    return n_calls


def raw_sequences(folder):
    """Independent reading of the .inter file: user -> items in time order."""
    rows = (folder / "tiny.inter").read_text().splitlines()[1:]
    users = {}
    for row in rows:
        user, item, time = row.split("\t")
        users.setdefault(user, []).append((float(time), item))
    return {user: [item for _, item in sorted(rows)] for user, rows in users.items()}


SPLITS = [
    {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"},
    {"split": {"RS": [0.6, 0.2, 0.2]}, "group_by": "user", "order": "TO", "mode": "full"},
]


@pytest.mark.parametrize("eval_args", SPLITS)
def test_planted_values_reach_their_rows(tiny_config, tiny_dataset, planted, eval_args):
    """Histories of up to 9 items exceed the window of 5; the loader shuffles."""
    config = tiny_config(eval_args=eval_args, reward_scale="raw")
    dataset = create_dataset(config)
    train, _, _ = data_preparation(config, dataset)
    data, seen = train._dataset, 0
    sequences = data.lea_feedback.sequences
    raw = raw_sequences(tiny_dataset)
    catalogue = data.lea_pipeline.catalogue
    for batch in train:
        for b in range(len(batch)):
            user = dataset.id2token("user_id", int(batch["user_id"][b]))
            target = dataset.id2token("item_id", int(batch["item_id"][b]))
            history = dataset.id2token("item_id", batch["item_id_list"][b])
            k = int(batch["lea_reward"][b])
            s, t = (int(part[0]) for part in data.lea_pipeline.sequences.locate(np.array([k])))
            assert sequences.users[s] == user
            le_items = [catalogue.tokens[i] for i in sequences.items[s]]
            assert le_items == raw[user][: len(le_items)]
            assert le_items[t] == target
            kept = int(batch["item_length"][b])
            assert le_items[max(0, t - 5) : t] == list(history[:kept])
            assert batch["lea_state"][b].item() == sequences.state_starts[s] + t - 1
            assert batch["lea_next_state"][b].item() == sequences.state_starts[s] + t
            assert batch["lea_negative_reward"][b].item() == 1000 + k
            negative = dataset.id2token("item_id", int(batch["lea_negative"][b]))
            assert negative == catalogue.tokens[data.lea_pipeline.negatives[k, 0]]
            assert batch[DONE][b].item() == float(t == len(le_items) - 1)
            seen += 1
    assert seen == sequences.n_transitions == len(data)


@pytest.mark.parametrize("eval_args", SPLITS)
def test_no_held_out_interaction_reaches_the_le(tiny_config, tiny_dataset, monkeypatch, eval_args):
    """Record every prompt of every stage and compare with the file's own sequences."""
    from recbole_lea.le.prompts import Prompts
    from recbole_lea.plugin.trainer import LEATrainer

    calls = []
    for name in ("reward", "state", "select"):
        original = getattr(Prompts, name)

        def recorded(self, history, *rest, name=name, original=original):
            calls.append((name, [int(i) for i in history], rest))
            return original(self, history, *rest)

        monkeypatch.setattr(Prompts, name, recorded)
    config = tiny_config(eval_args=eval_args)
    loaders = data_preparation(config, create_dataset(config))
    data = loaders[0]._dataset
    trainer = LEATrainer(config, MODELS[config["model"]](config, data))
    trainer._dataset = data
    trainer._augment()
    # what may be seen, from the file alone: each user's items before the held-out rows
    held_out = dict.fromkeys(raw_sequences(tiny_dataset), 0)
    for loader in loaders[1:]:
        for user in loader._dataset.inter_feat["user_id"]:
            held_out[data.id2token("user_id", int(user))] += 1
    assert min(held_out.values()) >= 1
    visible = {u: s[: len(s) - held_out[u]] for u, s in raw_sequences(tiny_dataset).items()}
    prefixes = {tuple(s[:t]) for s in visible.values() for t in range(1, len(s) + 1)}
    tokens = data.lea_pipeline.catalogue.tokens
    positives = []
    for name, history, _ in calls:
        assert tuple(tokens[i] for i in history) in prefixes, name
    pipeline = data.lea_pipeline
    for s, user in enumerate(pipeline.sequences.users):
        assert [tokens[i] for i in pipeline.sequences.items[s]] == visible[user]
        positives += [tokens[i] for i in pipeline.sequences.items[s][1:]]
    assert {name for name, *_ in calls} == {"reward", "state", "select"}
    assert sorted(positives) == sorted(x for s in visible.values() for x in s[1:])


def test_times_that_cannot_be_ordered_over_all_users(tiny_config, monkeypatch):
    monkeypatch.setattr("recbole_lea.plugin.dataset.EXACT_FLOAT32", 3)
    create_dataset(tiny_config(lea_method="base"))  # within each user they can
    split = {"split": {"RS": [8, 1, 1]}, "group_by": "none", "order": "TO", "mode": "full"}
    by_time = {"split": {"TS": [8, 1, 1]}, "group_by": "user", "order": "TO", "mode": "full"}
    for args in (split, by_time):
        with pytest.raises(ValueError, match="different times are more.*group_by: user"):
            create_dataset(tiny_config(lea_method="base", eval_args=args))


def test_states_that_the_augmentation_needs_are_built_before_the_training(tiny_config):
    config = tiny_config(lea_method="LEA", selection_by="state")
    train, _, _ = data_preparation(config, create_dataset(config))
    assert train._dataset.lea_pipeline.cache.is_built("states")


@pytest.mark.parametrize("exact", [2**24, 3])
def test_order_is_exact_where_float32_would_lose_it(tiny_config, tiny_dataset, monkeypatch, exact):
    """The file in reverse order; more than ``exact`` times are ordered within each user alone."""
    monkeypatch.setattr("recbole_lea.plugin.dataset.EXACT_FLOAT32", exact)
    path = tiny_dataset / "tiny.inter"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *reversed(rows)]) + "\n")
    dataset = create_dataset(tiny_config(lea_method="base"))
    dataset.build()
    raw = raw_sequences(tiny_dataset)
    for row in range(len(dataset.inter_feat)):
        user = dataset.id2token("user_id", int(dataset.inter_feat["user_id"][row]))
        length = int(dataset.inter_feat["item_length"][row])
        history = list(dataset.id2token("item_id", dataset.inter_feat["item_id_list"][row]))[
            :length
        ]
        target = dataset.id2token("item_id", int(dataset.inter_feat["item_id"][row]))
        joined = ",".join([*history, target])
        assert joined in ",".join(raw[user])


def test_ml_100k_leave_one_out_follows_the_time_stamps():
    """RecBole's own cast changes the test item of 149 of 943 users."""
    import recbole
    from recbole.config import Config

    config = Config(
        model="SASRecSA2CLEA",
        dataset="ml-100k",
        config_dict={"lea_method": "base", "show_progress": False, "normalize_all": False},
    )
    dataset = create_dataset(config)
    _, _, test = data_preparation(config, dataset)
    path = Path(recbole.__file__).parent / "dataset_example/ml-100k/ml-100k.inter"
    newest = {}
    for line in path.read_text().splitlines()[1:]:
        user, item, _, time = line.split("\t")
        newest.setdefault(user, []).append((float(time), item))
    for user, row_item in zip(
        test._dataset.inter_feat["user_id"], test._dataset.inter_feat["item_id"], strict=True
    ):
        rows = newest[dataset.id2token("user_id", int(user))]
        latest = max(time for time, _ in rows)
        assert dataset.id2token("item_id", int(row_item)) in {i for t, i in rows if t == latest}


def test_newest_keeps_the_end_of_each_history(tiny_config, tiny_dataset):
    dataset = create_dataset(tiny_config(lea_method="base", lea_newest=4))
    raw = raw_sequences(tiny_dataset)
    kept = dataset.inter_feat.sort_values(["user_id", "timestamp"])
    for user, rows in kept.groupby("user_id"):
        tokens = list(dataset.id2token("item_id", rows["item_id"].to_numpy()))
        assert tokens == raw[dataset.id2token("user_id", user)][-4:]


def test_a_split_with_training_after_held_out_rows_is_refused(tiny_config):
    config = tiny_config(lea_method="base")
    dataset = create_dataset(config)
    train, *_ = SequentialDataset.build(dataset)
    later = train.copy(train.inter_feat[train.inter_feat[ROW] != 1])
    with pytest.raises(ValueError, match="leak"):
        dataset._transitions(later)


def test_an_item_s_token_is_held_once(tiny_config):
    _, sequences = create_dataset(tiny_config()).splits()
    tokens = [token for items in sequences.values() for token in items]
    assert len({id(token) for token in tokens}) == len(set(tokens)) < len(tokens)


def test_base_needs_no_le(tiny_config, tmp_path):
    config = tiny_config(lea_method="base", lea_llm="/no/such/llm")
    train, _, _ = data_preparation(config, create_dataset(config))
    assert train._dataset.lea_feedback is None
    assert DONE in next(iter(train)).interaction
    assert not (tmp_path / "lea_cache").exists()


def test_item_tokens_alone_need_no_fine_tuned_le(tiny_config, tmp_path):
    keys = {"lea_method": "base", "item_embedding_init": "le", "transform": "lea_live"}
    config = tiny_config(**keys)
    train, _, _ = data_preparation(config, create_dataset(config))
    assert len(train._dataset.lea_item_tokens) == 20
    assert not list((tmp_path / "lea_cache").glob("*/environment-*"))


def test_files_in_another_encoding(tiny_config, tiny_dataset):
    for name in ("tiny.inter", "tiny.item"):
        file = tiny_dataset / name
        text = file.read_text(encoding="utf-8")
        file.write_bytes(text.replace("u1\t", "ü1\t").replace("red", "röd").encode("latin-1"))
    with pytest.raises(ValueError, match=r"tiny\.inter: 'utf-8' codec.*set `encoding`"):
        create_dataset(tiny_config())
    dataset = create_dataset(tiny_config(encoding="latin-1"))
    sentences = dataset.pipeline(dataset.splits()[1]).sentences
    assert any("röd" in sentence for sentence in sentences)


def test_live_transform_draws_fresh_negatives(tiny_config):
    config = tiny_config(transform="lea_live", lea_method="LER")
    train, _, test = data_preparation(config, create_dataset(config))
    draws = torch.stack([train.collate_fn([0, 1])["lea_negative"] for _ in range(12)])  # [12, 2]
    assert all(len(set(own.tolist())) > 1 for own in draws.T)
    assert "lea_reward" not in next(iter(test))[0].interaction


@pytest.mark.parametrize(
    ("stop", "method", "finished"),
    [
        ("items", "base", {"items"}),
        ("finetune", "base", {"items", "keys", "environment"}),
        ("states", "LER", {"items", "keys", "environment", "states"}),
        ("rewards", "LES", {"items", "keys", "environment", "rewards"}),
        ("feedback", "LEA", {"items", "keys", "environment"}),
        ("feedback", "LEASR", {"items", "keys", "environment", "states", "rewards"}),
    ],
)
def test_run_stops_after_a_stage(tiny_config, caplog, stop, method, finished):
    caplog.set_level("INFO")
    config = tiny_config(lea_stop_after=stop, lea_method=method)
    with pytest.raises(SystemExit) as end:
        data_preparation(config, create_dataset(config))
    assert end.value.code == 0
    stages = {f.name.partition("-")[0] for f in Path("lea_cache/tiny").iterdir() if f.is_dir()}
    assert stages - {"sequences"} == finished
    assert f"lea_stop_after: {stop}: finished: " in caplog.text
    assert "copy the folder lea_cache/tiny" in caplog.text


def test_run_goes_on_after_it_was_stopped(tiny_config, caplog):
    config = tiny_config(lea_stop_after="feedback")
    with pytest.raises(SystemExit):
        data_preparation(config, create_dataset(config))
    caplog.set_level("INFO")
    caplog.clear()
    config = tiny_config()
    data_preparation(config, create_dataset(config))
    assert "states: reused from" in caplog.text
    assert "computing into" not in caplog.text


def test_states_for_the_selection_and_rewards_are_one_pass(tiny_config, caplog):
    caplog.set_level("INFO")
    config = tiny_config(lea_method="LEAR", selection_by="state")
    data_preparation(config, create_dataset(config))
    assert "states and rewards: computing into" in caplog.text
    assert " rewards: computing into" not in caplog.text.replace("and rewards", "")


def test_the_plan_asks_texts_alone_where_an_le_is_to_be_built(
    tiny_config, tiny_llm, tmp_path, caplog, monkeypatch
):  # fmt: skip
    """And only there: a dry run with the LE in the cache needs no LLM."""
    monkeypatch.setattr("recbole_lea.le.plan.FEWEST", 5)
    caplog.set_level("INFO")
    llm = tmp_path / "llm"
    shutil.copytree(tiny_llm, llm)
    plan = {"lea_llm": str(llm), "lea_stop_after": "plan", "lea_method": "LES"}

    def said(**keys):
        caplog.clear()
        config = tiny_config(**keys)
        with pytest.raises(SystemExit):
            data_preparation(config, create_dataset(config))
        return "ranked right without an LLM" in caplog.text

    assert said(**plan)
    assert not said(**plan | {"lea_method": "base"})
    said(**plan | {"lea_stop_after": "feedback"})
    llm.rename(tmp_path / "gone")
    assert not said(**plan)


def test_augmentation_without_the_llm_fails_before_training(tiny_config, tiny_llm, tmp_path):
    """On a machine that has a copied cache but no LLM; a method without augmentation runs."""
    llm = tmp_path / "llm"
    shutil.copytree(tiny_llm, llm)
    config = tiny_config(lea_llm=str(llm), lea_stop_after="feedback")
    with pytest.raises(SystemExit):
        data_preparation(config, create_dataset(config))
    llm.rename(tmp_path / "gone")
    config = tiny_config(lea_llm=str(llm))
    with pytest.raises(FileNotFoundError, match="lea_augmentation: both .* needs the LLM"):
        data_preparation(config, create_dataset(config))
    config = tiny_config(lea_llm=str(llm), lea_augmentation="none")
    train, _, _ = data_preparation(config, create_dataset(config))
    assert "lea_state" in next(iter(train))
