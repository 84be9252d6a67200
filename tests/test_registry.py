import base64
import json
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pycocotools.mask
import pytest

from intern_vision.data.codec import decode_map, encode_jpeg, encode_png
from intern_vision.errors import ConfigError, DataError, MissingObjectError, RetryableError
from intern_vision.models.genotype import Genotype, StageGene
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel
from intern_vision.ref import Ref
from intern_vision.registry import find_model, list_models, register_model
from intern_vision.task import Task

TASKS = {
    "classes": Task(family="classify", class_names=("red", "green", "blue")),
    "concepts": Task(family="multilabel", class_names=("red", "green")),
    "boxes": Task(family="detect", class_names=("cat", "dog")),
    "regions": Task(family="segment", class_names=("ground", "sky", "sea")),
    "metres": Task(family="depth", max_depth_m=10.0),
}
GENES = [StageGene(operator="mbconv", expansion=2, width=width, num_blocks=1, stride=2) for width in (8, 16, 16)]
GENOTYPE = Genotype(stem_width=8, stages=tuple(GENES), head_width=0)
PARENT = Ref(kind="weights", name="expert", uri="s3://bucket/expert-1", digest="ab" * 32, num_bytes=1, parents=())


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = ModelSpec(genotype=GENOTYPE, image_size_px=32, heads={k: HeadSpec(task=task) for k, task in TASKS.items()})
    folder = tmp_path_factory.mktemp("model")
    VisionModel(spec).save(folder)
    return folder


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.kron(rng.integers(0, 256, (5, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(3)]


@pytest.fixture(scope="module")
def served(model_dir: Path):
    from intern_vision.serving import MODEL_ARTIFACT, InternModel

    model = InternModel()
    model.load_context(SimpleNamespace(artifacts={MODEL_ARTIFACT: str(model_dir)}))
    return model


def register(model_dir: Path, image: np.ndarray, name: str, **changes) -> str:
    values = {
        "description": "a tiny model",
        "card": "# Tiny\n\nNot for use.",
        "tags": {"intern.digest": "cd" * 32},
        "metrics": {"map@50": 0.25},
        "parents": [PARENT],
        "input_example": image,
    }
    return register_model(model_dir, name=name, **(values | changes))


def test_a_registered_model_is_complete_quick_and_silent(services, model_dir, images, tmp_path, capfd):
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts
    from mlflow.models import Model

    name = f"intern-{uuid.uuid4().hex[:8]}"
    client = MlflowClient()
    experiment_id = client.create_experiment(name)
    run_id = client.create_run(experiment_id).info.run_id
    assert register(model_dir, images[0], name, run_id=run_id) == "1"
    capfd.readouterr()
    started = time.perf_counter()
    assert register(model_dir, images[0], name, card="# Newer") == "2"
    assert time.perf_counter() - started < 3
    assert capfd.readouterr() == ("", "")

    found = find_model(name)
    assert (found.version, found.aliases, found.description) == ("2", ("candidate",), "a tiny model")
    assert found.tags == {
        "intern.digest": "cd" * 32,
        "intern.metric.map_50": "0.25",
        "intern.parent.0.uri": PARENT.uri,
        "intern.parent.0.digest": PARENT.digest,
        "intern.parent.0.kind": "weights",
        "intern.parent.0.name": "expert",
    }
    listed = [model for model in list_models() if model.name == name]
    assert [(model.version, model.aliases) for model in listed] == [("2", ("candidate",)), ("1", ())]
    assert listed[1].run_id == run_id
    assert client.get_registered_model(name).description == "# Newer"
    logged = client.get_logged_model(listed[1].source.removeprefix("models:/"))
    assert [(metric.key, metric.value) for metric in logged.metrics] == [("map_50", 0.25)]

    folder = Path(download_artifacts(found.uri, dst_path=str(tmp_path)))
    assert (folder / "README.md").read_text() == "# Newer"
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pt", ".pth", ".bin")]
    assert "intern-vision==" in (folder / "requirements.txt").read_text()
    saved = Model.load(str(folder))
    assert saved.signature.inputs.input_names() == ["image"]
    defaults = {each["name"]: each["default"] for each in saved.signature.params.to_dict()}
    assert defaults == {"head": "", "min_score": 0.05, "top_k": 5, "mask": "coco_rle"}
    assert saved.load_input_example(str(folder)).columns.tolist() == ["image"]
    heads = {head: Task.from_dict(task) for head, task in saved.metadata["heads"].items()}
    assert heads == TASKS


def test_a_failed_registration_leaves_no_name_behind(services, model_dir, images, monkeypatch):
    from mlflow import MlflowClient

    def refuse(*arguments, **options):
        raise OSError("the line broke")

    monkeypatch.setattr(MlflowClient, "create_model_version", refuse)
    name = f"intern-{uuid.uuid4().hex[:8]}"
    with pytest.raises(OSError, match="the line broke"):
        register(model_dir, images[0], name)
    assert MlflowClient().search_registered_models(f"name = '{name}'") == []


def test_a_fresh_process_loads_the_model_and_agrees(services, model_dir, images, tmp_path):
    name = f"intern-{uuid.uuid4().hex[:8]}"
    register(model_dir, images[0], name)
    path = tmp_path / "image.png"
    path.write_bytes(encode_png(images[1]))
    code = (
        "import json, sys, pandas as pd, mlflow.pyfunc as pyfunc\n"
        "model = pyfunc.load_model(sys.argv[1])\n"
        "path = sys.argv[2]\n"
        "data = open(path, 'rb').read()\n"
        "rows = pd.DataFrame({'image': [path, data]})\n"
        "others = model.predict([{'image': path}]) + model.predict({'image': [path, path]})\n"
        "print(json.dumps([model.predict(rows) + others, model.predict(rows, params={'head': 'classes'})]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"models:/{name}@candidate", str(path)], capture_output=True, text=True, check=True
    )
    everything, classes = json.loads(done.stdout.splitlines()[-1])
    scores = VisionModel.load(model_dir).predict([images[1]], "classes")["classes"][0].scores
    assert len(everything) == 5
    for row in (*everything, classes[0]):
        assert row["classes"]["score"] == pytest.approx(float(scores.max()), abs=1e-5)
        assert row["classes"]["label"] == TASKS["classes"].class_names[int(scores.argmax())]
    assert set(everything[0]) == set(TASKS)
    assert set(classes[0]) == {"classes"}


def test_only_promotion_makes_a_champion(model_dir, images):
    with pytest.raises(ConfigError, match="alias: champion is given by `intern promote` alone"):
        register(model_dir, images[0], "intern-generalist", alias="champion")
    with pytest.raises(ConfigError, match="expected intern-generalist"):
        register(model_dir, images[0], "generalist")


def test_an_absent_server_is_said_at_once(model_dir, images, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started = time.perf_counter()
    for ask in (lambda: register(model_dir, images[0], "intern-generalist"), list_models):
        with pytest.raises(RetryableError, match=f"{uri} is away"):
            ask()
    assert time.perf_counter() - started < 3
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        list_models()


def test_looking_models_up_needs_no_mlflow(services):
    code = (
        "import sys; from intern_vision.registry import list_models; list_models()\n"
        "assert 'mlflow' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(MissingObjectError, match="intern-none@candidate"):
        find_model("intern-none")


def test_every_form_of_input_gives_the_same_answer(served, images, tmp_path):
    data = [encode_png(image) for image in images]
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, each in zip(paths, data, strict=True):
        path.write_bytes(each)
    texts = [base64.b64encode(each).decode() for each in data]
    expected = served.predict(None, pd.DataFrame({"image": data}))
    assert len(expected) == 3
    json.dumps(expected, allow_nan=False)
    for form in (
        pd.DataFrame({"image": texts}),
        pd.DataFrame({"image": [str(path) for path in paths]}),
        pd.DataFrame({"image": images}),
        [{"image": text} for text in texts],
        data,
        np.stack(images),
    ):
        assert served.predict(None, form) == expected
    assert served.predict(None, []) == []


def test_answers_hold_what_the_model_said(served, model_dir, images):
    answers = served.predict(None, np.stack(images), {"min_score": 0.0})
    said = VisionModel.load(model_dir).predict(images)
    for row, answer in enumerate(answers):
        classes = said["classes"][row]
        assert answer["classes"]["label"] == TASKS["classes"].class_names[classes.label]
        assert [each["score"] for each in answer["classes"]["top"]] == sorted(map(float, classes.scores), reverse=True)
        present = {
            name for name, score in zip(("red", "green"), said["concepts"][row].scores, strict=True) if score >= 0.5
        }
        assert set(answer["concepts"]["labels"]) == present
        np.testing.assert_array_equal(answer["boxes"]["boxes"], said["boxes"][row].boxes)
        assert answer["boxes"]["labels"] == [("cat", "dog")[label] for label in said["boxes"][row].labels]
        regions = answer["regions"]
        mask = np.full(regions["size_px"], 255, np.uint8)
        for segment in regions["segments"]:
            # The oracle: what COCO's own reader makes of the run lengths.
            inside = pycocotools.mask.decode(segment["segmentation"]) > 0
            assert (mask[inside] == 255).all() and inside.sum() == segment["area_px"]
            mask[inside] = TASKS["regions"].class_names.index(segment["label"])
        np.testing.assert_array_equal(mask, said["regions"][row].mask)
        metres = answer["metres"]
        depth = decode_map(base64.b64decode(metres["png16"])) * metres["scale_m"]
        np.testing.assert_allclose(depth, said["metres"][row].depth, atol=10.0 / 65535)
    few = served.predict(None, np.stack(images), {"min_score": 1.0, "top_k": 2, "mask": "png"})
    assert few[0]["boxes"]["boxes"] == []
    assert few[0]["classes"]["top"] == answers[0]["classes"]["top"][:2]
    png = decode_map(base64.b64decode(few[0]["regions"]["png"]))
    np.testing.assert_array_equal(png, said["regions"][0].mask)
    assert few[0]["regions"]["class_names"] == list(TASKS["regions"].class_names)


def test_faults_name_the_row_or_the_field(served, images):
    from mlflow.exceptions import MlflowException

    good = encode_jpeg(images[0])
    for bad in (good[:50], b"", b"not an image", "%%%", None, 7, np.zeros((4, 4), np.uint8)):
        with pytest.raises(MlflowException, match="row 1") as caught:
            served.predict(None, [good, bad])
        assert isinstance(caught.value.__cause__, DataError)
        assert caught.value.get_http_status_code() == 400
    with pytest.raises(MlflowException, match="'image', got picture"):
        served.predict(None, pd.DataFrame({"picture": [good]}))
    with pytest.raises(MlflowException, match="head: expected one of"):
        served.predict(None, [good], {"head": "none"})
    for params, line in {
        ("hed", "classes"): "params.hed: unknown",
        ("mask", "runs"): "params.mask: expected one of coco_rle, png, got 'runs'",
        ("top_k", 0): "params.top_k: expected a number >= 1, got 0",
    }.items():
        with pytest.raises(MlflowException, match=line):
            served.predict(None, [good], dict([params]))


def test_a_model_without_heads_says_so(tmp_path):
    from intern_vision.serving import MODEL_ARTIFACT, InternModel

    VisionModel(ModelSpec(genotype=GENOTYPE, image_size_px=32)).save(tmp_path)
    model = InternModel()
    model.load_context(SimpleNamespace(artifacts={MODEL_ARTIFACT: str(tmp_path)}))
    with pytest.raises(Exception, match="has no head that could answer; adapt it to a task first"):
        model.predict(None, [encode_png(np.zeros((4, 4, 3), np.uint8))])
