"""Eq. 1 and 2 against values worked by hand."""

import math

import torch

from recbole_lea.le.losses import (
    reward_loss,
    sentence_loss,
    state_pairwise_loss,
    state_softmax_loss,
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
