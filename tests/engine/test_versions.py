"""Which code a run was made by."""

import subprocess

import pytest

from recbole_lea.engine import versions

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
