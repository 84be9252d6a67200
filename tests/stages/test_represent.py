import numpy as np
import pytest
import torch
from helpers import AUGMENT, SIZE_PX, trainer_config

from intern_vision.data.augment import Resize
from intern_vision.data.loader import ShardSource, evaluation_batches
from intern_vision.errors import ConfigError
from intern_vision.models.quantised import QuantisedAutoencoder
from intern_vision.stages import represent
from intern_vision.stages.base import Inputs, fetch, read_record, run_stage
from intern_vision.store import open_store
from intern_vision.train.settings import CodebookConfig

CODEBOOK = CodebookConfig(image_size_px=SIZE_PX, levels=(4, 4, 4), width=8)
STILL = AUGMENT.model_copy(update={"colour_probability": 0.0, "grey_probability": 0.0, "scale_min": 0.9})


def config_of(**settings) -> represent.Config:
    trainer = trainer_config(num_steps=30, learning_rate=1e-2, weight_decay=0.0, log_every=10)
    return represent.Config(**{"codebook": CODEBOOK, "augment": STILL, "trainer": trainer} | settings)


def test_a_codebook_restores_images_of_its_own_kind(world, tmp_path):
    ref = run_stage("represent", config_of(), Inputs(data=(world.upstream,)), name="represent")
    store = open_store(world.store_root)
    record, folder = read_record(store, ref.uri), fetch(store, ref, tmp_path)
    assert set(record.files) == {"codebook.safetensors", "codebook.json", "history.jsonl"}
    model = QuantisedAutoencoder.load(folder)
    source = ShardSource(store, world.upstream.uri, cache_dir=tmp_path / "cache", split="val", fields=())
    batch = next(evaluation_batches(source, len(source), Resize(AUGMENT)))
    image_BCHW = batch["image_BCHW"]
    mean_error = float((model.restore(image_BCHW).float() - image_BCHW.float()).square().mean())
    assert record.facts["psnr_db"] == pytest.approx(10 * np.log10(255**2 / mean_error), rel=1e-4)
    grey = float((image_BCHW.float() - image_BCHW.float().mean()).square().mean())
    assert mean_error < 0.7 * grey, "codes say more about an image than its mean"
    with torch.no_grad():
        num_used = len(model.indices(model.encode(image_BCHW)).unique())
    assert record.facts["used_codes"] == num_used / 64 and num_used > 3


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match=r"augment.image_size_px must be codebook.image_size_px 64, got 32"):
        config_of().with_overrides({"codebook": {"image_size_px": 64}})
    with pytest.raises(ConfigError, match=r"image_size_px: expected a multiple of 64, got 32"):
        config_of().with_overrides({"codebook": {"num_halvings": 6}})
    with pytest.raises(ConfigError, match="augment.num_views must be 1, got 2"):
        config_of().with_overrides({"augment": {"num_views": 2}})
