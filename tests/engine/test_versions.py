"""Which code a run was made by."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from recbole_lea.engine import versions
from tests.conftest import ROOT

TRAINER, HEAD = "plugin/trainer.py", "model/q_head.py"
CODE = '''"""A module."""

import torch

SCALE = 2.0


class Head:
    """A head."""

    def forward(self, x):
        """Twice x."""
        return SCALE * x  # scaled
'''


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a package in it; ``git`` runs there."""
    root = tmp_path / "repository"
    package = root / "recbole_lea"
    (package / "experiments").mkdir(parents=True)
    for name in ("model", "plugin"):
        (package / name).mkdir()
    for name in ("__init__.py", TRAINER, HEAD, "plugin/record.py", "experiments/plan.py"):
        (package / name).write_text(CODE)
    (root / "properties").mkdir()
    (root / "properties" / "lea.yaml").write_text("x: 1\n")
    (root / "setup.cfg").write_text("[metadata]\n")
    monkeypatch.setattr(versions, "FOLDER", package)

    def git(*arguments):
        own = ["-c", "user.name=x", "-c", "user.email=x@x", "-c", "init.defaultBranch=main"]
        command = ["git", "-C", str(root), *own, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    return root, git


def test_a_clean_checkout_has_its_commit(checkout):
    root, git = checkout
    found = versions.code_version()
    assert (found["commit"], found["clean"]) == (git("rev-parse", "HEAD"), True)
    (root / "results").mkdir()
    (root / "results" / "README.md").write_text("what a benchmark writes")
    assert versions.code_version() == found


@pytest.mark.parametrize("name", ["recbole_lea/plugin/record.py", "recbole_lea/new.py",
                                  "properties/lea.yaml", "properties/new.yaml"])  # fmt: skip
def test_a_change_is_not_clean(checkout, name):
    root, _ = checkout
    (root / name).write_text("x = 2\n")
    assert versions.code_version()["clean"] is False


def test_the_fingerprint_is_of_the_code_that_trains(checkout):
    root, _ = checkout
    before = versions.code_version()["fingerprint"]
    for name in ("experiments/plan.py", "new.py"):
        (root / "recbole_lea" / name).write_text("x = 2\n")
    assert versions.code_version()["fingerprint"] == before
    for name in (TRAINER, HEAD):
        path = root / "recbole_lea" / name
        path.write_text(CODE.replace("2.0", "2.5"))
        assert versions.code_version()["fingerprint"] != before
        path.write_text(CODE)
    assert versions.code_version()["fingerprint"] == before


def test_another_name_and_another_comment_change_no_arithmetic(checkout):
    root, _ = checkout
    package = root / "recbole_lea"
    before = versions.code_version()["fingerprint"]
    (package / HEAD).rename(package / "model" / "heads.py")
    text = CODE.replace("# scaled", "# twice")
    (package / TRAINER).write_text(text.replace('"""A head."""', '"""Another text."""'))
    assert versions.code_version()["fingerprint"] == before


def test_all_that_is_named_as_training_is_there():
    assert all((versions.FOLDER / name).exists() for name in versions.TRAINING)


def test_an_installed_package_has_no_commit(checkout):
    root, git = checkout
    git("rm", "--cached", "-r", "recbole_lea")  # as in a virtual environment in a checkout
    found = versions.code_version()
    assert (found["commit"], found["clean"]) == (None, False)


def test_what_is_installed_is_what_setup_cfg_asks_for():
    versions.check_versions()


@pytest.mark.parametrize(
    ("package", "found", "works"),
    [("pandas", "3.1.1", "'pandas<3,>=1.5'"), ("torch", "2.5.1", ">=2.6'")],
)
def test_a_version_that_does_not_work_is_one_line(monkeypatch, package, found, works):
    installed = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: found if name == package else installed(name)
    )
    with pytest.raises(ValueError, match=f"^{package} {found} does not work here, .*{works}$"):
        versions.check_versions()


def test_the_line_comes_before_recbole_is_imported(tmp_path):
    """In the shell it is all that is said, where a traceback from inside of RecBole was."""
    (tmp_path / "pandas-3.1.1.dist-info").mkdir()
    (tmp_path / "pandas-3.1.1.dist-info" / "METADATA").write_text("Name: pandas\nVersion: 3.1.1\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_recbole_lea.py"), "--model=SASRecSA2CLEA",
         "--dataset=ml-100k"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: pandas 3.1.1 does not work here, pandas<3,>=1.5 does: ")
    assert done.stderr.count("\n") == 1
