"""One run: what it leaves, and what it is known by."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from recbole_lea.experiments.finished import FinishedRuns
from recbole_lea.experiments.run import Spec, by_user, cold_result, execute
from recbole_lea.plugin.dataset import LEADataset
from recbole_lea.plugin.evaluation import evaluate_rows
from recbole_lea.plugin.quick_start import prepare
from recbole_lea.yaml_files import properties_folder
from tests.experiments.helpers import METRICS, tiny_yaml


@pytest.fixture
def spec(tiny_dataset, tiny_llm, tmp_path):
    files = (tiny_yaml(tiny_llm, tmp_path),)

    def make(kind="test", model="SASRecSA2CLEA", stock=False, seed=3, **keys):
        return Spec(kind, model, stock, "tiny", seed, {"lea_method": "base"} | keys, files)

    return make


def done(spec, folder):
    finished = FinishedRuns(Path("results"))
    finished.add(*execute(spec, Path(folder)))
    return finished.records()[folder]


def test_rows_are_what_recbole_averages(tiny_config):
    config = tiny_config(lea_method="base", metric_decimal_place=8, topk=list(range(1, 13)))
    trainer, (train, valid, test) = prepare(config)
    trainer.fit(train, valid, verbose=False)
    result, rows = evaluate_rows(trainer, test)
    assert list(rows) == list(result) and "mrr@12" in rows
    for name, values in rows.items():
        assert values.shape == (len(test._dataset),)
        assert values.mean() == pytest.approx(result[name], abs=1e-7)
    data = test._dataset[np.arange(len(test._dataset))]
    scores = trainer.model.full_sort_predict(data).detach()
    scores[:, 0] = -np.inf
    rank = (scores > scores.gather(1, data["item_id"][:, None])).sum(1).numpy()
    assert rows["hit@5"].tolist() == (rank < 5).tolist()
    expected = np.where(rank < 10, 1 / np.log2(rank + 2.0), 0)
    assert rows["ndcg@10"] == pytest.approx(expected)
    assert dict(trainer.evaluate(test)) == result  # and RecBole's evaluator is as before


def test_by_user_is_the_mean_of_the_user_s_rows(tiny_config):
    config = tiny_config(lea_method="base", eval_protocol="paper")
    test = prepare(config)[1][2]._dataset
    values = np.arange(len(test), dtype=float)
    found = by_user(test, {"hit@10": values})
    tokens = test.id2token("user_id", test.inter_feat["user_id"].numpy())
    assert found["users"].tolist() == sorted(set(tokens))
    for user, n, mean in zip(found["users"], found["rows"], found["hit@10"], strict=True):
        own = values[tokens == user]
        assert (n, mean) == (len(own), own.mean())


def test_a_test_leaves_all_that_the_report_needs(spec):
    content = done(spec(lea_method="LEASR"), "run")
    assert list(content["test_result"]) == METRICS
    assert [epoch for epoch, _ in content["valid_curve"]] == [0, 1]
    assert content["best_valid_score"] == max(score for _, score in content["valid_curve"])
    assert content["seed"] == content["config"]["seed"] == 3
    assert content["device"] == "cpu" and content["threads"] >= 1
    assert content["data"]["users"] == 12 and content["data"]["test users"] == 12
    assert {"training", "test", "augmentation"} <= set(content["stages"])
    assert set(content["code"]) == {"commit", "clean", "fingerprint"}
    assert len(content["le"]["positions_chosen"]) == 5
    assert sum(content["le"]["positions_chosen"]) == pytest.approx(1)
    assert 0 <= content["le"]["true_item_chosen"] <= content["le"]["true_item_listed"] <= 1
    assert -1 <= content["le"]["reward_popularity"] <= 1
    users = FinishedRuns(Path("results")).users("run")
    assert set(users) == set(METRICS)
    mean = (users["hit@20"].values * users["hit@20"].rows).sum() / users["hit@20"].rows.sum()
    assert mean == pytest.approx(content["test_result"]["hit@20"], abs=1e-7)
    assert not list(Path("run").iterdir())
    assert not Path("saved").exists() and not Path("log").exists()


def test_cold_items_are_those_that_training_hardly_saw(tiny_config, monkeypatch):
    monkeypatch.setattr("recbole_lea.experiments.run.COLD", 3)
    loaders = prepare(tiny_config(lea_method="base"))[1]
    train, test = loaders[0]._dataset, loaders[2]._dataset
    _, sequences = LEADataset(tiny_config(lea_method="base")).splits()
    seen = Counter(item for items in sequences.values() for item in items)
    targets = test.id2token("item_id", test.inter_feat["item_id"].numpy())
    cold = np.array([seen[item] < 3 for item in targets])
    assert 0 < cold.sum() < len(cold)
    values = np.arange(len(test), dtype=float)
    found = cold_result(train, test, {"hit@10": values})
    assert found == {"below": 3, "rows": cold.sum(), "result": {"hit@10": values[cold].mean()}}
    none = cold_result(train, test.copy(test.inter_feat[~cold]), {"hit@10": values[~cold]})
    assert none == {"below": 3, "rows": 0, "result": {}}


def test_a_trial_never_sees_the_test_data(spec, monkeypatch):
    def refuse(*args):
        raise AssertionError("a trial was tested")

    monkeypatch.setattr("recbole_lea.experiments.run.evaluate_rows", refuse)
    content = done(spec("trial"), "run")
    assert "test_result" not in content
    assert not Path("results/users.npz").exists()
    with pytest.raises(AssertionError):
        done(spec("test"), "other")


@pytest.mark.parametrize(
    "data",
    [{}, {"eval_protocol": "paper", "lea_split_seed": 1, "lea_newest": 5, "lea_valid_steps": 3}],
)
def test_normal_is_recbole_s_own_also_when_tuned(spec, data):
    keys = {"q_weight": 0, "learning_rate": 0.01, "hidden_dropout_prob": 0.1, "n_layers": 1} | data
    ours = done(spec(**keys), "ours")
    stock = done(spec(stock=True, **keys), "stock")
    assert stock["model"] == "SASRec"
    assert stock["config"]["n_layers"] == 1
    for part in ("valid_curve", "test_result", "best_valid_result", "data"):
        assert ours[part] == stock[part]


def test_an_le_run_builds_what_the_methods_want(spec):
    keys = {"lea_state": "hidden", "lea_reward": "LE", "lea_augmentation": "both"}
    content = done(spec("le", **keys), "le")
    assert {"item tokenization", "LE fine-tuning", "rewards"} <= set(content["stages"])
    assert "states" not in content["stages"]
    assert "accuracy" in content["le"]
    later = done(spec(lea_method="LEAR"), "later")
    assert not {"LE fine-tuning", "rewards"} & set(later["stages"])


def test_identity_is_all_that_the_result_depends_on(spec, tiny_llm, tmp_path):
    def key(own, data="data"):
        return own.identity(data)[0]

    own = spec(learning_rate=0.01)
    assert key(own) == key(spec(learning_rate=0.01))
    others = [
        spec(learning_rate=0.02), spec("trial", learning_rate=0.01),
        spec(stock=True, learning_rate=0.01), spec(seed=4, learning_rate=0.01),
    ]  # fmt: skip
    assert len({*map(key, others), key(own, "other data"), key(own)}) == 6
    # neither paths nor progress bars
    moved = dataclasses.replace(own, keys=own.keys | {"lea_cache_dir": "x", "use_gpu": True})
    moved = dataclasses.replace(moved, method="another row's name")
    assert moved.identity("data") == own.identity("data")
    assert own.identity("data")[1]["epochs"] == 2
    other = tmp_path / "other"
    other.mkdir()
    more_epochs = dataclasses.replace(own, config_files=(tiny_yaml(tiny_llm, other, epochs=9),))
    assert key(more_epochs) != key(own)


def test_a_new_key_makes_no_other_run(spec, monkeypatch):
    from recbole_lea import yaml_files

    before, values = spec().identity("data")
    folder = Path("properties")
    shutil.copytree(properties_folder(), folder)
    monkeypatch.setattr(yaml_files, "properties_folder", lambda: folder)
    with (folder / "lea.yaml").open("a") as file:
        file.write("lea_new: 3\n")
    after, new_values = spec().identity("data")
    assert after == before
    assert new_values == values | {"lea_new": 3}


def test_a_record_has_no_absolute_path(spec, tmp_path):
    own = dataclasses.replace(spec("trial"), arguments=("--data_path=/somewhere", "--epochs=1"))
    content = done(dataclasses.replace(own, method="SASRec SA2C"), "run")
    assert content["config_files"] == ["tiny.yaml"]
    assert content["arguments"] == ["--epochs=1"]
    del content["config"]["lea_llm"]  # a folder here
    assert content["method"] == "SASRec SA2C"
    assert str(tmp_path) not in json.dumps(content)


def test_a_run_is_a_process(spec):
    folder = Path("results/tiny/runs/run")
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps(dataclasses.asdict(spec("trial"))))
    command = [sys.executable, "-m", "recbole_lea.experiments.run", str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    record = json.loads(Path("results/tiny/runs.jsonl").read_bytes())
    assert (record["name"], record["kind"]) == ("run", "trial")
