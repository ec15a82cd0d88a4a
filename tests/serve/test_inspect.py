"""What the command shows is what model and LE say; nothing is trained for it."""

import shutil

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from recbole_lea.arguments import set_given
from recbole_lea.console import console
from recbole_lea.inspect import main
from recbole_lea.le.selection import nearness
from recbole_lea.serve.inspector import Inspector
from tests.conftest import write_tiny_dataset


@pytest.fixture(scope="module")
def inspector(trained):
    return Inspector(trained().path)


def run(monkeypatch, *arguments):
    set_given(list(map(str, arguments)))
    console(main)


def training_rows(model):
    """(row of the training split, history, target) with the history as the LE knows it."""
    data = model.train._dataset
    sequences = data.lea_pipeline.sequences
    for row in range(0, len(data), 7):
        k = int(data.inter_feat["lea_transition"][row])
        (sequence,), (t,) = data.lea_pipeline.sequences.locate(np.array([k]))
        items = sequences.items[sequence]
        tokens = [data.lea_pipeline.catalogue.tokens[i] for i in items]
        yield row, k, tokens[:t], tokens[t]


def test_scores_ranks_and_the_held_out_item_are_recbole_s(trained, inspector):
    model = trained()
    data = model.test._dataset
    users = [str(data.id2token("user_id", int(u))) for u in model.rows["user_id"]]
    for user, scores, target in zip(users, model.scores, model.rows["item_id"], strict=True):
        view = inspector.user(user)
        scores = scores.clone()
        scores[0] = -torch.inf
        best = scores.topk(10)
        top, truth = view.items[:10], data.id2token("item_id", int(target))
        assert list(top.index) == list(data.id2token("item_id", best.indices))
        np.testing.assert_allclose(top["score"], best.values, atol=1e-5)
        assert list(top["rank"]) == list(range(1, 11))
        assert set(view.items.index) == {*top.index, truth}
        assert view.items["rank"][truth] == int((scores > scores[target]).sum()) + 1
        assert [truth] == list(view.items.index[view.items[""].str.contains("true next item")])


@pytest.mark.parametrize("changes", [{}, {"state_dim": 4}, {"lea_method": "LER"}])
def test_q_values_and_rewards_are_those_of_the_training(trained, changes):
    """LE state and reward of training transitions lie in the cache; Q is the model's own."""
    model = trained(**changes)
    data = model.train._dataset
    feedback = data.lea_feedback
    looked = Inspector(model.path)
    for row, k, history, target in training_rows(model):
        batch = data[torch.tensor([row])]
        state = feedback.lookup(np.array([k])).get("state")
        with torch.no_grad():
            hidden = model.model.forward(batch["item_id_list"], batch["item_length"])
            q = model.model.q_head(model.model.q_head.join(hidden, state))[0]
        view = looked.look(history, target)
        ids = [data.field2token_id["item_id"][token] for token in view.items.index]
        np.testing.assert_allclose(view.items["Q"], q[ids], atol=5e-3)  # states are float16
        q[0] = -torch.inf
        true = q[data.field2token_id["item_id"][target]]
        assert abs(view.items["Q rank"][target] - (int((q > true).sum()) + 1)) <= 1
        reward = float(data.lea_pipeline.rewards()[k, 0])
        assert view.items["LE reward"][target] == pytest.approx(reward, abs=1e-4)


def test_label_scores_are_those_of_the_augmentation(trained):
    model = trained(selection_calibration="none")
    pipeline = model.train._dataset.lea_pipeline
    folder = pipeline.cache.path("selection")
    actions, scores = (np.load(folder / f"{name}.npy") for name in ("actions", "label_scores"))
    looked = Inspector(model.path)
    for _, k, history, _ in training_rows(model):
        labels, note = looked.label_scores(
            history, [pipeline.catalogue.tokens[i] for i in actions[k]]
        )
        np.testing.assert_allclose(labels, scores[k], atol=1e-4)
        assert note == "log-probability of the item's label word, before selection_calibration"
    view = looked.look(["i1", "i2"])
    labels = view.items["LE label"]
    assert labels[:5].notna().all() and labels[5:].isna().all()
    (marked,) = (line for line in view.text().splitlines() if line.endswith("<- the LE's choice"))
    assert marked.split()[0] == labels.idxmax()


def test_selection_by_reward_shows_rewards(trained):
    model = trained(selection_by="reward")
    folder = model.train._dataset.lea_pipeline.cache.path("selection")
    actions, scores = (np.load(folder / f"{name}.npy") for name in ("actions", "rewards"))
    looked, tokens = Inspector(model.path), model.train._dataset.lea_pipeline.catalogue.tokens
    for _, k, history, _ in training_rows(model):
        rewards, note = looked.label_scores(history, [tokens[i] for i in actions[k]])
        np.testing.assert_allclose(rewards, scores[k], atol=1e-4)
        assert note == "the item's reward"


def test_selection_by_state_shows_how_near_the_items_are(trained):
    model = trained(selection_by="state")
    pipeline = model.train._dataset.lea_pipeline
    looked, rows = Inspector(model.path), list(training_rows(model))
    for _, k, history, _ in rows:
        listed = np.tile(np.arange(3), (pipeline.sequences.n_transitions, 1))
        near, note = looked.label_scores(history, [pipeline.catalogue.tokens[i] for i in range(3)])
        expected = nearness(pipeline, listed)[k]
        kept = np.isfinite(expected)  # the newest item is not chosen
        np.testing.assert_array_equal(np.isfinite(near), kept)
        np.testing.assert_array_equal(near[kept].argsort(), expected[kept].argsort())
        assert note.startswith("how near the item is to the LE's state; -inf: ")


def test_the_command_prints_titles_and_draws(trained, monkeypatch, capsys, tmp_path):
    path = trained().path
    run(monkeypatch, path, "--user", "u3", "--plot", "new/look.png")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("user u3: ")
    assert sum("<- the LE's choice" in line for line in lines) == 1
    assert lines[1] == "  i9          moon green"
    assert sum("<- the true next item" in line for line in lines) == 1
    assert lines[-1] == "picture: new/look.png"
    picture = imread(tmp_path / "new" / "look.png")
    assert picture.shape[0] > 500
    assert picture[..., :3].std() > 0.05


def test_a_history_of_one_s_own(trained, monkeypatch, capsys, caplog):
    run(monkeypatch, trained().path, "--history", "i19|i1|nothing")
    out = capsys.readouterr().out
    assert "given history: 2 items" in out
    assert "  i19         i19\n  i1          green red\n" in out  # i19 has no title
    assert "true next item" not in out
    assert "unknown to" in caplog.text
    assert "nothing" in caplog.text


def test_states_are_coloured_by_the_category_of_the_newest_item(inspector):
    (axes,) = inspector.draw("title").axes
    assert axes.get_legend().get_title().get_text() == "title of the newest item"
    assert sum(len(part.get_offsets()) for part in axes.collections) == 12
    assert len(axes.collections) > 1
    (axes,) = inspector.draw().axes
    assert len(axes.collections) == 1
    with pytest.raises(ValueError, match="--category colour: the .item file has only title"):
        inspector.draw("colour")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--user", "u99"], "no user u99"),
        (["--history", "x|y"], "no item that the model knows: x, y"),
        ([], "give --user, --history or --plot"),
        (["--plot", "look.jpg"], "look.jpg: the file has to end with .png"),
        (["--user", "u1", "--top"], "--top: not an option"),
    ],
)
def test_a_mistake_is_one_clear_line(trained, monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, trained().path, *arguments)
    assert message in f"{end.value}{capsys.readouterr().err}"


def test_an_le_that_is_not_there_is_not_made(trained, monkeypatch, tmp_path):
    path = trained().path
    with pytest.raises(
        SystemExit, match=r"lacks the LE of .*items, environment.*lea_stop_after=fi"
    ):
        run(monkeypatch, path, "--user", "u1", f"--lea_cache_dir={tmp_path / 'empty'}")
    assert not list((tmp_path / "empty").rglob("*.npy"))
    projected = trained(state_dim=4)
    cache = tmp_path / "half"
    pipeline = projected.train._dataset.lea_pipeline
    shutil.copytree(pipeline.cache.folder, cache / "tiny")
    shutil.rmtree(cache / "tiny" / pipeline.cache.path("states").name)
    with pytest.raises(SystemExit, match="lacks the LE of .*states.*lea_stop_after=states"):
        run(monkeypatch, projected.path, "--user", "u1", f"--lea_cache_dir={cache}")


def test_another_dataset_of_the_same_name_is_refused(trained, monkeypatch, tmp_path):
    folder = write_tiny_dataset(tmp_path)
    file = folder / "tiny.inter"
    file.write_text(file.read_text().replace("\ti3\t", "\tother\t"))
    message = (
        r"not the one that .* was trained on: 20 items in the checkpoint, 20 here; item \d+ is"
    )
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, trained().path, "--user", "u1", f"--data_path={tmp_path / 'dataset'}")


def test_a_user_of_the_training_split_has_no_held_out_item(trained):
    model = trained("GRU4RecSA2CLEA", eval_protocol="paper")
    looked = Inspector(model.path)
    data = model.test._dataset
    testers = {str(data.id2token("user_id", int(u))) for u in model.rows["user_id"]}
    tester = min(testers)
    last = max(model.rows["lea_row"][model.rows["user_id"] == data.token2id("user_id", tester)])
    row = int((model.rows["lea_row"] == last).nonzero())
    truth = data.id2token("item_id", int(model.rows["item_id"][row]))
    assert "<- the true next item" in looked.user(tester).items[""][truth]
    other = next(f"u{i}" for i in range(12) if f"u{i}" not in testers)
    with pytest.raises(ValueError, match=f"nothing of user {other} is in the test split"):
        looked.user(other)
