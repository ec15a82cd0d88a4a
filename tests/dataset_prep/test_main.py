"""The command line: errors in one line, being killed, and the same bytes every time."""

import json
import os
import signal
import subprocess
import sys
import termios
import time

import pytest

from dataset_prep.lfm import ALBUMS, ARTISTS, EVENTS, TRACKS
from tests.conftest import ROOT
from tests.dataset_prep.conftest import generate


def assert_one_line(result, *parts):
    status, out, err = result
    assert status not in (0, None)
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    for part in parts:
        assert part in err


@pytest.mark.parametrize("missing", [EVENTS, TRACKS, ALBUMS, ARTISTS])
def test_lfm_file_missing(prep, lfm_folder, tmp_path, missing):
    folder = lfm_folder([])
    (folder / missing).unlink()
    result = prep("lfm", "--input", folder, "--output", tmp_path / "d")
    assert_one_line(result, f"{folder}: not an LFM-1b folder: it has no {missing}\n")
    assert not (tmp_path / "d").exists()


def test_amazon_file_missing(prep, amazon_folder, tmp_path):
    folder = amazon_folder([], [])
    options = ["amazon", "--input", folder, "--output", tmp_path / "d"]
    assert_one_line(
        prep(*options),
        "it has neither Industrial_and_Scientific_5.json.gz nor "
        "Industrial_and_Scientific.json.gz, nor Industrial_and_Scientific.jsonl (2023) nor "
        "reviews_Industrial_and_Scientific.json.gz (2014); categories there: Toys\n",
    )
    (folder / "meta_Toys.json.gz").unlink()
    assert_one_line(prep(*options), "categories there: none\n")
    assert_one_line(prep(*options, "--category", "Toys"), "it has no meta_Toys.json.gz\n")


def test_sequences_file_missing(prep, tmp_path):
    (tmp_path / "i.json").write_text('{"u": [1]}')
    for inter, items, missing in (("x", "i.json", "x"), ("i.json", "y", "y")):
        result = prep(
            "sequences", "--inter", tmp_path / inter, "--items", tmp_path / items,
            "--output", tmp_path / "d",
        )  # fmt: skip
        assert_one_line(result, f"No such file or directory: '{tmp_path / missing}'\n")


@pytest.mark.parametrize("command", ["lfm", "amazon"])
def test_no_input_folder(prep, tmp_path, command):
    result = prep(command, "--input", tmp_path / "no", "--output", tmp_path / "d")
    assert_one_line(result, f"{tmp_path}/no: no such folder\n")


def test_output_exists(prep, lfm_folder, amazon_folder, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "keep").write_text("x")
    (tmp_path / "i.json").write_text("{}")
    lfm = lfm_folder([], name="lfm")
    json_file = tmp_path / "i.json"
    for args in (
        ["lfm", "--input", lfm],
        ["amazon", "--input", amazon_folder([], []), "--category", "Toys"],
        ["sequences", "--inter", json_file, "--items", json_file],
    ):
        result = prep(*args, "--output", tmp_path / "d")
        assert_one_line(result, f"{tmp_path}/d: exists already")
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["keep"]


def test_output_below_a_file(prep, lfm_folder, tmp_path):
    (tmp_path / "file").write_text("")
    folder = lfm_folder([])
    assert_one_line(prep("lfm", "--input", folder, "--output", tmp_path / "file" / "d"))


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["lfm", "--days", "0"], "--days: '0' is not a whole number from 1 to 36,500"),
        (["lfm", "--days", "1e3"], "'1e3' is not a whole number"),
        (["lfm", "--days", "36501"], "'36501' is not a whole number"),
        (["lfm", "--start", "16.6.2014"], "--start: '16.6.2014' is not a day such as 2014-06-16"),
        (["lfm", "--start", "9999-12-31"], "is not a day"),
        (["lfm", "--min-interactions", "-1"], "'-1' is not a whole number"),
        (["amazon", "--min-interactions", "0"], "'0' is not a whole number"),
        (["lfm", "--max-bad", "2"], "--max-bad: '2' is not a share from 0 to 1"),
        (["amazon", "--max-bad", "x"], "'x' is not a share"),
        (["sequences", "--max-bad", "nan"], "'nan' is not a share"),
        (["lfm"], "the following arguments are required: --output, --input"),
        (["films"], "invalid choice: 'films'"),
        ([], "the following arguments are required: command"),
    ],
)
def test_wrong_arguments(prep, args, part):
    result = prep(*args)
    assert result[0] == 2
    assert_one_line(result, part, "--help")


def test_a_process_ends_with_one_line_and_no_traceback(spawn, tmp_path):
    process = spawn("lfm", "--input", tmp_path, "--output", tmp_path / "d")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert_one_line((process.returncode, out, err), "not an LFM-1b folder")


def test_progress_bar_on_a_terminal_only(lfm_folder, tmp_path):
    folder = lfm_folder([(1, 1, -1, 1, 5)] * 3, [(1, "T", 1)], [], [(1, "A")])
    command = [sys.executable, "-m", "dataset_prep", "lfm", "--input", folder]
    terminal, its_end = os.openpty()
    termios.tcsetwinsize(its_end, (24, 120))
    subprocess.run(
        [*command, "--output", tmp_path / "a"], cwd=ROOT, stderr=its_end, check=True, timeout=60
    )
    os.close(its_end)
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    assert "checking LFM-1b_LEs.txt: 100%" in shown
    assert "reading LFM-1b_tracks.txt: 100%" in shown
    quiet = subprocess.run(
        [*command, "--output", tmp_path / "b"], cwd=ROOT, capture_output=True, timeout=60
    )
    assert (quiet.returncode, quiet.stderr) == (0, b"")


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_run_leaves_no_output(spawn, tmp_path, stop):
    raw, made = tmp_path / "raw", tmp_path / "made"
    raw.mkdir()
    generate(raw, 300_000)
    args = ["lfm", "--input", raw, "--output", made / "d", "--days", 30, "--min-interactions", 1]
    process = spawn(*args)
    # The output is being written at this moment.
    wait_for(lambda: process.poll() is not None or list(made.glob(".d.*.partial/d.inter")))
    process.send_signal(stop)
    process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if stop == signal.SIGKILL else 143)
    assert not (made / "d").exists()
    left = [path.name for path in made.iterdir()]
    assert left == ([f".d.{process.pid}.partial"] if stop == signal.SIGKILL else [])
    # What a killed run leaves is in nobody's way.
    again = spawn(*args)
    again.communicate(timeout=60)
    assert again.returncode == 0
    assert sorted(path.name for path in (made / "d").iterdir()) == ["d.inter", "d.item"]


def test_same_input_gives_the_same_bytes(spawn, tmp_path, amazon_folder):
    raw = tmp_path / "lfm"
    raw.mkdir()
    generate(raw, 30_000)
    times = range(10)
    reviews = [
        {"reviewerID": f"U{n % 7}", "asin": f"A{n * n % 11}", "unixReviewTime": n % 3}
        for n in range(60)
    ]
    amazon = amazon_folder(reviews, [{"asin": f"A{n}", "title": f"T {n}"} for n in range(11)])
    inter, items = tmp_path / "i.json", tmp_path / "m.json"
    inter.write_text(json.dumps({f"u{n}": [f"i{n * k % 7}" for k in times] for n in times}))
    items.write_text(json.dumps({f"i{n}": {"title": f"T{n}"} for n in times}))
    commands = {
        "lfm": ["--input", raw, "--days", 30],
        "amazon": ["--input", amazon, "--category", "Toys"],
        "sequences": ["--inter", inter, "--items", items],
    }
    made = []
    for run in ("a", "b"):
        processes = [
            spawn(command, *options, "--output", tmp_path / run / command)
            for command, options in commands.items()
        ]
        for process in processes:
            _, err = process.communicate(timeout=60)
            assert (process.returncode, err) == (0, "")
        made.append(
            {
                f"{path.parent.name}/{path.name}": path.read_bytes()
                for path in (tmp_path / run).glob("*/*")
            }
        )
    assert sorted(made[0]) == [
        f"{c}/{c}.{end}" for c in sorted(commands) for end in ("inter", "item")
    ]
    assert made[0] == made[1]


def test_prepares_without_recbole_or_torch():
    code = (
        "import sys, dataset_prep.__main__\n"
        "print([m for m in ('recbole', 'torch', 'recbole_lea') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout == "[]\n"
