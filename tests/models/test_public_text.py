"""The text tower of an open_clip file against a plain functional re-implementation, under the public names."""

import pytest
import torch
import torch.nn.functional as F
from plain_networks import Fresh, plain_clip_resnet, plain_clip_text, plain_vit
from safetensors.torch import save_file

from intern_vision.errors import CheckpointError
from intern_vision.models.public_backbones import PublicBackbone, load_public_backbone
from intern_vision.models.public_text import load_public_text, read_public_text
from intern_vision.models.vision import ModelSpec, TextSpec, VisionModel

VIT = PublicBackbone(
    kind="clip_vit", num_blocks=(4,), width=16, num_heads=2, patch_size_px=16, position_size_px=32, quick_gelu=True
)
RESNET = PublicBackbone(
    kind="clip_resnet", num_blocks=(1, 1, 1, 1), width=8, num_heads=4, vector_width=5, position_size_px=32
)
# In CLIP's own numbering: 40 words, the last two of them start and end.
SIZES = TextSpec(vocab_size=40, context_length=9, width=12, num_blocks=3, num_heads=2, pooling="end", embedding_width=5)
START, END = 38, 39


def clip_ids():
    """Texts of several lengths, with the word 0 in them, filled up with 0."""
    generator = torch.Generator().manual_seed(3)
    ids_BL = torch.zeros(4, 9, dtype=torch.int64)
    for row, length in zip(ids_BL, (0, 1, 4, 7), strict=True):
        row[0], row[length + 1] = START, END
        row[1 : length + 1] = torch.randint(0, START, (length,), generator=generator)
    ids_BL[3, 2:4] = 0
    return ids_BL


def our_ids(ids_BL):
    """One larger each, start and end after the hidden word; padding after the end is 0."""
    ours_BL = ids_BL + 1 + (ids_BL >= START)
    after_BL = torch.arange(ids_BL.shape[1]) > ids_BL.argmax(1, keepdim=True)
    return ours_BL.masked_fill(after_BL, 0)


def made_file(backbone, path, prefix="", module=""):
    """A file of random weights; its plain image and text vectors."""
    fresh, images = Fresh(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    sizes = SIZES.model_copy(update={"quick_gelu": backbone.quick_gelu})
    text_BD = plain_clip_text(fresh, clip_ids(), sizes, prefix)
    if backbone.is_resnet:
        image_BD = plain_clip_resnet(fresh, images, backbone)[1]
        fresh.tensors = {name: value for name, value in fresh.tensors.items() if not prefix or is_named(name, prefix)}
    else:
        image_BD = plain_vit(fresh, images, backbone)[1] @ fresh.tensors["visual.proj"]
    fresh.tensors["logit_scale"] = fresh.tensors["logit_scale"].squeeze()
    save_file({module + name: value.contiguous() for name, value in fresh.tensors.items()}, path)
    return images, image_BD, text_BD


def is_named(name, prefix):
    return name.startswith((prefix, "visual.", "logit_scale"))


@torch.inference_mode()
@pytest.mark.parametrize(
    ("backbone", "prefix", "module"),
    [(VIT, "", ""), (VIT, "text.", "module."), (RESNET, "", ""), (RESNET, "text.", "")],
)
def test_both_towers_give_the_cosines_of_the_plain_ones(backbone, prefix, module, tmp_path):
    path = tmp_path / "clip.safetensors"
    images, image_BD, text_BD = made_file(backbone, path, prefix, module)
    spec, tensors = read_public_text(path, backbone, num_heads=2)
    assert spec == SIZES.model_copy(update={"vocab_size": 42, "quick_gelu": backbone.quick_gelu})
    model = VisionModel(ModelSpec(backbone=backbone, image_size_px=32, text=spec)).eval()
    load_public_backbone(model.backbone, path, backbone)
    load_public_text(model.text, tensors, source=str(path))
    ours_BD = model.text.encoder(our_ids(clip_ids()))[0]
    torch.testing.assert_close(ours_BD, text_BD, atol=1e-5, rtol=1e-4)
    vector_BD = model.text.projection(model.backbone(images).vector_BD)
    torch.testing.assert_close(vector_BD, image_BD, atol=1e-4, rtol=1e-4)
    assert float(model.text.scale()) == pytest.approx(float(tensors["log_scale"].exp()), rel=1e-5)
    # A caption may be cut to its own length: nothing reads what comes after the end.
    torch.testing.assert_close(model.text.encoder(our_ids(clip_ids())[:2, :3])[0], text_BD[:2], atol=1e-5, rtol=1e-4)
    cosines = F.normalize(vector_BD, dim=-1) @ F.normalize(ours_BD, dim=-1).T
    assert cosines.std() > 0.01


def test_heads_are_of_64_channels_where_nothing_else_is_said(tmp_path):
    path = tmp_path / "clip.safetensors"
    fresh = Fresh()
    plain_clip_text(fresh, clip_ids(), SIZES.model_copy(update={"width": 128}))
    save_file(fresh.tensors | {"visual.proj": torch.ones(16, 5)}, path)
    assert read_public_text(path, VIT)[0].num_heads == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("text_projection"), r"no text tower of CLIP's kind \(missing or misshapen: text_projection\)"),
        (lambda t: t.pop("visual.proj"), r"missing or misshapen: visual\.proj\); leave vocabulary out"),
        (
            lambda t: [t.pop(name) for name in list(t) if "resblocks.1." in name and "visual" not in name],
            r"missing encoder\.blocks\.1\.norm_attention\.weight; .*; and \d+ more",
        ),
        (lambda t: t.update({"transformer.other": torch.ones(1)}), r"unknown encoder\.transformer\.other"),
    ],
)
def test_missing_and_foreign_weights_are_told_in_one_line(change, message, tmp_path):
    fresh = Fresh()
    plain_clip_text(fresh, clip_ids(), SIZES)
    fresh.tensors["visual.proj"] = torch.ones(16, 5)
    change(fresh.tensors)
    save_file(fresh.tensors, tmp_path / "clip.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        spec, tensors = read_public_text(tmp_path / "clip.safetensors", VIT, num_heads=2)
        model = VisionModel(ModelSpec(backbone=VIT, image_size_px=32, text=spec))
        load_public_text(model.text, tensors, source="clip.safetensors")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
