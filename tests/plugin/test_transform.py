"""The transform: feedback of a batch's rows."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.interaction import Interaction

from recbole_lea.model.fields import ROW
from recbole_lea.plugin.transform import FeedbackTransform


class Feedback:
    """Says for each transition its number, and as item that of the number modulo the items."""

    def __init__(self, item_ids):
        self.item_ids = item_ids

    def lookup(self, rows):
        rows = torch.from_numpy(rows)
        return {"reward": rows.float(), "negative": self.item_ids[rows % len(self.item_ids)]}


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_batch_gets_its_own_rows(data):
    n = data.draw(st.integers(1, 40))
    n_items = data.draw(st.integers(1, 9))
    transitions = np.array(data.draw(st.permutations(range(n))))
    item_ids = torch.tensor(data.draw(st.permutations(range(1, n_items + 1))))
    rows = data.draw(st.lists(st.integers(0, n - 1), max_size=12))
    dataset = SimpleNamespace(lea_feedback=Feedback(item_ids), lea_transitions=transitions)
    batch = Interaction({ROW: torch.tensor(rows, dtype=torch.int64)})
    found = FeedbackTransform(None)(dataset, batch)
    numbers = transitions[rows] if rows else np.zeros(0, int)
    assert found["lea_reward"].tolist() == numbers.tolist()
    assert found["lea_negative"].tolist() == [int(item_ids[k % n_items]) for k in numbers]


def test_rows_outside_of_training_are_refused():
    feedback = Feedback(torch.tensor([1, 2]))
    dataset = SimpleNamespace(lea_feedback=feedback, lea_transitions=np.array([0, -1]))
    batch = Interaction({ROW: torch.tensor([1])})
    with pytest.raises(ValueError, match="no training transition"):
        FeedbackTransform(None)(dataset, batch)
    dataset.lea_feedback = None
    assert FeedbackTransform(None)(dataset, batch) is batch
