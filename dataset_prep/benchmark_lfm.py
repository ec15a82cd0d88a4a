"""Measure speed and peak memory of ``python -m dataset_prep lfm`` on generated events.

Run from the project's root, with a few GB free in the temporary folder::

    python -m dataset_prep.benchmark_lfm 2000000 10000000 20000000
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dataset_prep.lfm_files import ALBUMS, ARTISTS, EVENTS, TRACKS

_CHUNK = 200_000
_USERS, _TRACKS, _ALBUMS, _ARTISTS = 5_000, 20_000, 5_000, 2_000
_FIRST_DAY, _DAYS = 16_000, 30

# The high-water mark of a process starts at its exec; that of a child as its parent sees it
# (ru_maxrss) can be the parent's own.
_CONVERT = """
import sys
from dataset_prep.cli import main
status = main(sys.argv[1:])
print(*[line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")])
sys.exit(status)
"""


def generate(folder: Path, events: int, seed: int = 0) -> None:
    """Write a folder in the LFM-1b layout: events grouped by user, over 30 days.

    Users, tracks, albums and artists are as many for any number of events. A few tracks take most
    of the events, as in real logs, and one row in a thousand is bad.

    Args:
        folder: an existing folder.
        events: number of rows of the events file.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    with open(folder / EVENTS, "wb") as file:
        for done in range(0, events, _CHUNK):
            n = min(_CHUNK, events - done)
            share = np.array([done, done + n]) / events * _USERS
            user = random.integers(int(share[0]), int(share[1]) + 1, n)
            track = (_TRACKS * random.random(n) ** 4).astype(np.int64)
            album = np.where(random.random(n) < 0.1, -1, track % _ALBUMS)
            second = random.integers(_FIRST_DAY * 86_400, (_FIRST_DAY + _DAYS) * 86_400, n)
            order = np.lexsort((second, user))
            columns = (user[order], track % _ARTISTS, album, track, second[order])
            rows = [
                b"%d\t%d\t%d\t%d\t%d\n" % row
                for row in zip(*(column.tolist() for column in columns), strict=True)
            ]
            rows[::1000] = [row.replace(b"\t", b" ", 1) for row in rows[::1000]]
            file.writelines(rows)
    for name, count, owner in (
        (TRACKS, _TRACKS, "\t{}"),
        (ALBUMS, _ALBUMS, "\t{}"),
        (ARTISTS, _ARTISTS, ""),
    ):
        with open(folder / name, "w", encoding="utf-8") as file:
            file.writelines(f"{n}\tName {n}{owner.format(n % _ARTISTS)}\n" for n in range(count))


def measure(source: Path, output: Path, days: int) -> tuple[float, float]:
    """Convert in a process of its own and return its seconds and its peak memory in MB.

    Raises:
        subprocess.CalledProcessError: the conversion failed.
    """
    command = [sys.executable, "-c", _CONVERT, "lfm", "--input", str(source)]
    command += ["--output", str(output), "--days", str(days)]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - start, int(done.stdout.split()[-1]) / 1024


def main() -> None:
    """Print a table: events, days in the window, seconds, events a second, peak memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("events", type=int, nargs="+", help="sizes to measure")
    print("| events | window | seconds | events/s | peak MB |\n|---|---|---|---|---|")
    for events in parser.parse_args().events:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "raw")
            source.mkdir()
            generate(source, events)
            for days in (3, _DAYS):
                seconds, peak = measure(source, Path(folder, f"lfm{days}"), days)
                rate = f"{events / seconds:,.0f}"
                print(f"| {events:,} | {days} days | {seconds:.1f} | {rate} | {peak:.0f} |")


if __name__ == "__main__":
    main()
