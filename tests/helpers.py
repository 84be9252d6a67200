"""A tiny dataset, genotype and weights, and stages run in processes of their own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from intern_vision.config import Config
from intern_vision.data.settings import AugmentConfig
from intern_vision.heads import HeadConfig
from intern_vision.models.genotype import Genotype, StageGene
from intern_vision.ref import Kind, Ref
from intern_vision.stages import amateur, prepare, search
from intern_vision.stages.base import COMMIT_MARKER, Inputs, Record, run_stage
from intern_vision.store import digest_of_files, file_sha256, join_uri, open_store
from intern_vision.task import Family
from intern_vision.train.settings import TrainerConfig
from intern_vision.train.workspace import Workspace

if TYPE_CHECKING:
    from intern_vision.train.trainer import TrainJob

SIZE_PX = 32
HEAD = HeadConfig(neck_width=8)
AUGMENT = AugmentConfig(image_size_px=SIZE_PX)
# BatchNorm, attention and DropPath in a few thousand parameters.
GENOTYPE = Genotype(
    stem_width=8,
    stages=(
        StageGene(operator="fused_mbconv", expansion=2, width=8, num_blocks=1, stride=2),
        StageGene(operator="mbconv", expansion=2, width=16, num_blocks=1, stride=2),
        StageGene(operator="attention", expansion=2, width=16, num_blocks=1, stride=2),
    ),
    head_width=0,
    head_size=8,
    drop_path=0.1,
    layer_scale_init=0.1,
    image_size_px=SIZE_PX,
)
TEXT = amateur.TextConfig(context_length=16, width=16, num_blocks=1, num_heads=2, embedding_width=16)


def trainer_config(**values: Any) -> TrainerConfig:
    """Few steps in float32, reported one by one."""
    settings = {"num_steps": 4, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32", "log_every": 1}
    return TrainerConfig(**settings | values)


def amateur_config(**values: Any) -> amateur.Config:
    """All five signals."""
    augment = AugmentConfig(image_size_px=SIZE_PX, num_views=2)
    settings = {"trainer": trainer_config(), "text": TEXT, "augment": augment, "queue_rows": 64}
    return amateur.Config(**settings | values)


def commit_folder(store_root: str, stage: str, kind: Kind, name: str, folder: Path) -> Ref:
    """Puts a folder on the store as if ``stage`` had made it."""
    store = open_store(store_root)
    files = {p.relative_to(folder).as_posix(): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    uri = join_uri(store_root, stage, name)
    for file in files:
        store.put(folder / file, join_uri(uri, *file.split("/")))
    ref = Ref(kind=kind, name=name, uri=uri, digest=digest_of_files(files), num_bytes=1, parents=())
    record = Record(
        ref=ref,
        stage=stage,
        key="",
        code="",
        config={},
        inputs={},
        files=files,
        facts={},
        started_unix_s=0.0,
        wall_s=0.0,
        cpu_s=0.0,
    )
    store.put(record.to_json().encode(), join_uri(uri, COMMIT_MARKER))
    return ref


@dataclass(frozen=True)
class World:
    """What stages need to run: a store with inputs, and the environment that points at it.

    Attributes:
        store_root: address of the store.
        environment: of a stage's process.
        upstream: 96 + 16 images with every kind of supervision.
        flower: a classification set, 60 + 24 images.
        genotype: ``GENOTYPE``, committed.
    """

    store_root: str
    environment: dict[str, str]
    upstream: Ref
    flower: Ref
    genotype: Ref

    def workspace(self, folder: Path, **inputs: Ref | tuple[Ref, ...]) -> Workspace:
        """A workspace as a rank has it."""
        folder.mkdir(parents=True, exist_ok=True)
        return Workspace(
            store=open_store(self.store_root),
            inputs=Inputs({k: refs if isinstance(refs, tuple) else (refs,) for k, refs in inputs.items()}),
            scratch_dir=folder,
            cache_dir=Path(self.environment["INTERN_STATE"]) / "cache",
        )


def make_world(root: Path) -> World:
    """Prepares the datasets through the stage and commits the genotype."""
    store_root = f"file://{root}/store"
    environment = {"INTERN_STORE": store_root, "INTERN_STATE": str(root / "state"), "OMP_NUM_THREADS": "1"}
    upstream = prepare.Config(dataset="upstream", num_train=96, num_val=16, image_size_px=SIZE_PX)
    flower = prepare.Config(dataset="flower", num_train=60, num_test=24, image_size_px=SIZE_PX)
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, environment)
        refs = [run_stage("prepare", config, Inputs(), name=config.dataset) for config in (upstream, flower)]
    folder = root / "genotype"
    folder.mkdir()
    (folder / search.GENOTYPE_FILE).write_text(GENOTYPE.to_json())
    return World(
        store_root=store_root,
        environment=environment,
        upstream=refs[0],
        flower=refs[1],
        genotype=commit_folder(store_root, "search", "genotype", "tiny", folder),
    )


def set_environment(patch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    """Only these settings, and no server."""
    for name in [name for name in os.environ if name.startswith(("INTERN_", "MLFLOW_"))]:
        patch.delenv(name)
    for name, value in environment.items():
        patch.setenv(name, value)


def save_backbone(
    world: World, folder: Path, heads: tuple[Family, ...] = (), seed: int = 0, genotype: Genotype = GENOTYPE
) -> Ref:
    """Commits fresh weights, as an amateur's or (with heads for the upstream tasks) an expert's."""
    import torch

    from intern_vision.data.loader import load_info
    from intern_vision.models.vision import ModelSpec, VisionModel
    from intern_vision.train.upstream import head_specs

    torch.manual_seed(seed)
    info = load_info(open_store(world.store_root), world.upstream.uri)
    spec = ModelSpec(genotype=genotype, image_size_px=SIZE_PX, heads=head_specs(info, heads, HEAD))
    VisionModel(spec).save(folder)
    digest = file_sha256(folder / "weights.safetensors")[:8]
    return commit_folder(world.store_root, "amateur", "weights", f"{folder.name}-{digest}", folder)


def train_here(job: "TrainJob") -> list[dict[str, Any]]:
    """Trains a job in this process, alone; gives the reported events."""
    from intern_vision.train.launch import start_distributed
    from intern_vision.train.trainer import RankContext, Trainer

    events: list[dict[str, Any]] = []
    start_distributed()
    Trainer(job, RankContext(on_event=events.append)).train()
    return events


class StageProcess:
    """``run_stage`` in a process group of its own.

    Args:
        folder: where its output and events go.
        stage: the stage's name.
        config: its config.
        inputs: its inputs.
        name: what to call it.
        num_ranks: training processes.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        config: Config,
        inputs: Mapping[str, tuple[Ref, ...]],
        name: str,
        num_ranks: int,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log_path, self.events_path = folder / "log.txt", folder / "events.jsonl"
        payload = {
            "stage": stage,
            "config": config.to_dict(),
            "inputs": {key: [ref.to_dict() for ref in refs] for key, refs in inputs.items()},
            "name": name,
            "num_ranks": num_ranks,
        }
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, json.dumps(payload)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"INTERN_EVENTS": str(self.events_path)} | dict(environment or {}),
                start_new_session=True,
            )

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Complete events of one kind so far."""
        if not self.events_path.exists():
            return []
        lines = self.events_path.read_text().split("\n")[:-1]
        return [event for line in lines if (event := json.loads(line))["event"] == kind]

    def notes(self) -> list[str]:
        """What was said once."""
        return [event["note"] for event in self.events("note")]

    def wait_for_step(self, step: int, timeout_s: float = 120.0) -> None:
        """Returns once ``step`` steps are reported."""
        self.wait_until(lambda: any(event["done"] >= step for event in self.events("step")), timeout_s)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
        """Polls ``condition``; fails with the log where the process ends first."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.005)

    def ranks(self) -> list[psutil.Process]:
        """Its rank processes, in rank order."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        ranks = [child for child in children if "intern_vision.train.launch" in child.cmdline()]
        return sorted(ranks, key=lambda rank: int(rank.environ()["RANK"]))

    def finish(self, timeout_s: float = 120.0) -> int:
        """Waits for the end and gives the exit code."""
        return self.process.wait(timeout=timeout_s)

    def log(self) -> str:
        """All that was printed."""
        return self.log_path.read_text(errors="replace")

    def ref(self) -> Ref:
        """The output of a process that ended well."""
        assert self.finish() == 0, self.log()
        return Ref.from_json(self.log().strip().splitlines()[-1])


def gone(processes: list[psutil.Process], timeout_s: float = 10.0) -> bool:
    """Whether all of them ended within the time."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def main(payload_json: str) -> int:
    """Runs a stage as a pipeline step would: prints the Ref, or one line and the error's exit code."""
    from intern_vision.errors import InternError
    from intern_vision.stages.base import load_stage, run_stage

    payload = json.loads(payload_json)
    config = load_stage(payload["stage"]).Config.from_dict(payload["config"])
    inputs = Inputs({k: tuple(Ref.from_dict(ref) for ref in refs) for k, refs in payload["inputs"].items()})
    try:
        ref = run_stage(payload["stage"], config, inputs, name=payload["name"], num_ranks=payload["num_ranks"])
    except InternError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return error.exit_code
    print(f"torch imported: {'torch' in sys.modules}")
    print(ref.to_json(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
