"""Items, their sentences, and what happens without text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_lea.le.catalogue import Catalogue, check_sentence, check_title

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


def test_titles_name_an_item_without_text_by_its_token():
    items = Catalogue({"1": {"title": "Toy {x}", "year": "1995"}, "2": {"title": "", "year": ""}})
    assert items.titles("{title}[ ({year})]") == ["Toy (x) (1995)", "2"]
    with pytest.raises(ValueError, match="lea_title names the field 'name'"):
        items.titles("{name}")


@pytest.mark.parametrize(
    "template", ["no field", "{item} {title}", "{title}[ ({year})", "{title} {"]
)
def test_title_that_cannot_name_every_item(template):
    with pytest.raises(ValueError, match="lea_title"):
        check_title(template)


def test_text_cannot_smuggle_in_a_placeholder():
    sentences, _ = Catalogue({"1": {"title": "a {item} {title}\n\tb"}}).sentences(
        "{item} is {title}"
    )
    assert sentences == ["{item} is a (item) (title) b"]


@pytest.mark.parametrize(
    "template",
    [
        "no placeholder", "{item} {item}", "[{item} is {title}]", "{title} is {item} ",
        "{item}[ is {title}", "{item} is {title}]", "{item}[ is [{title}]]",
        "{item}[ is {title]", "{item} is title}", "{item} is {a{title}}", "{item} is {a[b]}",
    ],
)  # fmt: skip
def test_template_that_cannot_describe_every_item(template):
    with pytest.raises(ValueError, match="lea_item_sentence"):
        check_sentence(template)


def test_a_field_s_name_is_whatever_the_column_s_is():
    texts = {"main category": "Books", "1-star": "2", "é.x": ""}
    items = Catalogue({"1": texts, "2": {"main category": ""}})
    template = "{item} is[ a {1-star}][ of {é.x}][ in {main category}]."
    assert items.sentences(template) == (["{item} is a 2 in Books.", "{item} is titled 2."], ["2"])
    for name in ("main  category", " main category", "titel", "ti tel", "1", ""):
        with pytest.raises(ValueError, match=f"lea_item_sentence names the field '{name}'.*main"):
            items.sentences(f"{{item}}[ of {{{name}}}].")


def test_nothing_but_blanks_is_no_text():
    sentences, without = Catalogue({"1": {"title": " \u3000\n"}}).sentences("{item}[ {title}]")
    assert (sentences, without) == (["{item} is titled 1."], ["1"])


TEXT = st.text() | st.sampled_from(["{item}", "[", "]", "{title}", "}{", "[{item}]", "\u2028", ""])
TEMPLATES = ["{item} is {a}.", "{item}[ {a}][ {b}]", "[{b}: ]{item}[, {a}]", "{a} [{b}] {item} x"]


@settings(max_examples=50)
@given(
    st.dictionaries(
        TEXT, st.fixed_dictionaries({"a": TEXT}, optional={"b": TEXT}), min_size=1, max_size=4
    ),
    st.sampled_from(TEMPLATES),
)
def test_any_text_gives_one_line_with_the_item_once(texts, template):
    check_sentence(template)
    items = Catalogue(texts | {"x": {"a": "1", "b": "2"}})
    sentences, without = items.sentences(template)
    assert set(without) <= set(texts)
    for sentence in sentences:
        assert sentence.count("{item}") == sentence.count("{") == sentence.count("}") == 1
        assert sentence.partition("{item}")[2].strip()
        assert len(sentence.splitlines()) == 1


def test_unknown_field_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="'name'.*title"):
        Catalogue({"1": {"title": "x"}}).sentences("{item} is {name}")


def test_empty_catalogue():
    with pytest.raises(ValueError, match="at least one item"):
        Catalogue({})
