import os

from intern_vision.address import listing_digest


def test_digest_of_a_listing_tells_changed_files_and_not_where_they_lie(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        (folder / "c").mkdir(parents=True)
        (folder / "c" / "x.png").write_bytes(b"1")
        os.utime(folder / "c" / "x.png", (0, 0))
    first = listing_digest(folders[0])
    assert listing_digest(folders[1]) == first
    (folders[1] / "c" / "x.png").write_bytes(b"12")
    assert listing_digest(folders[1]) != first
    (folders[0] / "y.png").write_bytes(b"")
    assert listing_digest(folders[0]) != first
    (folders[0] / "y.png").rename(folders[0] / "z.png")
    renamed = listing_digest(folders[0])
    assert renamed not in (first, listing_digest(folders[0] / "z.png"))


def test_pictures_of_a_table_count(tmp_path):
    table, picture = tmp_path / "labels.csv", tmp_path / "x.png"
    table.write_text("file,label")
    picture.write_bytes(b"1")
    first = listing_digest(table, [picture, tmp_path / "gone.png"])
    assert listing_digest(table, [picture]) == first != listing_digest(table)
    picture.write_bytes(b"12")
    assert listing_digest(table, [picture]) != first
