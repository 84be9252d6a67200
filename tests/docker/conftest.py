"""The engine and the images; tests that need one that is not here are skipped with the reason."""

from collections.abc import Iterator
from typing import Any

import pytest

import intern_vision
from intern_vision import containers
from intern_vision.errors import InternError

TRAIN_IMAGE = f"intern-vision:{intern_vision.__version__}"
SERVER_IMAGES = tuple(f"intern-vision-{name}:{intern_vision.__version__}" for name in ("store", "mlflow", "postgres"))


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """A client of the Docker engine."""
    try:
        client = containers.connect()
    except InternError as error:
        pytest.skip(str(error))
    yield client
    client.close()


@pytest.fixture(scope="session")
def train_image(engine: Any) -> Any:
    """The CPU image of steps and trainings."""
    return _image(engine, TRAIN_IMAGE)


@pytest.fixture(scope="session")
def server_images(engine: Any) -> dict[str, Any]:
    """The servers' images by name."""
    return {name: _image(engine, name) for name in SERVER_IMAGES}


def _image(engine: Any, name: str) -> Any:
    try:
        containers.check_image(engine, name)
    except InternError as error:
        pytest.skip(str(error))
    return engine.images.get(name)
