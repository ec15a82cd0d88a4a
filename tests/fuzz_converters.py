"""Runs the converters on generated files: each ends well or in one line. Not part of pytest.

From the project's root: ``python tests/fuzz_converters.py 10000 --seed 1``. Each run makes a small
sound input, damages it at random, converts it, and reads the result with RecBole's reader. Any
exception other than ``PrepError``, and any result that cannot be read back, ends the script with
the seed that repeats it (``--seed N --only``).
"""

import argparse
import collections
import contextlib
import gzip
import io
import json
import random
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dataset_prep import amazon, lfm, sequences  # noqa: E402
from dataset_prep.report import PrepError  # noqa: E402

DAY = 86_400
TEXTS = [
    "", " ", "Blue Train", "<b>bold</b> &amp;lt;i&gt;", '"quoted', 'the 12" mix', "NA", "None",
    "nan", "\t", "\n", "\0", "\x1b[31m", "\u2028", "\ud800", "\u202e\u05e9", "👩‍👩‍👧", "e\u0301",
    "{item}", "[", "<script>x", "&#0;", "&#x110000;", "&nbsp;", "getTime", "x" * 140_000,
    "<" * 3000, "007",
]  # fmt: skip
ODD = [
    None, True, 0, -1, 2**31, 2**32, 2**63, 10**30, 1.5, float("nan"), float("inf"), "", " ", "a b",
    "007", "NA", [], [[]], {}, {"a": 1}, ["a", None, 5], "\ud800", "x" * 200_000, "\t", '"',
]  # fmt: skip
ODD_BYTES = [
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\t", b"\n", b"\r", b"\r\n", b'"', b"-", b"\t\t\t\t",
    b"9" * 30, b"1e5", b"[" * 2000, b"{", b"}", b"\\u", b"NaN", b"x" * 70_000, b"\xc3", b"-0",
    b"+1",
]  # fmt: skip


def damaged(rng: random.Random, data: bytes) -> bytes:
    """The bytes with up to four random changes; a third of all files stay as they are."""
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        at, to = sorted(rng.randint(0, len(data)) for _ in range(2))
        kind = rng.randrange(6)
        if kind == 0 and data:  # flip a byte
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ rng.randint(1, 255)]) + data[at + 1 :]
        elif kind == 1:  # put something odd in
            data = data[:at] + rng.choice(ODD_BYTES) + data[at:]
        elif kind == 2:  # cut the end off
            data = data[:to]
        elif kind == 3:  # take a part out
            data = data[:at] + data[min(to, at + 40) :]
        elif kind == 4:  # repeat a part
            data = data[:to] + data[at : min(to, at + 500)] + data[to:]
        else:  # change the order of lines
            lines = data.splitlines(keepends=True)
            rng.shuffle(lines)
            data = b"".join(lines)
    return data


def text(rng: random.Random) -> str:
    """A title."""
    return rng.choice(TEXTS) if rng.random() < 0.3 else f"title {rng.randint(0, 99)}"


def odd(rng: random.Random, value, share: float = 0.02):
    """The value, or now and then something else."""
    return rng.choice(ODD) if rng.random() < share else value


def lfm_run(rng: random.Random, source: Path, output: Path) -> None:
    """LFM-1b: four tab-separated tables."""
    n = rng.randint(0, 40)
    events = [
        (rng.randint(1, 4), rng.randint(1, 3), rng.randint(-1, 3), rng.randint(1, 5),
         1_400_000_000 + rng.randint(0, 4 * DAY)) for _ in range(n)
    ]  # fmt: skip
    tables = {
        "LEs": events,
        "tracks": [(i, text(rng), rng.randint(1, 3)) for i in range(1, 6)],
        "albums": [(i, text(rng), rng.randint(1, 3)) for i in range(1, 4)],
        "artists": [(i, text(rng)) for i in range(1, 4)],
    }
    for name, rows in tables.items():
        lines = "".join("\t".join(map(str, row)) + "\n" for row in rows)
        data = damaged(rng, lines.encode(errors="replace"))
        (source / f"LFM-1b_{name}.txt").write_bytes(data)
    lfm.convert(
        source, output, rng.randint(1, 5), None, rng.randint(1, 3), rng.random() < 0.5,
        rng.choice((0.01, 0.5, 1.0)),
    )  # fmt: skip


def amazon_run(rng: random.Random, source: Path, output: Path) -> None:
    """Amazon: reviews and metadata as gzip files of JSON lines."""
    reviews = [
        {"reviewerID": odd(rng, f"A{rng.randint(1, 5)}"),
         "asin": odd(rng, f"00{rng.randint(1, 5)}"),
         "unixReviewTime": odd(rng, 1_400_000_000 + DAY * rng.randint(0, 9))}
        for _ in range(rng.randint(0, 40))
    ]  # fmt: skip
    metadata = [
        {"asin": odd(rng, f"00{i}"), "title": odd(rng, text(rng)), "brand": odd(rng, text(rng)),
         "category": odd(rng, [text(rng), text(rng)]), "description": odd(rng, [text(rng)])}
        for i in range(1, 6)
    ]  # fmt: skip
    for name, rows in (("Toys_5", reviews), ("meta_Toys", metadata)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        packed = gzip.compress(damaged(rng, lines.encode()), compresslevel=1)
        (source / f"{name}.json.gz").write_bytes(
            damaged(rng, packed) if rng.random() < 0.2 else packed
        )
    amazon.convert(source, output, "Toys", rng.randint(1, 3), rng.choice((0.01, 0.5, 1.0)))


def sequences_run(rng: random.Random, source: Path, output: Path) -> None:
    """Sequences: two JSON objects."""
    inter = {
        str(odd(rng, f"u{u}")): odd(rng, [
            odd(rng, rng.choice((str(i), i))) for i in rng.choices(range(7), k=rng.randint(0, 9))
        ])
        for u in range(rng.randint(0, 8))
    }  # fmt: skip
    items = {
        str(i): odd(rng, {"title": odd(rng, text(rng)), "categories": odd(rng, [text(rng)]),
                          "brand": odd(rng, text(rng)), "description": odd(rng, text(rng))})
        for i in range(7)
    }  # fmt: skip
    for name, content in (("inter.json", inter), ("items.json", items)):
        escape = rng.random() < 0.5
        data = json.dumps(content, ensure_ascii=escape).encode(errors="surrogatepass")
        (source / name).write_bytes(damaged(rng, data))
    sequences.convert(
        source / "inter.json", source / "items.json", output, rng.choice((0.01, 0.5, 1.0))
    )


CONVERTERS = {"lfm": (lfm_run, 4), "amazon": (amazon_run, 2), "sequences": (sequences_run, 2)}


def check(output: Path) -> None:
    """Read a result as RecBole does: no cell is lost, shifted or taken for missing."""
    frames = {}
    for suffix in ("inter", "item"):
        path = output / f"{output.name}.{suffix}"
        plain = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        frame = pd.read_csv(path, delimiter="\t", dtype=str, engine="python")
        assert [*map(list, frame.fillna("").values)] == plain[1:], f"{path} reads differently"
        assert list(frame.columns) == plain[0]
        frames[suffix] = frame
    inter, item = frames["inter"], frames["item"]
    assert len(inter) and not inter.isna().any(axis=None), "missing cells"
    assert set(inter["item_id:token"]) == set(item["item_id:token"]), "items differ"
    assert not item["item_id:token"].duplicated().any(), "repeated items"
    for _, times in inter.groupby("user_id:token", sort=False)["timestamp:float"]:
        assert times.tolist() == [str(n) for n in range(len(times))], "order"


def run(name: str, seed: int) -> str:
    """One run; says how it ended."""
    rng = random.Random(f"{name} {seed}")
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    try:
        (folder / "raw").mkdir()
        output = folder / "made"
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                CONVERTERS[name][0](rng, folder / "raw", output)
            except PrepError as error:
                # one line, but for line ends within what it quotes
                assert str(error) and len(str(error)) < 5000, "an error that is no line"
                assert sorted(path.name for path in folder.iterdir()) == ["raw"], "left something"
                return "refused"
        check(output)
        return "converted"
    finally:
        shutil.rmtree(folder)


def main() -> int:
    """Parse the command line, run, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=int, nargs="?", default=10_000, help="least number of files")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--only", action="store_true", help="that seed alone, for each converter")
    options = parser.parse_args()
    outcomes: collections.Counter = collections.Counter()
    files, failed, seed = 0, 0, options.seed
    while seed == options.seed if options.only else files < options.files:
        for name, (_, n) in CONVERTERS.items():
            try:
                outcomes[name, run(name, seed)] += 1
            except Exception:
                failed += 1
                print(f"{name}, --seed {seed}:")
                traceback.print_exc(file=sys.stdout)
            files += n
        seed += 1
    for (name, outcome), count in sorted(outcomes.items()):
        print(f"{name:<10} {outcome:<10} {count:>6,}")
    print(f"{files:,} files, {sum(outcomes.values()) + failed:,} runs, {failed} unhandled")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
