from collections.abc import Iterator

import pytest
from helpers import World, make_world, set_environment


@pytest.fixture(scope="session")
def made_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(made_world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    set_environment(monkeypatch, made_world.environment)
    yield made_world
