import itertools

import pytest
import torch

from intern_vision.errors import CheckpointError
from intern_vision.models.quantised import QuantisedAutoencoder
from intern_vision.train.settings import CodebookConfig

CONFIG = CodebookConfig(image_size_px=16, levels=(4, 3), width=8)


def model_of(config=CONFIG):
    torch.manual_seed(0)
    return QuantisedAutoencoder(config).eval()


def images(num_images=4, size_px=16):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_images, 3, size_px, size_px), generator=generator, dtype=torch.uint8)


def test_codes_are_the_levels_and_nothing_between():
    model = model_of()
    # Wide inputs of the rounding, so that every level occurs.
    with torch.no_grad():
        model.encoder[-1].weight.mul_(60)
        code_BEHW = model.encode(images(16))
    assert code_BEHW.shape == (16, 2, 4, 4)
    first, second = (sorted(set(code_BEHW[:, number].flatten().tolist())) for number in range(2))
    assert first == [-1.0, -0.5, 0.0, 0.5] and second == [-1.0, 0.0, 1.0]


def test_every_code_has_its_own_number():
    model = model_of()
    codes = torch.tensor(list(itertools.product((-1.0, -0.5, 0.0, 0.5), (-1.0, 0.0, 1.0))))
    assert CONFIG.num_codes == len(codes) == 12
    assert sorted(model.indices(codes.T[None, :, :, None]).flatten().tolist()) == list(range(12))


def test_the_gradient_passes_the_rounding():
    model = model_of().train()
    losses = model.losses(images())
    assert set(losses) == {"pixel"} and 0 < float(losses["pixel"].detach()) < 2
    losses["pixel"].backward()
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in model.parameters())


def test_what_was_saved_restores_the_same(tmp_path):
    model, image_BCHW = model_of(), images()
    model.save(tmp_path)
    restored_BCHW = QuantisedAutoencoder.load(tmp_path).restore(image_BCHW)
    assert torch.equal(restored_BCHW, model.restore(image_BCHW))
    assert restored_BCHW.shape == image_BCHW.shape and restored_BCHW.dtype == torch.uint8


def test_a_few_images_are_learned():
    model, image_BCHW = model_of(CONFIG.model_copy(update={"levels": (8, 5, 5, 5)})).train(), images(2)
    image_BCHW = image_BCHW[:, :, ::8, ::8].repeat_interleave(8, 2).repeat_interleave(8, 3)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0)
    history = []
    for _ in range(60):
        loss = model.losses(image_BCHW)["pixel"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.5 * history[0]


def test_files_that_are_missing_or_damaged_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="codebook.safetensors: cannot be read .* give the output of a represent"):
        QuantisedAutoencoder.load(tmp_path)
    model_of().save(tmp_path)
    other = CONFIG.model_copy(update={"width": 16})
    (tmp_path / "codebook.json").write_text(other.to_json())
    with pytest.raises(CheckpointError, match="codebook.safetensors"):
        QuantisedAutoencoder.load(tmp_path)
    (tmp_path / "codebook.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot be read"):
        QuantisedAutoencoder.load(tmp_path)
