from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SIZE_PX, commit_folder

from intern_vision.data.loader import ShardSource
from intern_vision.data.sample import Sample
from intern_vision.errors import CheckpointError
from intern_vision.models.quantised import QuantisedAutoencoder
from intern_vision.stages.base import Inputs
from intern_vision.store import open_store
from intern_vision.train import represented as module
from intern_vision.train.represented import CodebookObjective, RepresentedSource, represented_source
from intern_vision.train.settings import CodebookConfig

CONFIG = CodebookConfig(image_size_px=SIZE_PX, levels=(4, 4), width=8)


class Context:
    """What ``represented_source`` uses of a stage's context."""

    def __init__(self, world, folder: Path):
        self.store, self.cache_dir, self.inputs, self._folder = open_store(world.store_root), folder, Inputs(), folder

    def fetch(self, ref):
        from intern_vision.stages.base import fetch

        return fetch(self.store, ref, self._folder / "inputs")


@pytest.fixture
def codebook(world, tmp_path):
    torch.manual_seed(0)
    QuantisedAutoencoder(CONFIG).save(tmp_path / "codebook")
    return commit_folder(world.store_root, "represent", "weights", f"codebook-{tmp_path.name}", tmp_path / "codebook")


def source_of(context, world, keys=None):
    return ShardSource(
        context.store, world.flower.uri, cache_dir=context.cache_dir, split="train", fields=("label",), keys=keys
    )


def test_images_are_restored_once_and_all_else_stays(world, tmp_path, codebook, monkeypatch):
    context = Context(world, tmp_path / "cache")
    labelled = source_of(context, world)
    some = source_of(context, world, labelled.keys[3:9])
    found = represented_source(some, labelled, codebook, context, bf16=False)
    model = QuantisedAutoencoder.load(tmp_path / "codebook")
    assert len(found) == 6
    for index in range(6):
        original, sample = some[index], found[index]
        expected = model.restore(torch.from_numpy(original.image).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
        np.testing.assert_allclose(sample.image.astype(int), expected.numpy().astype(int), atol=1)
        assert (sample.key, sample.label) == (original.key, original.label)
        assert not np.array_equal(sample.image, original.image)
    monkeypatch.setattr(module.QuantisedAutoencoder, "load", None)
    again = represented_source(labelled, labelled, codebook, context, bf16=False)
    assert np.array_equal(again[3].image, found[0].image)


def test_an_image_keeps_its_size_so_that_its_boxes_fit():
    sample = Sample(key="a", split="train", image=np.zeros((20, 30, 3), np.uint8), label=4)
    restored_NHWC = np.full((2, 8, 8, 3), 9, np.uint8)
    found = RepresentedSource([sample], restored_NHWC, ["b", "a"])[0]
    assert found.image.shape == (20, 30, 3) and (found.image == 9).all() and found.label == 4


def test_another_stages_output_is_refused(world, tmp_path):
    context = Context(world, tmp_path / "cache")
    labelled = source_of(context, world)
    with pytest.raises(CheckpointError, match="give the output of a represent stage"):
        represented_source(labelled, labelled, world.genotype, context, bf16=False)


def test_the_objective_is_the_models_loss(tmp_path):
    torch.manual_seed(0)
    objective = CodebookObjective(QuantisedAutoencoder(CONFIG))
    image_BCHW = torch.randint(0, 256, (2, 3, SIZE_PX, SIZE_PX), dtype=torch.uint8)
    losses, values = objective({"image_BCHW": image_BCHW})
    assert torch.equal(losses["pixel"], objective.model.losses(image_BCHW)["pixel"]) and not values
    objective.save(tmp_path)
    assert QuantisedAutoencoder.load(tmp_path).config == CONFIG
