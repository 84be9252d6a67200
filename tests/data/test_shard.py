import json
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from intern_vision.data.codec import decode_image, decode_map, encode_depth, encode_jpeg, encode_png
from intern_vision.data.manifest import Quarantined, SourceInfo, read_manifest
from intern_vision.data.sample import Sample
from intern_vision.data.shard import DatasetInfo, FinishedShard, write_dataset
from intern_vision.errors import DataError
from intern_vision.store import file_sha256
from intern_vision.task import Task

INFO = DatasetInfo(
    name="toy",
    licence="CC0-1.0",
    source="made",
    tasks={
        "classify": Task(family="classify", class_names=("a", "b", "c")),
        "detect": Task(family="detect", class_names=("x", "y")),
        "segment": Task(family="segment", class_names=("s0", "s1", "s2")),
        "depth": Task(family="depth", max_depth_m=10.0),
    },
    concept_names=("k0", "k1", "k2", "k3"),
)


def full_sample(index, split="train", size_px=24):
    rng = np.random.default_rng(index)
    return Sample(
        key=f"s{index:04d}",
        split=split,
        image=rng.integers(0, 256, (size_px, size_px, 3), np.uint8),
        caption=f"picture {index}, größer",
        label=index % 3,
        concepts=(0, 3),
        boxes=np.array([[1, 2, 10.5, 20], [0, 0, size_px, size_px]], np.float32)[: 1 + index % 2],
        box_labels=np.array([0, 1])[: 1 + index % 2],
        mask=rng.integers(0, 3, (size_px, size_px), np.uint8),
        depth=rng.uniform(0, 10, (size_px, size_px)).astype(np.float32),
    )


def test_webdataset_reads_the_shards_unchanged(tmp_path):
    samples = [full_sample(index) for index in range(12)]
    info = write_dataset(samples, INFO, tmp_path, max_shard_bytes=24_000, lossless=True)
    assert len(info.shards) > 2
    urls = [str(tmp_path / shard.path) for shard in info.shards]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [item["__key__"] for item in read] == [sample.key for sample in samples]
    for item, sample in zip(read, samples, strict=True):
        assert np.array_equal(decode_image(item["png"]), sample.image)
        assert np.array_equal(decode_map(item["mask.png"]), sample.mask)
        values = json.loads(item["json"])
        assert values["caption"] == sample.caption
        assert values["boxes"] == sample.boxes.tolist()
        assert np.abs(decode_map(item["depth.png"]) * info.depth_scale - sample.depth).max() <= 0.0005 + 1e-6


def test_index_points_at_every_member_and_digests_hold(tmp_path):
    info = write_dataset([full_sample(index) for index in range(8)], INFO, tmp_path, max_shard_bytes=30_000)
    members = {}
    for number, shard in enumerate(info.shards):
        path = tmp_path / shard.path
        assert file_sha256(path) == shard.sha256
        assert path.stat().st_size == shard.num_bytes <= 32_000
        with tarfile.open(path) as tar:
            members |= {(number, member.name): (member.offset_data, member.size) for member in tar}
            assert all(member.mtime == member.uid == member.gid == 0 for member in tar.getmembers())
    suffixes = {"image": "jpg", "json": "json", "mask": "mask.png", "depth": "depth.png"}
    rows = pq.read_table(tmp_path / "index.parquet").to_pylist()
    for row in rows:
        for member, suffix in suffixes.items():
            place = members.pop((row["shard"], f"{row['key']}.{suffix}"))
            assert place == (row[f"{member}_offset"], row[f"{member}_num_bytes"])
    assert not members
    assert sum(shard.num_samples for shard in info.shards) == len(rows) == 8


def test_equal_samples_give_equal_bytes_and_info_round_trips(tmp_path):
    splits = ("train", "val", "test", "train")
    infos = []
    for folder in ("a", "b"):
        samples = (full_sample(index, split) for index, split in enumerate(splits))
        infos.append(write_dataset(samples, INFO, tmp_path / folder))
    assert infos[0] == infos[1]
    for path in sorted((tmp_path / "a").rglob("*.*")):
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes(), path.name
    assert (infos[0].num_train, infos[0].num_val, infos[0].num_test) == (2, 1, 1)
    assert infos[0].image_size_px == 24
    assert infos[0].fields == (
        "image",
        "caption",
        "label",
        "concepts",
        "boxes",
        "box_labels",
        "mask",
        "depth",
    )
    assert DatasetInfo.from_json((tmp_path / "a" / "dataset.json").read_text()) == infos[0]


def test_only_present_fields_are_written(tmp_path):
    image = np.zeros((8, 12, 3), np.uint8)
    info = write_dataset([Sample(key="bare", split="train", image=image)], INFO, tmp_path)
    assert info.fields == ("image",)
    assert info.image_size_px == 0
    with tarfile.open(tmp_path / info.shards[0].path) as tar:
        assert tar.getnames() == ["bare.jpg"]


def test_shards_are_handed_on_while_samples_still_come(tmp_path):
    seen = []

    def samples():
        for index in range(12):
            yield full_sample(index)
            produced.append(len(seen))

    produced = []

    def take(done):
        seen.append(done.shard.path)
        (tmp_path / done.shard.path).unlink()

    info = write_dataset(samples(), INFO, tmp_path, max_shard_bytes=20_000, on_shard=take)
    assert seen == [shard.path for shard in info.shards]
    assert produced[-1] >= len(info.shards) - 2
    assert not list((tmp_path / "shards").iterdir())


BAD = {
    "label": ({"label": 3}, "label: expected 0..2, got 3"),
    "concepts": ({"concepts": (4,)}, "concepts: expected 0..3"),
    "mask": ({"mask": np.full((24, 24), 7, np.uint8)}, "mask: expected 0..2 or 255, got 7"),
    "mask shape": ({"mask": np.zeros((2, 2), np.uint8)}, r"mask: expected \(24, 24\) as the image"),
    "box outside": ({"boxes": np.array([[0, 0, 25, 9]], np.float32), "box_labels": np.array([0])}, "boxes: expected"),
    "box empty": ({"boxes": np.array([[3, 3, 3, 9]], np.float32), "box_labels": np.array([0])}, "boxes: expected"),
    "box labels": ({"boxes": np.array([[0, 0, 9, 9]], np.float32), "box_labels": np.array([2])}, "box_labels"),
    "depth": ({"depth": np.full((24, 24), 70, np.float32)}, "depth 70.000..70.000 m is outside"),
    "image": ({"image": np.zeros((24, 24), np.uint8)}, "image: expected"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_sample_that_contradicts_the_tasks_is_quarantined_with_its_reason(tmp_path, name):
    changes, reason = BAD[name]
    bad = full_sample(1)
    for field, value in changes.items():
        setattr(bad, field, value)
    info = write_dataset([full_sample(0), bad], INFO, tmp_path, max_quarantined_share=0.5)
    assert (info.num_train, info.num_quarantined) == (1, 1)
    rows = read_manifest(tmp_path / "manifest.parquet").to_pydict()
    assert rows["status"] == ["ok", "quarantined"]
    with pytest.raises(DataError, match=reason):
        write_dataset([full_sample(0), bad], INFO, tmp_path / "strict")


def test_too_many_quarantined_samples_stop_and_leave_the_manifest(tmp_path):
    bad = [Quarantined(key=f"q{index}", uri=f"file:///q{index}.jpg", reason="ends too early") for index in range(2)]
    good = [full_sample(index) for index in range(8)]
    with pytest.raises(DataError, match="2 of 10 samples are unusable, the limit is 5%; first: file:///q0.jpg: ends"):
        write_dataset([*bad, *good], INFO, tmp_path)
    assert read_manifest(tmp_path / "manifest.parquet").to_pydict()["reason"][:2] == ["ends too early"] * 2
    assert write_dataset([*bad, *good], INFO, tmp_path, max_quarantined_share=0.2).num_quarantined == 2


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "ü", "x" * 89])
def test_keys_that_cannot_name_members_are_refused(tmp_path, key):
    sample = full_sample(0)
    sample.key = key
    with pytest.raises(DataError, match="expected 1..88 letters"):
        write_dataset([sample], INFO, tmp_path)


def test_the_same_key_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match="'s0000' occurs twice"):
        write_dataset([full_sample(0), full_sample(0)], INFO, tmp_path)


def test_no_sample_is_an_error(tmp_path):
    with pytest.raises(DataError, match="0 of 0"):
        write_dataset([], INFO, tmp_path)


def test_codec_keeps_colours_and_refuses_what_is_cut_short():
    image = np.zeros((16, 16, 3), np.uint8)
    image[..., 0] = 250
    assert np.array_equal(decode_image(encode_png(image)), image)
    assert np.abs(decode_image(encode_jpeg(image)).astype(int) - image).max() <= 3
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for data in (encode_jpeg(noise)[:-900], encode_png(noise)[:-900], b"", b"GIF?"):
        with pytest.raises(ValueError):
            decode_image(data)
    with pytest.raises(ValueError, match="one-channel"):
        decode_map(encode_png(image))


def test_known_depth_never_becomes_unknown():
    depth = np.array([[0.0, 0.0001, 1.0, 65.535]], np.float32)
    assert encode_depth(depth, 0.001).tolist() == [[0, 1, 1000, 65535]]
    with pytest.raises(ValueError, match="outside"):
        encode_depth(np.array([[np.nan]], np.float32), 0.001)


def test_an_own_file_is_kept_byte_for_byte(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    files = {"jpg": encode_jpeg(image), "png": encode_png(image), "bmp": b"BM" + bytes(40)}
    samples = [Sample(key=name, split="train", image=image, encoded=data) for name, data in files.items()]
    info = write_dataset(samples, INFO, tmp_path, lossless=True)
    with tarfile.open(tmp_path / info.shards[0].path) as tar:
        stored = {member.name: tar.extractfile(member).read() for member in tar}
    assert stored["jpg.jpg"] == files["jpg"] and stored["png.png"] == files["png"]
    assert np.array_equal(decode_image(stored["bmp.png"]), image)


def test_attributes_that_do_not_fit_their_boxes_are_quarantined(tmp_path):
    def sample(key, **values):
        changed = full_sample(1)
        changed.key = key
        for name, value in values.items():
            setattr(changed, name, value)
        return changed

    samples = [
        sample("good", box_attributes={"difficult": np.array([0, 1], np.float32)}),
        sample("short", box_attributes={"difficult": np.zeros(1, np.float32)}),
        sample("odd", box_attributes={"weight": np.zeros(2, np.float32)}),
        sample("alone", boxes=None, box_labels=None, box_attributes={"difficult": np.zeros(0, np.float32)}),
    ]
    write_dataset(samples, INFO, tmp_path, max_quarantined_share=0.8)
    rows = read_manifest(tmp_path / "manifest.parquet").to_pylist()
    reasons = {row["key"]: row["reason"] for row in rows}
    assert reasons["good"] == ""
    assert reasons["short"] == "box_attributes: difficult: expected 2 values, one a box, got shape (1,)"
    assert reasons["odd"].startswith("box_attributes: unknown name 'weight'; known: difficult, ignored")
    assert reasons["alone"] == "box_attributes: given without boxes"


def test_a_later_attempt_goes_on_after_the_finished_shards(tmp_path):
    bad = Quarantined(key="gone", uri="file:///gone.jpg", reason="no file")
    samples = [full_sample(0), bad, *(full_sample(index, ("train", "val")[index % 2]) for index in range(1, 12))]
    done = []
    whole = write_dataset(
        samples, INFO, tmp_path / "a", max_shard_bytes=24_000, on_shard=done.append, max_quarantined_share=0.1
    )
    kept = [FinishedShard.from_json(each.to_json()) for each in done[:2]]
    num_read = sum(len(each.manifest) for each in kept)
    later = []
    resumed = write_dataset(
        samples[num_read:],
        INFO,
        tmp_path / "b",
        max_shard_bytes=24_000,
        on_shard=later.append,
        finished=kept,
        max_quarantined_share=0.1,
    )
    assert resumed == whole and len(whole.shards) > 3
    assert [each.shard for each in later] == list(whole.shards[2:])
    names = sorted(path.name for path in (tmp_path / "b" / "shards").iterdir())
    assert names == [shard.path.removeprefix("shards/") for shard in whole.shards[2:]]
    for name in ("dataset.json", "index.parquet", "manifest.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_samples_of_several_sources_carry_their_licences(tmp_path):
    sources = (
        SourceInfo(name="a", uri="file:///a", licence="CC0"),
        SourceInfo(name="b", uri="file:///b", licence="MIT"),
    )
    samples = [full_sample(0), full_sample(1), full_sample(2)]
    samples[0].source, samples[1].source = 1, 0
    write_dataset(samples, INFO.model_copy(update={"sources": sources}), tmp_path)
    rows = read_manifest(tmp_path / "manifest.parquet").to_pylist()
    assert [(row["source"], row["licence"]) for row in rows] == [("b", "MIT"), ("a", "CC0"), ("made", "CC0-1.0")]
