import json
import re

import pytest
import torch
from helpers import GENOTYPE, SIZE_PX, TEXT, commit_folder
from wordnet_files import write_wordnet

from intern_vision.data.labels.output import (
    INPUTS_FILE,
    LABELS_FILE,
    MAPPINGS_FILE,
    REVIEW_FILE,
    TREE_FILE,
    UNIONS_FILE,
)
from intern_vision.data.labels.union import LabelUnion
from intern_vision.data.labels.vocabulary import Vocabulary
from intern_vision.data.loader import load_info
from intern_vision.data.text import Tokenizer
from intern_vision.errors import ConfigError
from intern_vision.models.vision import ModelSpec, TextSpec, VisionModel
from intern_vision.stages import label
from intern_vision.stages.base import Inputs, fetch, read_record, run_stage
from intern_vision.store import file_sha256, open_store


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
