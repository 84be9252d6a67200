import numpy as np
from scipy.fft import dctn

from benchmarks import data_scale
from intern_vision.data.manifest import read_manifest


def test_a_line_a_step_with_the_ratio_of_sizes(capsys):
    data_scale.main(["--num-rows", "300", "600", "--steps", "write", "exact duplicates", "balance"])
    head, *steps, peak, machine = capsys.readouterr().out.splitlines()
    assert head.split()[-5:] == ["300", "600", "worst", "step", "up"] and "cores" in machine
    assert [line.split("  ")[0] for line in steps] == ["write", "exact duplicates", "balance", "together"]
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
    for name, num_found in (("exact", 4), ("all", 8)):
        data_scale.take_out_duplicates(path, tmp_path / name, prints, name == "all")
        counts = data_scale.planted_found(tmp_path / name, 401)
        assert counts == {"planted": 8, "found": num_found, "others": 0}
    prints.thumbnails[7] = prints.thumbnails[8]
    data_scale.take_out_duplicates(path, tmp_path / "more", prints, True)
    assert data_scale.planted_found(tmp_path / "more", 401) == {"planted": 8, "found": 8, "others": 1}


def test_made_pictures_have_the_spectrum_that_is_said(tmp_path):
    grey = data_scale.made_thumbnails(tmp_path / "thumbnails.npy", 200)["grey"].astype(float)
    amplitude = np.abs(dctn(grey, axes=(1, 2), norm="ortho")).mean(0)
    octaves = [amplitude[0, 2], amplitude[0, 4], amplitude[0, 8], amplitude[0, 16]]
    slope = np.polyfit(np.log([2, 4, 8, 16]), np.log(octaves), 1)[0]
    assert -1.3 < slope < -0.7 and 15 < grey.std((1, 2)).mean() < 60


def test_a_line_says_what_of_the_planted_was_found():
    found = {"taken": {"near duplicates": 2.0}, "near": {"planted": 8, "found": 6, "others": 1}, "peak_bytes": 1e9}
    assert data_scale.lines({400: found})[-1] == "of 8 planted in 400 found 0.7500; 1 others"
