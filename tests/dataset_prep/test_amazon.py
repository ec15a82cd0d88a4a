"""``python -m dataset_prep amazon`` on small folders, with literal output."""

import gzip
import json

import pytest

T = 1_400_000_000


def review(user, item, time):
    return {"overall": 5.0, "reviewerID": user, "asin": item, "unixReviewTime": time}


def meta(item, title="T", **fields):
    return {"asin": item, "title": title, **fields}


REVIEWS = [
    review("U2", "B", T + 9),
    review("U1", "A", T + 5),
    review("U1", "B", T + 5),
    review("U1", "A", T + 7),  # a repeat, later
    review("U2", "A", T + 8),
    review("U2", "B", T + 3),  # a repeat, earlier
    review("U3", "A", T),  # a single review
    review("U1", "C", T + 1),  # an item reviewed once
]
METADATA = [
    meta("A", "", brand="", category=["Toys", "Dolls"], description=[]),
    meta(
        "A",
        "Doll &amp; <b>House</b>",
        brand="by\n \n Acme",
        category=["Other"],
        description=["One.", "<p>Two<br>lines</p>", "One."],
    ),
    meta("Z", "never reviewed"),
    meta("B", "NA", category=["Toys", "Toys", "</span></span></span>"]),
]


def test_output(prep, amazon_folder, tmp_path):
    folder = amazon_folder(REVIEWS, METADATA)
    output = tmp_path / "toys"
    status, out, err = prep(
        "amazon", "--input", folder, "--output", output, "--category", "Toys",
        "--min-interactions", 2, "--max-bad", 0.3,
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert (output / "toys.inter").read_text() == (
        "user_id:token\titem_id:token\ttimestamp:float\ttime:float\n"
        f"U2\tB\t0\t{T + 3}\n"
        f"U2\tA\t1\t{T + 8}\n"
        f"U1\tA\t0\t{T + 5}\n"
        f"U1\tB\t1\t{T + 5}\n"
    )
    assert (output / "toys.item").read_text() == (
        "item_id:token\ttitle:token_seq\tcategory:token_seq\tbrand:token_seq\t"
        "description:token_seq\n"
        "B\t NA\tToys\t\t\n"
        "A\tDoll & House\tToys, Dolls\tby Acme\tOne. Two lines\n"
    )
    assert out == (
        "reading Toys_5.json.gz\n"
        "reviews: 8, of which 2 repeat a user and item\n"
        "filtering:\n"
        "  round 1: 3 sequences, 3 items, 6 interactions; drops 1 sequences, 1 items\n"
        "  round 2: 2 sequences, 2 items, 4 interactions; drops 0 sequences, 0 items\n"
        "metadata: 1 rows repeat a reviewed item\n"
        "row problems:\n"
        "  meta_Toys.json.gz: empty title: 1 of 4 rows, "
        f"first at {folder}/meta_Toys.json.gz:1\n"
        f"  different reviews: unknown id: 1 of 6 rows, first at {folder}/Toys_5.json.gz:8\n"
        "                      this run\n"
        "items                        2\n"
        "sequences                    2\n"
        "interactions                 4\n"
        "mean length               2.00\n"
        "with title              100.0%\n"
        "with category           100.0%\n"
        "with brand               50.0%\n"
        "with description         50.0%\n"
        f"wrote {output}\n"
        "next: python run_recbole_lea.py --model=SASRecSA2CLEA --dataset=toys "
        "--data_path=. --config_files=properties/dataset/industrial.yaml\n"
    )


def test_the_papers_category_is_the_default_and_shown_beside_it(prep, amazon_folder, tmp_path):
    reviews = [review(user, item, T) for user in "abc" for item in "xyz"]
    folder = amazon_folder(
        reviews, [meta(item) for item in "xyz"], category="Industrial_and_Scientific"
    )
    status, out, _ = prep("amazon", "--input", folder, "--output", tmp_path / "any")
    assert status == 0
    assert "                      this run    paper (Industry)\n" in out
    assert "interactions                 9              71,872\n" in out


@pytest.mark.parametrize(("suffix", "read"), [("", "Toys.json.gz"), ("_5", "Toys_5.json.gz")])
def test_five_core_or_full(prep, amazon_folder, tmp_path, suffix, read):
    folder = amazon_folder([review("u", "x", T)], [meta("x")], suffix=suffix)
    common = ["amazon", "--category", "Toys", "--min-interactions", 1, "--input", folder]
    status, out, _ = prep(*common, "--output", tmp_path / "d")
    assert status == 0 and out.startswith(f"reading {read}\n")
    # With both there, the 5-core is taken.
    amazon_folder([review("u", "x", T)], [meta("x")], suffix="_5" if not suffix else "")
    assert prep(*common, "--output", tmp_path / "e")[1].startswith("reading Toys_5.json.gz\n")


def test_bad_rows(prep, amazon_folder, tmp_path):
    reviews = [
        review("u", "x", T),
        b'{"reviewerID": "u"',
        b"[1]",
        {"reviewerID": "u", "asin": "x"},
        review("u", "a b", T),
        review(7, "x", T),
        review("u", "x", "soon"),
        review("u", "x", -1),
        review("u", "x", True),
        b'{"reviewerID": "v", "asin": "x", "unixReviewTime": 1, "summary": "\xff"}',
        b"",
    ]
    metadata = [b"nonsense", {"title": "no asin"}, b'{"asin": "x", "title": "caf\xe9"}']
    folder = amazon_folder(reviews, metadata)
    common = ["amazon", "--input", folder, "--category", "Toys", "--min-interactions", 1]
    output = tmp_path / "d"
    status, out, err = prep(*common, "--output", output, "--max-bad", 1)
    assert (status, err) == (0, "")
    assert (output / "d.inter").read_text().splitlines()[1:] == [f"u\tx\t0\t{T}", "v\tx\t0\t1"]
    assert (output / "d.item").read_text().splitlines()[1:] == ["x\tcaf\ufffd\t\t\t"]
    where = f"first at {folder}/Toys_5.json.gz"
    there = f"first at {folder}/meta_Toys.json.gz"
    assert (
        "row problems:\n"
        f"  Toys_5.json.gz: bad JSON: 3 of 11 rows, {where}:2\n"
        f"  Toys_5.json.gz: missing unixReviewTime (layout of 2014/2018): 1 of 11 rows, {where}:4\n"
        f"  Toys_5.json.gz: bad id: 2 of 11 rows, {where}:5\n"
        f"  Toys_5.json.gz: bad number: 3 of 11 rows, {where}:7\n"
        f"  Toys_5.json.gz: bad UTF-8: 1 of 11 rows, {where}:10\n"
        f"  meta_Toys.json.gz: bad JSON: 1 of 3 rows, {there}:1\n"
        f"  meta_Toys.json.gz: missing asin (layout of 2014/2018): 1 of 3 rows, {there}:2\n"
        f"  meta_Toys.json.gz: bad UTF-8: 1 of 3 rows, {there}:3\n"
    ) in out
    status, _, err = prep(*common, "--output", tmp_path / "e")
    assert status == 1 and err.startswith("error: Toys_5.json.gz: 10 of 11 rows are bad, over")
    assert err.count("\n") == 1 and not (tmp_path / "e").exists()


def test_item_without_metadata_keeps_a_row(prep, amazon_folder, tmp_path):
    folder = amazon_folder([review("u", "x", T), review("u", "y", T - 9)], [meta("z")])
    common = ["amazon", "--input", folder, "--category", "Toys", "--min-interactions", 1]
    status, _, err = prep(*common, "--output", tmp_path / "d")
    assert status == 1
    assert err == (
        "error: different reviews: 2 of 2 rows are bad, over the share of 0.01 that --max-bad "
        f"allows: unknown id: 2, first at {folder}/Toys_5.json.gz:1\n"
    )
    assert prep(*common, "--output", tmp_path / "d", "--max-bad", 1)[0] == 0
    assert (tmp_path / "d" / "d.item").read_text().splitlines()[1:] == ["x\t\t\t\t", "y\t\t\t\t"]


def test_title_that_is_a_script_is_empty(prep, amazon_folder, tmp_path):
    titles = ["\n  var aPageStart = (new Date()).getTime();\nvar ue_t0=1;", "Real", ["Lis", "ted"]]
    folder = amazon_folder(
        [review("u", item, T) for item in "abc"],
        [meta(item, title) for item, title in zip("abc", titles, strict=True)],
    )
    common = ["amazon", "--input", folder, "--category", "Toys", "--min-interactions", 1]
    status, out, _ = prep(*common, "--output", tmp_path / "d", "--max-bad", 1)
    assert status == 0 and "empty title: 1 of 3 rows" in out
    assert [line.split("\t")[:2] for line in (tmp_path / "d" / "d.item").open()][1:] == [
        ["a", ""],
        ["b", "Real"],
        ["c", "Lis ted"],
    ]


def test_nested_and_odd_values(prep, amazon_folder, tmp_path):
    rows = [
        meta("a", 1984, category=[["X", "Y"], ["X"]], description=[["d"], 5]),
        meta("b", {"text": "T"}),
        meta("c", category=[{"name": "X"}, "Y"]),
    ]
    folder = amazon_folder([review("u", item, T) for item in "abc"], rows)
    common = ["amazon", "--input", folder, "--category", "Toys", "--min-interactions", 1]
    status, out, _ = prep(*common, "--output", tmp_path / "d", "--max-bad", 1)
    assert status == 0
    assert (tmp_path / "d" / "d.item").read_text().splitlines()[1:] == [
        "a\t1984\tX, Y\t\td 5", "b\t\t\t\t", "c\tT\tY\t\t",
    ]  # fmt: skip
    there = f"first at {folder}/meta_Toys.json.gz"
    assert (
        "row problems:\n"
        f"  meta_Toys.json.gz: no text in title: 1 of 3 rows, {there}:2\n"
        f"  meta_Toys.json.gz: no text in category: 1 of 3 rows, {there}:3\n"
    ) in out


NEW = [
    {"user_id": "U", "asin": "red", "parent_asin": "P", "timestamp": 1_588_687_728_923},
    {"user_id": "U", "asin": "big", "parent_asin": "Q", "timestamp": 1_588_687_727_001.0},
    {"user_id": "V", "asin": "red", "parent_asin": "P", "timestamp": 1_588_687_729},
]
NEW_METADATA = [
    {
        "parent_asin": "P", "title": "T", "store": "S", "main_category": "Toys",
        "categories": ["X", "Y"], "description": ["d"], "details": {"Brand": "other"},
    },
    {"parent_asin": "Q", "title": "R", "store": None, "categories": [], "description": []},
]  # fmt: skip


@pytest.mark.parametrize("end", [".jsonl.gz", ".jsonl", ".json.gz"])
def test_release_of_2023(prep, tmp_path, end):
    folder = tmp_path / "raw"
    folder.mkdir()
    for name, rows in (("Toys", NEW), ("meta_Toys", NEW_METADATA)):
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / f"{name}{end}").write_bytes(gzip.compress(data) if end[-2:] == "gz" else data)
    common = ["amazon", "--input", folder, "--min-interactions", 1]
    status, out, err = prep(*common, "--category", "Toys", "--output", tmp_path / "d")
    assert (status, err) == (0, "") and "row problems: none\n" in out
    assert (tmp_path / "d" / "d.inter").read_text().splitlines()[1:] == [
        "U\tQ\t0\t1588687727", "U\tP\t1\t1588687728", "V\tP\t0\t1588687729",
    ]  # fmt: skip
    assert (tmp_path / "d" / "d.item").read_text().splitlines()[1:] == [
        "P\tT\tX, Y\tS\td", "Q\tR\t\t\t",
    ]  # fmt: skip
    assert "categories there: Toys\n" in prep(*common, "--output", tmp_path / "e")[2]
    (folder / f"meta_Toys{end}").unlink()
    status, _, err = prep(*common, "--category", "Toys", "--output", tmp_path / "e")
    assert status == 1 and err.endswith(f"it has no meta_Toys{end}\n")


def test_release_of_2014(prep, tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    rows = [review("U", "A", T), review("U", "B", T + 1)]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "reviews_Toys_5.json.gz").write_bytes(gzip.compress(data))
    metadata = [
        meta("A", "It's \\d", categories=[["X", "Y"], ["X", "Z"]], salesRank={"Toys": 3}),
        meta("B", 'a "b"', description=None, brand="S"),
    ]
    data = "".join(f"{row!r}\n" for row in metadata).encode()  # Python's dicts, not JSON
    (folder / "meta_Toys.json.gz").write_bytes(gzip.compress(data))
    options = ["--category", "Toys", "--min-interactions", 1, "--output", tmp_path / "d"]
    status, out, err = prep("amazon", "--input", folder, *options)
    assert (status, err) == (0, "") and "row problems: none\n" in out
    assert (tmp_path / "d" / "d.item").read_text().splitlines()[1:] == [
        "A\tIt's \\d\tX, Y, Z\t\t", 'B\ta "b"\t\tS\t',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "missing"),
    [
        ({"user_id": "u", "parent_asin": "x"}, "timestamp (layout of 2023)"),
        ({"user_id": "u", "asin": "x", "timestamp": T}, "parent_asin (layout of 2023)"),
        ({"parent_asin": "x", "timestamp": None}, "user_id, timestamp (layout of 2023)"),
        ({"asin": "x", "unixReviewTime": T}, "reviewerID (layout of 2014/2018)"),
        ({}, "reviewerID, asin, unixReviewTime (layout of 2014/2018)"),
    ],
)
def test_what_is_missing_is_named_with_the_layout(prep, amazon_folder, tmp_path, row, missing):
    folder = amazon_folder([row], [meta("x")])
    status, _, err = prep(
        "amazon", "--input", folder, "--category", "Toys", "--output", tmp_path / "d"
    )
    assert status == 1 and err.count("\n") == 1
    assert err.endswith(f": missing {missing}: 1, first at {folder}/Toys_5.json.gz:1\n")


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        (T, T),
        (float(T), T),
        (T + 0.9, T),
        (T * 1000 + 999, T),
        (T * 1000.0, T),
        (0, 0),
        (2**32 - 1, 2**32 - 1),
        (T * 10**6, None),
        (10**400, None),
        (float("nan"), None),
        (float("inf"), None),
        (-0.5, None),
        (str(T), None),
        (True, None),
    ],
)
def test_times(prep, amazon_folder, tmp_path, time, seconds):
    folder = amazon_folder([review("u", "x", T), review("u", "y", time)], [meta("x"), meta("y")])
    common = ["amazon", "--input", folder, "--category", "Toys", "--min-interactions", 1]
    status, out, _ = prep(*common, "--max-bad", 1, "--output", tmp_path / "d")
    assert status == 0
    rows = [line.split("\t") for line in (tmp_path / "d" / "d.inter").read_text().splitlines()]
    assert {row[1]: row[3] for row in rows[1:]}.get("y") == (
        None if seconds is None else str(seconds)
    )
    assert ("bad number: 1 of 2 rows" in out) == (seconds is None)


def test_no_reviews(prep, amazon_folder, tmp_path):
    folder = amazon_folder([], [])
    status, _, err = prep(
        "amazon", "--input", folder, "--category", "Toys", "--output", tmp_path / "d"
    )
    assert (status, err) == (1, f"error: {folder}/Toys_5.json.gz: no reviews\n")


@pytest.mark.parametrize("broken", ["text", "cut", "flipped", "noise"])
def test_broken_gzip(prep, amazon_folder, tmp_path, broken):
    folder = amazon_folder([review("u", f"x{n}", T) for n in range(500)], [meta("x")])
    path = folder / "Toys_5.json.gz"
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "text": gzip.decompress(data),
            "cut": data[:middle],
            "noise": gzip.compress(b"")[:10] + b"\xff" * 50,
            "flipped": data[:middle] + bytes([data[middle] ^ 255]) * 40 + data[middle + 40 :],
        }[broken]
    )
    status, _, err = prep(
        "amazon",
        "--input",
        folder,
        "--category",
        "Toys",
        "--output",
        tmp_path / "d",
        "--max-bad",
        1,
    )
    assert status == 1
    assert err.startswith(f"error: {path}: broken gzip file: ") and err.count("\n") == 1
