"""What `pip install .` puts on a machine."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the files git knows, as a clean checkout has them."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    target = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "-w", str(target), str(source)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return next(target.glob("*.whl"))


@pytest.mark.parametrize("kind", [".yaml", ".test"])
def test_every_yaml_file_and_search_space_is_inside(wheel, kind):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(kind)}
    files = (ROOT / "properties").rglob(f"*{kind}")
    assert inside == {f"recbole_lea/properties/{f.relative_to(ROOT / 'properties')}" for f in files}
    own = {".yaml": "dataset/ml-100k.yaml", ".test": "hyper/SASRecSA2CLEA.test"}
    assert f"recbole_lea/properties/{own[kind]}" in inside


def test_type_checkers_find_its_types(wheel):
    assert "recbole_lea/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_installed_package_runs_from_another_folder(wheel, tiny_llm, tmp_path):
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site),
         str(wheel)],
        check=True,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "run_recbole_lea", "--model=SASRecSNQNLEA", "--dataset=ml-100k",
         "--config_files=properties/quick.yaml", f"--lea_llm={tiny_llm}", "--epochs=2",
         "--warmup=1 epochs", "--lea_compare=False", "--show_progress=False", "--lea_newest=4"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "test result" in done.stderr
    assert "is for a first look" in done.stderr
