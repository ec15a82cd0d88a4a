"""The model classes, and which of RecBole's sequential recommenders can be a backbone."""

import functools
from collections.abc import Iterable

import recbole.model.sequential_recommender as sequential
from recbole.model.abstract_recommender import SequentialRecommender

from recbole_lea.model.any_backbone import AnyBackbone
from recbole_lea.model.backbone import refusal
from recbole_lea.model.recommender import LEARecommender

FRAMEWORKS = ("SNQN", "SA2C")
PAPER = ("SASRec", "GRU4Rec")

# docs/backbones.md repeats these sentences. ``AnyBackbone`` would find out the same when a model is
# built; here they come before the LLM has worked for hours.
_POINTWISE = "its forward takes the candidate item too and gives one click score, not a vector h_t"
_FACETS = (
    "it has no single h_t: several vectors of a sequence, and the items in it, make up its scores"
)
_GRAPH = "it needs a knowledge graph's embeddings (`preload_weight`), which LEA's data do not carry"
_FEATURES = (
    "it embeds item features (`selected_features`), but LEA loads ids and time alone (`load_col`)"
)
REFUSED = {
    "BERT4Rec": "its loss is of masked items within the sequence, not of the next item",
    "DIEN": _POINTWISE,
    "DIN": _POINTWISE,
    "FDSA": _FEATURES,
    "FPMC": "its forward takes the candidate item too, and its loss is BPR, not cross-entropy",
    "GRU4RecCPR": _FACETS,
    "GRU4RecF": _FEATURES,
    "GRU4RecKG": _GRAPH,
    "KSR": _GRAPH,
    "RepeatNet": "its forward gives probabilities of all items, not a vector h_t",
    "S3Rec": "it is pretrained on item features by losses and a trainer of its own",
    "SASRecCPR": _FACETS,
    "SASRecF": _FEATURES,
    "SHAN": "it trains on left-padded sequences but ranks with right-padded ones: other scores",
    "TransRec": "its scores are distances and its loss is BPR, not cross-entropy",
}


def stock() -> dict[str, type]:
    """RecBole's sequential recommenders by name, the refused ones included."""
    return {
        name: value
        for name, value in vars(sequential).items()
        if isinstance(value, type) and issubclass(value, SequentialRecommender)
    }


def names(backbones: Iterable[str] | None = None) -> list[str]:
    """``<Backbone><SNQN|SA2C>LEA`` for given backbones; for all, the refused included, if None."""
    found = stock() if backbones is None else backbones
    return [f"{backbone}{rl_loss}LEA" for backbone in found for rl_loss in FRAMEWORKS]


@functools.cache
def lea_model(name: str) -> type[LEARecommender] | None:
    """The model class ``<Backbone><SNQN|SA2C>LEA``; None if the name is not of the form.

    Returns:
        Always the same object, which pickles by its name in ``recbole_lea.model``.

    Raises:
        ValueError: LEA cannot train that backbone; says why.
    """
    for rl_loss in FRAMEWORKS:
        backbone = name.removesuffix(f"{rl_loss}LEA")
        if backbone == name or backbone not in stock():
            continue
        if reason := REFUSED.get(backbone):
            raise ValueError(refusal(backbone, reason))
        mixins = (LEARecommender,) if backbone in PAPER else (LEARecommender, AnyBackbone)
        body = {"rl_loss": rl_loss, "__module__": __package__}
        return type(name, (*mixins, stock()[backbone]), body)
    return None


MODELS = {name: model for name in names(PAPER) if (model := lea_model(name))}
