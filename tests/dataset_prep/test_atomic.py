"""Atomic files: their exact bytes, and that nothing half done is left."""

import numpy as np
import pytest

from dataset_prep.atomic import staged_folder, statistics_table, write_inter, write_items
from dataset_prep.events import EVENT
from dataset_prep.report import PrepError
from dataset_prep.text import MAX_FIELD


def test_inter_counts_positions_across_chunks(tmp_path):
    events = np.array([(0, 1, 50), (0, 0, 50), (0, 1, 60), (2, 0, 4294967295)], dtype=EVENT)
    users, items = np.array(["a", "b", "c"], dtype=object), np.array([10, 20])
    for size in (1, 2, 4):
        chunks = [events[n : n + size] for n in range(0, 4, size)] + [events[:0]]
        write_inter(tmp_path / "x.inter", chunks, users, items, with_time=True)
        assert (tmp_path / "x.inter").read_bytes() == (
            b"user_id:token\titem_id:token\ttimestamp:float\ttime:float\n"
            b"a\t20\t0\t50\na\t10\t1\t50\na\t20\t2\t60\nc\t10\t0\t4294967295\n"
        )


def test_inter_without_times(tmp_path):
    events = np.array([(0, 0, 0), (0, 0, 0)], dtype=EVENT)
    write_inter(tmp_path / "x.inter", [events], np.array(["a"]), np.array(["b"]), with_time=False)
    assert (tmp_path / "x.inter").read_text() == (
        "user_id:token\titem_id:token\ttimestamp:float\na\tb\t0\na\tb\t1\n"
    )


def test_items(tmp_path):
    rows = [("1", "Title", ""), ("2", '"q"', "y" * (MAX_FIELD + 1)), ("3", "", "z" * MAX_FIELD)]
    counts = write_items(tmp_path / "x.item", ["title", "brand"], rows)
    assert (tmp_path / "x.item").read_text() == (
        "item_id:token\ttitle:token_seq\tbrand:token_seq\n"
        "1\tTitle\t\n" + '2\t "q"\t' + "y" * MAX_FIELD + "\n3\t\t" + "z" * MAX_FIELD + "\n"
    )
    assert counts == {"items": 3, "with title": 2, "with brand": 2, "cut": 1}


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


def test_statistics_beside_the_paper():
    counts = {"items": 1500, "with title": 1500, "with album": 375, "cut": 2}
    counts |= {"sequences": 400, "interactions": 5000}
    assert statistics_table(counts, "lfm") == [
        "                      this run         paper (LFM)",
        "items                    1,500              18,297",
        "sequences                  400              11,073",
        "interactions             5,000             146,255",
        "mean length              12.50               13.21",
        "with title              100.0%",
        "with album               25.0%",
        "2 text fields were too long for RecBole's reader and were cut",
    ]
    assert statistics_table(counts, "")[1] == "items                    1,500"
