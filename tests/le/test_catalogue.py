"""Items, their sentences, and what happens without text."""

import pytest

from recbole_lea.le.catalogue import Catalogue

TEMPLATE = "{item} film[ is titled {title}][, released in {year}]."


def test_order_is_by_token_whatever_the_input_order():
    one = Catalogue({"b": {}, "a": {}})
    two = Catalogue({"a": {}, "b": {}})
    assert one.tokens == two.tokens == ["a", "b"]
    assert one.index == {"a": 0, "b": 1}


def test_sentences_drop_clauses_without_text():
    items = Catalogue(
        {
            "1": {"title": "Toy Story", "year": "1995"},
            "2": {"title": "unknown year", "year": ""},
            "3": {"title": "", "year": ""},
        }
    )
    sentences, without = items.sentences(TEMPLATE)
    assert sentences == [
        "{item} film is titled Toy Story, released in 1995.",
        "{item} film is titled unknown year.",
        "{item} is titled 3.",
    ]
    assert without == ["3"]


def test_text_cannot_smuggle_in_a_placeholder():
    sentences, _ = Catalogue({"1": {"title": "a {item} {title}\n\tb"}}).sentences(
        "{item} is {title}"
    )
    assert sentences == ["{item} is a (item) (title) b"]


@pytest.mark.parametrize("template", ["no placeholder", "{item} {item}"])
def test_template_needs_item_once(template):
    with pytest.raises(ValueError, match="lea_item_sentence"):
        Catalogue({"1": {"title": "x"}}).sentences(template)


def test_unknown_field_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="'name'.*title"):
        Catalogue({"1": {"title": "x"}}).sentences("{item} is {name}")


def test_empty_catalogue():
    with pytest.raises(ValueError, match="at least one item"):
        Catalogue({})
