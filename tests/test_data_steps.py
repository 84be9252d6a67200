import json
from types import SimpleNamespace

import pytest
from annotators import COLOURS, make_shop
from helpers import GENOTYPE, SIZE_PX, TEXT, commit_folder, set_environment
from made_manifests import commit_rows, image_row, picture

from intern_vision.annotate_commands import copy_tasks
from intern_vision.data.annotation.files import LABELLING_FILE, TASKS_FILE
from intern_vision.data.manifest import SourceInfo
from intern_vision.data.manifest_store import load_manifest
from intern_vision.data.tables import iter_rows
from intern_vision.data.text import Tokenizer
from intern_vision.data_steps import committed_refs, data_step, shard_step, stage_settings
from intern_vision.errors import ConfigError, MissingObjectError
from intern_vision.models.vision import ModelSpec, TextSpec, VisionModel
from intern_vision.stages.base import read_record, read_ref, read_refs
from intern_vision.store import join_uri, open_store
from intern_vision.task import Task

CLASSES = Task(family="classify", class_names=("cat", "dog"))


@pytest.fixture
def store_root(tmp_path, monkeypatch):
    root = f"file://{tmp_path}/store"
    set_environment(monkeypatch, {"INTERN_STORE": root, "INTERN_STATE": str(tmp_path / "state")})
    return root


def artifact(path):
    return SimpleNamespace(path=str(path))


@pytest.fixture
def manifest(store_root, tmp_path):
    """An artifact with the Ref of a manifest of two sources."""
    rows = [
        image_row(tmp_path / "made", f"{source}-{n}", picture(n + 50 * number), source=source, labels=("cat",))
        for number, source in enumerate(("one", "two"))
        for n in range(8)
    ]
    sources = tuple(
        SourceInfo(name=name, uri=f"file:///{name}", tasks={"classify": CLASSES}) for name in ("one", "two")
    )
    ref = commit_rows(store_root, tmp_path / "made", rows, sources)
    (tmp_path / "manifest").write_text(ref.to_json())
    return artifact(tmp_path / "manifest")


def test_settings_of_a_stage_are_its_part_under_what_is_given():
    settings = json.dumps({"filter": {"name": "kept", "rules": []}, "shard": {"name": "x"}})
    found = stage_settings("filter", settings, {"rules": '["text"]', "name": ""})
    assert found == {"name": "kept", "rules": ["text"]} and stage_settings("label", "", {}) == {}
    with pytest.raises(ConfigError, match="settings: 'shards' is no stage; expected names such as ingest"):
        stage_settings("shard", '{"shards": {}}', {})
    with pytest.raises(ConfigError, match=r"settings.shard: expected an object, got 3"):
        stage_settings("shard", '{"shard": 3}', {})
    with pytest.raises(ConfigError, match="rules: expected JSON, got 'text'"):
        stage_settings("filter", "", {"rules": "text"})


def test_addresses_are_those_of_committed_outputs(store_root, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "x").write_text("x")
    ref = commit_folder(store_root, "prepare", "dataset", "pets", tmp_path / "own")
    assert committed_refs(json.dumps([ref.uri]), "against") == (ref,) and committed_refs("", "against") == ()
    with pytest.raises(MissingObjectError):
        committed_refs(json.dumps([f"{ref.uri}-2"]), "against")
    with pytest.raises(ConfigError, match="against: expected a JSON array of addresses, got"):
        committed_refs(json.dumps(ref.uri), "against")


def test_without_rules_the_manifest_stays_as_it_is(manifest, tmp_path):
    own = {"inputs": {"manifest": manifest}, "unless_empty": "rules"}
    data_step("filter", "", str(tmp_path / "same"), given={"rules": "[]"}, **own)
    assert read_ref(tmp_path / "same") == read_ref(manifest.path)
    data_step("filter", "", str(tmp_path / "other"), given={"rules": '["size:max_px=40"]'}, **own)
    assert read_ref(tmp_path / "other").kind == "manifest" and read_ref(tmp_path / "other") != read_ref(manifest.path)


def test_the_label_step_goes_into_the_filter(store_root, tmp_path):
    source = SourceInfo(name="web", uri="file:///web", tasks={"classify": CLASSES})
    rows = [image_row(tmp_path / "made", "a", picture(0), source="web", labels=("dog",))]
    rows += [
        image_row(tmp_path / "made", key, picture(n), source="web", caption=caption)
        for n, (key, caption) in enumerate((("b", "an animal asleep"), ("c", "the sea")), 1)
    ]
    (tmp_path / "in").write_text(commit_rows(store_root, tmp_path / "made", rows, [source]).to_json())
    kinds = {"name": "kinds", "classes": [{"name": "dog", "parent": "animal"}]}
    manifest = {"manifest": artifact(tmp_path / "in")}
    data_step("label", json.dumps({"label": {"vocabularies": [kinds]}}), str(tmp_path / "labelled"), inputs=manifest)
    labelled = artifact(tmp_path / "labelled")
    for name, labels in (("with", labelled), ("without", None)):
        own = {"inputs": {"manifest": labelled, "labels": labels}, "unless_empty": "rules"}
        rules = '["cap:per_concept=9,unmatched=remove"]'
        data_step("filter", "", str(tmp_path / name), given={"rules": rules}, **own)
    # The names of the label system are looked for in captions, also those above the sources' classes.
    assert ok_keys(tmp_path / "with") == {"a", "b"} and ok_keys(tmp_path / "without") == {"a"}


def ok_keys(path):
    """Keys of the usable rows of the manifest that a file's Ref is of."""
    ref = read_ref(path)
    _, table = load_manifest(open_store(ref.uri), ref, path.with_suffix(".files"))
    return {row["key"] for row in iter_rows(table) if row["status"] == "ok"}


def test_an_amateur_proposes_names_to_the_label_step(manifest, store_root, tmp_path):
    tokenizer = Tokenizer.train(["a big dog", "some red lamp"] * 5, 300)
    text = TEXT.with_overrides({"num_blocks": 0, "pooling": "mean", "context_length": 24}).to_dict()
    spec = ModelSpec(genotype=GENOTYPE, image_size_px=SIZE_PX, text=TextSpec(vocab_size=tokenizer.vocab_size, **text))
    VisionModel(spec).save(tmp_path / "amateur")
    tokenizer.save(tmp_path / "amateur" / "tokenizer.json")
    amateur = commit_folder(store_root, "amateur", "weights", "named", tmp_path / "amateur")
    lists = [{"name": name, "classes": [{"name": word}]} for name, word in (("a", "red lamp"), ("b", "lamp red"))]
    settings = json.dumps({"label": {"vocabularies": lists, "merge": {"min_similarity": 0.5}}})
    own = {"inputs": {"manifest": manifest}, "weights": {"amateur": amateur.uri}}
    ref = data_step("label", settings, str(tmp_path / "labelled"), **own)
    assert "lamp red,embedding," in open_store(ref.uri).read(join_uri(ref.uri, "review.csv")).decode()
    assert read_record(open_store(ref.uri), ref.uri).inputs["amateur"] == (amateur.uri,)


def test_people_are_asked_where_a_question_is_given(tmp_path, monkeypatch):
    shop = make_shop(tmp_path / "shop")
    set_environment(monkeypatch, shop.environment)
    (tmp_path / "in").write_text(shop.manifest.to_json())
    inputs = {"manifest": artifact(tmp_path / "in")}
    kinds = {"name": "kinds", "classes": [{"name": name, "parent": "fruit"} for name in COLOURS]}
    data_step("label", json.dumps({"label": {"vocabularies": [kinds]}}), str(tmp_path / "labels"), inputs=inputs)
    own = {"inputs": inputs | {"labels": artifact(tmp_path / "labels")}, "unless_empty": "question"}
    own["weights"] = {"model": shop.model.uri}
    assert data_step("annotate", "", str(tmp_path / "same"), texts={"question": ""}, **own) == shop.manifest
    settings = json.dumps({"annotate": {"selection": {"num_tasks": 6}}})
    ref = data_step("annotate", settings, str(tmp_path / "asked"), texts={"question": "label"}, **own)
    record = read_record(open_store(ref.uri), ref.uri)
    assert record.facts["num_asked"] == 6 and record.inputs.keys() == {"manifest", "labels", "model"}
    assert copy_tasks(ref.uri, tmp_path / "tasks") == [
        tmp_path / "tasks" / name for name in (TASKS_FILE, LABELLING_FILE)
    ]


def test_a_dataset_of_all_sources_or_one_a_source(manifest, tmp_path):
    # The Ref that stands for labels is no label step's here: there are no classes to join.
    shard_step("", manifest, manifest, str(tmp_path / "all"))
    assert read_ref(tmp_path / "all").kind == "dataset"
    shard_step('{"shard": {"by_source": true}}', manifest, None, str(tmp_path / "each"))
    assert [ref.name for ref in read_refs(tmp_path / "each")] == ["one", "two"]
