import json

import cv2
import numpy as np
import pytest
import torch
from helpers import GENOTYPE, HEAD, SIZE_PX, commit_folder

from intern_vision.data.codec import encode_jpeg, encode_png
from intern_vision.errors import ConfigError, DataError, MissingObjectError
from intern_vision.heads.base import Prediction
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel
from intern_vision.predict import in_words, predict_files
from intern_vision.task import Task

TASKS = {
    "classify": Task(family="classify", class_names=("ant", "bee", "cat")),
    "multilabel": Task(family="multilabel", class_names=("ant", "bee", "cat")),
    "detect": Task(family="detect", class_names=("ant", "bee")),
    "segment": Task(family="segment", class_names=("ant", "bee")),
    "depth": Task(family="depth", max_depth_m=10.0),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Address of fresh weights with a head of every family."""
    root = tmp_path_factory.mktemp("store")
    torch.manual_seed(0)
    heads = {family: HeadSpec(task=task, config=HEAD) for family, task in TASKS.items()}
    VisionModel(ModelSpec(genotype=GENOTYPE, image_size_px=SIZE_PX, heads=heads)).save(root / "weights")
    return commit_folder(f"file://{root}/store", "generalist", "weights", "all", root / "weights").uri


@pytest.fixture
def pictures(tmp_path):
    """A portrait, a landscape and, in another folder, one of the same name."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    (tmp_path / "other").mkdir()
    (tmp_path / "a.jpg").write_bytes(encode_jpeg(noise))
    (tmp_path / "b.png").write_bytes(encode_png(noise.transpose(1, 0, 2)))
    (tmp_path / "other" / "a.jpg").write_bytes(encode_jpeg(255 - noise))
    return [tmp_path / "a.jpg", tmp_path / "b.png", tmp_path / "other" / "a.jpg"]


def test_every_head_answers_every_picture(model, pictures, tmp_path):
    rows = predict_files(model, pictures, tmp_path / "out", None)
    assert {(row["image"], row["head"]) for row in rows} == {(str(p), head) for p in pictures for head in TASKS}
    drawn = {row["drawn"] for row in rows}
    assert len(drawn) == len(rows) == len(list((tmp_path / "out").iterdir())), "pictures of one name overwrite another"
    assert all(cv2.imread(path) is not None for path in drawn)
    assert all(row["text"] for row in rows)
    answers = {(row["image"], row["head"]): row["answer"] for row in rows}
    json.dumps(list(answers.values()), allow_nan=False)
    assert answers[str(pictures[0]), "classify"]["label"] in TASKS["classify"].class_names
    # Maps are in the picture's own pixels.
    assert answers[str(pictures[0]), "segment"]["size_px"] == [90, 60]
    assert answers[str(pictures[1]), "depth"]["size_px"] == [60, 90]


def test_one_head_can_be_asked(model, pictures, tmp_path):
    rows = predict_files(model, pictures[:1], tmp_path / "out", "depth")
    assert [row["head"] for row in rows] == ["depth"]
    assert rows[0]["drawn"] == str(tmp_path / "out" / "a-depth.png")
    with pytest.raises(ConfigError, match="head: expected one of classify, .* got 'flower'"):
        predict_files(model, pictures[:1], tmp_path / "none", "flower")


def test_file_that_is_no_picture_is_named(model, pictures, tmp_path):
    (tmp_path / "c.jpg").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"c\.jpg: cannot be decoded as an image"):
        predict_files(model, [pictures[0], tmp_path / "c.jpg"], tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


def test_a_folder_and_an_address_are_asked_too(model, pictures, tmp_path):
    rows = predict_files(model, [tmp_path / "other", pictures[1]], tmp_path / "out", "classify")
    assert [row["image"] for row in rows] == [str(pictures[2]), str(pictures[1])]
    with pytest.raises(DataError, match="no such file or folder"):
        predict_files(model, [tmp_path / "gone.png"], tmp_path / "out", "classify")
    with pytest.raises(DataError, match="http://nowhere.invalid/a.jpg: cannot be reached"):
        predict_files(model, ["http://nowhere.invalid/a.jpg"], tmp_path / "out", "classify")


def test_a_model_without_heads_says_so(pictures, tmp_path):
    VisionModel(ModelSpec(genotype=GENOTYPE, image_size_px=SIZE_PX)).save(tmp_path / "weights")
    ref = commit_folder(f"file://{tmp_path}/store", "amateur", "weights", "amateur", tmp_path / "weights")
    with pytest.raises(ConfigError, match="has no head that could answer"):
        predict_files(ref.uri, pictures, tmp_path / "out", None)


def test_missing_weights_are_named(pictures, tmp_path):
    with pytest.raises(MissingObjectError, match="store/nothing"):
        predict_files(f"file://{tmp_path}/store/nothing", pictures[:1], tmp_path / "out", None)


@pytest.mark.parametrize(
    ("family", "values", "text"),
    [
        ("classify", {"label": 1, "scores": np.float32([0.1, 0.7, 0.2])}, "bee (0.70)"),
        ("multilabel", {"scores": np.float32([0.1, 0.7, 0.9])}, "cat (0.90), bee (0.70), ant (0.10)"),
        ("detect", {"labels": np.array([1, 0]), "scores": np.float32([0.8, 0.2])}, "bee (0.80)"),
        ("detect", {"labels": np.array([1]), "scores": np.float32([0.2])}, "nothing above 0.3"),
        ("segment", {"mask": np.uint8([[0, 1, 1, 1]])}, "bee 75 %, ant 25 %"),
        ("depth", {"depth": np.float32([[1.0, 2.5]])}, "1.00 m to 2.50 m"),
    ],
)
def test_answer_in_words(family, values, text):
    if family == "detect":
        values = values | {"boxes": np.zeros((len(values["scores"]), 4), np.float32)}
    assert in_words(Prediction(**values), TASKS[family]) == text
