import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intern_vision.data.text import Tokenizer, augment_caption
from intern_vision.errors import ConfigError, DataError

CAPTIONS = [
    f"a {size} {colour} {shape}" for size in ("small", "large") for colour in ("red", "blue") for shape in ("cup",)
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CAPTIONS * 5, 300)


def test_ids_are_ordered_as_the_text_encoder_needs(tokenizer):
    assert tokenizer.pad_id == 0
    assert tokenizer.mask_id < tokenizer.start_id < tokenizer.end_id == tokenizer.vocab_size - 1
    assert 260 < tokenizer.vocab_size <= 300


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40), st.integers(2, 24))
def test_any_text_has_its_largest_id_at_the_end_token(tokenizer, text, context_length):
    tokens = tokenizer.encode(text, context_length)
    assert tokens.shape == (context_length,) and tokens.dtype == np.int64
    assert tokens[0] == tokenizer.start_id
    end = int(tokens.argmax())
    assert tokens[end] == tokenizer.end_id
    assert (tokens == tokenizer.end_id).sum() == 1
    assert (tokens[end + 1 :] == 0).all() and (tokens[:end] > 0).all()


def test_special_tokens_in_a_caption_are_plain_text(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    for each in (tokenizer, Tokenizer.load(tmp_path / "tokenizer.json")):
        tokens = each.encode("a <end> <mask> cup", 40)
        assert (tokens == each.end_id).sum() == 1
        assert each.mask_id not in tokens
        assert each.decode(tokens) == "a <end> <mask> cup"


def test_save_and_load_give_the_same_ids(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    again = Tokenizer.load(path)
    assert again.vocab_size == tokenizer.vocab_size
    for caption in [*CAPTIONS, "Größe 北 🎈"]:
        assert np.array_equal(again.encode(caption, 32), tokenizer.encode(caption, 32))
    assert again.decode(again.encode("A Größe 北", 32)) == "a größe 北"


def test_faults_are_named(tmp_path):
    with pytest.raises(ConfigError, match="vocab_size: expected at least 260, got 100"):
        Tokenizer.train(CAPTIONS, 100)
    (tmp_path / "bad.json").write_text("{}")
    for name in ("bad.json", "none.json"):
        with pytest.raises(DataError, match=f"{name}: not a tokenizer file"):
            Tokenizer.load(tmp_path / name)


WORDS = [f"w{index}" for index in range(20)]


def test_each_of_the_three_changes_occurs_and_touches_two_of_twenty_words():
    kinds = set()
    for seed in range(60):
        changed = augment_caption(WORDS, np.random.default_rng(seed), {word: [word + "x"] for word in WORDS})
        if len(changed) == 18:
            assert set(changed) < set(WORDS)
            kinds.add("deletion")
        elif set(changed) == set(WORDS):
            assert 2 <= sum(a != b for a, b in zip(changed, WORDS, strict=True)) <= 4 or changed == WORDS
            kinds.add("swap")
        else:
            assert [word.removesuffix("x") for word in changed] == WORDS
            assert sum(word.endswith("x") for word in changed) == 2
            kinds.add("synonym")
    assert kinds == {"deletion", "swap", "synonym"}


@given(st.lists(st.sampled_from(["red", "cup", "on"]), max_size=6), st.integers(0, 200))
def test_some_word_is_left_and_the_seed_decides(words, seed):
    synonyms = {"red": "crimson", "cup": ["mug", "beaker"]}
    changed = augment_caption(words, np.random.default_rng(seed), synonyms)
    assert changed == augment_caption(words, np.random.default_rng(seed), synonyms)
    assert bool(changed) == bool(words)
    assert set(changed) <= {"red", "cup", "on", "crimson", "mug", "beaker"}
    assert len(augment_caption(words, np.random.default_rng(seed))) in (len(words), len(words) - 1)
