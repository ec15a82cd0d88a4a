"""Versions of the packages and of the code that a result depends on."""

import ast
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from recbole_lea import __version__

PACKAGES = ("recbole", "torch", "transformers", "peft", "accelerate", "numpy", "pandas")

# The package.
FOLDER = Path(__file__).parent.parent

# Modules, and folders of them, that a trained model's numbers come from, by role. Whatever is not
# named plans, checks, stores, measures, reports, or uses what was trained.
TRAINING = (
    # the paper's equations and methods
    "equations.py", "methods.py",
    # the LLM's forward pass
    "engine/attention.py", "engine/llm.py", "engine/memory.py", "engine/packing.py",
    "engine/processes.py",
    # the LE, and its feedback as the recommender reads it
    "le", "store/arrays.py", "plugin/item_text.py", "plugin/feedback.py", "plugin/top_items.py",
    # the recommender, its data, training and test
    "model", "plugin/dataset.py", "plugin/evaluation.py",
    "plugin/patches.py", "plugin/quick_start.py", "plugin/trainer.py",
)  # fmt: skip


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


def code_version() -> dict[str, Any]:
    """Which code this is.

    Returns:
        ``commit`` (None outside a checkout), ``clean``: whether the package and its YAML files
        are as committed, and ``fingerprint``: a hex digest over the code of ``TRAINING``. Only
        what is computed counts: comments, docstrings, imports and the module that a definition
        stands in do not.
    """
    code = [text for path in _training_files() for text in _definitions(path)]
    commit, clean = None, False
    if _git("ls-files", "--error-unmatch", "__init__.py"):  # not a virtual environment in one
        commit = _git("rev-parse", "HEAD")
        clean = _git("status", "--porcelain", "--", ".", "../properties", "../setup.cfg") == ""
    fingerprint = hashlib.sha256("\n\n".join(sorted(code)).encode()).hexdigest()
    return {"commit": commit, "clean": clean, "fingerprint": fingerprint}


def _training_files() -> list[Path]:
    places = [FOLDER / name for name in TRAINING]
    return [path for place in places for path in ([place, *place.rglob("*.py")]) if path.is_file()]


def _definitions(path: Path) -> list[str]:
    """The code of each of a module's statements but imports, without comments and docstrings."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]
    return [
        ast.unparse(node)
        for node in module.body
        if not isinstance(node, ast.Import | ast.ImportFrom | ast.Pass)
    ]


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _git(*arguments: str) -> str | None:
    """git's answer in the package's folder, or None."""
    command = ["git", "-C", str(FOLDER), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
