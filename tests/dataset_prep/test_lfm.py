"""``python -m dataset_prep lfm`` on small folders, with literal output."""

from datetime import date

import numpy as np
import pytest

from dataset_prep.lfm import busiest_window

DAY = 86_400
# 2014-06-16 00:00 UTC
MONDAY = 1_402_876_800


@pytest.fixture
def small(lfm_folder):
    """Two users on two days, and what has to be left out, in an order that has to be mended."""
    events = [
        (7, 1, 30, 100, MONDAY + 50),
        (7, 1, 31, 100, MONDAY + 10),
        (7, 1, 30, 100, MONDAY + 60),
        (7, 1, -1, 5, MONDAY + 10),
        (3, 1, -1, 5, MONDAY + DAY),
        (3, 1, 30, 100, MONDAY + DAY - 1),
        (3, 1, 32, 5, MONDAY + 2 * DAY - 1),
        (9, 1, 30, 100, MONDAY + DAY),  # one event: too short a sequence
        (3, 2, 30, 200, MONDAY),  # a track heard once
        (3, 1, 31, 100, MONDAY + 2 * DAY),  # a day later than the window
        (3, 1, 31, 100, MONDAY - 1),
        (8, 1, 31, 100, MONDAY - 1),
    ]
    tracks = [
        (5, "None", 2),
        (100, ' "Heroes" \u2013 live', 1),
        (100, "second row", 1),
        (1, "x", 1),
    ]
    albums = [
        (30, "Album\u2028One", 1),
        (30, "second row", 1),
        (31, "Other", 1),
        (32, 'The "32"', 2),
    ]
    artists = [(1, "Bowie"), (2, " Bj\u00f6rk ")]
    return lfm_folder(events, tracks, albums, artists)


def test_output(prep, small, tmp_path):
    output = tmp_path / "dataset" / "music"
    status, out, err = prep(
        "lfm", "--input", small, "--output", output, "--days", 2, "--min-interactions", 2,
        "--max-bad", 0.2,
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert sorted(path.name for path in output.iterdir()) == ["music.inter", "music.item"]
    assert [path.name for path in output.parent.iterdir()] == ["music"]
    # User 7 has two events in one second: they stay in the order of the file.
    assert (output / "music.inter").read_text() == (
        "user_id:token\titem_id:token\ttimestamp:float\ttime:float\n"
        f"3\t100\t0\t{MONDAY + DAY - 1}\n"
        f"3\t5\t1\t{MONDAY + DAY}\n"
        f"3\t5\t2\t{MONDAY + 2 * DAY - 1}\n"
        f"7\t100\t0\t{MONDAY + 10}\n"
        f"7\t5\t1\t{MONDAY + 10}\n"
        f"7\t100\t2\t{MONDAY + 50}\n"
        f"7\t100\t3\t{MONDAY + 60}\n"
    )
    assert (output / "music.item").read_text() == (
        "item_id:token\ttitle:token_seq\talbum:token_seq\tartist:token_seq\n"
        '5\t None\tThe "32"\tBj\u00f6rk\n'
        '100\t "Heroes" \u2013 live\tAlbum One\tBowie\n'
    )
    assert out == (
        "events: 12 from 2014-06-15 to 2014-06-18\n"
        "window: 2014-06-16 to 2014-06-17 (2 UTC days), the busiest: 9 events\n"
        "filtering:\n"
        "  round 1: 3 sequences, 3 items, 9 interactions; drops 1 sequences, 1 items\n"
        "  round 2: 2 sequences, 2 items, 7 interactions; drops 0 sequences, 0 items\n"
        "row problems:\n"
        "  events in the window: unknown id: 1 of 9 rows, "
        f"first at {small}/LFM-1b_LEs.txt:9 (track)\n"
        "                      this run         paper (LFM)\n"
        "items                        2              18,297\n"
        "sequences                    2              11,073\n"
        "interactions                 7             146,255\n"
        "mean length               3.50               13.21\n"
        "with title              100.0%\n"
        "with album              100.0%\n"
        "with artist             100.0%\n"
        f"wrote {output}\n"
        "next: python run_recbole_lea.py --model=SASRecSA2CLEA --dataset=music "
        "--config_files=properties/dataset/lfm.yaml\n"
    )


def lines_of(path):
    return [tuple(line.split("\t")) for line in path.read_text().splitlines()[1:]]


def test_start_takes_that_window(prep, small, tmp_path):
    output = tmp_path / "d"
    options = ["--min-interactions", 1, "--max-bad", 1, "--output", output]
    status, out, _ = prep("lfm", "--input", small, "--days", 1, "--start", "2014-06-15", *options)
    assert status == 0
    assert "window: 2014-06-15 to 2014-06-15 (1 UTC days), as asked: 2 events" in out
    assert "events: 12 from 2014-06-15 to 2014-06-18" in out
    assert [row[:2] for row in lines_of(output / "d.inter")] == [("3", "100"), ("8", "100")]
    # The album comes from the window's events alone.
    assert lines_of(output / "d.item")[0][2] == "Other"


def test_start_and_default_give_the_same_bytes(prep, small, tmp_path):
    common = ["lfm", "--input", small, "--days", 2, "--min-interactions", 2, "--max-bad", 0.2]
    prep(*common, "--output", tmp_path / "a" / "x")
    prep(*common, "--output", tmp_path / "b" / "x", "--start", "2014-06-16")
    for name in ("x.inter", "x.item"):
        data = (tmp_path / "a" / "x" / name).read_bytes()
        assert data == (tmp_path / "b" / "x" / name).read_bytes() and len(data) > 60


def test_drop_repeats(prep, small, tmp_path):
    output = tmp_path / "d"
    options = ["--days", 2, "--min-interactions", 2, "--max-bad", 0.2, "--drop-repeats"]
    assert prep("lfm", "--input", small, "--output", output, *options)[0] == 0
    assert [row[:3] for row in lines_of(output / "d.inter")] == [
        ("3", "100", "0"), ("3", "5", "1"), ("7", "100", "0"), ("7", "5", "1"), ("7", "100", "2"),
    ]  # fmt: skip


def test_headers_are_skipped(prep, small, tmp_path):
    names = {
        "LEs": b"user_id\tartist_id\talbum_id\ttrack_id\ttimestamp\n",
        "tracks": b"track_id\ttrack_name\tartist_id\n",
        "albums": b"album_id\talbum_name\tartist_id\n",
        "artists": b"artist_id\tartist_name\n",
    }
    options = ["--days", 2, "--min-interactions", 2, "--max-bad", 0.2]
    prep("lfm", "--input", small, "--output", tmp_path / "a" / "x", *options)
    for kind, header in names.items():
        path = small / f"LFM-1b_{kind}.txt"
        path.write_bytes(header + path.read_bytes())
    status, out, _ = prep("lfm", "--input", small, "--output", tmp_path / "b" / "x", *options)
    assert status == 0
    for name in ("x.inter", "x.item"):
        assert (tmp_path / "a" / "x" / name).read_bytes() == (
            tmp_path / "b" / "x" / name
        ).read_bytes()
    # The only problem is the track without a row, a line further down.
    assert out.count("first at") == 1 and "LEs.txt:10 (track)" in out


def test_album_is_that_of_most_events_and_the_lowest_id_among_equals(prep, lfm_folder, tmp_path):
    albums_named = {1: [9, 8, 8, -1, -1, -1], 2: [9, 8], 3: [-1, -1], 4: [7, 7, 8]}
    events = [
        (user, 1, album, track, MONDAY)
        for track, albums in albums_named.items()
        for user, album in enumerate(albums)
    ]
    folder = lfm_folder(
        events,
        [(n, f"T{n}", 1) for n in albums_named],
        [(8, "Eight", 1), (9, "Nine", 1), (-1, "no album", 1)],
        [(1, "A")],
    )
    output = tmp_path / "d"
    status, out, _ = prep(
        "lfm", "--input", folder, "--output", output, "--min-interactions", 1, "--max-bad", 1
    )
    assert status == 0
    # Album 7 is in no row of the albums file.
    assert [row[2] for row in lines_of(output / "d.item")] == ["Eight", "Eight", "", ""]
    line = len(albums_named[1]) + len(albums_named[2]) + len(albums_named[3]) + 1
    where = f"{folder}/LFM-1b_LEs.txt:{line} (album)"
    assert f"kept tracks: unknown id: 1 of 4 rows, first at {where}" in out


def test_items_without_metadata_keep_a_row(prep, lfm_folder, tmp_path):
    events = [
        (user, 1, -1, track, MONDAY + n) for user in (1, 2) for n, track in enumerate([4, 5, 6, 2])
    ]
    folder = lfm_folder(events, [(5, " ", 77), (6, "Six", 1)], [], [(1, "A")])
    output = tmp_path / "d"
    options = ["--min-interactions", 2, "--max-bad", 0.5]
    status, out, _ = prep("lfm", "--input", folder, "--output", output, *options)
    assert status == 0
    assert lines_of(output / "d.item") == [
        ("2", "", "", ""),
        ("4", "", "", ""),
        ("5", "", "", ""),
        ("6", "Six", "", "A"),
    ]
    tracks = f"{folder}/LFM-1b_tracks.txt"
    assert (
        "row problems:\n"
        f"  LFM-1b_tracks.txt: empty title: 1 of 2 rows, first at {tracks}:1\n"
        "  events in the window: unknown id: 4 of 8 rows, "
        f"first at {folder}/LFM-1b_LEs.txt:1 (track)\n"
        f"  kept tracks: unknown id: 1 of 4 rows, first at {tracks}:1 (artist)\n"
    ) in out


def undated_folder(lfm_folder, early):
    """Write a folder of six events on one day and others at the times ``early``."""
    events = [(user, 1, -1, track, MONDAY + user) for user in (1, 2) for track in (4, 5, 6)]
    events += [(n % 2 + 1, 1, -1, 4, time) for n, time in enumerate(early)]
    return lfm_folder(events, [(n, f"T{n}", 1) for n in (4, 5, 6)], [], [(1, "A")])


@pytest.mark.parametrize(
    "early",
    [
        [0] * 9,  # never set
        [n * 3600 for n in range(24)],  # a clock that starts at 0, or local time written as UTC
        [n * 30 * DAY for n in range(12)] * 3,  # a clock that ran on through the year
    ],
)
def test_undated_events_choose_no_window(prep, lfm_folder, tmp_path, early):
    folder = undated_folder(lfm_folder, early)
    common = ["lfm", "--input", folder, "--min-interactions", 1, "--days", 3]
    status, out, err = prep(*common, "--output", tmp_path / "d")
    assert (status, err) == (0, "")
    assert out.startswith(
        f"undated: {len(early):,} events of 1970, left out of the choice of a window\n"
        "events: 6 from 2014-06-16 to 2014-06-16\n"
        "window: 2014-06-16 to 2014-06-18 (3 UTC days), the busiest: 6 events\n"
    )
    assert len(lines_of(tmp_path / "d" / "d.inter")) == 6
    # Who asks for that time gets it.
    status, out, _ = prep(*common, "--start", "1970-01-01", "--output", tmp_path / "e")
    assert status == 0 and "window: 1970-01-01 to 1970-01-03 (3 UTC days), as asked: " in out


@pytest.mark.parametrize("early", [[], [365 * DAY] * 20, [0] * 20 + [400 * DAY]])
def test_a_log_that_goes_on_in_1971_is_taken_as_it_is(prep, lfm_folder, tmp_path, early):
    folder = undated_folder(lfm_folder, early)
    options = ["--min-interactions", 1, "--output", tmp_path / "d"]
    status, out, _ = prep("lfm", "--input", folder, *options)
    assert status == 0 and "undated" not in out
    assert f"events: {6 + len(early)} from " in out


def test_a_log_of_1970_alone_is_taken_as_it_is(prep, lfm_folder, tmp_path):
    folder = lfm_folder([(1, 1, -1, 4, 5)] * 3, [(4, "T", 1)], [], [(1, "A")])
    options = ["--min-interactions", 1, "--output", tmp_path / "d"]
    status, out, _ = prep("lfm", "--input", folder, *options)
    assert status == 0 and "undated" not in out and "window: 1970-01-01" in out


def test_undated_events_stay_out_of_an_empty_window_s_message(prep, lfm_folder, tmp_path):
    folder = undated_folder(lfm_folder, [0] * 9)
    options = ["--start", "2013-01-01", "--output", tmp_path / "d"]
    status, _, err = prep("lfm", "--input", folder, *options)
    assert status == 1 and err.endswith("there are 6 from 2014-06-16 to 2014-06-16\n")


def test_bad_rows_over_the_limit_are_an_error(prep, lfm_folder, tmp_path):
    good = [(user, 1, -1, 1, MONDAY) for user in range(98)]
    folder = lfm_folder([*good, b"1\t2\n", b"x\t1\t1\t1\t1\n"], [(1, "T", 1)], [], [(1, "A")])
    common = ["lfm", "--input", folder, "--output", tmp_path / "d", "--min-interactions", 1]
    where = f"{folder}/LFM-1b_LEs.txt"
    assert prep(*common) == (
        1,
        "",
        "error: LFM-1b_LEs.txt: 2 of 100 rows are bad, over the share of 0.01 that --max-bad "
        f"allows: wrong column count: 1, first at {where}:99; "
        f"bad number: 1, first at {where}:100\n",
    )
    assert not (tmp_path / "d").exists()
    assert prep(*common, "--start", "2014-06-16")[0] == 1
    status, out, _ = prep(*common, "--max-bad", 0.02)
    assert status == 0
    assert f"bad number: 1 of 100 rows, first at {where}:100" in out


@pytest.mark.parametrize("options", [[], ["--start", "2014-06-16"]])
def test_a_file_of_bad_rows_is_told_as_such(prep, lfm_folder, tmp_path, options):
    folder = lfm_folder([b"1,2,3,4,5\n"] * 3)
    status, _, err = prep("lfm", "--input", folder, "--output", tmp_path / "d", *options)
    assert status == 1 and "3 of 3 rows are bad" in err


def test_one_bad_row_in_a_hundred_is_allowed(prep, lfm_folder, tmp_path):
    good = [(user, 1, -1, 1, MONDAY) for user in range(99)]
    folder = lfm_folder([*good, b"1\t2\n"], [(1, "T", 1)], [], [(1, "A")])
    output = tmp_path / "d"
    assert prep("lfm", "--input", folder, "--output", output, "--min-interactions", 1)[0] == 0


@pytest.mark.parametrize("options", [[], ["--start", "2014-06-16"]])
def test_no_events(prep, lfm_folder, tmp_path, options):
    folder = lfm_folder([])
    status, _, err = prep("lfm", "--input", folder, "--output", tmp_path / "d", *options)
    assert (status, err) == (1, f"error: {folder}/LFM-1b_LEs.txt: no events\n")


def test_empty_window(prep, small, tmp_path):
    status, _, err = prep(
        "lfm", "--input", small, "--output", tmp_path / "d", "--start", "2013-01-01", "--days", 30
    )
    assert (status, err) == (
        1,
        f"error: {small}/LFM-1b_LEs.txt: no events in 2013-01-01 to 2013-01-30 (30 UTC days); "
        "there are 12 from 2014-06-15 to 2014-06-18\n",
    )


@pytest.mark.parametrize(
    ("per_day", "days", "first"),
    [
        ([0, 5, 1, 5, 1], 1, date(1970, 1, 2)),
        ([0, 5, 1, 5, 1], 2, date(1970, 1, 2)),
        ([0, 1, 0, 1, 9, 0, 8], 3, date(1970, 1, 5)),
        ([1, 0, 0, 2, 2, 0, 0, 0], 2, date(1970, 1, 4)),
        ([0, 0, 3, 0], 4, date(1970, 1, 3)),
    ],
)
def test_busiest_window(per_day, days, first):
    assert busiest_window(np.array(per_day), days) == first
