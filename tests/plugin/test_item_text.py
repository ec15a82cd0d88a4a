import pytest

from recbole_lea.plugin.item_text import read_item_texts

LINES = "item_id:token\ttitle:token_seq\tyear:token\n1\tToy Story\t1995\n2\t\t\n2\tagain\t\n"


def test_fields_by_token(tmp_path, caplog):
    path = tmp_path / "x.item"
    path.write_text(LINES, encoding="utf-8")
    texts = read_item_texts(path, "item_id", ["1", "2", "3"])
    assert texts == {
        "1": {"title": "Toy Story", "year": "1995"},
        "2": {"title": "", "year": ""},
        "3": {},
    }
    assert "1 repeated items" in caplog.text
    assert "lacks 1 of 3 items" in caplog.text


def test_no_file_means_no_text(tmp_path, caplog):
    assert read_item_texts(tmp_path / "x.item", "item_id", ["1"]) == {"1": {}}
    assert "x.item does not exist" in caplog.text


def test_the_encoding_is_recboles_and_another_one_is_named(tmp_path):
    path = tmp_path / "x.item"
    path.write_text("item_id:token\ttitle:token_seq\n1\tAmélie\n", encoding="latin-1")
    texts = read_item_texts(path, "item_id", ["1"], encoding="latin-1")
    assert texts == {"1": {"title": "Amélie"}}
    with pytest.raises(ValueError, match=r"x\.item: 'utf-8' codec.*set `encoding`"):
        read_item_texts(path, "item_id", ["1"])


def test_column_of_another_name(tmp_path):
    path = tmp_path / "x.item"
    path.write_text(LINES, encoding="utf-8")
    with pytest.raises(ValueError, match="no column asin; it has item_id, title, year"):
        read_item_texts(path, "asin", ["1"])
