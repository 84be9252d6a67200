import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from ingest_parts import encoded, write

from intern_vision.data.manifest_store import read_bytes
from intern_vision.errors import DataError


def shards(root: Path) -> Path:
    """Two tar files as img2dataset writes them: image, text, facts; a table and statistics beside."""
    root.mkdir(parents=True)
    for shard in range(2):
        rows = []
        with webdataset.TarWriter(str(root / f"{shard:05d}.tar")) as writer:
            for number in range(3):
                key = f"{shard:05d}{number:04d}"
                caption = f"picture {shard} {number}"
                facts = {"url": f"http://a/{number}.jpg", "caption": caption, "key": key, "LICENSE": "?"}
                facts |= {"status": "success", "width": 32, "height": 24} | ({"license": "CC0"} if number == 1 else {})
                image = encoded("JPEG", seed=3 * shard + number)
                sample = {"__key__": key, "jpg": image, "txt": caption, "json": facts}
                if number == 2:
                    del sample["txt"]
                writer.write(sample)
                rows.append(facts)
        pq.write_table(pa.Table.from_pylist(rows), root / f"{shard:05d}.parquet")
        (root / f"{shard:05d}_stats.json").write_text(json.dumps({"count": 3}))
    return root


def test_shards_of_img2dataset(take_up, tmp_path):
    root = shards(tmp_path / "in")
    taken = take_up(root)
    assert taken.info.sources[0].layout == "webdataset" and taken.reasons == [] and taken.info.num_ok == 6
    expected = {
        f"picture {shard} {number}": encoded("JPEG", seed=3 * shard + number) for shard in (0, 1) for number in range(3)
    }
    assert {row["caption"]: read_bytes(row["uri"]) for row in taken.rows} == expected
    assert sorted(row["licence"] for row in taken.rows) == ["", "", "", "", "CC0", "CC0"]
    one = take_up(root / "00001.tar")
    assert one.info.sources[0].layout == "webdataset" and {row["caption"] for row in one.rows} == set(
        list(expected)[3:]
    )
    # Bytes that were kept once are not kept again.
    again = take_up(root, earlier=taken)
    assert again.facts["num_taken_over"] == 6 and again.rows == taken.rows


def test_samples_that_something_is_wrong_with(take_up, tmp_path):
    path = tmp_path / "in" / "0.tar"
    path.parent.mkdir()
    with webdataset.TarWriter(str(path)) as writer:
        image = encoded("JPEG")
        writer.write({"__key__": "good", "jpg": image, "cls": b"7"})
        writer.write({"__key__": "latin", "jpg": image, "txt": b"caf\xe9"})
        writer.write({"__key__": "odd", "jpg": image, "json": b"[1]"})
        writer.write({"__key__": "open", "jpg": image, "json": b"{"})
        writer.write({"__key__": "deep", "jpg": image, "json": b"[" * 50_000})
        writer.write({"__key__": "none", "txt": b"a picture that could not be fetched"})
    taken = take_up(tmp_path / "in")
    assert [row["labels"] for row in taken.rows if row["status"] == "ok"] == [["7"]]
    assert {
        row["uri"].split("#")[1]: row["reason"].split(" at ")[0] for row in taken.rows if row["status"] != "ok"
    } == {
        "latin.jpg": "text: latin.txt: expected UTF-8 text, got byte 0xe9",
        "odd.jpg": "annotation: odd.json: expected an object, got list",
        "open.jpg": "annotation: open.json: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)",
        "deep.jpg": "annotation: deep.json: maximum recursion depth exceeded while decoding a JSON array from a "
        "unicode string",
        "none.jpg": f"missing: no member none.jpg in {path}",
    }


def test_a_damaged_shard_ends_the_ingest(take_up, tmp_path):
    root = shards(tmp_path / "in")
    write(root / "00001.tar", b"not a tar file at all" * 40)
    with pytest.raises(DataError, match="00001.tar: cannot be read as an archive"):
        take_up(root)
    assert list((take_up.folder / "store").rglob("*.jpg")) == []
