"""``python -m dataset_prep sequences`` on small files, with literal output."""

import json
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_prep.sequences import convert
from dataset_prep.text import is_token


@pytest.fixture
def files(tmp_path):
    """Return what writes the two JSON files (bytes as they are) and gives the options."""

    def write(inter, items):
        options = []
        for name, value in (("inter", inter), ("items", items)):
            path = tmp_path / f"X.{name}.json"
            path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
            options += [f"--{name}", path]
        return options

    return write


def test_output(prep, files, tmp_path):
    options = files(
        {"u1": [5, 3, 3], "u0": ["3", "a"], "none": []},
        {
            "3": {"title": "Three &amp; <i>more</i>", "brand": "B", "categories": "X,Y"},
            "5": {"title": "Five", "description": ["d1", "d2"], "category": ["X", "X", "Z"]},
            "a": {"title": '"quoted"', "category": "", "categories": "Y", "price": 3},
            "unused": {"title": "U"},
        },
    )
    output = tmp_path / "dataset" / "industrial"
    status, out, err = prep("sequences", *options, "--output", output)
    assert (status, err) == (0, "")
    assert (output / "industrial.inter").read_text() == (
        "user_id:token\titem_id:token\ttimestamp:float\n"
        "u1\t5\t0\nu1\t3\t1\nu1\t3\t2\nu0\t3\t0\nu0\ta\t1\n"
    )
    assert (output / "industrial.item").read_text() == (
        "item_id:token\ttitle:token_seq\tcategory:token_seq\tbrand:token_seq\t"
        "description:token_seq\n"
        "5\tFive\tX, Z\t\td1 d2\n"
        "3\tThree & more\tX,Y\tB\t\n"
        'a\t "quoted"\tY\t\t\n'
    )
    assert out == (
        "row problems: none\n"
        "                      this run    paper (Industry)\n"
        "items                        3               5,814\n"
        "sequences                    2              10,935\n"
        "interactions                 5              71,872\n"
        "mean length               2.50                6.57\n"
        "with title              100.0%\n"
        "with category           100.0%\n"
        "with brand               33.3%\n"
        "with description         33.3%\n"
        f"wrote {output}\n"
        "next: python run_recbole_lea.py --model=SASRecSA2CLEA --dataset=industrial\n"
    )


def test_no_paper_beside_another_dataset(prep, files, tmp_path):
    options = files({"u": [1]}, {"1": {"title": "T"}})
    assert "paper (" not in prep("sequences", *options, "--output", tmp_path / "mine")[1]


def test_bad_rows(prep, files, tmp_path):
    inter = b'{"u": [1, 2, 2, null, [3], true, 1.5, "a b"],\n "v": 7,\n "bad id": [1],\n "w": [1]}'
    items = b'{"1": {"title": "\xff"},\n "x": {"title": " "},\n "y": []}'
    options = files(inter, items)
    output = tmp_path / "d"
    status, out, err = prep("sequences", *options, "--output", output, "--max-bad", 1)
    assert (status, err) == (0, "")
    assert (output / "d.inter").read_text().splitlines()[1:] == [
        "u\t1\t0", "u\t2\t1", "u\t2\t2", "w\t1\t0",
    ]  # fmt: skip
    assert (output / "d.item").read_text().splitlines()[1:] == ["1\t\ufffd\t\t\t", "2\t\t\t\t"]
    where, there = f"first at {options[1]}", f"first at {options[3]}"
    assert (
        "row problems:\n"
        f"  X.inter.json: no list: 1 of 4 rows, {where}:2 ('v')\n"
        f"  X.inter.json: bad id: 1 of 4 rows, {where}:3 ('bad id')\n"
        f"  interactions: bad id: 5 of 9 rows, {where}:1 ('u')\n"
        f"  interactions: unknown id: 2 of 9 rows, {where}:1 ('u')\n"
        f"  X.items.json: bad UTF-8: 1 of 3 rows, {there}:1 ('1')\n"
        f"  X.items.json: empty title: 1 of 3 rows, {there}:2 ('x')\n"
        f"  X.items.json: no object: 1 of 3 rows, {there}:3 ('y')\n"
    ) in out
    status, _, err = prep("sequences", *options, "--output", tmp_path / "e")
    assert status == 1 and err.startswith("error: X.inter.json: 2 of 4 rows are bad, over")
    assert err.count("\n") == 1 and not (tmp_path / "e").exists()


def test_nested_values_and_numbers_become_text(prep, files, tmp_path):
    odd = {
        "title": 1984,
        "brand": [["B"], 3.5],
        "categories": [["A", "B"], ["A", "C"]],
        "description": [["x"], None, [[float("nan")]]],
    }
    options = files({"u": [1]}, {"1": odd})
    status, out, err = prep("sequences", *options, "--output", tmp_path / "d")
    assert (status, err) == (0, "") and out.startswith("row problems: none\n")
    assert (tmp_path / "d" / "d.item").read_text().splitlines()[1:] == [
        "1\t1984\tA, B, C\tB 3.5\tx"
    ]


@pytest.mark.parametrize("name", ["title", "brand", "category", "categories", "description"])
@pytest.mark.parametrize("value", [{"a": 1}, True, ["t", [{}]]])
def test_what_is_no_text_is_a_problem(prep, files, tmp_path, name, value):
    options = files({"u": [1, 2]}, {"2": {"title": "T"}, "1": {"title": "T", name: value}})
    where = f"first at {options[3]}:1 ('1')"
    status, _, err = prep("sequences", *options, "--output", tmp_path / "d")
    assert status == 1
    assert err.startswith("error: X.items.json: 1 of 2 rows are bad, over the share")
    assert err.endswith(f"no text in {name}: 1, {where}\n")
    status, out, _ = prep("sequences", *options, "--output", tmp_path / "d", "--max-bad", 1)
    assert status == 0
    assert f"row problems:\n  X.items.json: no text in {name}: 1 of 2 rows, {where}\n" in out


def test_unknown_items_over_the_limit(prep, files, tmp_path):
    options = files({"u": [1, 2]}, {"1": {"title": "T"}})
    status, _, err = prep("sequences", *options, "--output", tmp_path / "d")
    assert (status, err) == (
        1,
        "error: interactions: 1 of 2 rows are bad, over the share of 0.01 that --max-bad allows: "
        f"unknown id: 1, first at {options[1]}:1 ('u')\n",
    )


@pytest.mark.parametrize(
    ("inter", "items", "message"),
    [
        (b"{", {}, "X.inter.json: not JSON: "),
        ({}, {}, "X.inter.json: no interactions"),
        ([1], {}, "X.inter.json: not a JSON object but a list"),
        ({"u": [1]}, b"", "X.items.json: not JSON: "),
        ({"u": [1]}, b"3", "X.items.json: not a JSON object but a int"),
    ],
)
def test_unusable_files(prep, files, tmp_path, inter, items, message):
    status, _, err = prep("sequences", *files(inter, items), "--output", tmp_path / "d")
    assert status == 1
    assert err.startswith(f"error: {tmp_path}/{message}") and err.count("\n") == 1
    assert not (tmp_path / "d").exists()


def test_byte_order_mark(prep, files, tmp_path):
    options = files(b'\xef\xbb\xbf{"u": [1]}', b'\xef\xbb\xbf{"1": {"title": "\xef\xbf\xbd"}}')
    status, out, _ = prep("sequences", *options, "--output", tmp_path / "d")
    assert status == 0 and out.startswith("row problems: none\n")


def test_a_long_key_is_cut_in_the_message(prep, files, tmp_path):
    options = files({"x" * 200_000: 5}, {})
    status, _, err = prep("sequences", *options, "--output", tmp_path / "out")
    assert status == 1
    assert "('xxx" in err and "xxx...')" in err
    assert len(err) < 1000


TOKENS = (st.text(min_size=1, max_size=6) | st.integers(0, 99).map("{:03}".format)).filter(is_token)
SEQUENCES = st.dictionaries(
    TOKENS, st.lists(TOKENS, min_size=1, max_size=5), min_size=1, max_size=4
)


@settings(max_examples=50, deadline=None)
@given(SEQUENCES, st.text())
def test_any_sequence_comes_back_from_recbole_s_reader(sequences, title):
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder), Path(folder) / "made"
        items = {item: {"title": title} for row in sequences.values() for item in row}
        (source / "a.json").write_text(json.dumps(sequences))
        (source / "b.json").write_text(json.dumps(items))
        convert(source / "a.json", source / "b.json", output, max_bad=1)
        # as recbole.data.dataset.Dataset._load_feat reads
        read = pd.read_csv(output / "made.inter", delimiter="\t", dtype=str, engine="python")
        found = read.groupby("user_id:token", sort=False)["item_id:token"].apply(list).to_dict()
        assert found == sequences
        read = pd.read_csv(output / "made.item", delimiter="\t", dtype=str, engine="python")
        assert set(read["item_id:token"]) == set(items)
