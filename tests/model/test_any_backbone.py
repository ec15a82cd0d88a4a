"""All of RecBole's sequential recommenders: trained exactly, or refused with the reason."""

import functools
import re

import pytest
import torch
import torch.nn.functional as F
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import init_seed
from torch import nn

from recbole_lea.model import registry
from recbole_lea.model.backbone import append_item
from tests.conftest import ROOT
from tests.model.helpers import force, one_batch


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One LE for all registry."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def prepared(tiny_config, cache):
    """Factory of the LEA model, RecBole's own with the same start, and a batch of each split."""

    def make(name, **changes):
        config = tiny_config(name, lea_cache_dir=cache, **changes)
        train, _, test = data_preparation(config, create_dataset(config))
        made, streams = [], []
        for model_class in (config.model_class, config.model_class.backbone_class()):
            init_seed(3, True)
            made.append(model_class(config, train._dataset))
            streams.append(torch.get_rng_state())
        assert torch.equal(*streams)  # trial, heads and twin take nothing from RecBole's stream
        return *made, one_batch(train), one_batch(test)[0]

    return make


def without_dropout(*made):
    for module in (module for model in made for module in model.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def tables():
    """The rows of docs/backbones.md by their first cell; a row of two cells refuses."""
    lines = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8").splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {first: rest for first, *rest in cells if first != "backbone"}


@pytest.mark.parametrize("name", registry.stock())
def test_every_sequential_recommender_trains_exactly_or_is_refused(prepared, name, monkeypatch):
    if name in registry.REFUSED:
        with pytest.raises(ValueError, match=re.escape(f"{name} cannot be a backbone of LEA: ")):
            Config(f"{name}SNQNLEA", "ml-100k")
        assert len(tables()[name]) == 1
        return

    # the RL part off: RecBole's training step, dropout included
    model, stock, batch, rows = prepared(f"{name}SNQNLEA", lea_method="base", q_weight=0)
    losses = []
    for one in (model, stock):
        init_seed(5, True)
        losses.append(one.calculate_loss(batch))
        losses[-1].backward()
    assert torch.equal(*losses)
    ours = dict(model.named_parameters())
    assert set(ours) == {parameter for parameter, _ in stock.named_parameters()}
    for parameter, value in stock.named_parameters():
        assert (value.grad is None) == (ours[parameter].grad is None), parameter
        assert value.grad is None or torch.equal(ours[parameter].grad, value.grad), parameter
    assert torch.equal(model.eval().full_sort_predict(rows), stock.eval().full_sort_predict(rows))

    # SNQN with all the LE gives: L_h is RecBole's loss, and a step can be taken
    model, stock, batch, rows = prepared(f"{name}SNQNLEA")
    scores = model.eval().full_sort_predict(rows)
    assert torch.equal(scores, stock.eval().full_sort_predict(rows))
    without_dropout(model, stock)
    monkeypatch.setattr(torch, "rand", force(model, first=True))
    model.train()
    terms = model.calculate_loss(batch)
    torch.testing.assert_close(terms[0], stock.train().calculate_loss(batch).reshape(()))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sum(terms).backward()
    assert model.q_head.linear.weight.grad.any()
    optimizer.step()
    after = model.eval().full_sort_predict(rows)
    assert after.shape == (len(rows), model.n_items) and after.isfinite().all()
    assert not torch.equal(after, scores)

    # h_{t+1} is what RecBole's class ranks by, one item later
    stock.load_state_dict({key: model.state_dict()[key] for key in stock.state_dict()})
    _, next_hidden = model.encode_pair(batch)
    found, _ = model.supervised(batch, next_hidden)
    seq, length = append_item(batch["item_id_list"], batch["item_length"], batch["item_id"])
    batch.update(Interaction({"item_id_list": seq, "item_length": length}))
    expected = stock.eval().full_sort_predict(batch)
    tolerance = {"rtol": 0, "atol": 1e-4 * float(expected.abs().max())}
    torch.testing.assert_close(found, expected, **tolerance)

    made_of, beside = tables()[name]
    words = {"user_id": "user", "item_id_list": "items", "item_length": "length"}
    assert made_of == ", ".join(words[field] for field in model.inputs)
    others = None if model.causal else model._captured_loss(batch)[-1]
    assert beside.startswith("nothing" if others is None else "regulariser")


def test_the_document_lists_all():
    assert set(tables()) == set(registry.stock())


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("BERT4Rec", {}, "`loss_fct` is not a cross-entropy"),
        ("RepeatNet", {}, "`loss_fct` is not a cross-entropy"),
        ("SASRecCPR", {"reranker_CAN_NUM": 5}, "`loss_fct` is not a cross-entropy"),
        ("GRU4RecCPR", {"reranker_CAN_NUM": 5}, "one vector a sequence"),
        ("FEARec", {"contrast": "us", "tau": 1.0, "sim": "dot"}, "not one cross-entropy"),
        ("HRM", {"pooling_type_layer_1": "average", "high_order": 2}, "changes its inputs"),
    ],
)
def test_a_trial_refuses_what_no_table_names(prepared, name, changes, reason, monkeypatch):
    monkeypatch.setattr(registry, "REFUSED", ())
    # without the memory of what was made
    monkeypatch.setattr(registry, "_made", functools.cache(registry._made.__wrapped__))
    with pytest.raises(ValueError, match=f"{name} cannot be a backbone of LEA: .*{reason}"):
        prepared(f"{name}SNQNLEA", lea_method="base", **changes)


@pytest.mark.parametrize(
    ("method", "replacement", "reason"),
    [
        ("full_sort_predict", lambda self, rows: torch.zeros(2, self.n_items), "ranking scores"),
        (
            "calculate_loss",
            lambda self, rows: self.loss_fct(
                self.forward(rows["item_id_list"].clone(), rows["item_length"])
                @ self.item_embedding.weight.T,
                rows["item_id"],
            ),
            "more than items, length and user",
        ),
        (
            "calculate_loss",
            lambda self, rows: self.loss_fct(
                self.forward(rows["item_id_list"], rows["item_length"])
                @ self.item_embedding.weight.T[:, 1:],
                rows["item_id"],
            ),
            "not over all items",
        ),
        ("calculate_loss", lambda self, rows: rows["rating"], "reads .*rating.*LEA's data lack"),
        (
            "forward",
            lambda self, items, length: self.item_embedding(items),
            "one vector a sequence",
        ),
    ],
)
def test_a_trial_finds_what_differs(prepared, method, replacement, reason, monkeypatch):
    monkeypatch.setattr(registry.stock()["STAMP"], method, replacement)
    with pytest.raises(ValueError, match=f"STAMP cannot be a backbone of LEA: .*{reason}"):
        prepared("STAMPSNQNLEA", lea_method="base")


def test_a_regulariser_is_weighed_by_no_advantage_and_kept_under_a_dense_head(prepared):
    for head in ("tied", "dense"):
        model, stock, batch, _ = prepared(
            "CaserSA2CLEA", lea_method="base", lea_output_head=head, reg_weight=0.1
        )
        without_dropout(model, stock)
        hidden = stock.forward(batch["user_id"], batch["item_id_list"])
        scores = hidden @ stock.item_embedding.weight.T
        regulariser = stock.calculate_loss(batch) - F.cross_entropy(scores, batch["item_id"])
        assert regulariser > 1
        found, rest = model.supervised(batch, hidden, model.output_head)
        torch.testing.assert_close(rest, regulariser)
        assert torch.equal(found, model.output_head(hidden) if head == "dense" else scores)

        model.q_weight = 0
        expected = F.cross_entropy(found, batch["item_id"]) + regulariser
        torch.testing.assert_close(model.calculate_loss(batch), expected)
        model.q_weight = 1.0
        model.advantage_clip, model.warmed_up = (0, 0), True  # the cross-entropy counts nothing
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand", force(model, first=True))
            torch.testing.assert_close(model.calculate_loss(batch)[0], regulariser)
