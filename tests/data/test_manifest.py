import subprocess
import sys

from intern_vision.data.manifest import COLUMNS, ManifestRow, read_manifest, write_manifest


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


def test_no_rows_still_give_a_table(tmp_path):
    write_manifest([], tmp_path / "manifest.parquet")
    assert read_manifest(tmp_path / "manifest.parquet").column_names == list(COLUMNS)


def test_import_is_light():
    code = "import intern_vision.data.manifest, sys; sys.exit(bool({'daft', 'pyarrow', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
