"""The LLM as user environment (LE): paper section 3.2, without RecBole.

Everything here works on item texts and item-token sequences, so an LE can be built on a
machine that has torch, transformers and peft but no RecBole.
"""

from recbole_lea.le.catalogue import Catalogue
from recbole_lea.le.pipeline import Pipeline
from recbole_lea.le.sequences import Sequences
from recbole_lea.le.settings import LESettings

__all__ = ["Catalogue", "LESettings", "Pipeline", "Sequences"]
