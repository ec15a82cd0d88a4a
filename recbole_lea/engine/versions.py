"""Versions of the packages and of the code that a result depends on."""

import ast
import contextlib
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from recbole_lea import __version__

PACKAGES = ("recbole", "torch", "transformers", "peft", "accelerate", "numpy", "pandas")

FOLDER = Path(__file__).parent.parent

# Modules, and folders of them, that a trained model's numbers come from. Whatever is not named
# plans, checks, stores, reports, or uses what was trained.
TRAINING = ("equations.py", "methods.py", "engine", "le", "model", "plugin")


def versions() -> dict[str, str | None]:
    """Name -> version of Python, of this package and of ``PACKAGES``; None if not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    found["recbole_lea"] = __version__  # a checkout need not be installed
    for name in PACKAGES:
        found[name] = None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def check_versions() -> None:
    """Compare the packages installed with what setup.cfg asks for; missing ones say so themselves.

    Raises a ValueError that names each package whose version does not work, and one that does.
    """
    wrong, asked, installed = [], [], versions()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a checkout alone
        asked = importlib.metadata.requires("recbole_lea") or []
    for requirement in map(Requirement, asked):
        name, marker = requirement.name, requirement.marker
        found = installed.get(name)  # the other packages are pip's affair
        applies = marker is None or marker.evaluate({"extra": ""})
        if found and applies and not requirement.specifier.contains(found, prereleases=True):
            works = f"{name}{requirement.specifier}"
            wrong.append(f"{name} {found} does not work here, {works} does: pip install '{works}'")
    if wrong:
        raise ValueError("; ".join(wrong))


def code_version() -> dict[str, Any]:
    """Which code this is: ``commit`` (None outside a checkout), ``clean`` and ``fingerprint``.

    It is clean if the package and its YAML files are as committed. The fingerprint is a hex digest
    over the code of ``TRAINING``; comments, docstrings and the names of files do not count.
    """
    places = [FOLDER / name for name in TRAINING]
    files = [path for place in places for path in (place, *place.rglob("*.py")) if path.is_file()]
    code = sorted(map(_without_texts, files))
    commit, clean = None, False
    if _git("ls-files", "--error-unmatch", "__init__.py"):  # not a virtual environment in one
        commit = _git("rev-parse", "HEAD")
        clean = _git("status", "--porcelain", "--", ".", "../properties", "../setup.cfg") == ""
    fingerprint = hashlib.sha256("\n\n".join(code).encode()).hexdigest()
    return {"commit": commit, "clean": clean, "fingerprint": fingerprint}


def _without_texts(path: Path) -> str:
    """A module's code without comments and docstrings."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node) is not None:
                node.body[0] = ast.Pass()
    return ast.unparse(module)


def _git(*arguments: str) -> str | None:
    """git's answer in the package's folder, or None."""
    command = ["git", "-C", str(FOLDER), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
