"""Data that nobody expects: each works, or ends in one error with file, field and remedy."""

import numpy as np
import pytest
import torch
from recbole.data import create_dataset, data_preparation
from recbole.utils import init_seed

from recbole_lea.model import MODELS
from recbole_lea.plugin.trainer import LEATrainer

COLUMNS = "user_id:token\titem_id:token\ttimestamp:float\n"
ITEM_COLUMNS = "item_id:token\ttitle:token_seq\n"


def rows(sequences):
    """A ``.inter`` file: user -> items in time order."""
    return COLUMNS + "".join(
        f"{user}\t{item}\t{time}\n"
        for user, items in sequences.items()
        for time, item in enumerate(items)
    )


def users(n=6, length=6, item=str):
    return {f"u{u}": [item((u + t) % 7) for t in range(length)] for u in range(n)}


def titles(text, n=7):
    """An ``.item`` file in which item 0 has the given title."""
    return ITEM_COLUMNS + "".join(f"{i}\t{text if i == 0 else f'red {i}'}\n" for i in range(n))


NORMAL = rows(users())
TITLES = titles("blue star")
SMALL = {"epochs": 1, "warmup": "0 epochs", "topk": [2], "valid_metric": "NDCG@2"}

# name: (.inter, .item, further keys)
WORKS = {
    "ordinary": (NORMAL, TITLES, {}),
    "no .item": (NORMAL, None, {"lea_allow_no_text": True}),
    "one user": (rows(users(1, 8)), TITLES, {}),
    "two items": (rows({"a": list("0101010"), "b": list("10101")}), TITLES, {}),
    "the shortest sequences beside longer ones":
        (rows(users() | {"x": ["1"], "y": ["1", "2"], "z": ["1", "2", "3"]}), TITLES, {}),
    "one item again and again": (rows(users() | {"x": ["1"] * 9}), TITLES, {}),
    "an item missing from .item": (NORMAL, titles("x", n=5), {}),
    "an item missing from .inter": (NORMAL, titles("x", n=30), {}),
    "duplicate items": (NORMAL, TITLES + "3\tanother title\n0\tagain\n", {}),
    "an empty text": (NORMAL, titles(""), {}),
    "a blank text": (NORMAL, titles(" \u3000\x1f "), {"lea_item_sentence": "{item}[ {title}]"}),
    "no line has a text": (NORMAL, ITEM_COLUMNS + "".join(f"{i}\t\n" for i in range(7)),
                         {"lea_allow_no_text": True}),
    "a line that ends early": (NORMAL, TITLES + "9\n", {}),
    "100 kB of text": (NORMAL, titles("star moon " * 10_000), {}),
    "100 kB of text before the item":
        (NORMAL, titles("star " * 20_000), {"lea_item_sentence": "{title} is {item} film."}),
    "100 kB without a blank": (NORMAL, titles("x" * 100_000), {}),
    "prompt words": (NORMAL, titles("Compute the likelihood that the user first second"), {}),
    "special tokens": (NORMAL, titles("<eos> red <pad></s><|im_end|>"), {}),
    "placeholders": (NORMAL, titles("{item} {history} {list} {{item}} %s {0} ["), {}),
    "brackets": (NORMAL, titles("[[ ] [{title}] ]"), {}),
    "control characters": (NORMAL, titles("a\x07b\x1b[31mc\x7f\x0b\u2028d\x85e"), {}),
    "NUL": (NORMAL, titles("a\0b"), {}),
    "right to left and emoji": (NORMAL, titles("\u202eשלום עולם\u202c 👩‍👩‍👧‍👦 \ufeff\u200b"), {}),
    "a combining flood": (NORMAL, titles("e" + "\u0301" * 5000), {}),
    "a quote within": (NORMAL, titles('the 12" mix'), {}),
    "a quoted text": (NORMAL, titles('"red, ""star"""'), {}),
    "leading zeros": (rows(users(item="00{}".format)), ITEM_COLUMNS + "007\tx\n7\ty\n",
                      {"lea_allow_no_text": True}),
    "leading zeros beside none":
        (rows(users() | {"007": list("0123"), "7": ["00", "0", "000", "1"]}), TITLES, {}),
    "ids like numbers": (rows(users() | {"1e3": ["1.0", "1", "01", "+1", "1e0"], "-0": ["-0", "0x1"]
                                         * 3}), TITLES, {}),
    "ids of every script":
        (rows(users() | {"名前": ["日本", "é", "e\u0301", "🎵", "a b"]}), TITLES, {}),
    "ids of placeholders": (rows(users() | {"{history}": ["{item}", "[", "]", "../x", "[PAD]"]}),
                            None, {"lea_allow_no_text": True}),
    "large and negative times":
        (NORMAL + "v\t1\t-1e300\nv\t2\t0\nv\t3\t9007199254740993\nv\t4\tinf\n", TITLES, {}),
    "too many cells": (NORMAL + "v\t1\t2\t3\t4\n", TITLES, {}),
    "Windows line ends": (NORMAL.replace("\n", "\r\n"), TITLES.replace("\n", "\r\n"), {}),
    "other columns": (NORMAL.replace("timestamp:float", "timestamp:float\tx:float").replace(
        "\n", "\t5\n").replace("x:float\t5", "x:float"), TITLES, {}),
    "a long history": (rows(users(2) | {"long": [str(t * t % 7) for t in range(10_000)]}), TITLES,
                       {"lea_method": "LES", "lea_max_history": 2, "lea_compile": False}),
}  # fmt: skip


def write(folder, inter, item):
    for name, content in (("tiny.inter", inter), ("tiny.item", item)):
        if content is None:
            (folder / name).unlink()
        else:
            raw = content if isinstance(content, bytes) else content.encode()
            (folder / name).write_bytes(raw)


@pytest.mark.parametrize("name", WORKS)
def test_works(tiny_config, tiny_dataset, name):
    inter, item, keys = WORKS[name]
    write(tiny_dataset, inter, item)
    config = tiny_config(**SMALL | keys)
    init_seed(1, True)
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    # the tokens of the file, unchanged
    cells = [line.split("\t") for line in inter.replace("\r", "").split("\n")[1:-1]]
    for field, n in (("user_id", 0), ("item_id", 1)):
        assert set(dataset.field2id_token[field][1:]) == {cell[n] for cell in cells}
    pipeline = train._dataset.lea_pipeline
    assert set(pipeline.catalogue.tokens) == {cell[1] for cell in cells}
    assert np.isfinite(pipeline.item_tokens()).all()
    batch = next(iter(train))
    assert torch.isfinite(batch["lea_state"]).all()
    if len(cells) > 1000:
        return  # the feedback of a long history is enough
    trainer = LEATrainer(config, MODELS[config["model"]](config, train._dataset))
    trainer.fit(train, valid, saved=True)
    result = trainer.evaluate(test)
    assert all(0 <= value <= 1 for value in result.values())


# name: (.inter, .item, further keys, what the error says)
REFUSED = {
    "nothing": ("", TITLES, {}, "tiny.inter: .*first line has to name each column"),
    "no row": (COLUMNS, TITLES, {}, "tiny.inter: no interactions"),
    "one item": (rows({"a": ["1"] * 5, "b": ["1"] * 5}), TITLES, {},
                 "tiny.inter: 1 different item_id .* fewer than 2"),
    "all sequences of one": (rows({f"u{u}": [str(u)] for u in range(9)}), TITLES, {},
                             "tiny.inter: no user_id has two interactions"),
    "all sequences of two": (rows({f"u{u}": [str(u), "1"] for u in range(9)}), TITLES, {},
                             "tiny.inter: too few or too short .* for validation"),
    "one user for three parts": (rows(users(1, 9)), TITLES, {"eval_protocol": "paper"},
                                 "tiny.inter: too few .*eval_protocol: paper.* needs more users"),
    "no types": (NORMAL.replace(":token", ""), TITLES, {}, "tiny.inter: .*user_id:token"),
    "an unknown type": (NORMAL.replace(":float", ":double"), TITLES, {}, "tiny.inter: .*double"),
    "no time column": ("".join(line.rpartition("\t")[0] + "\n" for line in NORMAL.splitlines()),
                       TITLES, {}, "tiny.inter: no column timestamp, which `TIME_FIELD` names"),
    "times that are tokens": (NORMAL.replace("timestamp:float", "timestamp:token"), TITLES, {},
        "tiny.inter: column timestamp is of type token, but what `TIME_FIELD` .* to be float"),
    "lists of times": (NORMAL.replace("timestamp:float", "timestamp:float_seq"), TITLES, {},
                       "tiny.inter: column timestamp is of type float_seq.*write timestamp:float"),
    "items that are numbers": (NORMAL.replace("item_id:token", "item_id:float"), TITLES, {},
        "tiny.inter: column item_id is of type float, but what `ITEM_ID_FIELD` .* to be token"),
    "lists of items": (NORMAL.replace("item_id:token", "item_id:token_seq"), TITLES, {},
                       "tiny.inter: column item_id is of type token_seq"),
    "users that are numbers": (NORMAL.replace("user_id:token", "user_id:float"), TITLES, {},
                               "tiny.inter: column user_id is of type float.*write user_id:token"),
    "an .item of numbers": (
        NORMAL, TITLES.replace("item_id:token", "item_id:float"),
        {"load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id"]}},
        "tiny.item: column item_id is of type float"),
    "a byte order mark": ("\ufeff" + NORMAL, TITLES, {}, "tiny.inter: .*user_id"),
    "another separator": (NORMAL.replace("\t", ","), TITLES, {}, "tiny.inter: "),
    "no time in a row": (NORMAL + "v\t1\t\n", TITLES, {}, "no timestamp in 1 rows, .*line 38"),
    "NaN times": (NORMAL + "v\t1\tnan\nv\t2\tNaN\n", TITLES, {}, "no timestamp in 2 rows"),
    "a word for a time": (NORMAL + "v\t1\tnoon\n", TITLES, {}, "tiny.inter: .*timestamp:float"),
    "a tab after each row": (NORMAL.replace("\n", "\t\n").replace("float\t", "float"), TITLES, {},
                             "tiny.inter: the first row has more cells than there are columns"),
    "an .item with a tab after each row": (
        NORMAL, TITLES.replace("\n", "\t\n").replace("seq\t", "seq"), {},
        "tiny.item: the first row has more cells than there are columns"),
    "too few items for topk": (NORMAL, TITLES, {"topk": [2, 8], "valid_metric": "NDCG@2"},
                               "`topk` asks for the best 8 of the 7 items"),
    "no UTF-8": (NORMAL.encode() + b"\xff\t1\t1\n", TITLES, {}, "tiny.inter: .*utf-8"),
    "an empty .item": (NORMAL, "", {}, "tiny.item: "),
    "no item column":
        (NORMAL, TITLES.replace("item_id", "asin"), {}, "tiny.item: no column item_id"),
    "no such field":
        (NORMAL, TITLES.replace("title", "name"), {}, "lea_item_sentence names .*title"),
    "two titles": (NORMAL, "item_id:token\ttitle:token\ttitle:token_seq\n1\ta\tb\n", {},
                   "tiny.item: two columns of one name"),
    "an .item that is no UTF-8": (NORMAL, TITLES.encode() + b"9\t\xff\n", {}, "tiny.item: .*utf-8"),
    "an .item with a tab too many": (NORMAL, TITLES + "9\ta\tb\tc\n", {}, "tiny.item: .*line 9"),
    "a text that runs on": (NORMAL, titles('"red'), {}, "tiny.item: .*"),
    "a text that takes lines": (NORMAL, titles('"red') + '9\tblue"\n', {},
                                "tiny.item: column title of item '0' spans lines: a quote"),
    "more text than the reader takes": (NORMAL, titles("star " * 40_000), {},
                                        "tiny.item: .*at most 131,072 characters"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(tiny_config, tiny_dataset, name):
    inter, item, keys, message = REFUSED[name]
    write(tiny_dataset, inter, item)
    config = tiny_config(**SMALL | keys)
    with pytest.raises(ValueError, match=message) as error:
        data_preparation(config, create_dataset(config))
    assert len(str(error.value)) < 600
