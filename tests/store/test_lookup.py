"""States and rewards by user and item token."""

import numpy as np
import pytest

from recbole_lea.le.pipeline import Pipeline
from recbole_lea.store.files import write_record
from recbole_lea.store.lookup import read_rewards, read_state
from tests.le.helpers import CATALOGUE, SEQUENCES


def test_feedback_is_read_by_tokens(settings):
    """Against the pipeline's own arrays, for every user and position."""
    p = Pipeline(settings(negative_pool=2), CATALOGUE, SEQUENCES, "tiny", progress_bar=False)
    states, rewards = p.states(), p.rewards()
    (states_folder,) = p.cache.folder.glob("states-*")
    (rewards_folder,) = p.cache.folder.glob("rewards-*")
    state_rows, transition_rows = iter(states), iter(zip(rewards, p.negatives, strict=True))
    for user, items in zip(SEQUENCES.users, SEQUENCES.items, strict=True):
        for n in range(1, len(items) + 1):
            np.testing.assert_array_equal(read_state(states_folder, user, n), next(state_rows))
        for n in range(1, len(items)):
            scores, negatives = next(transition_rows)
            expected = dict(zip([items[n], *negatives], scores.tolist(), strict=True))
            found = read_rewards(rewards_folder, user, n)
            assert found == {CATALOGUE.tokens[i]: score for i, score in expected.items()}
            assert next(iter(found)) == CATALOGUE.tokens[items[n]]
    with pytest.raises(KeyError, match="users.json has no user 'nobody'"):
        read_state(states_folder, "nobody", 1)
    user, n = SEQUENCES.users[-1], len(SEQUENCES.items[-1])
    with pytest.raises(IndexError, match=f"1 to {n} items, not {n + 1}"):
        read_state(states_folder, user, n + 1)
    with pytest.raises(IndexError, match=f"1 to {n - 1} items, not {n}"):
        read_rewards(rewards_folder, user, n)
    with pytest.raises(IndexError, match="1 to 2 items, not 3"):
        read_state(states_folder, "u0", 3)
    with pytest.raises(IndexError, match="1 to 1 items, not 2"):
        read_rewards(rewards_folder, "u0", 2)


@pytest.mark.parametrize("name", ["../x", "/etc", "..", None, 5, ["a"]])
def test_a_manifest_cannot_point_to_sequences_elsewhere(tmp_path, name):
    folder = tmp_path / "cache" / "states-1"
    folder.mkdir(parents=True)
    write_record(folder / "manifest.json", {"sequences": name})
    for read in (read_state, read_rewards):
        with pytest.raises(ValueError, match="manifest.json: `sequences` is"):
            read(folder, "u0", 1)
