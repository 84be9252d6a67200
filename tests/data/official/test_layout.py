from collections import Counter
from pathlib import Path

import pytest

from intern_vision.bench.suite import find_row
from intern_vision.data.official.layout import OfficialCopy, classify_reading, draw_splits
from intern_vision.data.reading import Item, SplitRule
from intern_vision.errors import DataError


@pytest.fixture
def copy(tmp_path):
    (tmp_path / "dtd").mkdir()
    return OfficialCopy.at(find_row("dtd"), tmp_path)


@pytest.mark.parametrize("name", ["eurosat", "resisc45"])
def test_drawn_splits_have_the_sizes_of_vtab(name):
    row = find_row(name)
    # Classes of EuroSAT hold 2,000 to 3,000 images, those of RESISC45 700.
    sizes = [3000, 3000, 3000, 2500, 2500, 2000, 2500, 3000, 2500, 3000] if name == "eurosat" else [700] * 45
    items = [
        Item(key=f"{label}-{index}", path=Path("x"), split="train", stratum=label)
        for label, size in enumerate(sizes)
        for index in range(size)
    ]
    drawn = draw_splits(items, SplitRule(val_share=0.4, test_share=0.4), val_share=0.2, test_share=0.2)
    assert Counter(item.split for item in drawn) == {"train": row.num_train, "val": row.num_val, "test": row.num_test}
    of_test = Counter(item.stratum for item in drawn if item.split == "test")
    assert all(abs(of_test[label] - size / 5) <= 1 for label, size in enumerate(sizes))


def test_a_missing_file_says_what_where_and_from_whom(copy):
    (copy.base / "b.txt").touch()
    assert copy.need("a.txt", "b.txt").name == "b.txt"
    with pytest.raises(DataError) as error:
        copy.need("labels/a.txt", "c.txt")
    row = copy.row
    assert str(error.value) == (
        f"{copy.base}/labels/a.txt: missing; it is part of DTD, get it from {row.source_url} "
        f"and unpack it under {copy.folder}"
    )


def test_a_top_folder_is_entered_only_where_it_is(copy):
    assert copy.below("dtd", "other").base == copy.folder
    (copy.folder / "other").mkdir()
    assert copy.below("dtd", "other").base == copy.folder / "other"


@pytest.mark.parametrize("relative", ["/etc/passwd", "../x", "a/../../x", "..", ""])
def test_paths_stay_inside(copy, relative):
    with pytest.raises(DataError, match="list.txt: the path .* leads out of"):
        copy.inside(relative, Path("list.txt"))


def test_paths_with_dots_in_names_are_fine(copy):
    assert copy.inside("a/b..c.jpg", Path("list.txt")) == copy.base / "a/b..c.jpg"


def test_a_parser_that_fails_names_the_file(copy):
    with (
        pytest.raises(DataError, match="^x.mat: not in the official layout of DTD: bad header$"),
        copy.parsing(Path("x.mat")),
    ):
        raise RuntimeError("bad\nheader")
    with pytest.raises(DataError, match="^own words$"), copy.parsing(Path("x.mat")):
        raise DataError("own words")


def test_lists_and_tables_name_their_lines(copy):
    path = copy.base / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfone 1\r\n\r\ntwo 2\r\n")
    assert list(copy.rows(path, 2)) == [["one", "1"], ["two", "2"]]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="list.txt: expected UTF-8 text"):
        list(copy.rows(path))
    path.write_text("a, b\n1,2\n\n3\n")
    with pytest.raises(DataError, match="list.txt: line 4: expected 2 columns"):
        list(copy.table(path, ("a", "b")))
    path.write_text('a, b\n1,"2\n3"\n')
    assert list(copy.table(path, ("a",))) == [{"a": "1", "b": "2\n3"}]


def test_a_set_without_training_images_is_refused(copy):
    items = [copy.item(copy.base / "a.jpg", "test", 0)]
    with pytest.raises(DataError, match="dtd: no training image of DTD in it"):
        classify_reading(copy, items, ["banded"])
