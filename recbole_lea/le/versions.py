"""Versions of the packages a result depends on."""

import importlib.metadata
import platform

PACKAGES = (
    "recbole_lea",
    "recbole",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "numpy",
    "pandas",
)


def versions() -> dict[str, str | None]:
    """Name -> version of Python and of ``PACKAGES``; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
