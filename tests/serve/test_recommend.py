"""Recommendations from a checkpoint alone."""

import pytest
import torch

import recbole_lea
from recbole_lea.serve.export import export
from recbole_lea.serve.recommend import Recommender

VARIANTS = [("SASRecSA2CLEA", "tied"), ("SASRecSNQNLEA", "dense"), ("GRU4RecSA2CLEA", "tied"),
            ("GRU4RecSNQNLEA", "dense"), ("CORESNQNLEA", "tied")]  # fmt: skip


@pytest.fixture(params=VARIANTS, ids="-".join)
def model(request, trained):
    name, head = request.param
    return trained(name, lea_method="base", lea_output_head=head)


def test_scores_and_order_are_recbole_s(model, monkeypatch):
    monkeypatch.setattr("recbole_lea.serve.recommend.BATCH", 5)
    made = recbole_lea.recommend(model.path, model.histories(), k=19)
    tokens = model.test._dataset.field2id_token["item_id"]
    expected = model.scores.clone()
    expected[:, 0] = -torch.inf
    for row, recommendation in zip(expected, made, strict=True):
        best = row.topk(19)
        assert recommendation.items == [tokens[i] for i in best.indices]
        torch.testing.assert_close(torch.tensor(recommendation.scores), best.values)
        assert recommendation.unknown == []


def test_checkpoint_of_a_run_with_the_le_serves_without_it(trained):
    model = trained()
    made = Recommender(model.path).scores(model.histories())
    torch.testing.assert_close(made[:, 1:], model.scores[:, 1:])


@pytest.mark.parametrize("name", ["CaserSNQNLEA", "FEARecSNQNLEA", "HGNSNQNLEA"])
def test_a_model_that_needs_more_than_histories_is_neither_served_nor_exported(
    trained, name, tmp_path
):
    model = trained(name, lea_method="base")
    with pytest.raises(ValueError, match="cannot be served"):
        Recommender(model.path)
    with pytest.raises(ValueError, match="cannot be served"):
        export(model.path, "safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_new_history_in_any_length(trained):
    model = trained(lea_method="base")
    ask = Recommender(model.path).recommend
    newest = ["i3", "i1", "i4", "i1", "i5"]  # MAX_ITEM_LIST_LENGTH is 5
    long, cut, one = ask([["i9", "i2", *newest], newest, ["i7"]], k=3)
    assert long.items == cut.items != one.items
    assert long.scores == pytest.approx(cut.scores, rel=1e-5)
    assert len(one.items) == len(set(one.items)) == 3
    assert "[PAD]" not in ask([newest], k=19)[0].items


def test_unknown_items_are_reported_and_take_no_place(trained, caplog):
    model = trained(lea_method="base")
    newest = ["i3", "i1", "i4", "i1", "i5"]
    ask = Recommender(model.path).recommend
    given = ["new", *newest[:2], "[PAD]", *newest[2:], "other"]
    with_unknown, without = ask([given, newest], k=5)
    assert with_unknown.items == without.items
    assert with_unknown.scores == pytest.approx(without.scores, rel=1e-5)
    assert with_unknown.unknown == ["new", "[PAD]", "other"]
    assert "3 of the 8 items" in caplog.text
    assert "new, [PAD], other" in caplog.text


def test_items_that_are_not_to_be_recommended(trained):
    ask = Recommender(trained(lea_method="base").path).recommend
    ((items, *_),) = (vars(made).values() for made in ask([["i1", "i2"]], k=20))
    (made,) = ask([["i1", "i2"]], 5, exclude_history=True, exclude=[items[0], "new"])
    assert made.items == [item for item in items if item not in ("i1", "i2", items[0])][:5]
    (made,) = ask([["i1", "i2"]], 20, exclude=items[4:])
    assert made.items == items[:4]
    with pytest.raises(ValueError, match="exclude is 'i1': give a list"):
        ask([["i1"]], exclude="i1")


def test_numbers_are_taken_as_their_text(trained):
    ask = Recommender(trained(lea_method="base").path)
    ask.ids = {token.removeprefix("i"): i for token, i in ask.ids.items()}
    assert ask.recommend([[1, 2]], exclude=[3]) == ask.recommend([["1", "2"]], exclude=["3"])


@pytest.mark.parametrize(
    ("histories", "k", "message"),
    [
        ([["i1"], []], 5, "history 1 is empty"),
        ([["x", "y"]], 5, "history 0 has no item that the model knows: x, y"),
        ([[50, 172]], 5, "history 0 has no item that the model knows: 50, 172"),
        (["i1"], 5, "history 0 is 'i1': give a list"),
        ([1, 2], 5, "history 0 is 1: give a list"),
        ([["i1"]], 0, "k is 0"),
        ([["i1"]], 21, "from 1 to the 20 items"),
    ],
)
def test_a_wrong_question_gets_a_clear_answer(trained, histories, k, message):
    model = trained(lea_method="base")
    with pytest.raises(ValueError, match=message):
        recbole_lea.recommend(model.path, histories, k)


def test_what_is_no_checkpoint_is_said(trained, tmp_path):
    ask = recbole_lea.recommend
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        ask("nowhere.pth", [["i1"]])
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match="text.pth is no checkpoint"):
        ask("text.pth", [["i1"]])
    torch.save({"config": {"model": "SASRec"}}, "stock.pth")
    with pytest.raises(
        ValueError, match="holds the model SASRec, but has to hold one of recbole_lea"
    ):
        ask("stock.pth", [["i1"]])
    torch.save({"weights": 1}, "other.pth")
    with pytest.raises(ValueError, match="other.pth holds no model"):
        ask("other.pth", [["i1"]])
