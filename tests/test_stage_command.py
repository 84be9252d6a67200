import json
import os

import numpy as np
import pytest
from typer.testing import CliRunner

from intern_vision.cli import app
from intern_vision.data.codec import encode_png
from intern_vision.ref import Ref
from intern_vision.stage_command import reaching


@pytest.mark.slow
def test_commands_reach_what_a_run_left_in_the_embedded_server(tmp_path, monkeypatch):
    for name in ("INTERN_STORE", "INTERN_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("INTERN_STATE", str(tmp_path / "state"))
    (tmp_path / "table.csv").write_text("file,label\nimage.png,cat\n")
    (tmp_path / "image.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    state, raw, again, elsewhere = (tmp_path / name for name in ("state", "raw.json", "again.json", "elsewhere.json"))
    ref = Ref(kind="manifest", name="x", uri="s3://intern/x", digest="0" * 64, num_bytes=0, parents=())
    elsewhere.write_text(ref.to_json())
    with reaching(state, [elsewhere, None]):
        assert os.environ["INTERN_STORE"] == "s3://intern/store"
        ingest = ["data", "ingest", str(tmp_path / "table.csv"), "--out", str(raw), "--state-dir", str(state), "--json"]
        done = CliRunner().invoke(app, ingest)
        assert done.exit_code == 0, done.output
    assert "INTERN_STORE" not in os.environ
    assert json.loads(raw.read_text())["uri"].startswith("s3://intern/store/ingest/")
    for command in (["stats", str(raw)], ["label", str(raw), "--out", str(again)], ["show", str(raw)]):
        done = CliRunner().invoke(app, ["data", *command, "--state-dir", str(state), "--json"])
        assert done.exit_code == 0, done.output
    assert json.loads(again.read_text())["parents"] == [json.loads(raw.read_text())["uri"]]


def test_a_store_of_files_needs_no_server(tmp_path):
    ref = tmp_path / "ref.json"
    with reaching(tmp_path / "state", [ref]):
        assert not (tmp_path / "state").exists()
