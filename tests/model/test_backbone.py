"""h_t, h_{t+1} and scores of SASRec and GRU4Rec."""

import pytest
import torch

from recbole_lea.model import backbone as module
from recbole_lea.model.any_backbone import AnyBackbone
from recbole_lea.model.backbone import Backbone, append_item
from tests.model.helpers import ALL, NO_DROPOUT, build, one_batch, parts_by_length, watch_passes


@ALL
def test_scores_written_out_are_those_in_recbole_s_own_loss(tiny_config, name):
    """Bit for bit, with their gradients; the other attributes are those that a trial finds."""
    model, train, _ = build(tiny_config(name, lea_method="base", **NO_DROPOUT))
    batch = one_batch(train)
    captured = type("Captured", (AnyBackbone, model.backbone_class()), {})(
        tiny_config(name, **NO_DROPOUT), train._dataset
    )
    captured.load_state_dict({key: model.state_dict()[key] for key in captured.state_dict()})
    for attribute in ("inputs", "hidden_width", "normalised"):
        assert getattr(captured, attribute) == getattr(model, attribute), attribute
    found = []
    for one in (model, captured):
        scores, rest = one.supervised(batch, one.encode(batch))
        assert rest == 0
        scores.square().sum().backward()
        found.append([scores, one.item_embedding.weight.grad])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@ALL
def test_one_pass_gives_both_states_of_a_window_with_room(tiny_config, name, monkeypatch):
    monkeypatch.setattr(module, "LENGTH_PARTS", 4)  # some rows in a part of their own
    model, train, _ = build(tiny_config(name, lea_method="base"))
    model.eval()
    batch, shapes = one_batch(train), watch_passes(model, monkeypatch)
    seq, length, item = batch["item_id_list"], batch["item_length"], batch["item_id"]
    window = seq.shape[1]
    n_full = int((length == window).sum())
    assert 0 < n_full < len(seq)
    parts = parts_by_length((length + 1).clamp(max=window))
    assert parts[0][1] < window
    for backbone in (model, model.twin.backbone):
        expected = backbone.forward(seq, length), backbone.forward(*append_item(seq, length, item))
        shapes.clear()
        pair = backbone.encode_pair(batch)
        assert shapes == [*parts, (n_full, window)]
        for found, wanted in zip(pair, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@ALL
def test_h_t_has_recbole_s_own_dropout(tiny_config, name, monkeypatch):
    """Reading a second position leaves h_t and its dropout masks as they are."""
    monkeypatch.setattr(Backbone, "encode_by_length", Backbone.encode)
    model, train, _ = build(tiny_config(name, lea_method="base"))
    batch = one_batch(train)
    seq, length = batch["item_id_list"], batch["item_length"]
    torch.manual_seed(5)
    found, next_hidden = model.encode_pair(batch)
    torch.manual_seed(5)
    torch.testing.assert_close(found, model.forward(seq, length))
    assert model.training and found.requires_grad and not next_hidden.requires_grad


@ALL
@pytest.mark.parametrize("n", [1, 3])
def test_a_batch_smaller_than_its_parts_by_length(tiny_config, name, n):
    model, train, _ = build(tiny_config(name, lea_method="base", **NO_DROPOUT))
    batch = one_batch(train)[:n]
    found = model.encode_by_length(batch)
    torch.testing.assert_close(found, model.encode(batch), rtol=1e-5, atol=1e-6)


def test_append_item_slides_a_full_window():
    seq = torch.tensor([[1, 2, 0], [1, 2, 3]])
    found, length = append_item(seq, torch.tensor([2, 3]), torch.tensor([9, 8]))
    assert found.tolist() == [[1, 2, 9], [2, 3, 8]]
    assert length.tolist() == [3, 3]
    assert seq.tolist() == [[1, 2, 0], [1, 2, 3]]
