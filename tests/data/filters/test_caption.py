import pytest
from made_manifests import image_row, picture

from intern_vision.data.filters.caption import caption_fault, size_faults, text_faults
from intern_vision.data.filters.rows import FilterRows
from intern_vision.data.filters.rules import SizeRule, TextRule
from intern_vision.data.manifest import ManifestRow, write_manifest
from intern_vision.events import Progress

GOOD = (
    "a dog on the beach",
    "two dogs",
    "Café à Paris, 5 µm",
    "the cat, the dog and the bird in the garden of the house by the sea",
    "row row your boat",
)
BAD = {
    "": "empty",
    "   ": "empty",
    "狗在沙滩上": "100% of the letters are not latin",
    "a dog 狗 here": "11% of the letters are not latin",
    "кошка": "100% of the letters are not latin",
    "buy at https://x.yz/a": "has a web address",
    "visit www.dogs.example": "has a web address",
    "photos from pets.com today": "has a web address",
    "IMG_0001.jpg": "is the name of a file",
    "DSC00012": "is the name of a file",
    "20160716_113957": "is the name of a file",
    "holiday.png": "is the name of a file",
    "dog": "3 characters",
    "dog dog dog dog": "repeats 'dog'",
    "buy now buy now buy now please": "repeats 'buy now'",
    "word " * 300: "300 words",
}


@pytest.mark.parametrize("caption", GOOD)
def test_captions_that_stay(caption):
    assert caption_fault(caption, TextRule()) == ""


@pytest.mark.parametrize("caption", BAD)
def test_captions_that_go(caption):
    assert caption_fault(caption, TextRule()) == BAD[caption]


def test_the_settings_move_the_limits():
    assert caption_fault("a dog 狗 here", TextRule(max_foreign_share=0.2)) == ""
    assert caption_fault("кошка на столе", TextRule(scripts=("cyrillic",))) == ""
    assert caption_fault("a plain dog", TextRule(scripts=("cyrillic",))) == "100% of the letters are not cyrillic"
    assert caption_fault("狗在沙滩上", TextRule(scripts=())) == ""
    assert caption_fault("IMG_0001.jpg", TextRule(file_names=True)) == ""
    assert caption_fault("see www.x.com", TextRule(urls=True)) == ""
    assert caption_fault("two dogs", TextRule(min_words=3)) == "2 words"


def filter_rows(folder, rows):
    write_manifest(rows, folder / "manifest.parquet")
    return FilterRows(
        path=folder / "manifest.parquet", removed={}, out_dir=folder, scratch_dir=folder, progress=Progress("test")
    )


def test_boilerplate_is_counted_over_rows_digits_and_case_aside(tmp_path):
    captions = [f"Stock photo {index} of us" for index in range(5)] + ["STOCK  photo 7 of us", "a dog", None]
    rows = filter_rows(
        tmp_path,
        [ManifestRow(key=f"r{index}", uri="file:///x", caption=caption) for index, caption in enumerate(captions)],
    )
    rule = TextRule(max_rows=5, min_chars=1)
    assert text_faults(rule, rows) == dict.fromkeys(range(6), "text: boilerplate, in 6 rows")
    assert text_faults(rule.model_copy(update={"max_rows": 6}), rows) == {}
    assert text_faults(rule.model_copy(update={"max_rows": 0, "missing": "remove"}), rows) == {7: "text: no caption"}
    # What an earlier rule took out neither counts nor goes twice.
    rows.removed[0] = "size: small"
    assert text_faults(rule, rows) == {}


def test_sizes(tmp_path):
    rows = [
        image_row(tmp_path, f"r{index}", picture(0, *size)) for index, size in enumerate(((20, 20), (19, 40), (40, 90)))
    ]
    found = filter_rows(tmp_path, rows)
    assert set(size_faults(SizeRule(min_px=20), found)) == {1}
    assert set(size_faults(SizeRule(max_px=60), found)) == {2}
    assert set(size_faults(SizeRule(max_aspect=2.2), found)) == {2}
    limit = rows[0].num_bytes
    assert set(size_faults(SizeRule(min_bytes=limit + 1), found)) >= {0}
    assert set(size_faults(SizeRule(max_bytes=limit), found)) == {1, 2}
