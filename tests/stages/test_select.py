import json

import pytest
import torch
from helpers import GENOTYPE, HEAD, SIZE_PX, commit_folder, save_backbone

from intern_vision.bench.scoring import score_head
from intern_vision.bench.selection import relative_score
from intern_vision.data.loader import ShardSource, load_info
from intern_vision.errors import ConfigError, DataError
from intern_vision.models.genotype import num_macs, num_parameters
from intern_vision.models.vision import ModelSpec, VisionModel
from intern_vision.ref import Ref
from intern_vision.stages import select
from intern_vision.stages.base import COMMIT_MARKER, Inputs, fetch, read_record, run_stage
from intern_vision.store import join_uri, open_store
from intern_vision.task import View
from intern_vision.train.upstream import fields_of, head_specs

FAMILIES = ("multilabel", "depth")
CONFIG = select.Config(precision="fp32")


@pytest.fixture
def store(world):
    return open_store(world.store_root)


def noted(store, ref, *, parents=(), stage="generalist", name=None, cpu_s=0.0, **facts) -> Ref:
    """The same output with other entries in its record."""
    record = read_record(store, ref.uri)
    ref = ref.model_copy(update={"parents": tuple(p.uri for p in parents), "name": name or ref.name})
    changed = record.model_copy(update={"ref": ref, "stage": stage, "facts": facts, "cpu_s": cpu_s})
    store.put(changed.to_json().encode(), join_uri(ref.uri, COMMIT_MARKER))
    return ref


def central_model(world, store, folder):
    torch.manual_seed(3)
    heads = head_specs(load_info(store, world.upstream.uri), FAMILIES, HEAD)
    views = {family: View(main=family) for family in FAMILIES}
    spec = ModelSpec(genotype=GENOTYPE, image_size_px=SIZE_PX, heads=heads, experts=FAMILIES, main="depth", views=views)
    VisionModel(spec).save(folder)
    return commit_folder(world.store_root, "generalist", "weights", "central", folder)


def errors_by_hand(folder, world, store, cache_dir):
    """Every head alone, with the model that is deployed for its family."""
    errors = {}
    for family in FAMILIES:
        model = VisionModel.load_family(folder, family)
        fields = fields_of((family,))
        source = ShardSource(store, world.upstream.uri, cache_dir=cache_dir, split="val", fields=fields)
        errors[family] = score_head(model, model.heads[family], source, batch_size=5, bf16=False)[0]["error"]
    return errors


def test_the_candidate_with_the_lowest_validation_error_is_chosen(world, store, tmp_path):
    amateur = noted(store, save_backbone(world, tmp_path / "a"), stage="amateur", cpu_s=5.0, image_passes=100)
    expert = save_backbone(world, tmp_path / "e", ("depth",), 1)
    expert = noted(store, expert, parents=(amateur,), stage="expert", cpu_s=3.0, image_passes=50)
    first, second = (save_backbone(world, tmp_path / f"g{seed}", FAMILIES, seed) for seed in (1, 2))
    first = noted(store, first, parents=(amateur, expert), name="joint", cpu_s=2.5, image_passes=30)
    second = noted(store, second, parents=(amateur,), name="average", cpu_s=0.5, image_passes=7)
    central = noted(store, central_model(world, store, tmp_path / "c"), parents=(expert,), image_passes=9)
    candidates = (first, second, central)
    inputs = Inputs({"data": (world.upstream,), "candidates": candidates})
    ref = run_stage("select", CONFIG, inputs)
    folder = fetch(store, ref, tmp_path / "fetched")
    rows = json.loads((folder / select.CANDIDATES_FILE).read_text())

    assert [row["name"] for row in rows] == ["joint", "average", "central"]
    assert [row["uri"] for row in rows] == [candidate.uri for candidate in candidates]
    assert [row["image_passes"] for row in rows] == [180, 107, 159]
    facts = read_record(store, ref.uri).facts
    assert [facts[f"cpu_s/{row['name']}"] for row in rows] == [10.5, 5.5, 8.0]
    expected = [errors_by_hand(tmp_path / name, world, store, tmp_path / "cache") for name in ("g1", "g2", "c")]
    for row, errors in zip(rows, expected, strict=True):
        assert row["errors"] == pytest.approx(errors, rel=1e-5)
        assert row["score"] == pytest.approx(relative_score(errors, expected[0]), rel=1e-4)
    best = min(range(3), key=lambda index: rows[index]["score"])
    assert [row["chosen"] for row in rows] == [index == best for index in range(3)]

    # The costs of one view: alone it is the genotype's own; a central model runs its sources up to their last level.
    assert rows[0]["num_parameters"] == num_parameters(GENOTYPE)
    assert rows[0]["num_macs"] == num_macs(GENOTYPE, SIZE_PX)
    assert num_macs(GENOTYPE, SIZE_PX) < rows[2]["num_macs"] < 3 * num_macs(GENOTYPE, SIZE_PX)
    assert rows[2]["num_parameters"] > 2 * num_parameters(GENOTYPE)

    chosen = tmp_path / ("g1", "g2", "c")[best]
    for name in ("weights.safetensors", "model.json"):
        assert (folder / name).read_bytes() == (chosen / name).read_bytes()
    assert ref.kind == "weights" and ref.name == "intern"
    assert set(ref.parents) == {world.upstream.uri, *(candidate.uri for candidate in candidates)}
    assert read_record(store, ref.uri).facts["chosen"] == candidates[best].name


def test_the_score_compares_with_the_first_candidate():
    reference = {"multilabel": 0.5, "depth": 0.2}
    assert relative_score(reference, reference) == pytest.approx(1.0)
    assert relative_score({"multilabel": 0.25, "depth": 0.2}, reference) == pytest.approx(0.75, abs=1e-5)
    assert relative_score({"multilabel": 0.0, "depth": 0.0}, {"multilabel": 0.0, "depth": 0.0}) == pytest.approx(1.0)


def test_candidates_that_cannot_be_compared_are_refused(world, store, tmp_path):
    both = save_backbone(world, tmp_path / "both", FAMILIES)
    one = save_backbone(world, tmp_path / "one", ("depth",), 1)
    data = {"data": (world.upstream,)}
    with pytest.raises(ConfigError, match="inputs.candidates: expected 1 Ref or more, got none"):
        run_stage("select", CONFIG, Inputs(data))
    with pytest.raises(ConfigError, match=f"expected names that differ, got {one.name}, {one.name}"):
        run_stage("select", CONFIG, Inputs(data | {"candidates": (one, one)}))
    with pytest.raises(ConfigError, match=f"the families depth, multilabel in all, {one.name} has depth"):
        run_stage("select", CONFIG, Inputs(data | {"candidates": (both, one)}))
    with pytest.raises(DataError, match="none of flower annotates the labels of its depth heads"):
        run_stage("select", CONFIG, Inputs({"data": (world.flower,), "candidates": (one,)}))
