"""RecBole data transforms that add the LE's feedback to a batch."""

from typing import Any

from recbole.data.interaction import Interaction

from recbole_lea.model.fields import FIELD_PREFIX, ROW


class FeedbackTransform:
    """Adds states, rewards, negatives and chosen actions to a training batch.

    The dataset holds the feedback (``lea_feedback``): precomputed arrays under
    ``transform: lea_feedback``, the LLM itself under ``transform: lea_live``. Batches of
    datasets without feedback (validation and test) pass unchanged.

    Args:
        config: RecBole's config, which RecBole gives to every transform.
    """

    def __init__(self, config) -> None:
        pass

    def __call__(self, dataset: Any, interaction: Interaction) -> Interaction:
        """Add the feedback's fields (``le/feedback.py``, ``lookup``) as ``lea_NAME`` [B, ...]."""
        feedback = getattr(dataset, "lea_feedback", None)
        if feedback is None:
            return interaction
        rows = dataset.lea_transitions[interaction[ROW].cpu().numpy()]
        if (rows < 0).any():
            raise ValueError("a training batch holds a row that is no training transition")
        for name, value in feedback.lookup(rows).items():
            interaction.interaction[FIELD_PREFIX + name] = value
        return interaction


TRANSFORMS = {"lea_feedback": FeedbackTransform, "lea_live": FeedbackTransform}
