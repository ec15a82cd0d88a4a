"""recbole_lea: a large language model as user environment for RL recommenders in RecBole.

Importing this package registers its models, so that
``run_recbole(model='SASRecSA2CLEA', dataset='ml-100k')`` works. ``recbole_lea.le`` is the LE
alone; it needs no RecBole. ``recbole_lea.recommend`` serves a trained model.
"""

import importlib.util
import os
from typing import Any

__version__ = "0.1.0"

# Two OpenMP threads that spin while they wait starve each other beside any other process;
# the variable counts only before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if importlib.util.find_spec("recbole") is not None:
    from recbole_lea.plugin.patches import register

    register()
    del register


def __getattr__(name: str) -> Any:
    """``recommend``, read when it is first asked for."""
    if name == "recommend":
        from recbole_lea.serve.recommend import recommend

        return recommend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
