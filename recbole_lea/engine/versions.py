"""Versions of the packages and of the code that a result depends on."""

import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

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


# The package.
FOLDER = Path(__file__).parent.parent

# What cannot change a run's result: it plans, measures, reports, and uses what was trained.
NOT_TRAINING = ("benchmark.py", "export.py", "inspect.py", "experiments", "serve")


def code_version() -> dict[str, Any]:
    """Which code this is.

    Returns:
        ``commit`` (None outside a checkout), ``clean``: whether the package and its YAML files
        are as committed, and ``fingerprint``: a hex digest over the code that trains.
    """
    digest = hashlib.sha256()
    for path in sorted(FOLDER.rglob("*.py")):
        name = path.relative_to(FOLDER)
        if name.parts[0] not in NOT_TRAINING:
            digest.update(f"{name}\n".encode() + path.read_bytes())
    commit, clean = None, False
    if _git("ls-files", "--error-unmatch", "__init__.py"):  # not a virtual environment in one
        commit = _git("rev-parse", "HEAD")
        clean = _git("status", "--porcelain", "--", ".", "../properties", "../setup.cfg") == ""
    return {"commit": commit, "clean": clean, "fingerprint": digest.hexdigest()}


def _git(*arguments: str) -> str | None:
    """git's answer in the package's folder, or None."""
    command = ["git", "-C", str(FOLDER), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
