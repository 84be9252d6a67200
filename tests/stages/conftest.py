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


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes in bytes of the images that were decoded since."""
    from intern_vision.data.ingest import opening

    found = []

    def counting(data, **options):
        found.append(len(data))
        return decode_image(data, **options)

    decode_image = opening.decode_image
    monkeypatch.setattr(opening, "decode_image", counting)
    return found
