"""Anybody's tables: columns guessed and said, nothing dropped in silence, a YAML that trains."""

import builtins
import shlex
import subprocess
import sys

import pandas as pd
import pytest
import yaml

from recbole_lea.le.catalogue import Catalogue, check_sentence
from recbole_lea.plugin.item_text import read_item_texts
from tests.conftest import ROOT, tiny_keys

INTER = "user,movieId,rating,when\nb,1,5,20\na,2,4,9\na,1,4,10\nb,2,3,8\n"
ITEMS = "id,year,genres,title,plot\n1,1995,Crime,Heat,{long}\n2,,,Toy Story,\n3,,,Unseen,\n"
ITEMS = ITEMS.format(long="a long plot " * 20)


@pytest.fixture
def table(prep, tmp_path):
    """Runs the converter on two texts or frames: (status, stdout, stderr), folder of the output."""

    def run(inter=INTER, items=ITEMS, *options, names=("a.csv", "b.csv")):
        files = []
        for name, content in zip(names, (inter, items), strict=True):
            files.append(tmp_path / name)
            if isinstance(content, pd.DataFrame):
                content.to_parquet(files[-1])
            else:
                raw = content if isinstance(content, bytes) else content.encode()
                files[-1].write_bytes(raw)
        output = tmp_path / "dataset" / f"mine{len(list(tmp_path.glob('dataset/*')))}"
        given = ["--inter", files[0], "--items", files[1], "--output", output, *options]
        return prep("table", *given), output

    return run


def written(output):
    """The lines of the atomic files below the first, and the keys of the YAML file."""
    inter, items = ((output / f"{output.name}{end}").read_text() for end in (".inter", ".item"))
    keys = yaml.safe_load((output / f"{output.name}.yaml").read_text())
    return inter.splitlines()[1:], items.splitlines()[1:], keys


def test_small_tables(table, tmp_path):
    (status, out, err), output = table(INTER, ITEMS, "--time", "when")
    assert (status, err) == (0, "")
    inter, items, keys = written(output)
    assert inter == ["b\t2\t0\t8", "b\t1\t1\t20", "a\t2\t0\t9", "a\t1\t1\t10"]
    assert items == [
        "2\t\t\tToy Story\t", f"1\t1995\tCrime\tHeat\t{('a long plot ' * 20).strip()}"
    ]  # fmt: skip
    sentence = (
        "{item} item[ is titled {title}][, its genres is {genres}][, its year is {year}]"
        "[, its plot is {plot}]."
    )
    assert keys == {
        "lea_item_sentence": sentence,
        "lea_title": "{title}",
        "lea_user_prompt": "The user has interacted with these items in chronological order: "
        "{history}",
    }
    assert out == (
        "columns of a.csv: user = user (guessed), item = movieId (guessed), time = when; "
        "not used: rating\n"
        "times: numbers, taken as they are\n"
        "interactions: 4, of which 0 repeat user, item and time: left out\n"
        "columns of b.csv: item = id (guessed); without a name: 0\n"
        "items: 2 of 2 are described; left out: 0 rows that repeat one, 1 rows of items without "
        "interactions\n"
        f"an item's sentence: {sentence}\n"
        "row problems: none\n"
        "                      this run\n"
        "items                        2\n"
        "sequences                    2\n"
        "interactions                 4\n"
        "mean length               2.00\n"
        "with year                50.0%\n"
        "with genres              50.0%\n"
        "with title              100.0%\n"
        "with plot                50.0%\n"
        f"wrote {output}\n"
        "next: python run_recbole_lea.py --model=SASRecSA2CLEA --dataset=mine0 "
        "--config_files=dataset/mine0/mine0.yaml\n"
    )


def test_the_next_command_stands_where_it_is_typed(table, tmp_path, monkeypatch, prep):
    table()
    given = ["--inter", "a.csv", "--items", "b.csv", "--output", "dataset/../dataset/mine"]
    assert prep("table", *given)[1].endswith(
        "--dataset=mine --config_files=dataset/mine/mine.yaml\n"
    )


def test_every_way_to_write_the_same_table_gives_the_same(table):
    users = ["u1", "u1", "u2", "u2"]
    frame = pd.DataFrame({"uid": users, "item": [7, 8, 7, 9], "ts": [1.5, 0.0, 3.0, 4.0]})
    items = pd.DataFrame({"item": [7.0, 8.0, 9.0], "name": ['the 5" record, "B"', "x;y", "None"]})
    tabs = frame.to_csv(index=False, sep="\t"), items.astype({"item": int}).to_csv(index=False)
    semicolons = tabs[0].replace("\t", ";"), tabs[1]
    typed = tabs[0].replace("uid\titem\tts", "uid:token\titem:token\tts:float"), tabs[1]
    windows = tabs[0].replace("\n", "\r\n").encode("utf-8-sig"), tabs[1].replace("\n", "\r\n")
    results = [
        table(frame, items, names=("a.parquet", "b.pq")),
        table(*tabs, names=("a.tsv", "b.csv")),
        table(*semicolons),
        table(*typed, names=("a.inter", "b.txt")),
        table(*windows, names=("a.tab", "b.csv")),
    ]
    for (status, _, err), output in results:
        assert (status, err) == (0, "")
        assert written(output) == written(results[0][1])
    inter, items, _ = written(results[0][1])
    assert inter[:2] == ["u1\t8\t0\t0.0", "u1\t7\t1\t1.5"]
    assert items[1:] == ['7\tthe 5" record, "B"', "9\t None"]


def test_dates_become_seconds_and_no_time_is_the_file_s_order(table):
    dates = ["2024-03-01T00:00:02+01:00", "2024-02-29 23:00:01", "1970-01-01", "2024-03-01"]
    rows = "".join(f"u,{n},{date}\n" for n, date in enumerate(dates))
    items = "item,t\n" + "".join(f"{n},x\n" for n in range(4))
    (_, out, _), output = table("user,item,time\n" + rows, items)
    assert "times: dates, written as seconds since 1970 (UTC)\n" in out
    assert written(output)[0] == [
        "u\t2\t0\t0", "u\t1\t1\t1709247601", "u\t0\t2\t1709247602", "u\t3\t3\t1709251200"
    ]  # fmt: skip
    days = pd.DataFrame({"user": "u", "item": range(4), "time": pd.to_datetime(dates[3:] * 4)})
    (_, _, _), output = table(days, items, names=("a.parquet", "b.csv"))
    assert written(output)[0][3] == "u\t3\t3\t1709251200"
    (_, out, _), output = table("user,item\nu,3\nv,1\nu,0\nu,3\n", items, "--max-bad", 1)
    assert "no column is the time: each user's rows are taken in the order of the file\n" in out
    assert written(output)[0] == ["u\t3\t0", "u\t0\t1", "u\t3\t2", "v\t1\t0"]


def test_duplicates_and_bad_rows_are_counted_and_said(table, tmp_path):
    inter = (
        b'user,item,time\nu,1,1\nu,1,1\nu,1,2\n\n,1,3\nu,"a\nb",4\nu,1\nu,1,5,6\nu,2,noon\nu,2,\n'
        b"u,2,inf\nu,9,7\n"
    ) + b"v\xff,1,8\n"
    items = "item,title\n1,a\n1,b\n2,c\n3,d\n,e\n"
    (status, out, _), output = table(inter, items, "--max-bad", 1, "--min-interactions", 1)
    assert status == 0
    assert written(output)[0] == ["u\t1\t0\t1", "u\t1\t1\t2", "u\t9\t2\t7", "v\ufffd\t1\t0\t8"]
    assert written(output)[1] == ["1\ta", "9\t"]
    a, b = tmp_path / "a.csv", tmp_path / "b.csv"
    assert "interactions: 5, of which 1 repeat user, item and time: left out\n" in out
    assert (
        "items: 1 of 2 are described; left out: 1 rows that repeat one, 2 rows of items without "
        "interactions\n"
    ) in out
    assert (
        "row problems:\n"
        f"  a.csv: bad id: 2 of 14 rows, first at {a}:6\n"
        f"  a.csv: wrong column count: 2 of 14 rows, first at {a}:9\n"
        f"  a.csv: bad UTF-8: 1 of 14 rows, first at {a}:15\n"
        "  a.csv: bad time (neither a number nor a date such as 2014-06-16T12:30): 3 of 14 rows, "
        f"first at {a}:11\n"
        f"  b.csv: bad id: 1 of 5 rows, first at {b}:6\n"
        f"  interactions: unknown id: 1 of 4 rows, first at {a}:14\n"
    ) in out
    (status, _, err), output = table(inter, items)
    assert status == 1 and err.startswith("error: a.csv: 8 of 14 rows are bad, over the share")
    assert err.count("\n") == 1 and not output.exists()


def test_filtering_is_asked_for(table):
    inter = "user,item,time\n" + "".join(f"u,{n % 2},{n}\n" for n in range(4)) + "v,1,1\n"
    items = "item,title\n0,a\n1,b\n"
    assert len(written(table(inter, items)[1])[0]) == 5
    (_, out, _), output = table(inter, items, "--min-interactions", 2)
    assert "filtering:\n" in out and len(written(output)[0]) == 4


def test_odd_columns(table):
    items = pd.DataFrame({
        "Unnamed: 0": [0], "": [0], "item_id": [1], "item": ["x"], "a:b{[c": [["p", "q", "p"]],
        "flag": [True], "n": [2.0], "part": [{"x": 1}], "Main Category": ["C"], "artist": ["A"],
        "empty": [None],
    })  # fmt: skip
    (status, out, err), output = table(
        "user,item\nu,1\n", items, "--max-bad", 1, names=("a.csv", "b.parquet")
    )
    assert (status, err) == (0, "")
    sentence = written(output)[2]["lea_item_sentence"]
    check_sentence(sentence)
    assert "b.parquet: no text in part: 1 of 1 rows" in out
    assert "empty columns, in no sentence: part, empty\n" in out
    texts = read_item_texts(output / f"{output.name}.item", "item_id", ["1"])
    assert Catalogue(texts).sentences(sentence) == (
        ["{item} item, its artist is A, its item is x, its a b c is p, q, its flag is True, "
         "its n is 2, its main category is C."], [],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("inter", "items", "options", "message"),
    [
        ("who,item\n", ITEMS, [], "a.csv: which column is the user? Name it by --user; it has: w"),
        (INTER, "x,y\n", [], "b.csv: which column is the item? Name it by --item; it has: x, y"),
        (INTER, ITEMS, ["--user", "usr"], "a.csv: it has no column 'usr', which --user names, but"),
        (INTER, ITEMS, ["--time", "x"], "a.csv: it has no column 'x', which --time names"),
        ("", ITEMS, [], "a.csv: which column is the user? Name it by --user; it has: none"),
        ("user,item\n", ITEMS, [], "a.csv: no interactions"),
        ("user,user,item\n", ITEMS, [], "a.csv: two columns of the name 'user'"),
        (INTER, "id\n1\n2\n", [], "b.csv: no text of any item that has interactions"),
        (INTER, "id,t\n1,\n2,\n", [], "b.csv: no text of any item that has interactions"),
        (INTER + 'a,"1,2,3\n', ITEMS, [], "a.csv: line 6: unexpected end of data: is a quote"),
        ('"user', ITEMS, [], "a.csv: line 1: unexpected end of data: is a quote"),
    ],
)
def test_unusable_tables(table, tmp_path, inter, items, options, message):
    (status, _, err), output = table(inter, items, *options)
    assert status == 1 and err.startswith(f"error: {tmp_path}/{message}"), err
    assert err.count("\n") == 1 and not output.exists()


def test_files_that_are_no_tables(table, prep, tmp_path, monkeypatch):
    assert "not CSV, TSV or Parquet" in table(names=("a.xlsx", "b.csv"))[0][2]
    assert "b.parquet: not Parquet: " in table(names=("a.csv", "b.parquet"))[0][2]
    given = ["--items", tmp_path / "b.csv", "--output", tmp_path / "d"]
    result = prep("table", "--inter", tmp_path / "no.csv", *given)
    assert result[2] == f"error: {tmp_path}/no.csv: no such file\n"

    def without(name, *rest, real=builtins.__import__):
        if name.startswith(("pyarrow", "fastparquet")):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install pyarrow\n" in table(names=("a.csv", "b.parquet"))[0][2]


def test_what_was_written_trains_by_the_next_command(table, tiny_llm, tmp_path):
    inter = "user,item,time\n" + "".join(
        f"u{u},{(u + t * (1 + u % 3)) % 20},{t}\n" for u in range(12) for t in range(7)
    )
    items = "item,main category,title\n" + "".join(f"{n},red {n % 3},star {n}\n" for n in range(20))
    (_, out, _), output = table(inter, items)
    command = shlex.split(out.splitlines()[-1].removeprefix("next: python "))
    keys = tiny_keys(tiny_llm) | {"lea_row_length": 192, "epochs": 1, "selection_by": "state"}
    del keys["lea_item_sentence"], keys["load_col"]
    command += [f"--{key}={value}" for key, value in keys.items()]
    done = subprocess.run(
        [sys.executable, ROOT / command[0], *command[1:]],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "test result" in done.stdout + done.stderr
