import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import SIZE_PX, commit_folder, save_backbone
from typer.testing import CliRunner

from intern_vision.cli import app
from intern_vision.data import world as made
from intern_vision.data.duplicates import prints as prints_module
from intern_vision.data.duplicates.planted import CHANGES
from intern_vision.data.manifest import (
    MANIFEST_INFO_NAME,
    MANIFEST_NAME,
    ManifestInfo,
    ManifestRow,
    read_manifest,
    write_manifest,
)
from intern_vision.errors import ConfigError
from intern_vision.stages import dedup
from intern_vision.stages.base import Inputs, fetch, read_record, run_stage
from intern_vision.store import file_sha256, open_store


def pictures(num_images, name="upstream", split="train", size_px=64):
    own = made.UPSTREAM if name == "upstream" else made.DOWNSTREAM[name]
    return [sample.image for sample in made.render(own, 0, split, range(num_images), image_size_px=size_px)]


def put(folder: Path, key, image, **values):
    """A row whose image is a PNG file in ``folder``."""
    path = folder / f"{key}.png"
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    height, width = image.shape[:2]
    values = {"digest": file_sha256(path), "width_px": width, "height_px": height} | values
    return ManifestRow(key=key, uri=path.as_uri(), num_bytes=path.stat().st_size, **values)


def commit(world, folder: Path, name, rows):
    target = folder / name
    target.mkdir()
    rows = sorted(rows, key=lambda row: row.key)
    write_manifest(rows, target / MANIFEST_NAME)
    num_ok = sum(row.status == "ok" for row in rows)
    info = ManifestInfo(name=name, num_rows=len(rows), num_ok=num_ok, sha256=file_sha256(target / MANIFEST_NAME))
    (target / MANIFEST_INFO_NAME).write_text(info.to_json())
    return commit_folder(world.store_root, "ingest", "manifest", name, target)


def result(ref, tmp_path):
    folder = fetch(open_store(ref.uri), ref, tmp_path / "fetched")
    rows = {row["key"]: row for row in read_manifest(folder / MANIFEST_NAME).to_pylist()}
    return folder, rows


def test_one_of_each_group_is_kept(world, tmp_path):
    images, rng = pictures(12), np.random.default_rng(0)
    rows = [put(tmp_path, f"a{number:02d}", image, labels=("x",)) for number, image in enumerate(images)]
    rows += [
        put(tmp_path, "b-same", images[0], labels=("x", "y")),  # the same file, with more labels
        put(tmp_path, "b-grey", CHANGES["grey"](images[1], rng), labels=("z",)),
        put(tmp_path, "b-large", cv2.resize(images[2], (128, 128), interpolation=cv2.INTER_CUBIC)),
        put(tmp_path, "b-test", CHANGES["mirrored"](images[3], rng), split="test"),
        put(tmp_path, "c-gone", images[4], status="removed", reason="filter: by hand"),
        ManifestRow(key="d-none", uri=(tmp_path / "none.png").as_uri(), digest="0" * 64),
    ]
    manifest = commit(world, tmp_path, "raw", rows)
    ref = run_stage("dedup", dedup.Config(), Inputs(manifest=(manifest,)))
    assert ref.kind == "manifest" and ref.parents == (manifest.uri,)
    folder, found = result(ref, tmp_path)
    assert list(found) == sorted(found) and len(found) == len(rows)
    assert {key: row["reason"].split(" (")[0] for key, row in found.items() if row["status"] == "removed"} == {
        "a00": "duplicate: of b-same",
        "a02": "duplicate: of b-large",
        "a03": "duplicate: of b-test",
        "b-grey": "duplicate: of a01",
        "c-gone": "filter: by hand",
    }
    assert "exact); its labels differ" in found["a00"]["reason"]
    assert found["b-grey"]["reason"].endswith("; its labels differ") and found["b-grey"]["labels"] == ["z"]
    assert not found["a02"]["reason"].endswith("differ")  # nothing is known of the larger one
    assert found["d-none"]["status"] == "quarantined" and found["d-none"]["reason"].startswith("unreadable: ")
    info = ManifestInfo.from_json((folder / MANIFEST_INFO_NAME).read_text())
    assert info.steps[-1].counts == {"duplicate": 4, "unreadable": 1}
    assert (info.steps[-1].num_in, info.steps[-1].num_out, info.num_ok) == (17, 12, 12)
    assert info.sha256 == file_sha256(folder / MANIFEST_NAME)
    table = pq.read_table(folder / "duplicates.parquet").to_pylist()
    assert [(row["group"], row["key"], row["kept"], row["method"]) for row in table][:4] == [
        (0, "a00", False, "exact"),
        (0, "b-same", True, "exact"),
        (1, "a01", True, "perceptual"),
        (1, "b-grey", False, "perceptual"),
    ]
    assert len(table) == 8 and {row["against"] for row in table} == {""}
    assert read_record(open_store(ref.uri), ref.uri).facts["num_conflicts"] == 2


def test_nothing_leaks_from_benchmark_sets(world, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    test = pictures(24, "flower", "test", SIZE_PX)
    own = pictures(10)
    benchmark = commit(
        world, tmp_path, "bench", [put(tmp_path, "q1", own[7], split="val"), put(tmp_path, "q2", own[8])]
    )
    rows = [put(tmp_path, f"a{number}", image) for number, image in enumerate(own[:8])]
    rows += [
        put(tmp_path, "z-crop", CHANGES["cropped"](test[5], rng)),
        put(tmp_path, "z-twin", CHANGES["grey"](CHANGES["cropped"](test[5], np.random.default_rng(0)), rng)),
        put(tmp_path, "z-same", test[9]),
    ]
    manifest = commit(world, tmp_path, "raw", rows)
    inputs = Inputs(manifest=(manifest,), against=(world.flower, benchmark))
    ref = run_stage("dedup", dedup.Config(), inputs)
    folder, found = result(ref, tmp_path)
    gone = {key: row["reason"] for key, row in found.items() if row["status"] == "removed"}
    assert set(gone) == {"a7", "z-crop", "z-twin", "z-same"}
    assert gone["a7"] == "leak: bench/val q1 (exact)"
    assert gone["z-same"].startswith("leak: flower/test flower-test-000009 (perceptual, distance 0.00")
    assert all("flower-test-000005" in gone[key] for key in ("z-crop", "z-twin"))
    leaks = {(leak["dataset"], leak["split"]): leak for leak in json.loads((folder / "leaks.json").read_text())}
    assert set(leaks) == {("flower", "test"), ("flower", "train"), ("bench", "val"), ("bench", "")}
    assert leaks["flower", "test"]["num_images"] == 24 and leaks["flower", "test"]["num_leaks"] == 3
    assert leaks["flower", "train"]["num_leaks"] == 0 and leaks["bench", "val"]["by_method"] == {"exact": 1}
    pairs = [row for row in pq.read_table(folder / "duplicates.parquet").to_pylist() if row["against"]]
    assert {(row["key"], row["against"]) for row in pairs} == {
        ("a7", "bench/val"),
        *((key, "flower/test") for key in ("z-crop", "z-twin", "z-same")),
    }
    assert all(row["against_uri"].startswith((world.flower.uri, "file://")) for row in pairs)
    # Another threshold needs no image again.
    monkeypatch.setattr(prints_module, "write_prints", lambda *args, **kwargs: pytest.fail("an image was opened again"))
    again = run_stage("dedup", dedup.Config(against_splits=("test",), name="again"), inputs)
    assert result(again, tmp_path)[1]["a7"]["status"] == "ok"


def test_neighbours_of_a_backbone_count_and_are_measured(world, tmp_path):
    images = pictures(30)
    turned = np.ascontiguousarray(images[0].swapaxes(0, 1))
    rows = [put(tmp_path, f"a{number:02d}", image) for number, image in enumerate(images)]
    manifest = commit(world, tmp_path, "raw", [*rows, put(tmp_path, "b", turned)])
    model = save_backbone(world, tmp_path / "model")
    ref = run_stage("dedup", dedup.Config(min_cosine=0.01), Inputs(manifest=(manifest,), model=(model,)))
    counts = read_record(open_store(ref.uri), ref.uri).facts
    assert counts["num_duplicate"] > 0  # fresh weights: everything is near everything
    methods = set(pq.read_table(fetch(open_store(ref.uri), ref, tmp_path) / "duplicates.parquet")["method"].to_pylist())
    assert methods == {"embedding"}
    config = dedup.Config(num_measured=20, name="measured")
    ref = run_stage("dedup", config, Inputs(manifest=(manifest,), model=(model,)))
    folder = fetch(open_store(ref.uri), ref, tmp_path)
    curve = json.loads((folder / dedup.CURVE_FILE).read_text())
    embedding = curve["embedding"]
    at = embedding["thresholds"].index(embedding["used"]) if embedding["used"] < 1 else None
    assert at is None or embedding["distinct"]["share"][at] <= config.max_false_share
    assert set(curve["perceptual"]["changes"]) == set(CHANGES) and curve["perceptual"]["num_images"] == 20
    assert (folder / dedup.CURVE_PICTURE).read_text().count("<svg") == 2
    step = ManifestInfo.from_json((folder / MANIFEST_INFO_NAME).read_text()).steps[-1]
    assert step.settings["min_cosine"] == embedding["used"] and step.settings["model"] == model.uri


def test_files_alone(world, tmp_path):
    # No image is opened: these files do not exist.
    uri = (tmp_path / "none.png").as_uri()
    rows = [
        ManifestRow(key=key, uri=uri, digest=digest) for key, digest in (("a", "1" * 64), ("b", "1" * 64), ("c", ""))
    ]
    manifest = commit(world, tmp_path, "raw", rows)
    ref = run_stage("dedup", dedup.Config(perceptual=False), Inputs(manifest=(manifest,), against=(world.flower,)))
    found = result(ref, tmp_path)[1]
    assert [found[key]["status"] for key in "abc"] == ["ok", "removed", "ok"]
    assert found["b"]["reason"] == "duplicate: of a (exact)"


def test_inputs_of_another_kind(world, tmp_path):
    with pytest.raises(ConfigError, match="expected a Ref of kind manifest, got dataset"):
        run_stage("dedup", dedup.Config(), Inputs(manifest=(world.flower,)))
    manifest = commit(world, tmp_path, "raw", [put(tmp_path, "a", pictures(1)[0])])
    with pytest.raises(ConfigError, match="expected a Ref of kind manifest or dataset, got genotype"):
        run_stage("dedup", dedup.Config(), Inputs(manifest=(manifest,), against=(world.genotype,)))
    with pytest.raises(ConfigError, match="dedup: protected_splits must be of train, val and test, got 'dev'"):
        dedup.Config.from_dict({"protected_splits": ["dev"]}, at="dedup")


def test_the_command(world, tmp_path):
    images = pictures(4, "flower", "test", SIZE_PX)
    rows = [put(tmp_path, f"a{number}", image) for number, image in enumerate([*images[:2], *pictures(3)])]
    paths = {name: tmp_path / f"{name}.json" for name in ("raw", "flower", "clean")}
    paths["raw"].write_text(commit(world, tmp_path, "raw", rows).to_json())
    paths["flower"].write_text(world.flower.to_json())
    arguments = ["data", "dedup", str(paths["raw"]), "--against", str(paths["flower"]), "--out", str(paths["clean"])]
    arguments += ["--state-dir", world.environment["INTERN_STATE"]]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "3 of 5 images left" and lines[2] == "leaks      2"
    assert any(line.split() == ["flower/test", "24", "2", "2", "perceptual"] for line in lines), done.stdout
    shown = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert shown["ref"]["uri"] in lines[-1] and shown["num_leak"] == 2 and json.loads(paths["clean"].read_text())
    refused = CliRunner().invoke(app, ["data", "dedup", str(tmp_path / "no.json"), "--out", str(paths["clean"])])
    assert refused.exit_code == 2 and "no.json is no file" in refused.stderr
