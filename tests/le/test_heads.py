import torch

from recbole_lea.le.heads import DECAY, LastHidden, Recency, Residual, evened

HIDDEN = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(7, 8, generator=torch.Generator().manual_seed(1))
LAST = torch.tensor([3, 0, 6, 1, 3])
# x_t, x_{t-1}, x_{t-2} of the same five
ITEMS = torch.stack([LAST, torch.tensor([1, -1, 2, 2, 0]), torch.tensor([5, -1, -1, 2, 4])], dim=1)


def scores(head, states):
    return head.query(states) @ head.keys.T


def test_untrained_residual_state_is_that_of_the_last_item():
    head = Residual(TOKENS)
    states = head(HIDDEN, ITEMS)
    keys = torch.nn.functional.normalize(evened(TOKENS), dim=1)
    torch.testing.assert_close(states, keys[LAST] * 8**0.5)
    found = scores(head, states)
    torch.testing.assert_close(found, keys[LAST] @ keys.T * 6)
    assert (found.argmax(1) == LAST).all()


def test_trained_residual_state_depends_on_the_history_and_not_on_the_hidden_states_scale():
    head = Residual(TOKENS)
    torch.nn.init.eye_(head.weight)
    states = head(HIDDEN, ITEMS)
    assert not torch.allclose(states, head(HIDDEN.flip(0), ITEMS))
    torch.testing.assert_close(states, head(100 * HIDDEN, ITEMS), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(states.norm(dim=1), torch.full((5,), 8**0.5))


def test_residual_state_is_the_item_and_what_the_hidden_state_adds():
    head, d = Residual(TOKENS), 8
    torch.nn.init.normal_(head.gain)
    torch.nn.init.normal_(head.weight)
    item = torch.nn.functional.normalize(evened(TOKENS), dim=1)[LAST] * d**0.5
    centred = HIDDEN - HIDDEN.mean(1, keepdim=True)
    normed = centred / (centred.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    state = head.gain * item + normed @ head.weight.T
    expected = state / state.norm(dim=1, keepdim=True) * d**0.5
    torch.testing.assert_close(head(HIDDEN, ITEMS), expected)


def test_recency_state_starts_from_the_weighted_mean_of_the_history():
    head = Recency(TOKENS)
    keys = torch.nn.functional.normalize(evened(TOKENS), dim=1)
    states = head(HIDDEN, ITEMS)
    mean = keys[6] + DECAY * keys[2]  # the third one's history has two items
    torch.testing.assert_close(states[2], mean / mean.norm() * 8**0.5)
    torch.testing.assert_close(states[1], keys[0] * 8**0.5)
    mean = keys[3] + DECAY * keys[1] + DECAY**2 * keys[5]
    torch.testing.assert_close(states[0], mean / mean.norm() * 8**0.5)


def test_every_part_of_the_recency_head_is_trained():
    head = Recency(TOKENS)
    scores(head, head(HIDDEN, ITEMS)).logsumexp(1).sum().backward()
    assert {name for name, p in head.named_parameters() if p.grad.abs().sum() > 0} == {
        "gain", "weight", "log_factor", "decay_logit",
    }  # fmt: skip


def test_every_part_of_the_residual_head_is_trained():
    head = Residual(TOKENS)
    scores(head, head(HIDDEN, ITEMS)).logsumexp(1).sum().backward()
    assert {name for name, p in head.named_parameters() if p.grad.abs().sum() > 0} == {
        "gain", "weight", "log_factor",
    }  # fmt: skip


def test_papers_state_is_the_hidden_state_and_its_scores_are_dot_products():
    head = LastHidden(TOKENS)
    states = head(HIDDEN, ITEMS)
    assert torch.equal(states, HIDDEN)
    torch.testing.assert_close(scores(head, states), HIDDEN @ TOKENS.T)
    assert not list(head.parameters())


def test_evened_vectors_keep_directions_and_have_the_square_root_of_the_spectrum():
    vectors = torch.randn(6, 9, generator=torch.Generator().manual_seed(3))
    u, s, v = torch.linalg.svd(vectors - vectors.mean(0), full_matrices=False)  # rank 5
    expected = (u[:, :5] * s[:5].sqrt()) @ v[:5]
    torch.testing.assert_close(evened(vectors), expected, rtol=1e-3, atol=1e-4)
