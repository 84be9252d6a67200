import pytest

from benchmarks import data_scale
from intern_vision.data.manifest import read_manifest


def test_a_line_a_step_with_the_ratio_of_sizes(capsys):
    data_scale.main(["--num-rows", "300", "600", "--steps", "write", "exact duplicates", "balance"])
    head, *steps, peak, machine = capsys.readouterr().out.splitlines()
    assert head.split()[-5:] == ["300", "600", "worst", "step", "up"] and "cores" in machine
    assert [line.split("  ")[0] for line in steps] == ["write", "exact duplicates", "balance"]
    assert all("x (<= 1.3: " in line for line in steps) and "(<= 4 GB: pass)" in peak


def test_made_rows_do_not_depend_on_where_a_piece_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(data_scale, "ROWS_AT_ONCE", 128)
    data_scale.write_made(tmp_path / "made.parquet", 301)
    table = read_manifest(tmp_path / "made.parquet").to_pydict()
    assert len(set(table["key"])) == 301 and len(set(table["digest"])) == 301 - 3
    assert table["key"] == sorted(table["key"]) and set(table["source"]) == set(data_scale.SOURCES)


def test_planted_duplicates_are_found_and_no_others(tmp_path):
    path = tmp_path / "made.parquet"
    data_scale.write_made(path, 401)
    prints = data_scale.made_prints(path, tmp_path, 401)
    assert data_scale.take_out_duplicates(path, tmp_path / "all", prints, 401, True) == 4 + 4
    with pytest.raises(RuntimeError, match="duplicates found, 8 were planted"):
        prints.thumbnails[7] = prints.thumbnails[8]
        data_scale.take_out_duplicates(path, tmp_path / "more", prints, 401, True)
