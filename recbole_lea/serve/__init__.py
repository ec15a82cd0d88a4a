"""What a trained model is used for: no dataset, no LLM, no LE."""

from typing import Any

__all__ = ["Recommender"]


def __getattr__(name: str) -> Any:
    """``Recommender``, read when it is first asked for: it imports torch and RecBole."""
    if name == "Recommender":
        from recbole_lea.serve.recommend import Recommender

        return Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
