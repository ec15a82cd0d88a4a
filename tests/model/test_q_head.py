"""The Q head: its state, Q of all actions, of given ones, and in pieces."""

import pytest
import torch

from recbole_lea.model import q_head
from recbole_lea.model.q_head import QHead
from tests.model.helpers import ALL, NO_DROPOUT, build, one_batch


def test_q_of_given_actions_is_q_of_all_gathered(tiny_config):
    model, _, _ = build(tiny_config())
    state = torch.randn(3, model.q_head.linear.in_features)
    actions = torch.tensor([[1, 5], [0, 1], [7, 7]])
    with torch.no_grad():
        model.q_head.linear.bias.normal_()
    torch.testing.assert_close(
        model.q_head.values(state, actions), model.q_head(state).gather(1, actions)
    )


@pytest.mark.parametrize(
    ("name", "keys", "normalised"),
    [
        ("GRU4RecSA2CLEA", {}, True),
        ("SASRecSA2CLEA", {}, False),  # ends with a LayerNorm of its own
        ("GRU4RecSA2CLEA", {"state_layernorm": False}, False),
    ],
)
def test_an_unbounded_h_t_is_normalised_before_the_q_head(tiny_config, name, keys, normalised):
    model, _, _ = build(tiny_config(name, lea_method="base", **keys))
    hidden = torch.randn(3, model.hidden_width)
    for head in (model.q_head, model.twin.q_head):
        state, scaled = head.join(hidden, None), head.join(7 * hidden + 2, None)
        assert torch.allclose(state, scaled, atol=1e-4) is normalised
        assert torch.equal(state, hidden) is not normalised


@ALL
def test_the_maximum_over_actions_in_pieces_is_the_exact_one(tiny_config, name, monkeypatch):
    """Loss and gradients are those of all items at once, but Q of all items is never held."""
    widths, results, pieces = [], [], QHead.pieces

    def watched(self, state, chunk):
        for piece in pieces(self, state, chunk):
            widths.append(piece.shape[1])
            yield piece

    monkeypatch.setattr(QHead, "pieces", watched)
    in_cache = q_head.CPU_PIECE
    for chunk, most, expected in (
        (None, in_cache, {21}),
        (65536, in_cache, {21}),
        (2, in_cache, {2, 1}),
        (6, in_cache, {6, 3}),
        (65536, 5, {5, 1}),
        (2, 5, {2, 1}),
    ):
        monkeypatch.setattr(q_head, "CPU_PIECE", most)
        model, train, _ = build(tiny_config(name, q_max_chunk=chunk, **NO_DROPOUT))
        terms = model.calculate_loss(one_batch(train))
        sum(terms).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([*terms, *gradients])
        assert set(widths) == expected
        widths.clear()
    for other in results[1:]:
        for found, exact in zip(other, results[0], strict=True):
            torch.testing.assert_close(found, exact)
