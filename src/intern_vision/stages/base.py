"""How a stage is run: look up its key, run it once, commit its output, and keep the record.

A stage's output lies at ``<store root>/<stage>/<name>-<key>``; the key is a digest of code,
config and inputs, so the same work is never done twice and a changed setting never reuses
stale bytes. ``_COMMITTED`` is written last and holds the ``Record``.
"""

import fcntl
import functools
import importlib
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import intern_vision
from intern_vision.config import Config, canonical_json, text_digest
from intern_vision.errors import ConfigError, MissingObjectError
from intern_vision.events import Progress
from intern_vision.ref import Kind, Ref
from intern_vision.store import Store, digest_of_files, file_sha256, join_uri, open_store
from intern_vision.track import Tracker

COMMIT_MARKER = "_COMMITTED"
OWNER_FILE = ".owner"
STAGE_NAMES = (
    "prepare",
    "ingest",
    "dedup",
    "filter",
    "label",
    "annotate",
    "shard",
    "search",
    "search_round",
    "search_trial",
    "import_weights",
    "amateur",
    "amateur_local",
    "expert",
    "generalist",
    "select",
    "represent",
    "adapt",
    "evaluate",
    "export",
    "report",
    "data_report",
)


class Record(Config):
    """What is known of a committed output; the JSON text of its ``_COMMITTED`` file.

    Attributes:
        ref: the output's own Ref.
        stage: name of the stage that made it.
        key: digest of code, config and inputs.
        code: digest of the package's source files.
        config: the stage's config as plain JSON values.
        inputs: addresses of the inputs by input name.
        files: SHA-256 of each file by its name below the output's address.
        facts: small results by name, for example ``image_passes``, ``cpu_s`` or scores.
        started_unix_s: start, seconds since 1970.
        wall_s: elapsed seconds.
        cpu_s: processor seconds of the stage's process and its ranks, on other nodes too; those of interrupted runs up
            to the checkpoint that was resumed included.
        run_id: MLflow run id, empty where there was no server.
    """

    ref: Ref
    stage: str
    key: str
    code: str
    config: dict[str, Any]
    inputs: dict[str, tuple[str, ...]]
    files: dict[str, str]
    facts: dict[str, float | int | str]
    started_unix_s: float
    wall_s: float
    cpu_s: float
    run_id: str = ""


class Inputs(dict[str, tuple[Ref, ...]]):
    """The Refs a stage was given, by input name."""

    def one(self, name: str) -> Ref:
        """The only Ref under ``name``; ConfigError where there is none or more than one."""
        refs = self.get(name, ())
        if len(refs) != 1:
            raise ConfigError(f"inputs.{name}: expected 1 Ref, got {len(refs)}")
        return refs[0]

    def optional(self, name: str) -> Ref | None:
        """The Ref under ``name``, or None where it was left out."""
        return self.one(name) if self.get(name) else None

    def many(self, name: str) -> tuple[Ref, ...]:
        """The Refs under ``name`` in the order given, possibly none."""
        return self.get(name, ())


@dataclass(slots=True, kw_only=True)
class StageContext:
    """What a stage may use besides its config and inputs.

    Attributes:
        store: the bytes.
        store_root: address under which every output lies.
        output_uri: where this output will be committed.
        output_dir: local folder; every file in it is uploaded by ``commit``.
        scratch_dir: local folder for anything else; gone after the stage.
        cache_dir: local folder for verified copies of shards, shared between stages.
        tracker: this stage's run.
        progress: where steps done are reported.
        num_ranks: processes that a training stage starts.
        facts: small results to keep in the record.
        elsewhere_cpu_s: processor seconds that went into this output in other processes than this one and its
            children: interrupted runs whose work it goes on from, and other nodes.
        uploaded: files of the output that lie at ``output_uri`` already and not in ``output_dir``, by name: SHA-256
            and size in bytes.
    """

    store: Store
    store_root: str
    output_uri: str
    output_dir: Path
    scratch_dir: Path
    cache_dir: Path
    tracker: Tracker
    progress: Progress
    num_ranks: int
    inputs: Inputs
    facts: dict[str, float | int | str] = field(default_factory=dict)
    elsewhere_cpu_s: float = 0.0
    uploaded: dict[str, tuple[str, int]] = field(default_factory=dict)

    def commit(self, kind: Kind, name: str) -> Ref:
        """Uploads every file of ``output_dir`` and returns the output's Ref.

        The parents are all inputs of the stage, so lineage cannot be forgotten. The commit
        marker itself is written by ``run_stage`` once the stage has returned.
        """
        files = {name: sha256 for name, (sha256, _) in self.uploaded.items()}
        num_bytes = sum(size_bytes for _, size_bytes in self.uploaded.values())
        for path in sorted(self.output_dir.rglob("*")):
            if path.is_file():
                relative = path.relative_to(self.output_dir).as_posix()
                files[relative] = file_sha256(path)
                num_bytes += path.stat().st_size
                self.store.put(path, join_uri(self.output_uri, *relative.split("/")))
        return Ref(
            kind=kind,
            name=name,
            uri=self.output_uri,
            digest=digest_of_files(files),
            num_bytes=num_bytes,
            parents=tuple(ref.uri for refs in self.inputs.values() for ref in refs),
        )

    def fetch(self, ref: Ref) -> Path:
        """A verified local copy of all files of a small output (weights, scores), in ``scratch_dir``."""
        return fetch(self.store, ref, self.scratch_dir / "inputs")


class Stage(Protocol):
    """A stage module."""

    Config: type[Config]

    def run(self, config: Any, inputs: Inputs, context: StageContext) -> Ref:
        """Does the work and returns the committed output."""
        ...


def load_stage(name: str) -> Stage:
    """The stage's module; ConfigError names the known stages."""
    if name not in STAGE_NAMES:
        raise ConfigError(f"stage: expected one of {', '.join(STAGE_NAMES)}, got {name!r}")
    return importlib.import_module(f"intern_vision.stages.{name}")  # type: ignore[return-value]


@functools.cache
def code_digest() -> str:
    """SHA-256 over the package's source files and templates: a changed line of code is a changed key."""
    root = Path(intern_vision.__file__).parent
    sources = [path for path in root.rglob("*") if path.suffix in (".py", ".j2")]
    return digest_of_files({path.relative_to(root).as_posix(): file_sha256(path) for path in sources})


def stage_key(stage: str, config: Config, inputs: Inputs) -> str:
    """Digest of everything that decides a stage's output (the number of nodes and of ranks does not)."""
    digests = {name: [ref.digest for ref in refs] for name, refs in sorted(inputs.items())}
    return text_digest(canonical_json([code_digest(), stage, config.deciding(), digests]))


def read_record(store: Store, uri: str) -> Record:
    """The record of a committed output; MissingObjectError where it was never committed."""
    return Record.from_json(store.read(join_uri(uri, COMMIT_MARKER)).decode(), at=uri)


def fetch(store: Store, ref: Ref, target_root: Path) -> Path:
    """Copies an output's files below ``target_root``, checks their digests and returns the folder."""
    target = target_root / ref.digest[:16]
    for name, sha256 in read_record(store, ref.uri).files.items():
        path = target / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            store.get(join_uri(ref.uri, *name.split("/")), path, sha256=sha256)
    return target


def run_stage(stage: str, config: Config, inputs: Inputs, *, name: str = "", num_ranks: int = 0) -> Ref:
    """Runs a stage, or returns its committed output where the same work was done before.

    The environment says where: ``INTERN_STORE`` (store root), ``INTERN_STATE`` (local state
    folder), ``MLFLOW_TRACKING_URI``, ``INTERN_NUM_RANKS``.

    Args:
        stage: one of ``STAGE_NAMES``.
        config: the stage's own ``Config``.
        inputs: Refs by input name.
        name: what to call this use of the stage, for example ``expert-detect``.
        num_ranks: training processes; 0 takes ``INTERN_NUM_RANKS``.

    Raises:
        InternError: whatever the stage raises on purpose.
    """
    name = name or stage
    store_root = os.environ.get("INTERN_STORE") or f"file://{state_dir().absolute()}/store"
    store = open_store(store_root)
    key = stage_key(stage, config, inputs)
    output_uri = join_uri(store_root, stage, f"{name}-{key[:16]}")
    progress = Progress(name)
    try:
        record = read_record(store, output_uri)
    except MissingObjectError:
        pass
    else:
        # A kill between the marker and this deletion left them behind.
        store.delete(join_uri(output_uri, "checkpoints"))
        progress.cached(record.wall_s)
        return record.ref
    progress.started()
    started = time.time()
    cpu_before = _cpu_s()
    with scratch_folder(name) as scratch_dir, Tracker.for_stage(name, state_dir() / "spool") as tracker:
        tracker.log_params({f"config/{k}": v for k, v in flatten(config.to_dict()).items()})
        tracker.set_tags({"intern.stage": stage, "intern.key": key, "intern.code": code_digest()})
        for input_name, refs in inputs.items():
            for ref in refs:
                tracker.log_input(ref, context=input_name)
        output_dir = scratch_dir / "output"
        output_dir.mkdir()
        context = StageContext(
            store=store,
            store_root=store_root,
            output_uri=output_uri,
            output_dir=output_dir,
            scratch_dir=scratch_dir,
            cache_dir=state_dir() / "cache",
            tracker=tracker,
            progress=progress,
            num_ranks=num_ranks or int(os.environ.get("INTERN_NUM_RANKS", "1")),
            inputs=inputs,
        )
        ref = load_stage(stage).run(config, inputs, context)
        wall_s, cpu_s = time.time() - started, context.elsewhere_cpu_s + _cpu_s() - cpu_before
        record = Record(
            ref=ref,
            stage=stage,
            key=key,
            code=code_digest(),
            config=config.to_dict(),
            inputs={k: tuple(r.uri for r in refs) for k, refs in inputs.items()},
            files={name: sha256 for name, (sha256, _) in context.uploaded.items()} | _file_digests(output_dir),
            facts=context.facts,
            started_unix_s=started,
            wall_s=wall_s,
            cpu_s=cpu_s,
            run_id=tracker.run_id or "",
        )
        store.put(record.to_json().encode(), join_uri(output_uri, COMMIT_MARKER))
        store.delete(join_uri(output_uri, "checkpoints"))
        tracker.log_output(ref)
        tracker.log_metrics({k: v for k, v in context.facts.items() if not isinstance(v, str)}, step=0)
        tracker.log_metrics({"wall_s": wall_s, "cpu_s": cpu_s}, step=0)
    progress.done(wall_s, cpu_s)
    return ref


def read_ref(path: str | Path) -> Ref:
    """The Ref that a file holds."""
    return Ref.from_json(Path(path).read_text(), at=str(path))


def read_refs(path: str | Path) -> tuple[Ref, ...]:
    """The Refs that a file holds: one, or a JSON array of them."""
    text = Path(path).read_text()
    if not text.startswith("["):
        return (Ref.from_json(text, at=str(path)),)
    return tuple(Ref.from_dict(value, at=str(path)) for value in json.loads(text))


def state_dir() -> Path:
    """The folder for everything local: services' data, spool, cache (``INTERN_STATE``, default ``.intern``)."""
    return Path(os.environ.get("INTERN_STATE", ".intern"))


def flatten(values: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Nested plain values as ``{"a/b": value}``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{at}{name}/")
        else:
            flat[f"{at}{name}"] = value
    return flat


def _file_digests(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """A fresh local folder for the length of a block; folders that killed processes left behind go first."""
    root = state_dir() / "scratch"
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        for old in root.iterdir():
            if old.is_dir() and _is_abandoned(old):
                shutil.rmtree(old, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))
        owner = open(folder / OWNER_FILE, "w")  # noqa: SIM115 - held as long as the folder is in use
        fcntl.flock(owner, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        owner.close()


def _is_abandoned(folder: Path) -> bool:
    # The kernel lifts a killed process's lock, so a stage that left its checkpoints here is known as dead.
    try:
        with open(folder / OWNER_FILE) as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def _cpu_s() -> float:
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
