import json
import uuid
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import GENOTYPE, HEAD, SIZE_PX, commit_folder
from running import strict_json
from typer.testing import CliRunner

from intern_vision import benchmark_steps
from intern_vision.bench.scores import SCORES_FILE, ProtocolScore, Scores
from intern_vision.cli import app
from intern_vision.errors import ConfigError, MissingObjectError, RetryableError
from intern_vision.mlflow_rest import Server
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel
from intern_vision.promotion import Gate, promote, shortfalls
from intern_vision.ref import Ref
from intern_vision.registry import RegisteredModel, find_model, find_version, log_scores, register_model
from intern_vision.task import Task

DATA = {"intern.parent.0.kind": "dataset", "intern.parent.0.digest": "ab" * 32}


def version(number: int, tags=DATA, **scores) -> RegisteredModel:
    metrics = {f"intern.metric.{name.replace('__', '/')}": str(value) for name, value in scores.items()}
    values = {"aliases": (), "source": "", "run_id": "", "description": "", "created_unix_s": 0.0}
    return RegisteredModel(name="intern-x", version=str(number), tags=dict(tags) | metrics, **values)


CHAMPION = version(1, **{"10__error": 0.30, "100__error": 0.10, "10__accuracy": 0.7})


@pytest.mark.parametrize(
    ("scores", "gate", "lines"),
    [
        ({"10__error": 0.30, "100__error": 0.10}, {}, []),
        ({"10__error": 0.31, "100__error": 0.11}, {}, []),
        ({"10__error": 0.32, "100__error": 0.05}, {}, ["10/error is 0.32, version 1 has 0.3 (tolerance 0.01)"]),
        ({"10__error": 0.32, "100__error": 0.05}, {"tolerance": 0.05}, []),
        ({"10__error": 0.2}, {}, ["100/error is missing, version 1 has 0.1 (tolerance 0.01)"]),
        ({"10__error": float("nan"), "100__error": 0.1}, {}, ["10/error is nan, version 1 has 0.3 (tolerance 0.01)"]),
        (
            {"10__error": 0.2, "100__error": 0.1, "10__accuracy": 0.8},
            {"minimum": {"10/accuracy": 0.9}, "maximum": {"100/error": 0.05}},
            [
                "gate.minimum.10/accuracy: expected at least 0.9, got 0.8",
                "gate.maximum.100/error: expected at most 0.05, got 0.1",
            ],
        ),
        (
            {"10__error": 0.2, "100__error": 0.1},
            {"minimum": {"10/top9": 0.9}},
            ["gate.minimum.10/top9: it has no such score; it has 10/error, 100/error"],
        ),
        ({}, {}, ["it has no scores; evaluate it before it is registered"]),
    ],
)
def test_each_score_that_falls_short_is_told(scores, gate, lines):
    assert list(shortfalls(version(2, **scores), CHAMPION, Gate.from_dict(gate))) == lines


def test_the_first_champion_needs_the_limits_only():
    candidate = version(1, **{"10__error": 0.9})
    assert shortfalls(candidate, None, Gate()) == ()
    assert len(shortfalls(candidate, None, Gate(maximum={"10/error": 0.5}))) == 1


def test_a_fine_tuned_protocol_is_named_as_people_write_it():
    candidate = version(1, **{"10_ft__error": 0.2})
    assert shortfalls(candidate, None, Gate(maximum={"10+ft/error": 0.3})) == ()


def test_errors_on_other_images_do_not_compare():
    other = version(2, DATA | {"intern.parent.0.digest": "cd" * 32}, **{"10__error": 0.1, "100__error": 0.1})
    (line,) = shortfalls(other, CHAMPION, Gate())
    assert "made with other images than intern-x version 1" in line and "gate.same_data" in line
    assert shortfalls(other, CHAMPION, Gate(same_data=False)) == ()


@pytest.mark.parametrize(
    ("gate", "line"),
    [
        ({"tolerance": -1}, "gate.tolerance"),
        ({"minimal": {}}, "gate.minimal"),
        ({"minimum": {"a": 2}, "maximum": {"a": 1}}, "minimum.a: expected at most maximum.a 1, got 2"),
    ],
)
def test_wrong_gates_are_refused(gate, line):
    with pytest.raises(ConfigError, match=line):
        Gate.from_dict(gate, at="gate")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    torch.manual_seed(0)
    heads = {"classify": HeadSpec(task=Task(family="classify", class_names=("a", "b")), config=HEAD)}
    folder = tmp_path_factory.mktemp("model")
    VisionModel(ModelSpec(genotype=GENOTYPE, image_size_px=SIZE_PX, heads=heads)).save(folder)
    return folder


@pytest.fixture
def register(services, model_dir):
    """Registers versions of one fresh name with these scores."""
    name = f"intern-{uuid.uuid4().hex[:8]}"
    parent = Ref(kind="dataset", name="d", uri="s3://bucket/d", digest="ab" * 32, num_bytes=1, parents=())

    def add(**scores: float) -> str:
        register_model(
            model_dir,
            name=name,
            description="tiny",
            card="# Tiny",
            tags={"intern.uri": f"file://{model_dir}"},
            metrics={key.replace("__", "/"): value for key, value in scores.items()},
            parents=[parent],
            input_example=np.zeros((8, 8, 3), np.uint8),
        )
        return name

    return add


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_champion_moves_only_through_the_gate(register):
    name = register(**{"10__error": 0.30})
    first = promote(name, Gate())
    assert first.moved and find_model(name, "champion").version == "1"
    assert find_version(name, "1").tags["intern.promoted_over"] == "none"
    again = promote(name, Gate())
    assert not again.moved and again.to_line() == f"{name} version 1 is the champion already"

    register(**{"10__error": 0.40})
    refused = invoke("promote", name)
    assert refused.exit_code == 2 and refused.stdout == ""
    assert refused.stderr == (
        f"error: {name} version 2 does not pass: 10/error is 0.4, version 1 has 0.3 (tolerance 0.01)\n"
    )
    assert find_model(name, "champion").version == "1"
    # A later measurement on the same version counts.
    log_scores(find_model(name), {"10/error": 0.25, "10+ft/error": 0.2})
    done = invoke("promote", f"{name}@candidate", "--gate", '{"maximum": {"10+ft/error": 0.2}}', "--json")
    said = strict_json(done.stdout)
    assert done.exit_code == 0 and said["moved"] and said["champion"] == f"{name} version 1"
    champion = find_model(name, "champion")
    assert champion.version == "2" and champion.tags["intern.promoted_over"] == "1"
    # A champion is held to the limits too.
    assert invoke("promote", name, "--gate", '{"maximum": {"10/error": 0.1}}').exit_code == 2


def test_another_baseline_and_names_that_do_not_exist(register):
    name = register(**{"10__error": 0.30})
    assert promote(name, Gate(), baseline=f"{name}@candidate").moved
    for model, baseline, line in (
        ("intern-nothing", "", "intern-nothing@candidate: not registered"),
        (f"{name}@best", "", f"{name}@best: not registered; registered are"),
        (name, f"{name}@best", f"{name}@best: not registered"),
    ):
        with pytest.raises(MissingObjectError, match=line):
            promote(model, Gate(), baseline=baseline)
    assert invoke("promote", name, "--gate", '{"tolerance": "much"}').exit_code == 2
    assert invoke("promote", name, "--gate", "[]").exit_code == 2


def test_nothing_moves_while_the_server_is_away(register, monkeypatch):
    name = register(**{"10__error": 0.30})

    def away(self, path, body):
        raise RetryableError("MLflow is away")

    monkeypatch.setattr(Server, "post", away)
    with pytest.raises(RetryableError):
        promote(name, Gate())
    monkeypatch.undo()
    with pytest.raises(MissingObjectError):
        find_model(name, "champion")
    assert promote(name, Gate()).moved


def test_benchmark_scores_are_added_and_asked_about(register, tmp_path):
    root = f"file://{tmp_path}/store"
    name = register()

    def scored(number: int, arm: str, error: float) -> SimpleNamespace:
        folder, output = tmp_path / f"scores-{number}", tmp_path / f"ref-{number}"
        folder.mkdir()
        score = ProtocolScore(error=error, metrics={}, num_train=1, num_test=1, method="frozen")
        scores = Scores(dataset="pets", model=arm, family="classify", protocols={"10": score})
        (folder / SCORES_FILE).write_text(scores.to_json())
        output.write_text(commit_folder(root, "evaluate", "scores", f"s{number}", folder).to_json())
        return SimpleNamespace(path=str(output))

    files, output = [scored(1, "intern", 0.25), scored(2, "clip", 0.5)], str(tmp_path / "verdict")
    benchmark_steps.promote(f"models:/{name}@candidate", "intern", "", files, output)
    assert json.loads((tmp_path / "verdict").read_text()) == []
    assert find_model(name).scores == {"pets/10/error": 0.25}
    with pytest.raises(MissingObjectError):
        find_model(name, "champion")
    strict, loose = (json.dumps({"maximum": {"pets/10/error": limit}}) for limit in (0.2, 0.3))
    with pytest.raises(SystemExit) as caught:
        benchmark_steps.promote(f"models:/{name}@candidate", "intern", strict, files, output)
    assert caught.value.code == ConfigError.exit_code
    benchmark_steps.promote(f"models:/{name}@candidate", "intern", loose, files, output)
    (row,) = json.loads((tmp_path / "verdict").read_text())
    assert row["moved"] and find_model(name, "champion").version == row["version"]
    # Weights on the store have no version to promote.
    benchmark_steps.promote(f"{root}/generalist/x", "intern", loose, files, output)
    assert json.loads((tmp_path / "verdict").read_text()) == []
