import numpy as np
import pytest
import torch
from helpers import GENOTYPE, SIZE_PX, TEXT

from intern_vision.bench.zero_shot import zero_shot_weights
from intern_vision.data.labels.embedding import amateur_embedding
from intern_vision.data.labels.merge import MergeConfig, merge
from intern_vision.data.labels.vocabulary import Vocabulary
from intern_vision.data.text import Tokenizer
from intern_vision.errors import ConfigError
from intern_vision.models.vision import ModelSpec, TextSpec, VisionModel


@pytest.fixture(scope="module")
def amateur(tmp_path_factory):
    """A fresh amateur with a bag of words: names that share words lie close."""
    folder = tmp_path_factory.mktemp("amateur")
    tokenizer = Tokenizer.train(["a red circle on a table", "a green square", "a lamp beside a house"] * 5, 320)
    torch.manual_seed(0)
    text = TEXT.with_overrides({"num_blocks": 0, "pooling": "mean", "context_length": 24}).to_dict()
    spec = ModelSpec(genotype=GENOTYPE, image_size_px=SIZE_PX, text=TextSpec(vocab_size=tokenizer.vocab_size, **text))
    VisionModel(spec).save(folder)
    tokenizer.save(folder / "tokenizer.json")
    return folder


def test_vectors_of_a_real_text_tower(amateur):
    names = ["red circle", "green square", "red circle"]
    vectors_ND = amateur_embedding(amateur)(names)
    assert vectors_ND.dtype == np.float32 and vectors_ND.shape == (3, TEXT.embedding_width)
    assert np.allclose(np.linalg.norm(vectors_ND, axis=1), 1, atol=1e-5)
    model, tokenizer = VisionModel.load(amateur).eval(), Tokenizer.load(amateur / "tokenizer.json")
    assert np.allclose(vectors_ND, zero_shot_weights(model, tokenizer, names).numpy())


def test_an_amateur_proposes_matches(amateur):
    lists = [
        Vocabulary.from_dict({"name": "a", "classes": ["green square", "red table lamp"]}),
        Vocabulary.from_dict({"name": "b", "classes": ["red lamp table"]}),
    ]
    embed = amateur_embedding(amateur)
    merged = merge(lists, embed=embed, config=MergeConfig(min_similarity=0.5))
    mapping = merged.mappings[-1]
    assert mapping.kind == "embedding" and mapping.is_uncertain
    assert merged.system[mapping.proposal].name == "red table lamp"
    first, second = embed(["red table lamp", "red lamp table"])
    assert mapping.confidence == pytest.approx(float(first @ second), abs=1e-3)


def test_weights_without_a_text_tower(amateur, tmp_path):
    VisionModel(ModelSpec(genotype=GENOTYPE, image_size_px=SIZE_PX)).save(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((amateur / "tokenizer.json").read_bytes())
    with pytest.raises(ConfigError, match="the model has no text tower"):
        amateur_embedding(tmp_path)(["a"])
