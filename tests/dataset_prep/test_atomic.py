"""Atomic files: their exact bytes, and that nothing half done is left."""

import pandas as pd
import pytest

from dataset_prep.atomic import staged_folder, write_dataset
from dataset_prep.report import PrepError, Problems
from dataset_prep.text import MAX_FIELD


def events_of(rows):
    return pd.DataFrame(rows, columns=["user", "item", "time"][: len(rows[0])])


def items_of(rows, *fields):
    return pd.DataFrame({token: texts for token, *texts in rows}, index=fields).T


def test_inter_counts_positions(tmp_path):
    events = events_of([("a", 20, 50), ("a", 10, 50), ("a", 20, 60), ("c", 10, 4294967295)])
    write_dataset(tmp_path / "x", events, items_of([(20, "T")], "title"), Problems(0))
    assert (tmp_path / "x.inter").read_bytes() == (
        b"user_id:token\titem_id:token\ttimestamp:float\ttime:float\n"
        b"a\t20\t0\t50\na\t10\t1\t50\na\t20\t2\t60\nc\t10\t0\t4294967295\n"
    )


def test_inter_without_times(tmp_path):
    events = events_of([("a", "b"), ("a", "b")])
    write_dataset(tmp_path / "x", events, items_of([("b", "T")], "title"), Problems(0))
    assert (tmp_path / "x.inter").read_text() == (
        "user_id:token\titem_id:token\ttimestamp:float\na\tb\t0\na\tb\t1\n"
    )


def test_tokens_are_written_as_they_are(tmp_path):
    events = events_of([("it's", 'a"b'), ("\\", "'")])
    write_dataset(tmp_path / "x.y", events, items_of([('a"b', "\\")], "title"), Problems(0))
    lines = (tmp_path / "x.y.inter").read_text().splitlines()
    assert lines[1:] == ["it's\ta\"b\t0", "\\\t'\t0"]
    assert (tmp_path / "x.y.item").read_text().splitlines()[1:] == ['a"b\t\\']


def test_items(tmp_path, capsys):
    rows = [("1", "Title", ""), ("2", '"q"', "y" * (MAX_FIELD + 1)), ("3", "", "z" * MAX_FIELD)]
    items = items_of(rows, "title", "brand")
    write_dataset(tmp_path / "x", events_of([("u", "1")]), items, Problems(0))
    assert (tmp_path / "x.item").read_text() == (
        "item_id:token\ttitle:token_seq\tbrand:token_seq\n"
        "1\tTitle\t\n" + '2\t "q"\t' + "y" * MAX_FIELD + "\n3\t\t" + "z" * MAX_FIELD + "\n"
    )
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "with title               66.7%",
        "with brand               66.7%",
        "1 text fields were too long for RecBole's reader and were cut",
    ]


def test_too_many_problems_write_nothing(tmp_path):
    problems = Problems(0.5)
    problems.read("some", 1)
    problems.add("some", "bad id", "here")
    with pytest.raises(PrepError, match="some: 1 of 1 rows are bad"):
        write_dataset(
            tmp_path / "x", events_of([("u", "1")]), items_of([("1", "T")], "t"), problems
        )
    assert list(tmp_path.iterdir()) == []


def test_folder_appears_whole(tmp_path):
    output = tmp_path / "made" / "data"
    with staged_folder(output) as stage:
        (stage / "a").write_text("x")
        assert stage.parent == output.parent and not output.exists()
        inode = stage.stat().st_ino
    assert [path.name for path in output.parent.iterdir()] == ["data"]
    assert (output / "a").read_text() == "x"
    # Renamed, not copied: there was no moment with half of it.
    assert output.stat().st_ino == inode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(error), staged_folder(tmp_path / "data") as stage:
        (stage / "a").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", ["mkdir", "touch"])
def test_existing_output_is_refused(tmp_path, make):
    output = tmp_path / "data"
    getattr(output, make)()
    with pytest.raises(PrepError, match="exists already"), staged_folder(output):
        pytest.fail("the block must not run")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_output_made_meanwhile_is_not_replaced(tmp_path):
    output = tmp_path / "data"
    with pytest.raises(PrepError, match="exists already"), staged_folder(output):
        output.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(("paper", "theirs"), [("lfm", ["18,297", "13.21"]), ("", ["", ""])])
def test_statistics_beside_the_paper(tmp_path, capsys, paper, theirs):
    events = events_of([(user, user) for user in range(400) for _ in range(13)])
    items = items_of([(str(n), "T", "" if n % 4 else "A") for n in range(1500)], "title", "album")
    write_dataset(tmp_path / "x", events, items, Problems(0), paper)
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[1] == f"                      this run{'paper (LFM)' if paper else '':>20}".rstrip()
    )
    assert lines[2] == f"items                    1,500{theirs[0]:>20}".rstrip()
    assert lines[3].split()[:2] == ["sequences", "400"]
    assert lines[4].split()[:2] == ["interactions", "5,200"]
    assert lines[5] == f"mean length              13.00{theirs[1]:>20}".rstrip()
    assert lines[6:] == ["with title              100.0%", "with album               25.0%"]
