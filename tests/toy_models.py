"""Tiny models with heads for two families, and batches for them."""

import helpers
import torch

from intern_vision.heads import HeadConfig
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel
from intern_vision.task import Task

TASKS = {
    "multilabel": Task(family="multilabel", class_names=("a", "b", "c")),
    "depth": Task(family="depth", max_depth_m=10.0),
}


def model_of(seed, families=(), **spec):
    """A model without DropPath, with a head for each family."""
    torch.manual_seed(seed)
    heads = {name: HeadSpec(task=TASKS[name], config=HeadConfig(neck_width=8)) for name in families}
    genotype = helpers.GENOTYPE.with_overrides({"drop_path": 0.0})
    return VisionModel(ModelSpec(genotype=genotype, image_size_px=helpers.SIZE_PX, heads=heads, **spec))


def batch_of(num_images=4):
    """Images with concepts and depth."""
    generator = torch.Generator().manual_seed(1)
    size = (num_images, helpers.SIZE_PX, helpers.SIZE_PX)
    return {
        "image_BCHW": torch.randint(0, 256, (num_images, 3, *size[1:]), generator=generator, dtype=torch.uint8),
        "concepts_BK": (torch.rand(num_images, 3, generator=generator) > 0.5).float(),
        "depth_BHW": 1 + 5 * torch.rand(size, generator=generator),
    }
