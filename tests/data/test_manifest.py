import subprocess
import sys
from dataclasses import asdict

from intern_vision.data.manifest import COLUMNS, ManifestBox, ManifestRow, read_manifest, write_frame, write_manifest
from intern_vision.data.tables import iter_rows


def test_round_trip_keeps_rows_nulls_and_order(tmp_path):
    rows = [
        ManifestRow(key="a", uri="shards/00000.tar/a.jpg", width_px=4, height_px=3, labels=("cat",), split="train"),
        ManifestRow(key="b", uri="file:///b.jpg", status="quarantined", reason="ends too early", caption="é"),
    ]
    path = tmp_path / "manifest.parquet"
    write_manifest(rows, path)
    table = read_manifest(path).to_pydict()
    assert tuple(table) == COLUMNS
    assert table["labels"] == [["cat"], None]
    assert table["caption"] == [None, "é"]
    assert table["reason"] == ["", "ends too early"]
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.parquet"]
    first = path.read_bytes()
    write_manifest(rows, path)
    assert path.read_bytes() == first


def test_daft_query_runs_on_the_manifest(tmp_path):
    path = tmp_path / "manifest.parquet"
    write_manifest([ManifestRow(key=f"k{index}", uri="u", num_bytes=index) for index in range(100)], path)
    table = read_manifest(path)
    assert table.where(table["num_bytes"] >= 90).count_rows() == 10


def test_a_query_is_written_in_the_order_of_keys(tmp_path):
    path, target = tmp_path / "manifest.parquet", tmp_path / "half.parquet"
    boxes = (ManifestBox(label="cat", x0=0.5, y0=1, x1=2, y1=3, ignored=True),)
    rows = [
        ManifestRow(key=f"k{index}", uri="u", num_bytes=index, boxes=boxes, labels=("a", "b")) for index in range(9)
    ]
    write_manifest(rows[::-1], path)
    table = read_manifest(path)
    assert write_frame(table.where(table["num_bytes"] >= 5), target) == 4
    write_manifest(rows[5:], path)
    assert target.read_bytes() == path.read_bytes()
    assert next(iter_rows(target, ["boxes"]))["boxes"] == [asdict(boxes[0])]


def test_no_rows_still_give_a_table(tmp_path):
    write_manifest([], tmp_path / "manifest.parquet")
    assert read_manifest(tmp_path / "manifest.parquet").column_names == list(COLUMNS)


def test_import_is_light():
    code = "import intern_vision.data.manifest, sys; sys.exit(bool({'daft', 'pyarrow', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
