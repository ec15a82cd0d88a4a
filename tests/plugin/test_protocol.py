"""``eval_protocol: paper``: whole sequences, every interaction of a test sequence."""

import pytest
from recbole.data import create_dataset, data_preparation

from tests.plugin.test_dataset import raw_sequences


def users_of(loader):
    field = loader._dataset.inter_feat["user_id"]
    return {loader._dataset.id2token("user_id", int(user)) for user in field}


def split(config):
    dataset = create_dataset(config)
    return data_preparation(config, dataset)


def test_no_sequence_is_in_two_splits_and_every_interaction_is_evaluated(tiny_config, tiny_dataset):
    loaders = split(tiny_config(eval_protocol="paper", lea_method="base"))
    users = [users_of(loader) for loader in loaders]
    assert [len(part) for part in users] == [10, 1, 1]
    assert sum(map(len, users)) == len(set.union(*users)) == 12
    raw = raw_sequences(tiny_dataset)
    for loader, part in zip(loaders, users, strict=True):
        assert len(loader._dataset) == sum(len(raw[user]) - 1 for user in part)
    evaluated = sum(len(batch[0]) for batch in loaders[2])
    (user,) = users[2]
    assert evaluated == len(raw[user]) - 1


def test_split_follows_its_own_seed_and_not_the_order_of_the_file(tiny_config, tiny_dataset):
    first = [users_of(loader) for loader in split(tiny_config(eval_protocol="paper",
                                                              lea_method="base"))]  # fmt: skip
    path = tiny_dataset / "tiny.inter"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *reversed(rows)]) + "\n")
    again = [users_of(loader) for loader in split(tiny_config(eval_protocol="paper",
                                                              lea_method="base"))]  # fmt: skip
    assert again == first
    seeds = {
        frozenset(users_of(split(tiny_config(eval_protocol="paper", lea_method="base",
                                             lea_split_seed=seed))[2]))
        for seed in range(6)
    }  # fmt: skip
    assert len(seeds) > 1
    other = split(tiny_config(eval_protocol="paper", lea_method="base", seed=3))
    assert [users_of(loader) for loader in other] == first


def test_by_time_no_test_sequence_begins_before_a_training_sequence(tiny_config, tiny_dataset):
    path = tiny_dataset / "tiny.inter"
    header, *rows = path.read_text().splitlines()
    users = sorted(raw_sequences(tiny_dataset))
    starts = {user: 1000 * (7 * i % 12) for i, user in enumerate(users)}
    moved = []
    for user, item, time in (row.split("\t") for row in rows):
        moved.append(f"{user}\t{item}\t{starts[user] + float(time) % 100}")
    path.write_text("\n".join([header, *moved]) + "\n")
    loaders = split(tiny_config(eval_protocol="paper_time", lea_method="base"))
    parts = [[starts[user] for user in users_of(loader)] for loader in loaders]
    assert [len(part) for part in parts] == [10, 1, 1]
    assert max(parts[0]) < min(parts[1]) <= max(parts[1]) < min(parts[2])


def test_the_le_sees_training_sequences_alone(tiny_config):
    train, _, test = split(tiny_config(eval_protocol="paper", lea_method="LER"))
    assert set(train._dataset.lea_pipeline.sequences.users) == users_of(train)
    assert not users_of(test) & users_of(train)


def test_contradictory_split_is_refused(tiny_config):
    with pytest.raises(ValueError, match="eval_protocol: paper"):
        tiny_config(
            eval_protocol="paper",
            eval_args={"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        )


@pytest.mark.parametrize("name", ["lfm", "industrial"])
def test_missing_folder_says_which_command_makes_it(name):
    from recbole.config import Config

    config = Config("SASRecSA2CLEA", name)
    assert config["eval_protocol"] == "paper"
    assert config["eval_args"]["split"] == {"RS": [0.8, 0.1, 0.1]}
    with pytest.raises(FileNotFoundError, match=f"{name}.inter.*python -m dataset_prep.*DIR holds"):
        create_dataset(config)
