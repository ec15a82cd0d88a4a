"""Every equation against values worked by hand; item 0 is padding."""

import math

import pytest
import torch

from recbole_lea.equations import (
    advantage,
    double_q_value,
    reward_loss,
    sentence_loss,
    state_pairwise_loss,
    state_softmax_loss,
    supervised_loss,
    td_loss,
)


def minus_log_sigmoid(x):
    return math.log(1 + math.exp(-x))


def test_eq1_reward_loss():
    # -log sigmoid(2 - 0.5), -log sigmoid(-1 - 1)
    loss = reward_loss(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0]))
    expected = [minus_log_sigmoid(1.5), minus_log_sigmoid(-2.0)]
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_eq2_state_loss_on_three_items():
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    states = torch.tensor([[2.0, 1.0], [0.5, 3.0]])
    items = torch.tensor([0, 1])
    # s1 . (a0, a1) = (2, 1); s2 . (a0, a1) = (0.5, 3); the own term is log 2
    expected = [
        (math.log(2) + minus_log_sigmoid(2 - 1)) / 2,
        (math.log(2) + minus_log_sigmoid(3 - 0.5)) / 2,
    ]
    loss = state_pairwise_loss(states, table, items, batch=items)
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_eq2_leaves_out_duplicates_of_the_positive():
    table = torch.tensor([[1.0], [2.0]])
    batch = torch.tensor([0, 0, 1])
    loss = state_pairwise_loss(torch.tensor([[3.0]]), table, torch.tensor([0]), batch)
    # own term once, the duplicate not at all, one real contrast: 3*1 - 3*2 = -3
    expected = (math.log(2) + minus_log_sigmoid(-3.0)) / 3
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_softmax_alternative():
    table = torch.eye(3)
    loss = state_softmax_loss(torch.tensor([[1.0, 2.0, 0.0]]), table, torch.tensor([1]))
    expected = math.log(math.exp(1) + math.exp(2) + 1) - 2
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_sentence_loss_is_next_token_cross_entropy():
    logits = torch.tensor([[0.0, math.log(3.0)]])
    torch.testing.assert_close(
        sentence_loss(logits, torch.tensor([1])), torch.tensor([-math.log(0.75)])
    )


def test_eq8_and_14_supervised_loss_per_transition_and_action():
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    loss = supervised_loss(logits, torch.tensor([[2, 1], [1, 2]]))
    of_all = math.log(1 + math.e + math.e**2)
    expected = [[of_all - 2, of_all - 1], [math.log(3), math.log(3)]]
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_double_q_argmax_by_one_copy_value_by_the_other():
    online = torch.tensor([[9.0, 1.0, 3.0], [9.0, 5.0, 2.0]], requires_grad=True)
    target = torch.tensor([[7.0, 10.0, 20.0], [7.0, 30.0, 40.0]], requires_grad=True)
    value = double_q_value([online], lambda actions: target.gather(1, actions))
    assert value.tolist() == [20.0, 30.0]
    assert not value.requires_grad


def test_padding_is_never_the_best_action():
    q = torch.tensor([[100.0, -2.0, -1.0]])
    assert double_q_value([q], lambda actions: q.gather(1, actions)).tolist() == [-1.0]


@pytest.mark.parametrize("chunk", [2, 3, 5, 6, 7])
def test_the_best_action_does_not_depend_on_the_pieces(chunk):
    # padding is the largest, rows tie within and across pieces, one row is the last item's
    q = torch.tensor(
        [[9.0, 1, 4, 4, 2, 0], [9, 4, 1, 0, 2, 4], [9, -1, -2, -3, -4, 0], [9, 1, 1, 1, 1, 1]]
    )
    picked = double_q_value(q.split(chunk, dim=1), lambda actions: actions)
    assert picked.tolist() == [2, 1, 5, 1]


def test_eq10_positive_td_error():
    q = torch.tensor([0.5, -1.0], requires_grad=True)
    # r + gamma V - Q = 1 + 0.5 * 4 - 0.5 = 2.5 and 1 + 0.5 * 2 + 1 = 3
    loss = td_loss(q, torch.ones(2), torch.tensor([4.0, 2.0]), gamma=0.5, td_scale=0.5)
    torch.testing.assert_close(loss, torch.tensor([3.125, 4.5]))
    loss.sum().backward()
    torch.testing.assert_close(q.grad, torch.tensor([-2.5, -3.0]))


def test_eq11_and_15_are_the_same_form_with_their_own_action_and_value():
    negative = td_loss(torch.tensor([2.0]), torch.tensor([0.0]), torch.tensor([2.0]), 0.5, 0.5)
    torch.testing.assert_close(negative, torch.tensor([0.5 * (0 + 1 - 2.0) ** 2]))
    chosen = td_loss(torch.tensor([0.5]), torch.tensor([0.3]), torch.tensor([4.0]), 0.5, 1.0)
    torch.testing.assert_close(chosen, torch.tensor([(0.3 + 2 - 0.5) ** 2]))


def test_no_gradient_through_the_target():
    value = torch.tensor([2.0], requires_grad=True)
    reward = torch.tensor([1.0], requires_grad=True)
    q = torch.tensor([1.0], requires_grad=True)
    td_loss(q, reward, value, 0.5, 0.5).sum().backward()
    assert value.grad is None
    assert reward.grad is None
    assert q.grad is not None


def test_eq12_advantage_is_half_the_difference():
    positive = torch.tensor([3.0, 1.0, 50.0], requires_grad=True)
    found = advantage(positive, torch.tensor([1.0, 4.0, 0.0]), (0, 10))
    assert found.tolist() == [1.0, 0.0, 10.0]  # the second is negative, the third too large
    assert not found.requires_grad
