"""recbole_lea: a large language model as user environment for RL recommenders in RecBole.

After ``import recbole_lea``, RecBole knows its models, so that
``run_recbole(model='SASRecSA2CLEA', dataset='ml-100k')`` works. ``recbole_lea.le`` is the LE
alone; it needs no RecBole. ``recbole_lea.recommend`` serves a trained model.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from typing import Any

__version__ = "0.1.0"
__all__ = ["recommend"]

# Two OpenMP threads that spin while they wait starve each other beside any other process;
# the variable counts only before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _register() -> None:
    from recbole_lea.engine.versions import check_versions

    check_versions()
    from recbole_lea.plugin.patches import register

    register()


class _WithRecBole(MetaPathFinder):
    """Registers with RecBole once its package is executed: to import it here would take seconds."""

    def find_spec(self, name, path=None, target=None):
        """The spec of ``recbole``; None for all other names."""
        if name != "recbole":
            return None
        found = (f.find_spec(name, path, target) for f in sys.meta_path if f is not self)
        spec = next(filter(None, found), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: Any) -> None:
            execute(module)
            _register()

        setattr(spec.loader, "exec_module", execute_and_register)  # noqa: B010
        return spec


if sys.modules.get("recbole"):
    _register()
else:
    sys.meta_path.insert(0, _WithRecBole())


def __getattr__(name: str) -> Any:
    """``recommend``, read when it is first asked for."""
    if name == "recommend":
        from recbole_lea.serve.recommend import recommend

        return recommend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
