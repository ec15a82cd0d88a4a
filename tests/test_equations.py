"""Every equation against values worked by hand, in the order of equations.py."""

import math

import pytest
import torch

from recbole_lea.equations import (
    LossTerms,
    advantage,
    augmented_supervised_loss,
    augmented_td_loss,
    double_q_value,
    le_state,
    log_probabilities,
    negative_td_loss,
    positive_td_loss,
    q_values,
    reward,
    reward_loss,
    rl_state,
    scores,
    sentence_loss,
    state_pairwise_loss,
    state_softmax_loss,
    supervised_loss,
)


def minus_log_sigmoid(x):
    return math.log(1 + math.exp(-x))


def test_sentence_loss_is_next_token_cross_entropy():
    logits = torch.tensor([[0.0, math.log(3.0)]])
    torch.testing.assert_close(
        sentence_loss(logits, torch.tensor([1])), torch.tensor([-math.log(0.75)])
    )


def test_eq1_reward_loss():
    # -log sigmoid(2 - 0.5), -log sigmoid(-1 - 1)
    loss = reward_loss(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0]))
    expected = [minus_log_sigmoid(1.5), minus_log_sigmoid(-2.0)]
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_eq1_pairs_one_positive_with_each_negative():
    loss = reward_loss(torch.tensor([[1.0]]), torch.tensor([[0.0, 3.0]]))
    expected = [[minus_log_sigmoid(1.0), minus_log_sigmoid(-2.0)]]
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


def test_softmax_alternative_to_eq2():
    table = torch.eye(3)
    loss = state_softmax_loss(torch.tensor([[1.0, 2.0, 0.0]]), table, torch.tensor([1]))
    expected = math.log(math.exp(1) + math.exp(2) + 1) - 2
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_eq3_state_at_the_end_of_each_prompt():
    hidden = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert le_state(hidden, torch.tensor([2, 0])).tolist() == [[5.0, 6.0], [1.0, 2.0]]


def test_eq4_le_state_before_h_t():
    assert rl_state(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])).tolist() == [[1.0, 2.0, 3.0]]


def test_eq5_score_head_on_the_last_hidden_state():
    hidden = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    found = reward(hidden, weight=torch.tensor([[3.0, 0.5]]), bias=torch.tensor([0.25]))
    assert found.tolist() == [3 + 1 + 0.25, -0.5 + 0.25]


def test_eq7_scores_of_all_items():
    hidden, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    assert scores(hidden, weight).tolist() == [[1.0, 6.0, 3.0]]
    assert scores(hidden, weight, torch.tensor([1.0, 0.0, -3.0])).tolist() == [[2.0, 6.0, 0.0]]


def test_eq7_softmax_per_transition_and_action():
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    found = log_probabilities(logits, torch.tensor([[2, 1], [1, 2]]))
    of_all = math.log(1 + math.e + math.e**2)
    expected = [[2 - of_all, 1 - of_all], [-math.log(3), -math.log(3)]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_eq8_mean_of_the_next_item_s_negative_log_probability():
    log_y = torch.tensor([-1.0, -3.0], requires_grad=True)
    loss = supervised_loss(log_y)
    assert loss.item() == 2.0
    loss.backward()
    assert log_y.grad.tolist() == [-0.5, -0.5]


def test_eq8_is_weighed_row_by_row_before_the_mean():
    loss = supervised_loss(torch.tensor([-1.0, -3.0]), torch.tensor([10.0, 1.0]))
    assert loss.item() == (10 * 1 + 1 * 3) / 2


def test_eq9_q_of_all_actions():
    found = q_values(
        torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 1.0], [0.0, 4.0]]), torch.tensor([0.5, 1])
    )
    assert found.tolist() == [[1.5, -3.0]]


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
    loss = positive_td_loss(q, torch.ones(2), torch.tensor([4.0, 2.0]), gamma=0.5, td_scale=0.5)
    torch.testing.assert_close(loss, torch.tensor([3.125, 4.5]))
    loss.sum().backward()
    torch.testing.assert_close(q.grad, torch.tensor([-2.5, -3.0]))


def test_eq11_negative_td_error():
    q, zero, value = torch.tensor([2.0]), torch.tensor([0.0]), torch.tensor([2.0])
    found = negative_td_loss(q, zero, value, gamma=0.5, td_scale=0.5)
    torch.testing.assert_close(found, torch.tensor([0.5 * (0 + 1 - 2.0) ** 2]))


@pytest.mark.parametrize("td_loss", [positive_td_loss, negative_td_loss, augmented_td_loss])
def test_eq10_11_and_15_have_no_gradient_through_the_target(td_loss):
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


def test_eq14_mean_of_the_choice_s_negative_log_probability():
    assert augmented_supervised_loss(torch.tensor([-1.0, -3.0])).item() == 2.0


def test_eq15_augmented_td_error():
    q, reward, value = torch.tensor([0.5]), torch.tensor([0.3]), torch.tensor([4.0])
    found = augmented_td_loss(q, reward, value, gamma=0.5, td_scale=1.0)
    torch.testing.assert_close(found, torch.tensor([(0.3 + 2 - 0.5) ** 2]))


def test_eq13_and_16_add_the_terms_that_there_are():
    L_h, L_q, L_ah, L_aq = torch.tensor([1.0, 20.0, 300.0, 4000.0])
    every = LossTerms(L_h, L_q, L_ah, L_aq)
    assert every.L_c == 21 and every.total == 4321
    assert list(every.named()) == ["L_h", "L_q", "L_ah", "L_aq"]
    alone = LossTerms(L_h)
    assert alone.L_c == alone.total == 1 and alone.named() == {"L_h": L_h}
    part = LossTerms(L_h, L_aq=L_aq)
    assert part.L_c == 1 and part.total == 4001 and list(part.named()) == ["L_h", "L_aq"]


def test_eq16_is_rounded_as_recbole_s_sum():
    terms = torch.tensor([0.1, 1e8, -1e8, 0.3])  # every other order rounds differently
    assert torch.equal(LossTerms(*terms).total, sum(terms))
