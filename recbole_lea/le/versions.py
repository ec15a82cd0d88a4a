"""Versions of the packages a result depends on."""

import importlib.metadata
import platform

from recbole_lea import __version__

PACKAGES = (
    "recbole",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "numpy",
    "pandas",
)


def versions() -> dict[str, str | None]:
    """Name -> version of Python, of this package and of ``PACKAGES``; None if not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    found["recbole_lea"] = __version__  # a checkout need not be installed
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
