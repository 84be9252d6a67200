"""One stage as a command of its own: Refs in files, its output on the store, its own Ref in a file."""

import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from intern_vision.config import Config
from intern_vision.console import StageProgress
from intern_vision.errors import ConfigError, RetryableError
from intern_vision.events import listening
from intern_vision.ref import Ref


def run_to_ref(
    stage: str,
    config: Config,
    inputs: Mapping[str, Sequence[Path]],
    out: Path,
    *,
    state_dir: Path,
    name: str = "",
    quiet: bool = False,
) -> Ref:
    """Runs a stage in this process, with its progress on the terminal; what is committed already is taken from there.

    The store is ``INTERN_STORE`` or, without it, ``<state folder>/store``. SIGTERM ends the stage with exit code 75.

    Args:
        stage: name of the stage.
        config: its config.
        inputs: files with Refs, by input name; those without any are left out.
        out: file for the output's Ref; its folder is made.
        state_dir: folder for everything local.
        name: what to call this use of the stage.
        quiet: no progress lines.

    Raises:
        ConfigError: a file with a Ref does not exist or holds none.
        InternError: whatever the stage raises.
    """
    from intern_vision.stages.base import Inputs, run_stage

    os.environ["INTERN_STATE"] = str(state_dir)
    found: dict[str, tuple[Any, ...]] = {}
    for input_name, paths in inputs.items():
        for path in paths:
            found[input_name] = (*found.get(input_name, ()), *read_ref_file(path, input_name))
    with StageProgress(quiet=quiet) as progress, listening(progress), _stopping_when_asked():
        ref = run_stage(stage, config, Inputs(found), name=name)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(ref.to_json() + "\n", encoding="utf-8")
    return ref


@contextmanager
def _stopping_when_asked() -> Iterator[None]:
    """SIGTERM ends the block with a RetryableError, so that what is begun is put away."""

    def stop(number: int, frame: Any) -> None:
        raise RetryableError("asked to stop; the same command goes on")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def reaching(state_dir: Path, files: Iterable[Path | None]) -> Iterator[None]:
    """The embedded S3 server for the length of a block, where a Ref lies in it and no other server is named.

    Args:
        state_dir: folder for everything local.
        files: with Refs; what is no such file is left to the block.

    Raises:
        RetryableError: the server does not start.
    """
    from intern_vision import services
    from intern_vision.s3 import configured_endpoint
    from intern_vision.stages.base import read_refs

    uris = (ref.uri for path in files if path and path.is_file() for ref in read_refs(path))
    if configured_endpoint() or not any(uri.startswith("s3://") for uri in uris):
        yield
        return
    with services.running(state_dir, with_mlflow=False) as running, running.named():
        yield


def read_ref_file(path: Path, at: str) -> tuple[Ref, ...]:
    """The Refs of a file that a command was given as ``at``; ConfigError where there is none."""
    from intern_vision.stages.base import read_refs

    if not path.is_file():
        raise ConfigError(f"{at}: {path} is no file; give the one that --out of an earlier step wrote")
    return read_refs(path)
