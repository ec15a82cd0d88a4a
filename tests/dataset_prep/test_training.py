"""From raw files to metrics: each shared dataset is converted, trained on briefly, and tested."""

import json

import pytest

LFM = ("lfm", "classic_rock_lfm1b", ["--days", "7"])
GIFT = ("amazon", "amazon_gift_cards_raw", ["--category", "Gift_Cards"])
INDUSTRIAL = ("sequences", "amazon_industrial", [])


@pytest.mark.parametrize(
    ("name", "source"), [("lfm", LFM), ("gift", GIFT), ("industrial", INDUSTRIAL)]
)
def test_paper_protocol_on_real_data(name, source, prep, shared_data, tiny_llm, tmp_path):
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_trainer, init_seed

    from recbole_lea.model import SASRecSA2CLEA

    command, folder, options = source
    raw = shared_data(folder)
    if command == "sequences":
        # an eighth of the users: test_shared_data.py converts all of them
        sequences = json.loads((raw / "Scientific.inter.json").read_text())
        inter = tmp_path / "some.inter.json"
        inter.write_text(json.dumps(dict(list(sequences.items())[:1000])))
        options = ["--inter", inter, "--items", raw / "Scientific.item.json"]
    else:
        options = ["--input", raw, *options]
    status, _, err = prep(command, *options, "--output", tmp_path / "dataset" / name)
    assert status == 0, err

    config = Config(
        SASRecSA2CLEA,
        name,
        config_dict={
            "eval_protocol": "paper", "lea_newest": 3, "epochs": 2, "train_batch_size": 100,
            "MAX_ITEM_LIST_LENGTH": 10, "lea_valid_steps": 20,
            "warmup": "5 steps", "show_progress": False, "gpu_id": "", "lea_llm": tiny_llm,
            "lea_llm_dtype": "float32", "lea_item_iterations": 0, "lea_finetune_epochs": 1,
            "lea_finetune_fraction": 0.01, "lea_finetune_eval": 20, "lea_batch_rows": 16,
        },
    )  # fmt: skip
    init_seed(config["seed"], True)
    dataset = create_dataset(config)
    interactions = dataset.inter_num
    loaders = data_preparation(config, dataset)
    users = [set(loader._dataset.inter_feat["user_id"].tolist()) for loader in loaders]
    assert sum(map(len, users)) == len(set.union(*users)) == dataset.user_num - 1
    assert len(users[0]) > 7 * len(users[1])
    # every interaction but each sequence's first is a row of exactly one split
    assert sum(len(loader._dataset) for loader in loaders) == interactions - len(set.union(*users))
    rows = sum(len(batch[0]) for batch in loaders[2])
    tested = sum(1 for user in dataset.inter_feat["user_id"].tolist() if user in users[2])
    assert rows == tested
    model = SASRecSA2CLEA(config, loaders[0]._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.fit(loaders[0], loaders[1], verbose=False)
    assert model.warmed_up
    result = trainer.evaluate(loaders[2])
    assert {f"{m}@{k}" for m in ("hit", "ndcg") for k in (5, 10, 20)} <= set(result)
    assert 0 < result["hit@20"] < 1
