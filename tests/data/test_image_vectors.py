import numpy as np
import pytest
import torch
from helpers import GENOTYPE, SIZE_PX
from torch.nn import functional as F

from benchmarks.duplicate_recall import made_images
from intern_vision.data.augment import resize_image
from intern_vision.data.duplicates.measure import least_cosine, measure_embedding
from intern_vision.data.duplicates.near import without_near
from intern_vision.data.duplicates.planted import crop, mirror, save_anew
from intern_vision.data.image_vectors import BATCH_IMAGES, ImageVectors
from intern_vision.errors import CheckpointError
from intern_vision.models.vision import ModelSpec, VisionModel


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VisionModel(ModelSpec(genotype=GENOTYPE, image_size_px=SIZE_PX))


def test_vectors_are_the_models_own_whatever_the_batch(model):
    rng = np.random.default_rng(0)
    sizes = [(SIZE_PX, SIZE_PX), (20, 50), (70, 40)]
    images = [rng.integers(0, 256, (*sizes[number % 3], 3), np.uint8) for number in range(BATCH_IMAGES + 5)]
    vectors = ImageVectors(model)
    assert not model.training
    found = vectors.unit(images)
    assert [len(batch) for batch in vectors.batches(images)] == [BATCH_IMAGES, 5]
    assert found.shape == (len(images), model.backbone.vector_width) and found.dtype == np.float32
    with torch.inference_mode():
        for number in (0, 1, 2, len(images) - 1):
            image_BCHW = torch.from_numpy(resize_image(images[number], SIZE_PX)[None]).permute(0, 3, 1, 2)
            expected = F.normalize(model(image_BCHW).vector_BD, dim=1)[0]
            assert found[number] == pytest.approx(expected.numpy(), abs=1e-5)
    assert vectors.unit([]).shape == (0, model.backbone.vector_width)


def test_an_adapted_model_is_the_one_learned_from_most_labels(model, tmp_path):
    model.save(tmp_path)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1)
    model.save(tmp_path / "p10")
    images = [np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)]
    assert ImageVectors.load(tmp_path).unit(images) == pytest.approx(ImageVectors(model).unit(images))
    with pytest.raises(CheckpointError, match=r"model\.json: no such file"):
        ImageVectors.load(tmp_path / "none")


def test_a_trained_model_finds_more_duplicates_than_fresh_weights(model):
    images = without_near([resize_image(image, SIZE_PX) for image in made_images(24, SIZE_PX)])
    own, others = images[::2], images[1::2]
    fresh = planted_recall(model, others)
    learn_same_image(model, own, num_steps=60)
    trained = planted_recall(model, others)
    assert all(trained[name] >= fresh[name] for name in fresh), (fresh, trained)
    assert np.mean([*trained.values()]) > np.mean([*fresh.values()]) + 0.1, (fresh, trained)


def planted_recall(model, images):
    """Recall of each change at the least cosine that at most a twentieth of distinct images reach."""
    curve = measure_embedding(images, ImageVectors(model).unit)
    used = least_cosine(curve, 0.05)
    if used not in curve["thresholds"]:
        return dict.fromkeys(curve["changes"], 0.0)  # distinct images are as near as duplicates
    return {name: change["recall"][curve["thresholds"].index(used)] for name, change in curve["changes"].items()}


def learn_same_image(model, images, num_steps):
    """Two changed copies of an image are to be nearer to each other than to all others of the batch."""
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(num_steps):
        chosen = rng.permutation(len(images))[:32]
        vectors = []
        for _ in range(2):
            batch = [changed(images[number], rng) for number in chosen]
            image_BCHW = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
            vectors.append(F.normalize(model(image_BCHW).vector_BD, dim=1))
        cosine_BB = vectors[0] @ vectors[1].T / 0.1
        loss = F.cross_entropy(cosine_BB, torch.arange(len(chosen)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def changed(image, rng):
    image = crop(save_anew(image, rng), rng)
    return resize_image(mirror(image, rng) if rng.random() < 0.5 else image, SIZE_PX)
