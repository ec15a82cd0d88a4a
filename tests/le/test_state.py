import pytest
import torch

from recbole_lea.le.state import LastHidden, Residual

HIDDEN = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
LAST = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


def scores(head, states, tokens):
    return head.query(states) @ head.key(tokens).T


def test_untrained_residual_state_is_the_last_items_token():
    head = Residual(8)
    states = head(HIDDEN, LAST)
    expected = LAST / LAST.norm(dim=1, keepdim=True) * 8**0.5
    torch.testing.assert_close(states, expected)
    found = scores(head, states, LAST)
    torch.testing.assert_close(found, torch.cosine_similarity(LAST[:, None], LAST[None], -1) * 6)
    assert (found.argmax(1) == torch.arange(5)).all()


def test_trained_residual_state_depends_on_the_history_and_not_on_the_hidden_states_scale():
    head = Residual(8)
    torch.nn.init.eye_(head.weight)
    states = head(HIDDEN, LAST)
    assert not torch.allclose(states, head(HIDDEN.flip(0), LAST))
    torch.testing.assert_close(states, head(100 * HIDDEN, LAST), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(states.norm(dim=1), torch.full((5,), 8**0.5))


def test_every_part_of_the_residual_head_is_trained():
    head = Residual(8)
    scores(head, head(HIDDEN, LAST), LAST.flip(0)).logsumexp(1).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.parametrize("tokens", [LAST, 3 * LAST])
def test_papers_state_is_the_hidden_state_and_its_scores_are_dot_products(tokens):
    head = LastHidden()
    states = head(HIDDEN, LAST)
    assert torch.equal(states, HIDDEN)
    torch.testing.assert_close(scores(head, states, tokens), HIDDEN @ tokens.T)
