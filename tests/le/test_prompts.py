"""The paper's prompts as token ids."""

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from transformers import AutoTokenizer

from recbole_lea.le.prompts import (
    Prompts,
    Template,
    following,
    ids_of,
    label_ids,
    title_ids,
)


@pytest.fixture
def tokenizer(tiny_llm):
    return AutoTokenizer.from_pretrained(tiny_llm)


def text(tokenizer, ids, vocab):
    return " ".join(f"<{i - vocab}>" if i >= vocab else tokenizer.decode([i]) for i in ids)


def test_prompts_hold_history_actions_and_list_in_order(tokenizer, settings):
    vocab = len(tokenizer)
    prompts = Prompts(
        tokenizer,
        vocab,
        settings(
            user_prompt="The user has watched these films: {history}",
            reward_prompt="paper",
            action_prompt=" the next film: {item}.",
            selection_prompt=" In the list: {list}, based",
            selection_suffix=" on",
            max_history=2,
            state_input="items",
            reward_head="none",
        ),
    )
    assert text(tokenizer, prompts.reward([4, 5, 6], 9), vocab) == (
        "The user has watched these films : <5> <6> the next film : <9> ."
    )
    assert text(tokenizer, prompts.select([4], [1, 2, 3]), vocab) == (
        "The user has watched these films : <4> In the list : <1> <2> <3> , based on"
    )
    assert text(tokenizer, prompts.state([4, 5, 6]), vocab) == "<5> <6>"


def test_titles_end_in_a_token_of_the_item(tokenizer, settings):
    vocab = len(tokenizer)
    titles = title_ids(tokenizer, ["red green star", "blue", "moon moon moon moon"], limit=3)
    prompts = Prompts(
        tokenizer,
        vocab,
        settings(user_prompt="The films: {history}", selection_prompt=" In {list}, based"),
        titles,
    )
    assert text(tokenizer, prompts.reward([0, 1], 2), vocab) == (
        "The films : red green <0> , <1> next moon moon <2>"
    )
    assert text(tokenizer, prompts.state([1, 0]), vocab) == "The films : <1> , red green <0>"
    assert " <1> , moon moon <2> , based" in text(tokenizer, prompts.select([0], [1, 2]), vocab)


def test_state_input_prompt_is_the_user_prompt_up_to_the_last_item(tokenizer, settings):
    vocab = len(tokenizer)
    prompts = Prompts(
        tokenizer,
        vocab,
        settings(user_prompt="The films: {history} in order", state_input="prompt"),
    )
    assert text(tokenizer, prompts.state([4, 5]), vocab) == "The films : <4> <5>"


def test_a_hopping_window_starts_anew_every_h_steps(tokenizer, settings):
    keys = {"max_history": 4, "history_hop": 3}
    prompts = Prompts(tokenizer, len(tokenizer), settings(**keys))
    windows = [list(prompts.window(range(t))) for t in range(1, 12)]
    assert windows[:6] == [list(range(t)) for t in range(1, 7)]  # 4 to 6 items from the start
    assert [(w[0], len(w)) for w in windows[6:]] == [(3, 4), (3, 5), (3, 6), (6, 4), (6, 5)]
    sliding = Prompts(tokenizer, len(tokenizer), settings(max_history=4))
    assert list(sliding.window(range(9))) == [5, 6, 7, 8]


@pytest.mark.parametrize("bad", ["no placeholder", "{item} and {item}", "{item} {history}"])
def test_template_needs_its_placeholder_once(settings, bad):
    with pytest.raises(ValueError, match="lea_action_prompt"):
        settings(action_prompt=bad)


def test_labels_must_differ_in_their_first_token(tokenizer):
    assert len(set(label_ids(tokenizer, ["first", "second", "third", "fourth", "fifth"]))) == 5
    with pytest.raises(ValueError, match="lea_selection_labels.*'first', 'first'"):
        label_ids(tokenizer, ["first", "first"])


def test_bos_is_added_only_where_the_tokenizer_adds_it(tokenizer):
    class WithBos:
        bos_token_id = 1

        def __call__(self, text, add_special_tokens=True):
            if isinstance(text, list):
                return {"input_ids": [self(t, add_special_tokens)["input_ids"] for t in text]}
            return {"input_ids": [1] * add_special_tokens + [5] * len(text.split())}

    assert Template("a b {item}", WithBos(), first=True).fill([9]) == [1, 5, 5, 9]
    assert Template("a {item}", WithBos()).fill([9]) == [5, 9]
    plain = Template("the {item}", tokenizer, first=True).fill([9])
    assert len(plain) == 2


def test_item_last_ends_with_the_item(tokenizer, settings):
    vocab = len(tokenizer)
    keys = {"user_prompt": "The films: {history}", "reward_prompt": "item_last"}
    prompts = Prompts(
        tokenizer, vocab, settings(action_prompt_item_last=", the next is {item}", **keys)
    )
    assert text(tokenizer, prompts.reward([4], 9), vocab) == "The films : <4> , the next is <9>"
    with pytest.raises(ValueError, match="has to end with"):
        Prompts(tokenizer, vocab, settings(action_prompt_item_last="{item} is next", **keys))


def test_tokenizers_that_put_a_space_before_every_text(settings):
    """Llama 2 and Mistral: the labels must not all start with that space's token."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = ["▁the", "▁first", "▁second", "▁third", "▁next", "▁", ".", "▁film", "the"]
    pieces = sorted({c for w in words for c in w} | set(words))
    tokenizer = Tokenizer(models.Unigram([("<unk>", -99.0)] + [
        (piece, -1.0 if piece in words else -50.0) for piece in pieces
    ], unk_id=0))  # fmt: skip
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    ids = label_ids(fast, ["first", "second", "third"])
    assert fast.convert_ids_to_tokens(ids) == ["▁first", "▁second", "▁third"]
    template = Template("the {item} next film.", fast, first=True)
    tokens = [fast.convert_ids_to_tokens(ids) for ids in (template.before, template.after)]
    assert tokens == [["▁the"], ["▁next", "▁film", "."]]


def test_special_tokens_in_foreign_text_are_text(tokenizer):
    texts = ["red <eos> star", "<eos>", "red star", ""]
    end = tokenizer.eos_token_id
    for read in (ids_of, following):
        own, foreign = read(tokenizer, texts), read(tokenizer, texts, foreign=True)
        assert [ids.count(end) for ids in own] == [1, 1, 0, 0]
        assert not any(end in ids for ids in foreign)
        assert own[2:] == foreign[2:]


PIECE = st.text(alphabet="red star <eos>[]%\u05e9\u202e🎵.: ", max_size=12)


@examples(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(PIECE, PIECE, st.lists(st.integers(0, 20), max_size=5))
def test_any_template_keeps_its_values_and_order(tokenizer, a, b, values):
    template = Template(f"{a}{{history}}{b}", tokenizer, first=True)
    history = [len(tokenizer) + value for value in values]
    assert template.fill(history) == [*template.before, *history, *template.after]
    assert all(i < len(tokenizer) for i in template.before + template.after)


@examples(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 12), st.integers(0, 7))
def test_any_window_ends_with_the_newest_items(tokenizer, settings, history, newest, hop):
    prompts = Prompts(tokenizer, 100, settings(max_history=newest, history_hop=hop))
    window = prompts.window(history)
    assert history[len(history) - len(window) :] == window
    least = min(newest, len(history))
    assert least <= len(window) <= least + max(0, hop - 1)
    ids = prompts.reward(history, 7)
    assert [i - 100 for i in ids if i >= 100] == [*window, 7]
