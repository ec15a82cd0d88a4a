"""The model classes, and which of RecBole's sequential recommenders can be a backbone."""

import functools
from collections.abc import Iterable

import recbole.model.sequential_recommender as sequential
from recbole.model.abstract_recommender import SequentialRecommender

from recbole_lea.keys import REFUSED_BACKBONES as REFUSED
from recbole_lea.model.any_backbone import AnyBackbone
from recbole_lea.model.recommender import LEARecommender

FRAMEWORKS = ("SNQN", "SA2C")
PAPER = ("SASRec", "GRU4Rec")


def stock() -> dict[str, type]:
    """RecBole's sequential recommenders by name, the refused ones included."""
    return {
        name: value
        for name, value in vars(sequential).items()
        if isinstance(value, type) and issubclass(value, SequentialRecommender)
    }


def names(backbones: Iterable[str]) -> list[str]:
    """``<Backbone><SNQN|SA2C>LEA`` for given backbones."""
    return [f"{backbone}{rl_loss}LEA" for backbone in backbones for rl_loss in FRAMEWORKS]


# Users' own classes, derived from ours, by name
_adopted: dict[str, type[LEARecommender]] = {}


def adopt(model: type[LEARecommender]) -> str:
    """Let ``lea_model`` find a class that may be a user's own; the name of ours that it is like.

    Raises:
        ValueError: it is called like one of ours.
    """
    own = _made(model.__name__)
    if own is None:
        _adopted[model.__name__] = model
    elif own is not model:
        raise ValueError(f"recbole_lea has a class {model.__name__}: call yours something else")
    return f"{model.backbone_class().__name__}{model.rl_loss}LEA"


def lea_model(name: str) -> type[LEARecommender] | None:
    """The model class ``<Backbone><SNQN|SA2C>LEA`` or an adopted one; None for other names.

    Raises:
        ValueError: LEA cannot train that backbone.
    """
    return _adopted.get(name) or _made(name)


@functools.cache
def _made(name: str) -> type[LEARecommender] | None:
    """Ours, or None if the name is not of the form.

    It is always the same object, which pickles by its name in ``recbole_lea.model``.
    """
    for rl_loss in FRAMEWORKS:
        backbone = name.removesuffix(f"{rl_loss}LEA")
        if backbone == name or backbone not in stock():
            continue
        if backbone in REFUSED:  # before the LLM's hours
            raise ValueError(f"{backbone} cannot be a backbone of LEA: see docs/backbones.md")
        mixins = (LEARecommender,) if backbone in PAPER else (LEARecommender, AnyBackbone)
        body = {"rl_loss": rl_loss, "__module__": __package__}
        return type(name, (*mixins, stock()[backbone]), body)
    return None


MODELS = {name: model for name in names(PAPER) if (model := lea_model(name))}
