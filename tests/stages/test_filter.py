import json
from collections import Counter

import numpy as np
import pytest
import torch
from helpers import GENOTYPE, SIZE_PX, TEXT, commit_folder
from made_manifests import commit_rows, image_row, picture, rows_by_key

from intern_vision.bench.zero_shot import zero_shot_weights
from intern_vision.data.augment import resize_image
from intern_vision.data.codec import decode_image
from intern_vision.data.labels.concept import Concept, LabelSystem
from intern_vision.data.labels.public import label_system_json
from intern_vision.data.manifest import SourceInfo
from intern_vision.data.manifest_store import load_manifest
from intern_vision.data.tables import iter_rows
from intern_vision.data.text import Tokenizer
from intern_vision.errors import ConfigError, DataError
from intern_vision.models.vision import ModelSpec, TextSpec, VisionModel
from intern_vision.stages import filter as filter_stage
from intern_vision.stages.base import Inputs, fetch, run_stage
from intern_vision.store import open_store
from intern_vision.task import Task

WEB = SourceInfo(name="web", uri="s3://raw/web", licence="MIT")
PETS = SourceInfo(
    name="pets", uri="file:///pets", tasks={"classify": Task(family="classify", class_names=("cat", "dog"))}
)


@pytest.fixture
def captioned(world, tmp_path):
    """60 images: every fifth has a bad caption, every seventh is small, two are removed already."""
    rows = []
    for index in range(60):
        values = {"source": "web", "caption": f"a picture of thing {'abcdefgh'[index % 8] * 3} in colour"}
        if index % 5 == 0:
            values["caption"] = ("", "IMG_0123.jpg", "see www.shop.com now", "кошка на столе")[index // 5 % 4]
        if index in (1, 2):
            values |= {"status": "removed", "reason": "duplicate: of another"}
        size = (12, 40) if index % 7 == 0 else (24, 32)
        rows.append(image_row(tmp_path / "raw", f"w-{index:03d}", picture(index, *size), **values))
    return commit_rows(world.store_root, tmp_path / "m", rows, [WEB], "web")


def output(world, ref, folder):
    store = open_store(world.store_root)
    info, path = load_manifest(store, ref, folder)
    return info, path, json.loads((fetch(store, ref, folder) / "filters.json").read_text())


def config(*rules):
    return filter_stage.Config.from_dict({"rules": list(rules)})


def test_rules_follow_each_other_and_report(world, captioned, tmp_path):
    ref = run_stage("filter", config({"rule": "text"}, {"rule": "size", "min_px": 20}), Inputs(manifest=(captioned,)))
    assert ref.kind == "manifest" and ref.parents == (captioned.uri,)
    info, path, done = output(world, ref, tmp_path / "out")
    bad_text = {f"w-{index:03d}" for index in range(0, 60, 5)}
    small = {f"w-{index:03d}" for index in range(0, 60, 7)} - bad_text
    rows = rows_by_key(path)
    assert {key for key, row in rows.items() if row["reason"].startswith("text: ")} == bad_text
    assert {key for key, row in rows.items() if row["reason"].startswith("size: ")} == small
    assert rows["w-005"]["reason"] == "text: is the name of a file" and rows["w-005"]["status"] == "removed"
    assert rows["w-007"]["reason"] == "size: 40 x 12 px, the shorter side is below 20"
    assert rows["w-001"]["reason"] == "duplicate: of another"
    (step,) = info.steps
    assert (step.name, step.num_in, step.num_out) == ("filter", 58, 58 - len(bad_text) - len(small))
    assert step.counts == {"size": len(small), "text": len(bad_text)}
    assert (info.num_rows, info.num_ok) == (60, step.num_out) and info.sources == (WEB,)
    assert [(entry["rule"], entry["num_in"], entry["num_out"]) for entry in done] == [
        ("text", 58, 46),
        ("size", 46, step.num_out),
    ]
    assert done[0]["examples"] == sorted(bad_text) and done[1]["settings"]["min_px"] == 20


def test_the_recorded_settings_give_the_same_rows_again(world, captioned, tmp_path, monkeypatch):
    rules = ({"rule": "text"}, {"rule": "size", "min_px": 20}, {"rule": "cap", "per_concept": 3, "text": False})
    rows = [
        image_row(tmp_path / "pets", f"p-{index:03d}", picture(index), source="pets", labels=("cat",))
        for index in range(40)
    ]
    ref = commit_rows(world.store_root, tmp_path / "n", rows, [PETS], "pets")
    first, _, _ = output(world, run_stage("filter", config(*rules), Inputs(manifest=(ref,))), tmp_path / "a")
    monkeypatch.setenv("INTERN_STORE", f"file://{tmp_path}/other")
    again = filter_stage.Config.from_dict(first.steps[-1].settings)
    second, _, _ = output(world, run_stage("filter", again, Inputs(manifest=(ref,))), tmp_path / "b")
    assert 0 < first.num_ok < 40 and second == first


def test_nothing_left_is_an_error(world, captioned):
    with pytest.raises(DataError, match=r"filter: no row is left of 58 \(size took 58\); give milder rules"):
        run_stage("filter", config({"rule": "size", "min_px": 999}), Inputs(manifest=(captioned,)))


def test_caps_count_names_of_the_label_system_in_captions(world, tmp_path):
    system = LabelSystem(
        [Concept(id=f"c{n}", names={"en": names}) for n, names in enumerate([("dog", "hound"), ("cat",), ("fish",)])],
        {},
    )
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "labels.json").write_text(label_system_json(system))
    labels = commit_folder(world.store_root, "label", "report", "labels", tmp_path / "labels")
    words = ["two dogs run", "a Hound", "one dog", "the cat"]
    rows = [
        image_row(tmp_path / "raw", f"w-{index:03d}", picture(0), source="web", caption=words[index % 4])
        for index in range(400)
    ]
    rows += [image_row(tmp_path / "raw", "x-fish", picture(0), source="web", caption="a fish and a dog")]
    rows += [image_row(tmp_path / "raw", "x-sea", picture(0), source="web", caption="the sea")]
    ref = commit_rows(world.store_root, tmp_path / "m", rows, [WEB])
    rule = {"rule": "cap", "per_concept": 60}
    out = run_stage("filter", config(rule), Inputs(manifest=(ref,), labels=(labels,)))
    info, path, _ = output(world, out, tmp_path / "out")
    kept = {key: row for key, row in rows_by_key(path).items() if row["status"] == "ok"}
    counts = Counter("dog" if "cat" not in row["caption"] else "cat" for row in kept.values())
    # 301 rows of dogs and 100 of cats, each taken with 60 / n: within 4 standard deviations of a binomial.
    assert abs(counts["dog"] - 62) < 4 * 7 and abs(counts["cat"] - 60) < 4 * 5
    assert "x-fish" in kept and "x-sea" in kept
    # The draw of a row is its own: half of the rows gives the same ones where the counts are the same.
    strict = run_stage("filter", config(rule | {"unmatched": "remove"}), Inputs(manifest=(ref,), labels=(labels,)))
    _, strict_path, _ = output(world, strict, tmp_path / "strict")
    strict_kept = {key for key, row in rows_by_key(strict_path).items() if row["status"] == "ok"}
    assert strict_kept == kept.keys() - {"x-sea"}


def test_shares_of_sources(world, tmp_path):
    sources = [WEB.model_copy(update={"name": name}) for name in ("a", "b", "c")]
    rows = [
        image_row(tmp_path / "raw", f"{name}-{index:03d}", picture(0), source=name)
        for name, count in (("a", 90), ("b", 20), ("c", 7))
        for index in range(count)
    ]
    ref = commit_rows(world.store_root, tmp_path / "m", rows, sources)
    out = run_stage("filter", config({"rule": "share", "sources": {"a": 3, "b": 1}}), Inputs(manifest=(ref,)))
    _, path, _ = output(world, out, tmp_path / "out")
    kept = Counter(row["source"] for row in iter_rows(path) if row["status"] == "ok")
    assert kept == {"a": 60, "b": 20, "c": 7}
    with pytest.raises(DataError, match="rule share: no row of source 'z'; the manifest has a, b, c"):
        run_stage("filter", config({"rule": "share", "sources": {"a": 3, "z": 1}}), Inputs(manifest=(ref,)))


@pytest.fixture
def amateur(world, tmp_path):
    """Fresh weights with a text tower and their folder."""
    tokenizer = Tokenizer.train(["a big dog in the red house", "some small lamp"] * 5, 300)
    text = TEXT.with_overrides({"num_blocks": 0, "pooling": "mean", "context_length": 24}).to_dict()
    torch.manual_seed(0)
    spec = ModelSpec(genotype=GENOTYPE, image_size_px=SIZE_PX, text=TextSpec(vocab_size=tokenizer.vocab_size, **text))
    VisionModel(spec).save(tmp_path / "amateur")
    tokenizer.save(tmp_path / "amateur" / "tokenizer.json")
    return commit_folder(world.store_root, "amateur", "weights", "towers", tmp_path / "amateur"), tmp_path / "amateur"


def test_the_score_is_the_cosine_of_the_two_towers(world, amateur, tmp_path):
    model_ref, folder = amateur
    captions = ["big dog", "small lamp", "red house", "some dog"]
    rows = [
        image_row(tmp_path / "raw", f"w-{index:03d}", picture(index), source="web", caption=captions[index % 4])
        for index in range(20)
    ]
    rows.append(image_row(tmp_path / "raw", "x-mute", picture(50), source="web"))
    rows.append(image_row(tmp_path / "raw", "x-bad", b"no image", source="web", caption="a dog"))
    ref = commit_rows(world.store_root, tmp_path / "m", rows, [WEB])
    inputs = Inputs(manifest=(ref,), model=(model_ref,))
    out = run_stage("filter", config({"rule": "score", "keep_share": 0.5}), inputs)
    _, path, _ = output(world, out, tmp_path / "out")
    # The same by way of zero-shot classification with the bare caption as the one template.
    model, tokenizer = VisionModel.load(folder), Tokenizer.load(folder / "tokenizer.json")
    expected = {}
    for row in rows[:20]:
        image = resize_image(decode_image(open_store(row.uri).read(row.uri)), SIZE_PX)
        with torch.no_grad():
            vector = model.text.projection(model(torch.from_numpy(image).permute(2, 0, 1)[None]).vector_BD)[0]
        text = zero_shot_weights(model, tokenizer, [row.caption], ("{}",))[0]
        expected[row.key] = float(torch.nn.functional.cosine_similarity(vector, text, dim=0))
    scores = fetch(open_store(world.store_root), out, tmp_path / "all") / "scores.parquet"
    found = {row["key"]: row["similarity"] for row in iter_rows(scores)}
    assert found.keys() == expected.keys()
    assert np.allclose([found[key] for key in expected], list(expected.values()), atol=1e-5)
    kept = {key for key, row in rows_by_key(path).items() if row["status"] == "ok"}
    assert kept == {"x-mute", *sorted(found, key=found.get)[10:]}
    assert rows_by_key(path)["x-bad"]["reason"].startswith("score: the image cannot be read: ")
    limit = sorted(found.values())[4]
    strict = run_stage("filter", config({"rule": "score", "min_similarity": limit}), inputs)
    assert output(world, strict, tmp_path / "strict")[0].num_ok == 1 + 16


def test_images_that_mean_the_same_are_thinned_out(world, amateur, tmp_path):
    model_ref, folder = amateur
    rows = []
    for index in range(30):
        image = picture(index)
        rows.append(image_row(tmp_path / "raw", f"w-{index:03d}", image, "png", source="web"))
        if index % 3 == 0:
            brighter = np.minimum(image.astype(int) + 2, 255).astype(np.uint8)
            rows.append(image_row(tmp_path / "raw", f"w-{index:03d}-again", brighter, "png", source="web"))
    ref = commit_rows(world.store_root, tmp_path / "m", rows, [WEB])
    model = VisionModel.load(folder)
    images = [resize_image(decode_image(open_store(row.uri).read(row.uri)), SIZE_PX) for row in rows]
    with torch.no_grad():
        vectors = model(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)).vector_BD
    vectors = torch.nn.functional.normalize(vectors, dim=1).numpy()
    cosine = vectors @ vectors.T
    limit = float(np.sort(cosine[np.triu_indices(len(rows), 1)])[-10])
    rule = {"rule": "cluster", "max_similarity": limit - 1e-6, "num_clusters": 1}
    out = run_stage("filter", config(rule), Inputs(manifest=(ref,), model=(model_ref,)))
    info, path, _ = output(world, out, tmp_path / "out")
    kept = [number for number, row in enumerate(rows) if rows_by_key(path)[row.key]["status"] == "ok"]
    # What stays has no such pair, and each that went has one.
    near = cosine > limit - 1e-6
    np.fill_diagonal(near, False)
    assert not near[np.ix_(kept, kept)].any()
    gone = sorted(set(range(len(rows))) - set(kept))
    assert gone and near[gone].any(1).all()
    several = run_stage("filter", config(rule | {"num_clusters": 4}), Inputs(manifest=(ref,), model=(model_ref,)))
    assert info.num_ok <= output(world, several, tmp_path / "four")[0].num_ok <= len(rows)


def test_rules_without_their_input_are_refused(world, captioned):
    for rule in ({"rule": "score", "keep_share": 0.5}, {"rule": "cluster"}):
        with pytest.raises(ConfigError, match=rf"rule {rule['rule']}: needs a model; give the Ref of its weights"):
            run_stage("filter", config(rule), Inputs(manifest=(captioned,)))
    with pytest.raises(ConfigError, match="rule cap: no concept to count; give labels"):
        run_stage("filter", config({"rule": "cap", "per_concept": 5}), Inputs(manifest=(captioned,)))
    with pytest.raises(ConfigError, match="rules: "):
        filter_stage.Config.from_dict({"rules": []})
