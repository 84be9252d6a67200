import io
import json
import os
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from helpers import StageProcess
from made_manifests import commit_rows, image_row, picture
from PIL import Image

from intern_vision.data.codec import decode_image, encode_jpeg, encode_png
from intern_vision.data.loader import ShardSource, load_info, read_index
from intern_vision.data.manifest import ManifestBox, SourceInfo, read_manifest
from intern_vision.data.mixture import MixtureSource
from intern_vision.data.settings import MixtureConfig, SplitRule
from intern_vision.errors import ConfigError, DataError
from intern_vision.stages import shard
from intern_vision.stages.base import Inputs, read_record, run_stage
from intern_vision.store import file_sha256, join_uri, open_store, split_uri
from intern_vision.task import Task

PETS = SourceInfo(
    name="pets",
    uri="file:///pets",
    licence="CC BY 4.0",
    tasks={"classify": Task(family="classify", class_names=("cat", "dog"))},
)
SCENES = SourceInfo(
    name="scenes",
    uri="s3://raw/scenes",
    licence="CC0-1.0",
    tasks={
        "detect": Task(family="detect", class_names=("lamp", "dog")),
        "segment": Task(family="segment", class_names=("ground", "sky")),
        "depth": Task(family="depth", max_depth_m=8.0),
    },
)


def pet_rows(folder, num, source="pets", **values):
    return [
        image_row(
            folder,
            f"{source}-{index:04d}",
            picture(index),
            source=source,
            labels=("cat" if index % 3 else "dog",),
            caption=f"a {'cat' if index % 3 else 'dog'}, number {index}",
            **values,
        )
        for index in range(num)
    ]


def scene_rows(folder, num):
    rows = []
    for index in range(num):
        image = picture(100 + index)
        height, width = image.shape[:2]
        mask = np.full((height, width), 255, np.uint8)
        mask[: height // 2] = 1
        (folder / "extra").mkdir(parents=True, exist_ok=True)
        (folder / "extra" / f"{index}.png").write_bytes(encode_png(mask))
        np.save(folder / "extra" / f"{index}.npy", np.full((height, width), 2.5 + index, np.float32))
        boxes = (ManifestBox(label="dog", x0=1, y0=2, x1=9, y1=12, difficult=True),)
        if index % 4 == 0:
            boxes += (ManifestBox(label="lamp", x0=0, y0=0, x1=30, y1=20),)
        rows.append(
            image_row(
                folder,
                f"scene-{index:04d}",
                image,
                "png",
                source="scenes",
                split=("train", "test")[index % 2],
                boxes=boxes,
                mask=(folder / "extra" / f"{index}.png").as_uri(),
                depth=(folder / "extra" / f"{index}.npy").as_uri(),
                depth_scale=1.0,
            )
        )
    return rows


def local(store_root, ref):
    return split_uri(ref.uri)[2]


def test_one_source_becomes_what_prepare_would_write(world, tmp_path):
    rows = pet_rows(tmp_path / "raw", 40)
    ref = commit_rows(world.store_root, tmp_path / "m", rows, [PETS])
    out = run_stage("shard", shard.Config(max_shard_bytes=20_000), Inputs(manifest=(ref,)))
    assert out.kind == "dataset" and out.name == "pets" and out.parents == (ref.uri,)
    store = open_store(world.store_root)
    info = load_info(store, out.uri)
    assert (info.num_train, info.num_val, info.num_test) == (28, 4, 8)
    assert info.tasks == PETS.tasks and info.licence == "CC BY 4.0" and info.fields == ("image", "caption", "label")
    assert len(info.shards) > 3
    for each in info.shards:
        path = f"{local(world.store_root, out)}/{each.path}"
        assert file_sha256(path) == each.sha256 and each.num_bytes <= 21_000
    # The files are kept byte for byte, and webdataset reads the shards as they are.
    urls = [f"{local(world.store_root, out)}/{each.path}" for each in info.shards]
    read = {item["__key__"]: item for item in webdataset.WebDataset(urls, shardshuffle=False)}
    assert list(read) == [row.key for row in rows]
    for row in rows:
        data = open_store(row.uri).read(row.uri)
        assert read[row.key]["jpg"] == data
        values = json.loads(read[row.key]["json"])
        assert values == {"caption": row.caption, "label": ("cat", "dog").index(row.labels[0])}
    index = read_index(store, out.uri, info).to_pylist()
    # A tenth and a fifth of 26 cats and 14 dogs, class by class.
    held_out = {split: [row["stratum"] for row in index if row["split"] == split] for split in ("val", "test")}
    assert {split: sorted(names) for split, names in held_out.items()} == {
        "val": ["cat", "cat", "cat", "dog"],
        "test": ["cat"] * 5 + ["dog"] * 3,
    }
    files = read_record(store, out.uri).files
    assert {
        "dataset.json",
        "index.parquet",
        "manifest.parquet",
        "tokenizer.json",
        *(s.path for s in info.shards),
    } == set(files)
    assert not [file for file in store.list(out.uri) if "checkpoints" in file.uri]
    source = ShardSource(store, out.uri, cache_dir=tmp_path / "cache", fields=("label", "caption"), split="test")
    assert len(source) == 8 and source[0].label in (0, 1)


def test_boxes_masks_depth_and_splits_are_carried(world, tmp_path):
    rows = scene_rows(tmp_path / "raw", 12)
    ref = commit_rows(world.store_root, tmp_path / "m", rows, [SCENES])
    out = run_stage("shard", shard.Config(), Inputs(manifest=(ref,)))
    store = open_store(world.store_root)
    info = load_info(store, out.uri)
    assert (info.num_train, info.num_val, info.num_test) == (5, 1, 6)
    fields = ("boxes", "box_labels", "mask", "depth")
    source = ShardSource(store, out.uri, cache_dir=tmp_path / "cache", fields=fields)
    assert source.keys == [row.key for row in rows]
    for index in range(len(source)):
        sample = source[index]
        assert np.array_equal(sample.image, picture(100 + index))
        assert sample.box_labels.tolist() == ([1, 0] if index % 4 == 0 else [1])
        assert sample.boxes[0].tolist() == [1, 2, 9, 12]
        assert sample.box_attributes["difficult"].tolist() == ([1, 0] if index % 4 == 0 else [1])
        assert np.unique(sample.mask).tolist() == [1, 255] and (sample.mask[:12] == 1).all()
        # Beyond the task's 8 m nothing is known.
        assert np.allclose(sample.depth, 2.5 + index if 2.5 + index <= 8 else 0)
    # Of an image with both, the class that fewer images show.
    assert source.strata == ["lamp" if index % 4 == 0 else "dog" for index in range(12)]


def test_turned_and_foreign_files_are_written_upright(world, tmp_path):
    image = picture(3)
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(turned, "JPEG", quality=95, exif=exif)
    bitmap = io.BytesIO()
    Image.fromarray(image).save(bitmap, "BMP")
    folder = tmp_path / "raw"
    rows = [
        image_row(folder, "a-turned", turned.getvalue(), source="pets", labels=("cat",)),
        image_row(folder, "b-bitmap", bitmap.getvalue(), source="pets", labels=("dog",)),
    ]
    ref = commit_rows(world.store_root, tmp_path / "m", rows, [PETS])
    rule = SplitRule(val_share=0, test_share=0)
    out = run_stage("shard", shard.Config(split=rule), Inputs(manifest=(ref,)))
    source = ShardSource(open_store(world.store_root), out.uri, cache_dir=tmp_path / "cache", fields=("label",))
    assert source.info.num_train == 2 and source[0].image.shape == (32, 24, 3)
    assert np.abs(source[0].image.astype(int) - decode_image(turned.getvalue())).mean() < 2
    assert np.abs(source[1].image.astype(int) - image).mean() < 2


def test_what_cannot_be_used_is_quarantined_or_left_out(world, tmp_path):
    folder = tmp_path / "raw"
    rows = pet_rows(folder, 30)
    (folder / "pets-0003.jpg").write_bytes(encode_jpeg(picture(99)))
    (folder / "pets-0005.jpg").unlink()
    rows += [
        image_row(folder, "x-two", picture(50), source="pets", labels=("cat", "dog")),
        image_row(folder, "x-odd", picture(51), source="pets", labels=("horse",)),
        image_row(folder, "x-bare", picture(52), source="pets"),
        image_row(folder, "x-gone", picture(53), source="pets", labels=("cat",), status="removed", reason="cap: much"),
    ]
    ref = commit_rows(world.store_root, tmp_path / "m", rows, [PETS])
    with pytest.raises(
        DataError, match="dataset pets: 4 of 32 samples are unusable, the limit is 5%; first: .*0003.jpg"
    ):
        run_stage("shard", shard.Config(), Inputs(manifest=(ref,)))
    out = run_stage("shard", shard.Config(max_quarantined_share=0.2), Inputs(manifest=(ref,)))
    facts = read_record(open_store(world.store_root), out.uri).facts
    assert (facts["num_quarantined"], facts["num_unlabelled"]) == (4, 1)
    found = read_manifest(f"{local(world.store_root, out)}/manifest.parquet").to_pylist()
    reasons = {row["key"]: row["reason"] for row in found if row["status"] == "quarantined"}
    assert reasons["pets-0003"].startswith("changed: its bytes are no longer those")
    assert "no file lies there" in reasons["pets-0005"]
    assert reasons["x-two"] == "labels: expected one class, got ['cat', 'dog']"
    assert reasons["x-odd"] == "labels: 'horse' is no class of its source"


def test_files_of_equal_bytes_come_into_one_split(world, tmp_path):
    rows = pet_rows(tmp_path / "raw", 30)
    rows += [
        image_row(tmp_path / "raw", f"twin-{index:04d}", picture(index), source="pets", labels=rows[index].labels)
        for index in range(30)
    ]
    ref = commit_rows(world.store_root, tmp_path / "m", rows, [PETS])
    out = run_stage("shard", shard.Config(), Inputs(manifest=(ref,)))
    found = read_manifest(f"{local(world.store_root, out)}/manifest.parquet").to_pylist()
    splits = {row["digest"]: set() for row in found}
    for row in found:
        splits[row["digest"]].add(row["split"])
    assert len(splits) == 30 and all(len(own) == 1 for own in splits.values())
    assert {split for own in splits.values() for split in own} == {"train", "val", "test"}


def test_several_sources_of_one_vocabulary_share_a_dataset(world, tmp_path):
    more = PETS.model_copy(
        update={
            "name": "web",
            "uri": "s3://raw/web",
            "licence": "",
            "tasks": {"classify": Task(family="classify", class_names=("dog", "cat"))},
        }
    )
    rows = pet_rows(tmp_path / "raw", 12) + pet_rows(tmp_path / "raw", 6, "web")
    rows[0] = image_row(tmp_path / "raw", rows[0].key, picture(0), source="pets", labels=("dog",), licence="MIT")
    ref = commit_rows(world.store_root, tmp_path / "m", rows, [PETS, more], name="both")
    out = run_stage("shard", shard.Config(), Inputs(manifest=(ref,)))
    info = load_info(open_store(world.store_root), out.uri)
    assert info.name == "both" and info.tasks["classify"].class_names == ("cat", "dog")
    assert info.licence == "MIT (pets), CC BY 4.0 (pets), not stated (web)"
    assert [(each.name, each.uri, each.licence, each.num_rows) for each in info.sources] == [
        ("pets", "file:///pets", "MIT", 1),
        ("pets", "file:///pets", "CC BY 4.0", 11),
        ("web", "s3://raw/web", "", 6),
    ]
    index = read_index(open_store(world.store_root), out.uri, info).to_pylist()
    labels = {row["key"]: ("cat", "dog")[row["label"]] for row in index}
    assert labels == {row.key: row.labels[0] for row in rows}
    found = read_manifest(f"{local(world.store_root, out)}/manifest.parquet").to_pylist()
    assert {(row["source"], row["licence"]) for row in found} == {("pets", "MIT"), ("pets", "CC BY 4.0"), ("web", "")}


def test_sources_that_annotate_different_classes_are_refused_in_one_dataset(world, tmp_path):
    other = SourceInfo(
        name="web", uri="file:///web", tasks={"classify": Task(family="classify", class_names=("cat", "cow"))}
    )
    rows = pet_rows(tmp_path / "raw", 6)
    rows += [image_row(tmp_path / "raw", "web-1", picture(7), source="web", labels=("cow",))]
    ref = commit_rows(world.store_root, tmp_path / "m", rows, [PETS, other])
    with pytest.raises(DataError, match="sources pets and web do not both annotate the classify classes cow, dog: "):
        run_stage("shard", shard.Config(), Inputs(manifest=(ref,)))
    ref = commit_rows(world.store_root, tmp_path / "n", [*rows[:6], *scene_rows(tmp_path / "raw", 2)], [PETS, SCENES])
    with pytest.raises(DataError, match="pets and scenes do not both annotate the task classify"):
        run_stage("shard", shard.Config(), Inputs(manifest=(ref,)))
    with pytest.raises(ConfigError, match="source: the manifest has pets, scenes, not 'birds'"):
        run_stage("shard", shard.Config(source="birds"), Inputs(manifest=(ref,)))


def test_weights_decide_a_mixture(world, tmp_path):
    rows = pet_rows(tmp_path / "raw", 24) + pet_rows(tmp_path / "raw", 6, "web")
    sources = [PETS, PETS.model_copy(update={"name": "web"})]
    ref = commit_rows(world.store_root, tmp_path / "m", rows, sources)
    store, parts = open_store(world.store_root), []
    for source, weight in (("pets", 1.0), ("web", 3.0)):
        config = shard.Config(source=source, weight=weight, split=SplitRule(val_share=0, test_share=0))
        out = run_stage("shard", config, Inputs(manifest=(ref,)))
        parts.append(ShardSource(store, out.uri, cache_dir=tmp_path / "cache", fields=("label",)))
    mixture = MixtureSource(parts, ("label",), MixtureConfig())
    order = mixture.order(0, 8)
    drawn = [mixture.place(order[position])[0] for position in range(4000)]
    assert abs(np.mean(drawn) - 0.75) < 0.01
    parts[0].info = parts[0].info.model_copy(update={"weight": 0.0})
    with pytest.raises(DataError, match="data: pets has no weight and others have one"):
        MixtureSource(parts, ("label",), MixtureConfig())


def test_a_killed_stage_goes_on_after_its_last_shard(world, tmp_path):
    rows = [
        image_row(tmp_path / "raw", f"k-{index:04d}", picture(index, 96, 128), source="pets", labels=("cat",))
        for index in range(120)
    ]
    ref = commit_rows(world.store_root, tmp_path / "m", rows, [PETS])
    config = shard.Config(max_shard_bytes=100_000)
    store = open_store(world.store_root)
    environment = {**world.environment, "INTERN_STORE": f"file://{tmp_path}/store"}
    stage = StageProcess(tmp_path / "first", "shard", config, {"manifest": (ref,)}, "killed", 1, environment)

    def records():
        return sorted(tmp_path.glob("store/shard/*/checkpoints/shard-*.json"))

    stage.wait_until(lambda: len(records()) >= 2)
    os.killpg(stage.process.pid, signal.SIGKILL)
    stage.process.wait()
    num_done = len(records())
    shards = sorted(tmp_path.glob("store/shard/*/shards/*.tar"))[:num_done]
    before = {path: path.stat().st_mtime_ns for path in shards}
    assert num_done >= 2 and not list(tmp_path.glob("store/shard/*/_COMMITTED"))
    second = StageProcess(tmp_path / "second", "shard", config, {"manifest": (ref,)}, "killed", 1, environment)
    resumed = second.ref()
    assert any("are there already" in note for note in second.notes())
    assert {path: path.stat().st_mtime_ns for path in shards} == before
    whole = run_stage("shard", config, Inputs(manifest=(ref,)))
    assert len(load_info(store, whole.uri).shards) > num_done
    assert resumed.digest == whole.digest
    assert pq.read_table(f"{local('', resumed)}/index.parquet").num_rows == 120
    assert not records()
    assert store.read(join_uri(resumed.uri, "dataset.json")) == store.read(join_uri(whole.uri, "dataset.json"))
