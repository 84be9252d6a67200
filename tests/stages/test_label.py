import json
import re

import pytest
import torch
from helpers import GENOTYPE, SIZE_PX, TEXT, commit_folder
from made_manifests import commit_rows, rows_by_key
from wordnet_files import write_wordnet

from intern_vision.data.labels.output import (
    INPUTS_FILE,
    LABELS_FILE,
    MAPPINGS_FILE,
    REVIEW_FILE,
    TREE_FILE,
    UNIONS_FILE,
    LabelInputs,
    write_labels,
)
from intern_vision.data.labels.public import read_label_system
from intern_vision.data.labels.union import LabelUnion, read_unions
from intern_vision.data.labels.vocabulary import Vocabulary
from intern_vision.data.loader import load_info
from intern_vision.data.manifest import ManifestBox, ManifestRow, SourceInfo
from intern_vision.data.manifest_store import load_manifest
from intern_vision.data.text import Tokenizer
from intern_vision.errors import ConfigError
from intern_vision.models.vision import ModelSpec, TextSpec, VisionModel
from intern_vision.stages import label
from intern_vision.stages.base import Inputs, fetch, read_record, run_stage
from intern_vision.store import file_sha256, open_store
from intern_vision.task import Task


def test_datasets_and_lists_become_one_label_system(world, tmp_path):
    store = open_store(world.store_root)
    config = label.Config(shipped=("coco", "voc", "flowers102"))
    ref = run_stage("label", config, Inputs(data=(world.flower, world.upstream)))
    assert ref.kind == "report" and ref.name == "labels" and ref.parents == (world.flower.uri, world.upstream.uri)
    folder = fetch(store, ref, tmp_path)
    files = {LABELS_FILE, MAPPINGS_FILE, REVIEW_FILE, UNIONS_FILE, TREE_FILE, INPUTS_FILE}
    assert {path.name for path in folder.iterdir()} == files
    facts = read_record(store, ref.uri).facts
    flower, upstream = (load_info(store, each.uri) for each in (world.flower, world.upstream))
    num_own = sum(task.num_classes for info in (flower, upstream) for task in info.tasks.values())
    assert facts["num_classes"] == num_own + 80 + 20 + 102
    unions = {k: LabelUnion.from_dict(v) for k, v in json.loads((folder / UNIONS_FILE).read_text()).items()}
    assert set(unions["detect"].sources) == {upstream.name, "coco", "voc"}
    assert unions["detect"].rename(upstream).tasks["detect"].num_classes == upstream.tasks["detect"].num_classes
    # The images of the classification set are counted.
    page = (folder / TREE_FILE).read_text()
    assert re.search(rf"<small[^>]*>c\d+ &middot; 1 class &middot; \d+ images? &middot; {flower.name}</small>", page)
    assert run_stage("label", config, Inputs(data=(world.flower, world.upstream))) == ref


def test_an_amateur_proposes_matches(world, tmp_path):
    tokenizer = Tokenizer.train(["a big dog", "some red lamp"] * 5, 300)
    text = TEXT.with_overrides({"num_blocks": 0, "pooling": "mean", "context_length": 24}).to_dict()
    torch.manual_seed(0)
    spec = ModelSpec(genotype=GENOTYPE, image_size_px=SIZE_PX, text=TextSpec(vocab_size=tokenizer.vocab_size, **text))
    VisionModel(spec).save(tmp_path / "amateur")
    tokenizer.save(tmp_path / "amateur" / "tokenizer.json")
    amateur = commit_folder(world.store_root, "amateur", "weights", "named", tmp_path / "amateur")
    lists = [Vocabulary.from_dict({"name": n, "classes": [c]}) for n, c in (("a", "red lamp"), ("b", "lamp red"))]
    config = label.Config(vocabularies=tuple(lists), merge={"min_similarity": 0.5})
    ref = run_stage("label", config, Inputs(amateur=(amateur,)))
    review = (fetch(open_store(world.store_root), ref, tmp_path) / REVIEW_FILE).read_text().splitlines()
    assert len(review) == 2 and review[1].startswith("b,classify,0,lamp red,embedding,")


def test_a_taxonomy_goes_by_its_digest(world, tmp_path):
    write_wordnet(tmp_path)
    digest = file_sha256(tmp_path / "data.noun")
    settings = {"vocabularies": [Vocabulary.from_dict({"name": "a", "classes": ["dog"]}).to_dict()]}
    settings |= {"taxonomy": str(tmp_path)}
    with pytest.raises(ConfigError, match="give taxonomy and taxonomy_sha256, or neither"):
        label.Config.from_dict(settings)
    ref = run_stage("label", label.Config.from_dict(settings | {"taxonomy_sha256": digest}), Inputs())
    assert read_record(open_store(world.store_root), ref.uri).facts["num_concepts"] == 5
    with pytest.raises(ConfigError, match=f"label.taxonomy_sha256: .*data.noun has {digest}, not 0; check the file"):
        run_stage("label", label.Config.from_dict(settings | {"taxonomy_sha256": "0"}), Inputs())
    gone = settings | {"taxonomy": str(tmp_path / "none"), "taxonomy_sha256": digest}
    with pytest.raises(ConfigError, match="label.taxonomy: .*none is no file"):
        run_stage("label", label.Config.from_dict(gone), Inputs())


def test_nothing_to_merge(world):
    with pytest.raises(ConfigError, match="vocabularies: expected 1 or more, got none"):
        run_stage("label", label.Config(), Inputs())


def manifest_of_two(world, folder):
    """Dogs and robots of one source, boxes of another in other words; a removed row."""
    classify = {"classify": Task(family="classify", class_names=("dogs", "robot", "lorry"))}
    detect = {"detect": Task(family="detect", class_names=("Dog", "settee"))}
    sources = [
        SourceInfo(name="photos", uri="file:///photos", licence="MIT", tasks=classify),
        SourceInfo(name="scenes", uri="file:///scenes", tasks=detect),
    ]
    box = {"x0": 0, "y0": 0, "x1": 5, "y1": 5}
    rows = [
        ManifestRow(key="a", uri="file:///a", source="photos", labels=("dogs",)),
        ManifestRow(key="b", uri="file:///b", source="photos", labels=("robot",)),
        ManifestRow(key="c", uri="file:///c", source="photos", labels=("lorry",), status="removed", reason="cap: full"),
        ManifestRow(
            key="d",
            uri="file:///d",
            source="scenes",
            boxes=(ManifestBox(label="Dog", **box), ManifestBox(label="settee", **box)),
        ),
        ManifestRow(key="e", uri="file:///e", source="scenes", boxes=()),
        ManifestRow(key="f", uri="file:///f", source="scenes", caption="a dog"),
        ManifestRow(key="g", uri="file:///g", source="photos", labels=("unicorn",)),
    ]
    return commit_rows(world.store_root, folder, rows, sources, "two")


def test_a_manifest_gets_its_concepts_and_counts(world, tmp_path):
    given = manifest_of_two(world, tmp_path / "m")
    extra = Vocabulary.from_dict({"name": "kinds", "classes": [{"name": "dog", "parent": "animal"}]})
    ref = run_stage("label", label.Config(vocabularies=(extra,)), Inputs(manifest=(given,)))
    assert ref.kind == "manifest" and ref.parents == (given.uri,)
    store = open_store(world.store_root)
    info, path = load_manifest(store, ref, tmp_path / "out")
    folder = fetch(store, ref, tmp_path / "all")
    system = read_label_system(folder / LABELS_FILE)
    (dog,), (animal,), (robot,), (settee,) = (system.find(name) for name in ("dog", "animal", "robot", "settee"))
    rows = rows_by_key(path)
    concepts = {key: row["concepts"] for key, row in rows.items()}
    assert concepts == {
        "a": [dog],
        "b": [robot],
        "c": None,
        "d": sorted([dog, settee]),
        "e": [],
        "f": None,
        "g": [],
    }
    counts = json.loads((folder / LABELS_FILE).read_text())["id2images"]
    assert counts == {dog: 2, animal: 2, robot: 1, settee: 1}
    assert re.search(rf"{dog} &middot; \d class(es)? &middot; 2 images", (folder / TREE_FILE).read_text())
    facts = read_record(store, ref.uri).facts
    assert (facts["num_labelled"], facts["num_uncertain_labels"], facts["num_unknown_labels"]) == (5, 0, 1)
    assert [(step.name, step.num_in, step.num_out) for step in info.steps] == [("label", 6, 6)]
    # As the input ``labels`` of a training it says what each source annotates.
    unions = read_unions(folder / UNIONS_FILE)
    assert unions["detect"].sources == {"scenes": ("dogs", "settee")}


def test_captions_alone_are_passed_on(world, tmp_path):
    rows = [ManifestRow(key=f"k{index}", uri="file:///k.png", caption="a cat", source="web") for index in range(3)]
    given = commit_rows(world.store_root, tmp_path / "m", rows, [SourceInfo(name="web", uri="file:///web.csv")])
    ref = run_stage("label", label.Config(), Inputs(manifest=(given,)))
    info, path = load_manifest(open_store(world.store_root), ref, tmp_path / "out")
    assert [step.name for step in info.steps] == ["label"] and info.num_ok == 3
    assert {row["caption"] for row in rows_by_key(path).values()} == {"a cat"}


def test_uncertain_classes_give_no_concept_until_a_person_decides(world, tmp_path):
    classes = ("bank", "bench")
    source = SourceInfo(name="own", uri="x", tasks={"classify": Task(family="classify", class_names=classes)})
    first = Vocabulary.from_dict({"name": "first", "classes": [{"name": "sofa", "synonyms": ["bench"]}]})
    rows = [ManifestRow(key=name, uri="file:///x", source="own", labels=(name,)) for name in classes]
    given = commit_rows(world.store_root, tmp_path / "m", rows, [source])
    data = label.Config(taxonomy="", vocabularies=())
    # What comes before the manifest's own classes is a taxonomy.
    write_labels(LabelInputs(vocabularies=(first,)), tmp_path)
    taxonomy = {"taxonomy": str(tmp_path), "taxonomy_sha256": file_sha256(tmp_path / LABELS_FILE)}
    ref = run_stage("label", data.with_overrides(taxonomy), Inputs(manifest=(given,)))
    store = open_store(world.store_root)
    _, path = load_manifest(store, ref, tmp_path / "out")
    assert rows_by_key(path)["bench"]["concepts"] == [] and len(rows_by_key(path)["bank"]["concepts"]) == 1
    assert read_record(store, ref.uri).facts["num_uncertain_labels"] == 1
    (sofa,) = read_label_system(tmp_path / LABELS_FILE).find("sofa")
    decided = {"decisions": [{"vocabulary": "own", "family": "classify", "index": 1, "concept": sofa}]}
    ref = run_stage("label", data.with_overrides(taxonomy | decided), Inputs(manifest=(given,)))
    _, path = load_manifest(store, ref, tmp_path / "out")
    assert rows_by_key(path)["bench"]["concepts"] == [sofa]
