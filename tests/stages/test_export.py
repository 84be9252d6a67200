import json
import uuid

import pytest
from helpers import commit_folder, save_backbone
from made_manifests import commit_rows, image_row, picture

from intern_vision.bench.scores import ProtocolScore, Scores
from intern_vision.data.manifest import SourceInfo
from intern_vision.errors import ConfigError
from intern_vision.registry import find_model
from intern_vision.stages import export, shard
from intern_vision.stages.base import COMMIT_MARKER, Inputs, read_record, run_stage
from intern_vision.store import join_uri, open_store


def with_inputs(ref, **inputs):
    """The same output, recorded as made from these."""
    store = open_store(ref.uri)
    uris = {name: (each.uri,) for name, each in inputs.items()}
    parents = tuple(each.uri for each in inputs.values())
    record = read_record(store, ref.uri)
    made = record.model_copy(update={"inputs": uris, "ref": ref.model_copy(update={"parents": parents})})
    store.put(made.to_json().encode(), join_uri(ref.uri, COMMIT_MARKER))
    return made.ref


@pytest.fixture
def adapted(world, tmp_path):
    """A model adapted to the flower set and its scores, as adapt and evaluate leave them."""
    amateur = save_backbone(world, tmp_path / "amateur")
    model = save_backbone(world, tmp_path / "model", heads=("multilabel", "depth"), seed=1)
    model = with_inputs(model, model=amateur, data=world.flower)
    score = ProtocolScore(error=0.25, metrics={"error": 0.25, "top1": 0.75}, num_train=6, num_test=24, method="probe")
    scores = Scores(dataset="flower", model="intern", family="classify", protocols={"10": score, "10+ft": score})
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "scores.json").write_text(scores.to_json())
    return model, with_inputs(
        commit_folder(world.store_root, "evaluate", "scores", uuid.uuid4().hex, tmp_path / "scores"), model=model
    )


def rows_of(ref):
    return json.loads(open_store(ref.uri).read(join_uri(ref.uri, export.REGISTERED_FILE)))


def test_without_a_server_nothing_is_registered(world, adapted):
    model, scores = adapted
    ref = run_stage("export", export.Config(), Inputs(adapted=(model,), scores=(scores,)))
    assert rows_of(ref) == []


def test_a_registered_version_holds_its_scores_parents_and_card(world, adapted, services, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", services.mlflow_uri)
    model, scores = adapted
    prefix = f"intern-{uuid.uuid4().hex[:8]}-"
    ref = run_stage("export", export.Config(prefix=prefix), Inputs(adapted=(model,), scores=(scores,)))
    (row,) = rows_of(ref)
    assert row == {"name": f"{prefix}flower", "version": "1", "alias": "candidate", "uri": model.uri}
    found = find_model(row["name"])
    assert found.scores == {"10/error": 0.25, "10/top1": 0.75, "10_ft/error": 0.25, "10_ft/top1": 0.75}
    parents = {found.tags[f"intern.parent.{number}.{field}"] for number in range(2) for field in ("uri", "kind")}
    assert parents == {*model.parents, "dataset", "weights"}
    card = MlflowClient().get_registered_model(row["name"]).description
    assert "- `depth` (depth): metres, at most " in card and " labels: " in card
    assert "| @10+ft | 6 | 25.0 % | top1 0.75 |" in card
    assert f"intern serve {row['name']}" in card
    assert "## Images it learned from\n\n- `flower`: Apache-2.0, from intern_vision.data.world\n" in card


def test_an_alias_that_only_promotion_gives_is_refused(world, adapted, services, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", services.mlflow_uri)
    model, scores = adapted
    with pytest.raises(ConfigError, match="champion is given by `intern promote` alone"):
        run_stage("export", export.Config(alias="champion"), Inputs(adapted=(model,), scores=(scores,)))


def test_a_card_names_the_licence_of_every_source_however_far_back(world, adapted, tmp_path):
    sources = [
        SourceInfo(name=name, uri=f"s3://raw/{name}", licence=licence)
        for name, licence in (("photos", "CC BY 4.0"), ("web", "MIT"))
    ]
    rows = [
        image_row(tmp_path / "raw", f"{name}-{index}", picture(index), source=name)
        for name in ("photos", "web")
        for index in range(4)
    ]
    manifest = commit_rows(world.store_root, tmp_path / "m", rows, sources)
    data = run_stage("shard", shard.Config(), Inputs(manifest=(manifest,)))
    # An amateur of these images, and a model adapted from it to others.
    amateur = with_inputs(save_backbone(world, tmp_path / "amateur", seed=2), data=data)
    model = with_inputs(
        save_backbone(world, tmp_path / "model", heads=("depth",), seed=3), model=amateur, data=world.flower
    )
    store = open_store(world.store_root)
    lines = export.data_lines(store, model.uri)
    assert lines == [
        "`flower`: Apache-2.0, from intern_vision.data.world",
        "`photos`: CC BY 4.0, from s3://raw/photos",
        "`web`: MIT, from s3://raw/web",
    ]
    card = export.model_card("intern-flower", model, read_record(store, model.uri), lines, None, {})
    assert "- `photos`: CC BY 4.0, from s3://raw/photos\n- `web`: MIT, from s3://raw/web\n" in card
    store.delete(data.uri)
    assert export.data_lines(store, model.uri)[1:] == [
        f"`{data.uri}`: no longer on the store, whatever its licence was"
    ]
