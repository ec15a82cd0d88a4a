"""Counts and order on the real data, against a computation that shares no code with the package."""

import gzip
import html
import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest


def filtered(rows, minimum):
    """Drop users and items with fewer than ``minimum`` rows (user, item, ...), to the end."""
    while True:
        users, items = Counter(row[0] for row in rows), Counter(row[1] for row in rows)
        left = [r for r in rows if users[r[0]] >= minimum and items[r[1]] >= minimum]
        if len(left) == len(rows):
            return left
        rows = left


def sequences_of(rows):
    made = {}
    for user, item, *_ in rows:
        made.setdefault(user, []).append(item)
    return made


def read_inter(path):
    header, *lines = path.read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    positions = {}
    for row in rows:
        assert int(row[2]) == positions.get(row[0], 0)
        positions[row[0]] = int(row[2]) + 1
    return header, rows


def read_items(path):
    header, *lines = path.read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("\t")] for line in lines]
    names = [cell.split(":")[0] for cell in header.split("\t")]
    assert all(len(row) == len(names) for row in rows)
    return {row[0]: dict(zip(names[1:], row[1:], strict=True)) for row in rows}


def assert_table(out, items, sequences, interactions):
    for label, count in (
        ("items", items),
        ("sequences", sequences),
        ("interactions", interactions),
    ):
        assert re.search(rf"^{label} +{count:,}( |$)", out, re.MULTILINE)


# The counts are those of the computation below, when it was written.
@pytest.mark.parametrize(
    ("days", "counts"), [(7, (1_366, 2_881, 36_038)), (3, (1_041, 1_368, 16_267))]
)
def test_lfm(prep, shared_data, tmp_path, days, counts):
    raw = shared_data("classic_rock_lfm1b")
    events = [line.split("\t") for line in (raw / "LFM-1b_LEs.txt").read_text().splitlines()]
    day_of = [datetime.fromtimestamp(int(row[4]), UTC).date() for row in events]
    # The log has events on every day from its first to its last.
    sizes = {first: sum(0 <= (d - first).days < days for d in day_of) for first in set(day_of)}
    busiest = min(first for first in sizes if sizes[first] == max(sizes.values()))
    inside = [
        (row[0], row[3], int(row[4]))
        for row, day in zip(events, day_of, strict=True)
        if 0 <= (day - busiest).days < days
    ]
    rows = filtered(sorted(inside, key=lambda row: (int(row[0]), row[2])), 3)

    output = tmp_path / "dataset" / "lfm"
    status, out, err = prep("lfm", "--input", raw, "--output", output, "--days", days)
    assert (status, err) == (0, "")
    assert f"window: {busiest} to {busiest + timedelta(days - 1)}" in out
    assert f"the busiest: {len(inside):,} events" in out
    _, made = read_inter(output / "lfm.inter")
    assert [(row[0], row[1], int(row[3])) for row in made] == rows
    items = read_items(output / "lfm.item")
    assert set(items) == {row[1] for row in rows}
    assert (len(items), len(sequences_of(rows)), len(rows)) == counts
    assert_table(out, *counts)
    tracks = dict(
        (cells[0], cells[1:])
        for cells in (line.split("\t") for line in (raw / "LFM-1b_tracks.txt").open())
    )
    artists = dict(line.rstrip("\n").split("\t") for line in (raw / "LFM-1b_artists.txt").open())
    for item, text in items.items():
        title, artist = tracks[item]
        assert text == {
            "title": title.strip(), "album": "", "artist": artists[artist.strip()].strip(),
        }  # fmt: skip


def test_amazon(prep, shared_data, tmp_path):
    raw = shared_data("amazon_gift_cards_raw")
    with gzip.open(raw / "Gift_Cards_5.json.gz") as file:
        reviews = [json.loads(line) for line in file]
    earliest = {}
    for review in reviews:
        pair = review["reviewerID"], review["asin"]
        earliest[pair] = min(earliest.get(pair, 2**40), review["unixReviewTime"])
    rows = filtered([(*pair, time) for pair, time in earliest.items()], 3)

    output = tmp_path / "dataset" / "gift"
    status, out, err = prep(
        "amazon", "--input", raw, "--category", "Gift_Cards", "--output", output
    )
    assert (status, err) == (0, "")
    _, made = read_inter(output / "gift.inter")
    assert sorted((row[0], row[1], int(row[3])) for row in made) == sorted(rows)
    times = {}
    for row in made:
        assert times.get(row[0], 0) <= int(row[3])
        times[row[0]] = int(row[3])
    items = read_items(output / "gift.item")
    assert set(items) == {row[1] for row in rows}
    counts = len(items), len(times), len(rows)
    assert counts == (148, 458, 2_965)
    assert_table(out, *counts)
    assert f"reviews: {len(reviews):,}, of which 7 repeat" in out

    with gzip.open(raw / "meta_Gift_Cards.json.gz") as file:
        metadata = {row["asin"]: row for row in map(json.loads, file)}
    for item, text in items.items():
        title = metadata[item]["title"]
        assert text["title"] == " ".join(html.unescape(title).split())
        for value in text.values():
            assert not re.search(r"</?(div|p|br|span|h4|img)\b|&(amp|lt|gt|quot|nbsp);", value)
        assert bool(text["brand"]) == bool(metadata[item]["brand"].strip())


def test_sequences(prep, shared_data, tmp_path):
    raw = shared_data("amazon_industrial")
    inter = json.loads((raw / "Scientific.inter.json").read_text())
    metadata = json.loads((raw / "Scientific.item.json").read_text())
    output = tmp_path / "dataset" / "industrial"
    status, out, err = prep(
        "sequences", "--inter", raw / "Scientific.inter.json",
        "--items", raw / "Scientific.item.json", "--output", output,
    )  # fmt: skip
    assert (status, err) == (0, "")
    header, made = read_inter(output / "industrial.inter")
    assert header == "user_id:token\titem_id:token\ttimestamp:float"
    assert sequences_of(made) == {user: [str(i) for i in items] for user, items in inter.items()}
    assert_table(out, 4_344, 8_317, 58_492)
    items = read_items(output / "industrial.item")
    assert set(items) == set(metadata)
    for ours, theirs, count in (
        ("title", "title", 4_344),
        ("description", "description", 4_221),
        ("brand", "brand", 4_332),
        ("category", "categories", 4_213),
    ):
        assert sum(bool(text[ours]) for text in items.values()) == count
        changed = [
            item
            for item, text in items.items()
            if text[ours] != " ".join(metadata[item][theirs].split())
        ]
        # Only markup and entities are cleaned.
        assert all(re.search(r"[<>]|&#?\w+;", metadata[item][theirs]) for item in changed)
