"""The transform: feedback of a batch's transitions."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data import create_dataset, data_preparation
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction

from recbole_lea.model.fields import TRANSITION
from recbole_lea.plugin.feedback import add_feedback


class Feedback:
    """Says for each transition its number, and as item the number modulo the items."""

    def __init__(self, n_items):
        self.n_items = n_items

    def lookup(self, transitions):
        transitions = torch.from_numpy(transitions)
        return {"reward": transitions.float(), "negative": transitions % self.n_items}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 9))
def test_any_batch_gets_its_own_feedback(numbers, n_items):
    batch = Interaction({TRANSITION: torch.tensor(numbers, dtype=torch.int64)})
    found = add_feedback(Feedback(n_items), None, batch)
    assert found["lea_reward"].tolist() == numbers
    assert found["lea_negative"].tolist() == [k % n_items for k in numbers]


def test_training_batches_alone_get_feedback(tiny_config):
    """Also of the training split: another loader on it scores without the LE."""
    config = tiny_config(lea_method="LER", transform="lea_live")
    train, *held_out = data_preparation(config, create_dataset(config))
    scoring = FullSortEvalDataLoader(config, train._dataset, None)
    for loader in (scoring, *held_out):
        batch = next(iter(loader))[0]
        assert not [name for name in batch.interaction if name.startswith("lea_re")]
    assert "lea_reward" in next(iter(train)).interaction
