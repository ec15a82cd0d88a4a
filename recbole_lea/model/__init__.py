"""The models: RecBole's backbones with SNQN or SA2C and the LE's feedback (section 3.3, 3.4)."""

# first: plugin.patches, which RecBole's import may bring along, imports modules of this package
import recbole  # noqa: F401, I001

from recbole_lea.model.registry import MODELS, lea_model

__all__ = ["MODELS", "lea_model"]


def __getattr__(name: str) -> type:
    """``from recbole_lea.model import SASRecSA2CLEA``: made when it is first asked for."""
    model = lea_model(name)
    if model is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return model
