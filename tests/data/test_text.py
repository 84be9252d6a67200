import gzip

import clip_words
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intern_vision.data.text import Tokenizer, augment_caption, mask_tokens
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


MASK_ID = 297


def caption_tokens(num_rows=400, length=24):
    rng = np.random.default_rng(3)
    tokens = rng.integers(1, MASK_ID, (num_rows, length))
    tokens[:, 0] = MASK_ID + 1  # start
    for row in range(num_rows):
        end = 3 + row % (length - 3)
        tokens[row, end] = MASK_ID + 2
        tokens[row, end + 1 :] = 0
    return tokens


def masked(tokens, share):
    rng = np.random.default_rng(0)
    pairs = [mask_tokens(row, rng, mask_id=MASK_ID, share=share) for row in tokens]
    return np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])


def test_a_share_of_the_ordinary_tokens_is_corrupted_as_in_bert():
    tokens = caption_tokens(1200)
    corrupted, targets = masked(tokens, 0.15)
    assert corrupted.dtype == targets.dtype == np.int64
    ordinary, chosen = (tokens > 0) & (tokens < MASK_ID), targets != -100
    assert not (chosen & ~ordinary).any()
    assert np.array_equal(corrupted[~chosen], tokens[~chosen]) and np.array_equal(targets[chosen], tokens[chosen])
    num_ordinary, num_chosen = ordinary.sum(), chosen.sum()
    # Four standard deviations of a binomial.
    assert abs(num_chosen / num_ordinary - 0.15) < 4 * (0.15 * 0.85 / num_ordinary) ** 0.5
    for name, values, expected in (("mask", MASK_ID, 0.8), ("same", tokens, 0.1)):
        share = (corrupted == values)[chosen].mean()
        assert abs(share - expected) < 4 * (expected * (1 - expected) / num_chosen) ** 0.5 + 0.001, name
    others = corrupted[chosen & (corrupted != MASK_ID) & (corrupted != tokens)]
    assert others.min() >= 1 and others.max() < MASK_ID
    # Random ones are spread over the whole vocabulary.
    assert abs(others.mean() - MASK_ID / 2) < 4 * MASK_ID / (12 * len(others)) ** 0.5


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_is_respected(share):
    tokens = caption_tokens()
    _, targets = masked(tokens, share)
    num_ordinary = ((tokens > 0) & (tokens < MASK_ID)).sum()
    assert (targets >= 0).sum() / num_ordinary == pytest.approx(share, abs=0.03)


def test_clip_s_vocabulary_with_a_mask_can_be_learned():
    # Every merge of two pieces needs words that have them: 30,000 random words of nine letters have enough.
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    captions = (" ".join("".join(word) for word in letters[rng.integers(0, 26, (10, 9))]) for _ in range(3_000))
    found = Tokenizer.train(captions, 49_409)
    assert found.vocab_size == 49_409 and found.end_id == 49_408
    assert (found.mask_id, found.start_id) == (49_406, 49_407)
    tokens = found.encode("a photo of " + 100 * "something ", 77)
    assert tokens.shape == (77,) and tokens.argmax() == 76


NUM_MERGES = 30


@pytest.fixture(scope="module", params=["merges.txt", "merges.txt.gz"])
def clip(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / request.param
    merges = clip_words.write_vocabulary(path, NUM_MERGES)
    return Tokenizer.from_clip(path, 516 + NUM_MERGES), merges


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="abcdefghiopstvxz '.,!?-_&0123456789\n\tABCöß北é", max_size=30))
def test_clip_s_vocabulary_gives_its_ids_one_larger(clip, text):
    tokenizer, merges = clip
    tokens = tokenizer.encode(text, 100)
    ids = [1 + number for number in clip_words.clip_ids(text, merges)]
    assert tokens[: len(ids) + 2].tolist() == [tokenizer.start_id, *ids, tokenizer.end_id]
    assert (tokens[len(ids) + 2 :] == 0).all()


def test_clip_s_vocabulary_is_saved_and_reads_its_own_ids(clip, tmp_path):
    tokenizer, merges = clip
    assert tokenizer.vocab_size == 516 + NUM_MERGES == tokenizer.end_id + 1
    assert (tokenizer.pad_id, tokenizer.mask_id, tokenizer.start_id) == (0, 513 + NUM_MERGES, 514 + NUM_MERGES)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    for text in clip_words.WORDS:
        assert np.array_equal(again.encode(text, 20), tokenizer.encode(text, 20))
    assert again.decode(again.encode("A  red Cup: größe", 40)) == "a red cup : größe"
    assert len(clip_words.clip_ids("cups", merges)) < len("cups")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version\nc u\n", "merges.txt: 1 merges, and the text tower has ids for 3; give the list"),
        (b"version\nc u\nq\nc a\n", "line 3: expected two known pieces of a new one, got 'q'"),
        (b"version\nc u\nc u\nc a\n", "line 3: expected two known pieces of a new one, got 'c u'"),
        (b"version\nc u\nxy z\nc a\n", "line 3: expected two known pieces of a new one, got 'xy z'"),
        (b"\xff\xfe", "cannot be read as a list of merges"),
        (b"\x1f\x8b broken", "cannot be read as a list of merges"),
        (gzip.compress(bytes(17 * 2**20)), "more than 16 MiB of text"),
    ],
)
def test_a_list_of_merges_that_is_none_is_told_in_one_line(content, message, tmp_path):
    (tmp_path / "merges.txt").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        Tokenizer.from_clip(tmp_path / "merges.txt", 516 + 3)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_text_tower_too_small_for_clip_s_bytes_is_refused(tmp_path):
    with pytest.raises(DataError, match="CLIP's bytes alone take 516 ids, got 300"):
        Tokenizer.from_clip(tmp_path / "merges.txt", 300)
