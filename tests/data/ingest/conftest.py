from pathlib import Path

import pytest
from ingest_parts import Ingest


@pytest.fixture
def take_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ingest:
    return Ingest(tmp_path / "own", monkeypatch)
