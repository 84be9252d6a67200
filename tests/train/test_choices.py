import pytest

from intern_vision.task import Task
from intern_vision.train.choices import choose_probe, choose_recipe

CLASSES = tuple(f"c{index}" for index in range(10))
CLASSIFY = Task(family="classify", class_names=CLASSES)
FLOWERS = Task(family="classify", class_names=tuple(f"f{index}" for index in range(102)))
DETECT = Task(family="detect", class_names=CLASSES)
DEPTH = Task(family="depth", max_depth_m=10.0)


@pytest.mark.parametrize(
    ("task", "num_images", "recipe"),
    [
        (CLASSIFY, 10, "frozen"),
        (CLASSIFY, 19, "frozen"),
        (FLOWERS, 102, "frozen"),
        (FLOWERS, 204, "ensemble"),
        (CLASSIFY, 50, "ensemble"),
        (CLASSIFY, 99, "ensemble"),
        (CLASSIFY, 100, "fine_tuned"),
        (FLOWERS, 408, "fine_tuned"),
        (DETECT, 199, "ensemble"),
        (DETECT, 200, "fine_tuned"),
        (DEPTH, 12, "frozen"),
        (DEPTH, 60, "ensemble"),
    ],
)
def test_a_recipe_and_its_reason_follow_from_family_and_labels(task, num_images, recipe):
    found, reason = choose_recipe(task, num_images)
    assert found == recipe and reason.startswith(f"{num_images} images")


def test_a_probe_is_closed_form_where_passes_are_dear():
    assert choose_probe(204, 102)[0] == choose_probe(5_000, 10)[0] == "lbfgs"
    probe, reason = choose_probe(128_117, 1_000)
    assert probe == "ridge" and reason.startswith("128117 images of 1000 classes")
    assert choose_probe(204, 102)[1].startswith("2 images a class")
