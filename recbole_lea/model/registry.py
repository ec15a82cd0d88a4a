"""Which of RecBole's sequential recommenders can be a backbone."""

import recbole.model.sequential_recommender as sequential
from recbole.model.abstract_recommender import SequentialRecommender

FRAMEWORKS = ("SNQN", "SA2C")

# docs/backbones.md repeats these sentences. What they say is also found out from the class itself
# when a model is built (``lea.Readable``); here they come before the LLM has worked for hours.
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


def names() -> list[str]:
    """``<Backbone><SNQN|SA2C>LEA`` for all of them, the refused ones included."""
    return [f"{backbone}{rl_loss}LEA" for backbone in stock() for rl_loss in FRAMEWORKS]


def parse(name: str) -> tuple[str, str] | None:
    """The backbone's and the framework's name in a model's name; None in others.

    Raises:
        ValueError: LEA cannot train that backbone; says why.
    """
    for rl_loss in FRAMEWORKS:
        backbone = name.removesuffix(f"{rl_loss}LEA")
        if backbone != name and backbone in stock():
            if reason := REFUSED.get(backbone):
                raise ValueError(refusal(backbone, reason))
            return backbone, rl_loss
    return None


def refusal(backbone: str, reason: str) -> str:
    """The sentence that says why a class cannot be a backbone."""
    return f"{backbone} cannot be a backbone of LEA: {reason} (docs/backbones.md lists all)"
