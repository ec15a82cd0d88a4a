"""Reading the raw LFM-1b files, against literal rows and a plain parser."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_prep import report
from dataset_prep.lfm import read_events, read_names
from dataset_prep.report import PrepError, Problems


def rows_of(blocks):
    names = ["line", "user", "album", "track", "time"]
    return [tuple(row) for some in blocks for row in some[names].values.tolist()]


def write(tmp_path, data):
    path = tmp_path / "LFM-1b_LEs.txt"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\xef\xbb\xbf", []),
        (b"1\t2\t3\t4\t5\n", [(1, 1, 3, 4, 5)]),
        (b"1\t2\t3\t4\t5", [(1, 1, 3, 4, 5)]),
        (b"1\t2\t-1\t4\t5\r\n6\t7\t8\t9\t10\r\n", [(1, 1, -1, 4, 5), (2, 6, 8, 9, 10)]),
        (b"\xef\xbb\xbf1\t2\t3\t4\t5\n", [(1, 1, 3, 4, 5)]),
        (b"user_id\tartist_id\talbum_id\ttrack_id\ttimestamp\n1\t2\t3\t4\t5\n", [(2, 1, 3, 4, 5)]),
        (b'\xef\xbb\xbf"user"\t"artist"\t"album"\t"track"\t"ts"\r\n1\t2\t3\t4\t5\n',
         [(2, 1, 3, 4, 5)]),
        (b"# user\tartist\talbum\ttrack\tts\n", []),
        (b"2147483647\t0\t-2147483647\t0\t4294967295",
         [(1, 2147483647, -2147483647, 0, 4294967295)]),
    ],
)  # fmt: skip
def test_events(tmp_path, data, expected):
    problems = Problems(0)
    assert rows_of(read_events(write(tmp_path, data), problems)) == expected
    assert problems.lines() == ["row problems: none"]


def test_bad_events_are_counted_by_kind_with_the_first_line(tmp_path):
    good = b"1\t2\t3\t4\t5\n"
    bad = [
        b"1\t2\t3\t4\n",
        b"\n",
        b"1\t2\t3\t4\t5\t6\n",
        b"1\t2\t3\t4\tx\n",
        b"user_id\tartist_id\talbum_id\ttrack_id\ttimestamp\n",
        b"1\t2\t3\t\t5\n",
        b"1\t2\t3\t4\t-5\n",
        b"-1\t2\t3\t4\t5\n",
        b"1\t2\t3\t-4\t5\n",
        b"1\t2\t3\t4\t4294967296\n",
        b"2147483648\t2\t3\t4\t5\n",
        b"1\t2\t3\t4\t1402884000000\n",
        b"1\t2\t3\t4\t5.0\n",
        b"1\t2.5\t3\t4\t5\n",
        b"1\t2\t3\t4\t \xff\n",
        b"\xff\n",
    ]
    path = write(tmp_path, good + b"".join(bad) + good)
    problems = Problems(1)
    assert rows_of(read_events(path, problems)) == [(1, 1, 3, 4, 5), (18, 1, 3, 4, 5)]
    assert problems.lines() == [
        "row problems:",
        f"  LFM-1b_LEs.txt: wrong column count: 3 of 18 rows, first at {path}:2",
        f"  LFM-1b_LEs.txt: bad number: 11 of 18 rows, first at {path}:5",
        f"  LFM-1b_LEs.txt: bad UTF-8: 2 of 18 rows, first at {path}:16",
    ]


number = st.integers(-3, 2**31 + 3).map(str) | st.sampled_from(
    ["", "-", "+1", "1 ", "\u0661", "007"]
)
cells = st.lists(number, min_size=3, max_size=6).map(lambda row: "\t".join(row).encode())
sound = st.tuples(*[st.integers(0, 2**31 - 1)] * 5).map(
    lambda row: "\t".join(map(str, row)).encode()
)
lines = st.lists(sound | cells | st.binary(max_size=12), max_size=12)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines, st.integers(1, 5), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_events_equal_a_plain_parser(tmp_path, lines, block, end, last_end):
    data = end.join([b"1\t1\t1\t1\t1", *lines]) + (end if last_end else b"")
    expected, total = [], 0
    for line, text in enumerate(data.removesuffix(b"\n").split(b"\n"), start=1):
        total += 1
        row = text.removesuffix(b"\r").split(b"\t")
        if len(row) == 5 and all(re.fullmatch(rb"-?[0-9]{1,10}", cell) for cell in row):
            user, artist, album, track, time = map(int, row)
            in_range = max(map(abs, (user, artist, album, track))) < 2**31 and 0 <= time < 2**32
            if in_range and user >= 0 and track >= 0:
                expected.append((line, user, album, track, time))
    path = write(tmp_path, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_BLOCK_LINES", block)
        problems = Problems(1)
        assert rows_of(read_events(path, problems)) == expected
        assert rows_of(read_events(path)) == expected  # as a file that was checked is read again
    counted = [int(n) for n in re.findall(r": (\d+) of", "\n".join(problems.lines()))]
    assert sum(counted) == total - len(expected)


@pytest.mark.parametrize("first", [b"some text\n", b"a\tb\tc\td\te\tf\n"])
def test_a_first_line_of_another_width_is_no_header(tmp_path, first):
    path = write(tmp_path, first + b"1\t2\t3\t4\t5\n")
    problems = Problems(1)
    assert rows_of(read_events(path, problems)) == [(2, 1, 3, 4, 5)]
    assert problems.lines()[1:] == [
        f"  LFM-1b_LEs.txt: wrong column count: 1 of 2 rows, first at {path}:1"
    ]


def test_endless_line_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_LONGEST_LINE", 100)
    path = write(tmp_path, b"1\t1\t1\t1\t1\n" + b"x" * 500)
    with pytest.raises(PrepError, match="line 2 is too long: not a text table"):
        list(read_events(path, Problems(1)))


def test_names(tmp_path):
    path = tmp_path / "LFM-1b_tracks.txt"
    path.write_bytes(
        b"\xef\xbb\xbftrack_id\ttrack_name\tartist_id\n"
        b"1\tA \xc3\xa9\t7\r\n"
        b"2\tone\ttwo\t7\n"
        b"x\tname\t7\n"
        b"3\t\xff\xfeB\t8\n"
        b"4\t\t9"
    )
    problems = Problems(1)
    assert read_names(path, (0, 2), {1, 2, 3, 4}, problems) == {
        1: (2, "A \u00e9", 7),
        3: (5, "\ufffd\ufffdB", 8),
        4: (6, "", 9),
    }
    assert problems.lines() == [
        "row problems:",
        f"  LFM-1b_tracks.txt: wrong column count: 1 of 5 rows, first at {path}:3",
        f"  LFM-1b_tracks.txt: bad number: 1 of 5 rows, first at {path}:4",
        f"  LFM-1b_tracks.txt: bad UTF-8: 1 of 5 rows, first at {path}:5",
        f"  LFM-1b_tracks.txt: empty title: 1 of 5 rows, first at {path}:6",
    ]


@pytest.mark.parametrize("first", [b"1\tid\n", b"2\tartist_name\n"])
def test_a_first_row_with_an_id_is_no_header(tmp_path, first):
    path = tmp_path / "LFM-1b_artists.txt"
    path.write_bytes(first)
    assert len(read_names(path, (0,), {1, 2}, Problems(0))) == 1


def test_numbers_are_read_whole(tmp_path):
    data = b"4294967295\t0\t0\t0\t0\n0\t0\t0\t0\t9999999999\n1\t0\t0\t0\t4294967295\n"
    events = read_events(write(tmp_path, data), Problems(1))
    assert rows_of(events) == [(3, 1, 0, 0, 4294967295)]
