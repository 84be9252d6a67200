"""Fixtures that start the real servers; each pytest process (xdist worker) has its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from intern_vision.services import Services, running

_EXPORTED: set[str] = set()
"""Variables of the servers, which may start in the midst of a test and stay."""


def _exported(state_dir: Path, with_mlflow: bool) -> Iterator[Services]:
    with running(state_dir, with_mlflow=with_mlflow) as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.environment().items():
            _EXPORTED.add(name)
            patch.setitem(os.environ, name, value)
        yield found


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """SeaweedFS and MLflow, their addresses and credentials exported to the environment."""
    yield from _exported(tmp_path_factory.mktemp("services"), with_mlflow=True)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """SeaweedFS alone (or the one that ``services`` already started), exported to the environment."""
    yield from _exported(tmp_path_factory.mktemp("s3"), with_mlflow=False)


@pytest.fixture(autouse=True)
def no_setting_leaks() -> Iterator[None]:
    """A test that leaves an ``INTERN_`` variable behind would change what its worker's later tests see."""
    before = _own_settings()
    yield
    after = _own_settings()
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} - _EXPORTED
    assert not changed, "the test changed the environment: set these with monkeypatch"


def _own_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("INTERN_")}
