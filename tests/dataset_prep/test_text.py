"""Cleaning of text, on examples and on arbitrary strings."""

import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas._libs.parsers import STR_NA_VALUES

from dataset_prep.text import (
    MAX_FIELD,
    PANDAS_MISSING,
    field,
    is_token,
    joined,
    one_line,
    strip_markup,
)

# Arbitrary text, with what readers and markup trip over far more often than chance would.
SPECIAL = ['"', '""', "'", "\t", "\n", "\r", "\0", "\x1c", "\x85", "\u2028", "\ud800", " ", ","]
SPECIAL += ["NA", "nan", "None", "null", "#N/A", "<b>", "</", ">", "&amp;", "&lt;", "&", ";", "\\"]
texts = st.lists(st.one_of(st.sampled_from(SPECIAL), st.text(max_size=4)), max_size=8).map("".join)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("  a \t b\r\n\nc ", "a b c"),
        ("a\0b\x1cc\x7fd\x85e\u2028f\u00a0g", "a b c d e f g"),
        ("caf\u00e9 \U0001f3b8", "caf\u00e9 \U0001f3b8"),
        ("bad \ud800 half", "bad \ufffd half"),
        ("I <3 You & Me", "I <3 You & Me"),
        ("\t\n", ""),
    ],
)
def test_one_line(raw, expected):
    assert one_line(raw) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Noodles &amp; Company", "Noodles & Company"),
        ("AT&amp;amp;T", "AT&T"),
        ("4&quot; pipe &#39;A&#x27; 5&deg;", "4\" pipe 'A' 5\u00b0"),
        ("<div class='aplus'> <br>Gift<br/>Cards</div>", "Gift Cards"),
        ("&lt;b&gt;bold&lt;/b&gt;", "bold"),
        ("a<script type='x'>var b = '<p>';</script>c<style>d{}</style>e<!-- f -->g", "a c e g"),
        ("temp < 5 and > 3; <Artist Name>; <3", "temp < 5 and > 3; <Artist Name>; <3"),
        ("a?b=1&copy=2 R&D; x", "a?b=1&copy=2 R&D; x"),
        ("</span></span></span>", ""),
        ("<A HREF='x'>Link</A>", "Link"),
    ],
)
def test_strip_markup(raw, expected):
    assert strip_markup(raw) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("  a <b>b</b>", "a b"),
        (["Gift Cards", "Gift&nbsp;Cards", "</span>", "More"], "Gift Cards, More"),
        ([], ""),
        (["a", None, 3, "b"], "a, 3, b"),
        (None, ""),
        (1984, "1984"),
        (0, "0"),
        (2.5, "2.5"),
        (float("nan"), ""),
        (10**400, "1" + "0" * 400),
        ([["A", "B"], ["A", ["C", [7]]], []], "A, B, C, 7"),
        ([[], [[""]], ["</span>"]], ""),
    ],
)
def test_joined(value, expected):
    assert joined(value, ", ") == (expected, True)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": 1}, ""),
        (True, ""),
        (False, ""),
        (float("inf"), ""),
        (["a", {"b": "c"}, "d"], "a, d"),
        ([["a"], [[{}]]], "a"),
        (("a",), ""),
    ],
)
def test_what_is_no_text_is_told(value, expected):
    assert joined(value, ", ") == (expected, False)


def test_a_deeply_nested_list_is_read():
    value = "deep"
    for _ in range(100_000):
        value = [value]
    assert joined(value, " ") == ("deep", True)
    while isinstance(value, list):  # a deep list is let go step by step
        value = value.pop()


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('"Heroes"', ' "Heroes"'),
        ('"', ' "'),
        ("None", " None"),
        ("NA", " NA"),
        ("Na", "Na"),
        ('12" Mix', '12" Mix'),
        ("", ""),
    ],
)
def test_field_protects_what_pandas_would_change(text, written):
    assert field(text) == written


def test_missing_values_are_those_of_pandas():
    assert PANDAS_MISSING == STR_NA_VALUES


@pytest.mark.parametrize("token", ["1", "A31UBH", "caf\u00e9", "-1", "it's"])
def test_tokens(token):
    assert is_token(token)


@pytest.mark.parametrize(
    "token", ["", " 1", "a b", "a\tb", '"a', "NA", "null", "a\u2028b", "\ud800"]
)
def test_what_is_no_token(token):
    assert not is_token(token)


@given(texts)
def test_one_line_is_one_clean_line(text):
    line = one_line(text)
    assert line == one_line(line)
    assert len(f"x{line}x".splitlines()) == 1
    assert "\t" not in line and line == line.strip()
    line.encode()
    # Nothing but blanks and unpaired surrogates is changed.
    kept = [c for c in text if c.isprintable() and c != " "]
    assert [c for c in line.replace("\ufffd", "") if c.isprintable() and c != " "] == [
        c for c in kept if c != "\ufffd"
    ]


@given(texts)
def test_strip_markup_is_stable(text):
    once = strip_markup(text)
    assert strip_markup(once) == once == one_line(once)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_fields_come_back_from_both_readers(rows):
    rows = [(one_line(a), one_line(b)) for a, b in rows]
    lines = [f"{n}\t{field(a)}\t{field(b)}" for n, (a, b) in enumerate(rows)]
    text = "id:token\ta:token_seq\tb:token_seq\n" + "".join(line + "\n" for line in lines)
    # As recbole.data.dataset.Dataset._load_feat reads.
    read = pd.read_csv(io.StringIO(text), delimiter="\t", dtype=str, engine="python").fillna("")
    assert [(a.strip(" "), b.strip(" ")) for a, b in read.iloc[:, 1:].values] == rows
    plain = [line.split("\t") for line in text.splitlines()[1:]]
    assert [(a.strip(" "), b.strip(" ")) for _, a, b in plain] == rows


def test_a_field_is_cut_to_what_the_reader_takes():
    text = "x" * (MAX_FIELD + 5)
    assert field(text) == "x" * MAX_FIELD
    for length, fits in ((MAX_FIELD, True), (MAX_FIELD + 1, False)):
        table = io.StringIO("id\ta\n1\t" + "x" * length + "\n")
        try:
            assert len(pd.read_csv(table, delimiter="\t", engine="python").a[0]) == length
            assert fits
        except pd.errors.ParserError:
            assert not fits
