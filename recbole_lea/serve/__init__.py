"""What a trained model is used for: no dataset, no LLM, no LE."""

from recbole_lea.serve.recommend import Recommender

__all__ = ["Recommender"]
