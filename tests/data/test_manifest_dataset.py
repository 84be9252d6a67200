import numpy as np
import pytest
from made_manifests import image_row, picture

from intern_vision.data.codec import encode_png
from intern_vision.data.labels.merge import merge
from intern_vision.data.labels.union import label_unions
from intern_vision.data.labels.vocabulary import dataset_vocabularies
from intern_vision.data.manifest import ManifestInfo, ManifestRow, SourceInfo, write_manifest
from intern_vision.data.manifest_dataset import ManifestDataset, depth_unit_m
from intern_vision.data.sample import Sample
from intern_vision.data.settings import SplitRule
from intern_vision.errors import DataError
from intern_vision.task import Task

NO_DRAW = SplitRule(val_share=0, test_share=0)


def scene_source(name, *class_names):
    return SourceInfo(
        name=name, uri=f"file:///{name}", tasks={"segment": Task(family="segment", class_names=class_names)}
    )


def masked_row(folder, key, source, values):
    mask = np.resize(np.array(values, np.uint8), (24, 32))
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    path = folder / "masks" / f"{key}.png"
    path.write_bytes(encode_png(mask))
    return image_row(folder, key, picture(0), source=source, mask=path.as_uri()), mask


def dataset(folder, rows, *sources, **options):
    write_manifest(sorted(rows, key=lambda row: row.key), folder / "manifest.parquet")
    info = ManifestInfo(name="made", sources=sources)
    return ManifestDataset(folder / "manifest.parquet", info, **{"rule": NO_DRAW} | options)


def test_a_labelling_gives_two_sources_one_numbering(tmp_path):
    sources = (scene_source("rooms", "lamp", "dog", "cat"), scene_source("roads", "cats", "lamps", "dogs"))
    first, first_mask = masked_row(tmp_path, "a", "rooms", (0, 1, 2, 255))
    second, second_mask = masked_row(tmp_path, "b", "roads", (0, 1, 2, 255))
    with pytest.raises(
        DataError, match="rooms and roads do not both annotate the segment classes cat, cats, dog, dogs, "
    ):
        dataset(tmp_path, [first, second], *sources)
    merged = merge([vocabulary for source in sources for vocabulary in dataset_vocabularies(source)])
    found = dataset(tmp_path, [first, second], *sources, unions=label_unions(merged.mappings, merged.system))
    assert found.tasks["segment"].class_names == ("lamp", "dog", "cat")
    samples = list(found.samples())
    assert np.array_equal(samples[0].mask, first_mask)
    expected = np.array([2, 0, 1, *[255] * 253], np.uint8)
    assert np.array_equal(samples[1].mask, expected[second_mask])


def test_a_mask_value_without_a_class_is_told(tmp_path):
    row, _ = masked_row(tmp_path, "a", "rooms", (0, 5))
    (bad,) = dataset(tmp_path, [row], scene_source("rooms", "lamp", "dog")).samples()
    assert bad.reason == "mask: expected 0..1 or 255, got 5" and bad.key == "a"


def test_reading_goes_on_in_the_middle_with_any_number_of_threads(tmp_path):
    tasks = {"classify": Task(family="classify", class_names=("cat", "dog"))}
    source = SourceInfo(name="pets", uri="x", tasks=tasks)
    rows = [
        image_row(tmp_path, f"p{index:02d}", picture(index), source="pets", labels=("cat",), status=status)
        for index, status in enumerate(["ok", "removed", "ok", "ok", "quarantined", "ok", "ok", "ok"])
    ]
    found = dataset(tmp_path, rows, source)
    whole = [sample.key for sample in found.samples()]
    assert whole == ["p00", "p02", "p03", "p05", "p06", "p07"] == [row.key for row in found.rows]
    for start in range(7):
        assert [sample.key for sample in found.samples(start, num_threads=3)] == whole[start:]
    sample = next(found.samples(2))
    assert isinstance(sample, Sample) and np.abs(sample.image.astype(int) - picture(3)).mean() < 3


def test_captions_alone_make_a_dataset_of_captioned_rows(tmp_path):
    source = SourceInfo(name="web", uri="x")
    rows = [
        ManifestRow(key="a", uri="file:///a", source="web", caption="a dog"),
        ManifestRow(key="b", uri="file:///b", source="web"),
        ManifestRow(key="c", uri="file:///c", source="web", caption=""),
    ]
    found = dataset(tmp_path, rows, source)
    assert [row.key for row in found.rows] == ["a"] and found.num_unlabelled == 2
    assert [row.key for row in dataset(tmp_path, rows[1:], source).rows] == ["b", "c"]


def test_a_pool_that_nothing_is_known_of_gives_nothing_to_a_dataset_of_others(tmp_path):
    pets = SourceInfo(
        name="pets", uri="x", licence="CC0", tasks={"classify": Task(family="classify", class_names=("dog",))}
    )
    pool = SourceInfo(name="pool", uri="y")
    rows = [
        ManifestRow(key="a", uri="file:///a", source="pets", labels=("dog",)),
        ManifestRow(key="b", uri="file:///b", source="pool"),
        ManifestRow(key="c", uri="file:///c", source="pool", status="removed"),
    ]
    for order in ((pets, pool), (pool, pets)):
        found = dataset(tmp_path, rows, *order)
        assert [row.key for row in found.rows] == ["a"] and found.num_unlabelled == 1
        assert found.info.name == "pets" and [source.name for source in found.info.sources] == ["pets"]
    assert [row.key for row in dataset(tmp_path, rows, pets, pool, source="pool").rows] == ["b"]
    told = [*rows[:1], ManifestRow(key="b", uri="file:///b", source="pool", caption="a dog")]
    with pytest.raises(DataError, match="pets and pool do not both annotate the task classify"):
        dataset(tmp_path, told, pets, pool)


def test_rows_of_a_detection_set_need_boxes(tmp_path):
    source = SourceInfo(name="web", uri="x", tasks={"detect": Task(family="detect", class_names=("dog",))})
    rows = [
        ManifestRow(key="a", uri="file:///a", source="web", boxes=()),
        ManifestRow(key="b", uri="file:///b", source="web", caption="a dog"),
    ]
    found = dataset(tmp_path, rows, source)
    assert [row.key for row in found.rows] == ["a"] and found.rows[0].stratum == ""
    with pytest.raises(DataError, match=r"no row with status ok has a label to learn from \(1 without\)"):
        dataset(tmp_path, rows[1:], source)
    with pytest.raises(DataError, match="rows of source 'web', which manifest.json does not list"):
        dataset(tmp_path, rows, SourceInfo(name="other", uri="x"))


def test_depth_units_reach_the_farthest_point():
    assert depth_unit_m(None) == depth_unit_m(Task(family="depth", max_depth_m=10)) == 0.001
    assert depth_unit_m(Task(family="depth", max_depth_m=130)) == 0.002
