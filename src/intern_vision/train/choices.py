"""What ``auto`` stands for: a probe and a recipe by task family and number of labels, and the reason in words.

The limits were measured with backbones of the nano preset on sets of the made world and on real digits.
"""

from intern_vision.stages.adapt import ProbeMethod, Recipe
from intern_vision.task import Task

MAX_LBFGS_LOGITS = 20_000_000
"""Images times classes up to which L-BFGS, a few hundred passes over them, is a matter of minutes."""
MIN_HELD_OUT_IMAGES = 20
"""Fewer images leave too few to hold out for a choice."""
MIN_TUNED_IMAGES = {"classify": 100, "multilabel": 100, "detect": 200, "segment": 200, "depth": 200}
"""Images from which fine-tuning was as good as a choice on held-out images, which costs twice as much."""
MIN_TUNED_PER_CLASS = 4


def choose_probe(num_images: int, num_classes: int) -> tuple[ProbeMethod, str]:
    """How to fit a classification head on frozen features, and why."""
    per_class = f"{num_images / num_classes:.3g} images a class"
    if num_images * num_classes > MAX_LBFGS_LOGITS:
        return "ridge", f"{num_images} images of {num_classes} classes: the closed form needs two passes over them"
    return "lbfgs", f"{per_class}: logistic regression erred least on average from 1 image a class on"


def choose_recipe(task: Task, num_images: int) -> tuple[Recipe, str]:
    """Whether to train the backbone too, and why."""
    images = f"{num_images} images"
    # Only classification has its images in classes.
    per_class = num_images / task.num_classes if task.family == "classify" else MIN_TUNED_PER_CLASS
    if num_images < MIN_HELD_OUT_IMAGES or per_class < 2:
        return "frozen", f"{images} are too few to hold some out and see whether fine-tuning helps"
    enough = MIN_TUNED_IMAGES[task.family]
    if num_images >= enough and per_class >= MIN_TUNED_PER_CLASS:
        return "fine_tuned", f"{images}: with {enough} or more fine-tuning erred least on average"
    few = f"fewer than {enough}" if num_images < enough else f"fewer than {MIN_TUNED_PER_CLASS} a class"
    return "ensemble", f"{images}, {few}: held-out images decide how much of a fine-tuning to take"
