"""The models: RecBole's backbones with SNQN or SA2C and the LE's feedback.

The four of the paper stand here. ``<Backbone><SNQN|SA2C>LEA`` for RecBole's other sequential
recommenders is made when it is first asked for: by name or by import.
"""

import functools

from recbole.model.sequential_recommender import GRU4Rec, SASRec

from recbole_lea.model import registry as backbones
from recbole_lea.model.recommender import LEARecommender


class SASRecSNQNLEA(LEARecommender, SASRec):
    """SASRec trained with SNQN and the LE (Eq. 13, 16)."""

    rl_loss = "SNQN"


class SASRecSA2CLEA(LEARecommender, SASRec):
    """SASRec trained with SA2C and the LE (Eq. 12, 13, 16)."""

    rl_loss = "SA2C"


class GRU4RecSNQNLEA(LEARecommender, GRU4Rec):
    """GRU4Rec trained with SNQN and the LE (Eq. 13, 16)."""

    rl_loss = "SNQN"


class GRU4RecSA2CLEA(LEARecommender, GRU4Rec):
    """GRU4Rec trained with SA2C and the LE (Eq. 12, 13, 16)."""

    rl_loss = "SA2C"


MODELS = {
    model.__name__: model
    for model in (SASRecSNQNLEA, SASRecSA2CLEA, GRU4RecSNQNLEA, GRU4RecSA2CLEA)
}


@functools.cache
def lea_model(name: str) -> type[LEARecommender] | None:
    """The model class of that name; None if the name is not of the form.

    Args:
        name: such as ``CaserSA2CLEA``.

    Returns:
        Always the same object, which pickles by its name.

    Raises:
        ValueError: LEA cannot train that backbone; says why.
    """
    if name in MODELS:
        return MODELS[name]
    parts = backbones.parse(name)
    if parts is None:
        return None
    backbone, rl_loss = parts
    text = f"{backbone} trained with {rl_loss} and the LE."
    return type(
        name,
        (LEARecommender, backbones.stock()[backbone]),
        {"rl_loss": rl_loss, "__module__": __name__, "__doc__": text},
    )


def __getattr__(name: str) -> type:
    """``from recbole_lea.model import CaserSA2CLEA``."""
    model = lea_model(name)
    if model is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return model


__all__ = [*MODELS, "MODELS", "lea_model"]
