"""What RecBole's own Dataset reads from the atomic files is what was written."""

import pandas as pd
import pytest

from dataset_prep.atomic import write_dataset
from dataset_prep.report import Problems

TITLES = [
    '"Heroes"',
    '"unclosed',
    '"',
    '12" Mix "Live"',
    "None",
    "NA",
    "nan",
    "null",
    "#N/A",
    "1.0",
    "007",
    "",
    "It's \\ a back\\slash",
    "comma, semicolon; # hash",
    "caf\u00e9 \u4e2d\u6587 \U0001f3b8",
    "true",
    "\u200bzero width",
    "plain title",
]


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Return what loads a dataset folder with RecBole, which reads sys.argv and logs to the cwd."""

    def dataset(folder, item_fields, inter_fields):
        config_module = pytest.importorskip("recbole.config")
        from recbole.data.dataset import SequentialDataset

        monkeypatch.setattr("sys.argv", ["test"])
        monkeypatch.chdir(tmp_path)
        config = config_module.Config(
            model="SASRec",
            dataset=folder.name,
            config_dict={
                "data_path": str(folder.parent),
                "load_col": {"inter": inter_fields, "item": ["item_id", *item_fields]},
                "train_neg_sample_args": None,
                "gpu_id": "",
                "MAX_ITEM_LIST_LENGTH": 10,
            },
        )
        return SequentialDataset(config)

    return dataset


def words(dataset, field):
    """Return an item text field as RecBole has it: item token -> words."""
    items = dataset.id2token("item_id", dataset.item_feat["item_id"].values)
    return {
        item: [str(word) for word in dataset.id2token(field, ids.astype(int))]
        for item, ids in zip(items, dataset.item_feat[field].values, strict=True)
        if item != "[PAD]"
    }


def test_text_survives_recbole(load, tmp_path):
    folder = tmp_path / "tricky"
    folder.mkdir()
    n = len(TITLES)
    # Every title in every place: first, middle and last field of a line.
    rows = [(str(i), TITLES[i], TITLES[(i + 5) % n], TITLES[(i + 11) % n]) for i in range(n)]
    items = pd.DataFrame(rows, columns=["", "title", "album", "artist"]).set_index("")
    events = [(user, str(i), 1_402_884_000 + i) for user in ("u", "v", "1") for i in range(n)]
    events = pd.DataFrame(events, columns=["user", "item", "time"])
    write_dataset(folder / "tricky", events, items, Problems(0))

    dataset = load(
        folder, ["title", "album", "artist"], ["user_id", "item_id", "timestamp", "time"]
    )
    for place, field in enumerate(["title", "album", "artist"], start=1):
        expected = {row[0]: [word for word in row[place].split(" ") if word] for row in rows}
        assert words(dataset, field) == expected
    assert dataset.item_num == n + 1 and dataset.user_num == 4
    inter = dataset.inter_feat
    assert len(inter) == 3 * n
    by_user = {}
    for user, item, place in zip(
        dataset.id2token("user_id", inter["user_id"].values),
        dataset.id2token("item_id", inter["item_id"].values),
        inter["timestamp"].values,
        strict=True,
    ):
        by_user.setdefault(user, []).append((place, item))
    assert by_user == {user: [(i, str(i)) for i in range(n)] for user in ("u", "v", "1")}

    plain = [line.split("\t") for line in (folder / "tricky.item").read_text().splitlines()[1:]]
    assert [tuple(cell.strip(" ") for cell in row) for row in plain] == rows


def test_a_text_field_empty_everywhere_loads(load, tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    items = pd.DataFrame({"title": ["One", "Two"], "album": ""}, index=["7", "8"])
    events = pd.DataFrame({"user": "u", "item": ["7", "8"]})
    write_dataset(folder / "bare", events, items, Problems(0))
    dataset = load(folder, ["title", "album"], ["user_id", "item_id", "timestamp"])
    assert words(dataset, "title") == {"7": ["One"], "8": ["Two"]}
    assert words(dataset, "album") == {"7": [], "8": []}


def test_prepared_folder_loads(prep, load, shared_data, tmp_path):
    folder = tmp_path / "dataset" / "gift"
    raw = shared_data("amazon_gift_cards_raw")
    prep("amazon", "--input", raw, "--category", "Gift_Cards", "--output", folder)
    dataset = load(folder, ["title", "description"], ["user_id", "item_id", "timestamp"])
    assert (dataset.user_num, dataset.item_num, len(dataset.inter_feat)) == (459, 149, 2965)
    lines = (folder / "gift.item").read_text().splitlines()[1:]
    titles = {line.split("\t")[0]: line.split("\t")[1].split() for line in lines}
    assert words(dataset, "title") == titles and len(titles) == 148
