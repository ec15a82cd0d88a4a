"""What the tests of ``dataset_prep`` share: small raw folders, the command line, the real data."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT


@pytest.fixture
def shared_data():
    """Return what gives a folder of ``../shared/data``, skipping the test where it is absent."""

    def folder(name: str) -> Path:
        path = ROOT.parent / "shared" / "data" / name
        if not path.is_dir():
            pytest.skip(f"no shared data: {path} is absent")
        return path

    return folder


@pytest.fixture
def prep(capsys):
    """Return what runs the command line in this process: (status, stdout, stderr)."""
    from dataset_prep.__main__ import main

    def run(*args) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(arg) for arg in args])
        except SystemExit as stop:
            status = stop.code
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


@pytest.fixture
def spawn():
    """Return what starts ``python -m dataset_prep`` as a process of its own."""
    started = []

    def start(*args, **options) -> subprocess.Popen:
        command = [sys.executable, "-m", "dataset_prep", *map(str, args)]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def lfm_folder(tmp_path):
    """Return what writes a raw LFM-1b folder from lists of rows (bytes are taken as they are)."""

    def write(events, tracks=(), albums=(), artists=(), name="raw") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for kind, rows in (
            ("LEs", events),
            ("tracks", tracks),
            ("albums", albums),
            ("artists", artists),
        ):
            lines = (
                row if isinstance(row, bytes) else "\t".join(map(str, row)).encode() + b"\n"
                for row in rows
            )
            (folder / f"LFM-1b_{kind}.txt").write_bytes(b"".join(lines))
        return folder

    return write


@pytest.fixture
def amazon_folder(tmp_path):
    """Return what writes a raw Amazon folder from lists of objects (bytes are taken as lines)."""

    def write(reviews, metadata, category="Toys", suffix="_5") -> Path:
        folder = tmp_path / "raw"
        folder.mkdir(exist_ok=True)
        for name, rows in ((f"{category}{suffix}", reviews), (f"meta_{category}", metadata)):
            lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
            with gzip.open(folder / f"{name}.json.gz", "wb") as file:
                file.writelines(line + b"\n" for line in lines)
        return folder

    return write


def generate(folder, events):
    """Write a raw LFM-1b folder of many events over 30 days; one row in a thousand is bad."""
    random = np.random.default_rng(0)
    n_users, n_tracks, day = 5_000, 20_000, 86_400
    user = np.sort(random.integers(0, n_users, events))
    track = (n_tracks * random.random(events) ** 4).astype(np.int64)
    second = random.integers(16_000 * day, 16_030 * day, events)
    order = np.lexsort((second, user))
    columns = (user, track % 2_000, track % 5_000 - 1, track, second)
    rows = np.stack(columns, axis=1)[order].tolist()
    lines = ["\t".join(map(str, row)) + "\n" for row in rows]
    lines[::1000] = [line.replace("\t", " ", 1) for line in lines[::1000]]
    (folder / "LFM-1b_LEs.txt").write_text("".join(lines))
    for kind, count in (("tracks", n_tracks), ("albums", 5_000)):
        names = (f"{n}\tName {n}\t{n % 2_000}\n" for n in range(count))
        (folder / f"LFM-1b_{kind}.txt").write_text("".join(names))
    artists = "".join(f"{n}\tName {n}\n" for n in range(2_000))
    (folder / "LFM-1b_artists.txt").write_text(artists)
