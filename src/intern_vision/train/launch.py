"""A stage's training: ``run_ranks`` is called by the stage, ``main`` is one rank of it.

Every rank runs ``python -m intern_vision.train.launch`` with torchrun's environment variables, so the same ranks
also run under torchrun itself. Who starts them: ``local_ranks`` on one machine, ``node`` on each of several.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intern_vision.config import Config
from intern_vision.errors import ConfigError, InternError, RetryableError
from intern_vision.stages.base import Inputs, StageContext, code_digest, load_stage
from intern_vision.train.local_ranks import Place, RankPayload, run_local_ranks
from intern_vision.train.stage_events import HISTORY_FILE, StageEvents

if TYPE_CHECKING:
    from intern_vision.train.trainer import TrainJob

__all__ = ["HISTORY_FILE", "run_ranks", "start_distributed", "train_in_process"]


def import_deepspeed() -> Any:
    """DeepSpeed, quiet; without its CPU shared-memory op where that would need a compiler now."""
    import logging
    from collections import defaultdict

    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    with _hidden_module("mlflow"):
        import deepspeed
    import deepspeed.ops
    from deepspeed.git_version_info import installed_ops

    # DeepSpeed compiles this op when it starts on a CPU; gloo does the same work without a compiler.
    if not torch.cuda.is_available() and not installed_ops.get("deepspeed_shm_comm"):
        deepspeed.ops.__compatible_ops__ = defaultdict(bool)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


@contextmanager
def _hidden_module(name: str) -> Iterator[None]:
    """Makes ``import name`` fail inside, unless the module is loaded already."""
    # DeepSpeed's autotuner, which is not used here, takes MLflow where it finds it: 1.4 s of every rank's start.
    hides = name not in sys.modules
    if hides:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hides:
            del sys.modules[name]


def run_ranks(stage: str, config: Config, context: StageContext) -> None:
    """Runs the training that ``stage.build`` makes, on ``context.num_ranks`` ranks of this machine.

    With ``trainer.num_nodes`` above 1 it runs on so many machines of a cluster instead. Metrics go to
    ``context.tracker`` and progress to ``context.progress``. When it returns, rank 0 has written the stage's files
    into ``context.output_dir``.

    Raises:
        InternError: of the class a rank raised; RetryableError where a rank was killed or asked to stop.
    """
    payload = RankPayload(
        stage=stage,
        # A checkpoint fits any number of nodes, so that number is no part of what it is compared with.
        config=config.deciding(),
        inputs={name: tuple(ref.to_dict() for ref in refs) for name, refs in context.inputs.items()},
        store_root=context.store_root,
        output_uri=context.output_uri,
        code=code_digest(),
        output_dir=str(context.output_dir),
        scratch_dir=str(context.scratch_dir),
        cache_dir=str(context.cache_dir),
    )
    num_nodes = config.trainer.num_nodes  # type: ignore[attr-defined]
    with StageEvents(context) as events:
        if num_nodes == 1:
            run_local_ranks(payload, Place(num_local=context.num_ranks), events.take)
        else:
            from intern_vision.train.several_nodes import run_on_nodes

            run_on_nodes(payload, num_nodes, context, events.take)


def main(payload_path: str) -> int:
    """One rank: builds the stage's training, runs it, and lets rank 0 write the result."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.set())
    signal.signal(signal.SIGINT, lambda number, frame: stopping.set())
    payload = RankPayload.from_json(Path(payload_path).read_text())
    with os.fdopen(int(os.environ["INTERN_EVENT_PIPE"]), "w", encoding="utf-8", buffering=1) as pipe:

        def emit(event: dict[str, Any]) -> None:
            pipe.write(json.dumps(event) + "\n")

        try:
            _train(payload, emit, stopping)
        except (InternError, RuntimeError) as error:
            fault = error if isinstance(error, InternError) else _lost_neighbour(error)
            if fault is None:
                raise
            emit({"event": "error", "type": type(fault).__name__, "message": str(fault)})
            return fault.exit_code
    return 0


def _lost_neighbour(error: RuntimeError) -> RetryableError | None:
    """The error of a rank whose neighbour on another machine is gone; None where the fault is another one."""
    import torch

    if os.environ["WORLD_SIZE"] == os.environ["LOCAL_WORLD_SIZE"]:
        return None  # on one machine the parent saw how the neighbour ended, which says more
    # Gloo has no class of its own for this; NCCL's and the rendezvous' errors are of DistError.
    if not isinstance(error, torch.distributed.DistError) and "/gloo/" not in str(error):
        return None
    return RetryableError(
        f"rank {os.environ['RANK']} lost the other nodes ({' '.join(str(error).split())[:160]}); "
        "the same command resumes"
    )


def _train(payload: RankPayload, emit: Callable[[dict[str, Any]], None], stopping: threading.Event) -> None:
    import torch

    from intern_vision.ref import Ref
    from intern_vision.store import join_uri, open_store
    from intern_vision.train.checkpoint import Checkpoints
    from intern_vision.train.settings import count_image_passes
    from intern_vision.train.trainer import RankContext, Trainer
    from intern_vision.train.workspace import Workspace

    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank, num_local = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    start_distributed()
    stage = load_stage(payload.stage)
    store = open_store(payload.store_root)
    workspace = Workspace(
        store=store,
        inputs=Inputs({name: tuple(Ref.from_dict(ref) for ref in refs) for name, refs in payload.inputs.items()}),
        scratch_dir=Path(payload.scratch_dir),
        cache_dir=Path(payload.cache_dir),
    )
    config = stage.Config.from_dict(payload.config, at=payload.stage)
    torch.manual_seed(config.trainer.seed)
    job = stage.build(config, workspace)
    checkpoints = Checkpoints(
        store,
        join_uri(payload.output_uri, "checkpoints"),
        Path(payload.scratch_dir) / "checkpoints",
        node=rank // num_local,
        num_nodes=num_ranks // num_local,
    )
    context = RankContext(
        rank=rank,
        num_ranks=num_ranks,
        local_rank=local_rank,
        on_event=emit if rank == 0 else lambda event: None,
        should_stop=stopping.is_set,
    )
    trainer = Trainer(job, context, checkpoints)
    context.on_event({"event": "started"})
    trainer.train()
    if num_ranks > num_local:
        # The stage's process counts its own children, which ranks on other machines are not.
        context.on_event({"event": "spent", "cpu_s": trainer.cpu_s()})
    with trainer.whole_weights():
        if rank == 0:
            job.objective.save(Path(payload.output_dir))
    if rank == 0:
        objective = job.objective
        passes = count_image_passes(
            job.config.num_samples, objective.passes_per_sample, objective.forward_passes_per_sample
        )
        emit({"event": "fact", "name": "image_passes", "value": passes})
    torch.distributed.destroy_process_group()


def train_in_process(job: "TrainJob", context: StageContext, note: str = "") -> None:
    """Trains a short job in the stage's own process, alone and without checkpoints; reports progress under ``note``."""
    from intern_vision.train.trainer import RankContext, Trainer

    def report(event: dict[str, Any]) -> None:
        if note and event["event"] == "step":
            context.progress.step(event["done"], event["total"], f"{note} loss {event['metrics']['loss']:.4g}")

    if job.config.num_nodes > 1:
        raise ConfigError(f"num_nodes: expected 1 for a training in the step's own process, got {job.config.num_nodes}")
    start_distributed()
    trainer = Trainer(job, RankContext(on_event=report))
    trainer.train()
    trainer.keep_average()


def start_distributed() -> None:
    """Joins the process group that torchrun's environment variables describe (alone where there are none)."""
    import torch

    if torch.distributed.is_initialized():
        return
    deepspeed = import_deepspeed()
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if "RANK" not in os.environ:
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed's engine reads it
        # Alone there is nobody to meet: no port, and no variables that a child process would inherit.
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, verbose=False, auto_mpi_discovery=False)


if __name__ == "__main__":
    exit_code = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    # Taking torch's modules down one by one would cost more than a second.
    os._exit(exit_code)
