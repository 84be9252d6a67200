"""Starts the ranks of a training, follows them and brings their errors back.

``run_ranks`` is called by a stage; every rank runs ``python -m intern_vision.train.launch``
with torchrun's environment variables, so the same ranks also run under torchrun itself.
Rank 0 reports through a pipe; the ranks die with their parent, and a SIGTERM to the parent
becomes one to each rank, which saves a checkpoint and exits with 75.
"""

import ctypes
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from intern_vision import errors
from intern_vision.config import Config
from intern_vision.errors import InternError, RetryableError
from intern_vision.stages.base import Inputs, StageContext, load_stage

if TYPE_CHECKING:
    from intern_vision.train.trainer import TrainJob

KILL_AFTER_S = 20.0
HISTORY_FILE = "history.jsonl"
_PR_SET_PDEATHSIG = 1


class RankPayload(Config):
    """What a rank must know; written as JSON to a file that only its owner reads.

    Attributes:
        stage: name of the stage whose ``build`` makes the training.
        config: the stage's config as plain values.
        inputs: Refs as plain values by input name.
        store_root: address under which every output lies.
        output_uri: where the stage's output will be committed.
        output_dir: local folder for the stage's files.
        scratch_dir: local folder shared by the ranks of this node.
        cache_dir: local folder for verified copies of shards.
    """

    stage: str
    config: dict[str, Any]
    inputs: dict[str, tuple[dict[str, Any], ...]]
    store_root: str
    output_uri: str
    output_dir: str
    scratch_dir: str
    cache_dir: str


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

    Metrics go to ``context.tracker`` and progress to ``context.progress``. When it returns,
    rank 0 has written the stage's files into ``context.output_dir``.

    Raises:
        InternError: of the class a rank raised; RetryableError where a rank was killed or asked to stop.
    """
    payload = RankPayload(
        stage=stage,
        config=config.to_dict(),
        inputs={name: tuple(ref.to_dict() for ref in refs) for name, refs in context.inputs.items()},
        store_root=context.store_root,
        output_uri=context.output_uri,
        output_dir=str(context.output_dir),
        scratch_dir=str(context.scratch_dir),
        cache_dir=str(context.cache_dir),
    )
    payload_path = context.scratch_dir / "payload.json"
    payload_path.write_text(payload.to_json())
    read_end, write_end = os.pipe()
    failures: list[dict[str, Any]] = []
    ranks = _spawn(payload_path, context.num_ranks, write_end)
    os.close(write_end)
    follower = threading.Thread(target=_follow, args=(read_end, context, failures), daemon=True)
    follower.start()
    try:
        with _forwarding_signals(ranks):
            codes = _wait(ranks)
    finally:
        _stop(ranks)
        follower.join(timeout=KILL_AFTER_S)
    _raise_failure(codes, failures)


def _spawn(payload_path: Path, num_ranks: int, write_end: int) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    num_threads = max(1, (os.cpu_count() or 1) // num_ranks)
    ranks = []
    for rank in range(num_ranks):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": str(num_threads),
            "PYTHONUNBUFFERED": "1",
            "INTERN_EVENT_PIPE": str(write_end),
        }
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-m", "intern_vision.train.launch", str(payload_path)],
                env=environment,
                pass_fds=(write_end,),
                preexec_fn=die_with_parent,
            )
        )
    return ranks


def die_with_parent() -> None:
    """Asks the kernel to kill this process when its parent dies; for ``preexec_fn`` (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _follow(read_end: int, context: StageContext, failures: list[dict[str, Any]]) -> None:
    history_path = context.output_dir / HISTORY_FILE
    speeds: list[float] = []
    with os.fdopen(read_end, encoding="utf-8") as pipe, open(history_path, "a+", encoding="utf-8") as history:
        for line in pipe:
            event = json.loads(line)
            if event["event"] == "step":
                metrics, speed = event["metrics"], event["speed"]
                _record(event["done"], metrics, speed, context, history)
                speeds.append(speed["steps_per_s"])
                context.facts |= {"num_steps": event["done"], "steps_per_s": statistics.median(speeds)}
                context.progress.step(
                    event["done"], event["total"], f"loss {metrics['loss']:.4g} {speed['steps_per_s']:.2f} steps/s"
                )
            elif event["event"] == "past_step":
                _record(event["done"], event["metrics"], {}, context, history)
            elif event["event"] == "resumed":
                context.progress.say(f"resumed at step {event['done']} of {event['total']}")
                context.progress.restart_clock(event["done"])
                context.facts["resumed_at_step"] = event["done"]
            elif event["event"] == "rolled_back":
                _forget_after(event["done"], history)
                context.progress.say(f"back to step {event['done']}: {event['cause']}")
                context.facts["num_rollbacks"] = event["num_rollbacks"]
            elif event["event"] == "started":
                context.progress.restart_clock()
            elif event["event"] == "fact":
                context.facts[event["name"]] = event["value"]
            elif event["event"] == "error":
                failures.append(event)


def _record(
    step: int, metrics: dict[str, float], speed: dict[str, float], context: StageContext, history: IO[str]
) -> None:
    # Speeds stay out of the file: equal trainings give equal outputs, and so equal keys downstream.
    history.write(json.dumps({"step": step, **metrics}) + "\n")
    context.tracker.log_metrics({f"train/{k}": v for k, v in (metrics | speed).items()}, step=step)


def _forget_after(step: int, history: IO[str]) -> None:
    """Takes the rows of later steps out of the history: these steps are trained again."""
    history.seek(0)
    kept = [line for line in history if json.loads(line)["step"] <= step]
    history.seek(0)
    history.truncate()
    history.writelines(kept)


class _forwarding_signals:  # noqa: N801 - reads as a phrase
    """Passes SIGTERM and SIGINT on to the ranks while they run."""

    def __init__(self, ranks: list[subprocess.Popen[bytes]]) -> None:
        self._ranks = ranks
        self._old: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._forward)

    def _forward(self, number: int, frame: Any) -> None:
        for rank in self._ranks:
            if rank.poll() is None:
                rank.send_signal(signal.SIGTERM)

    def __exit__(self, *exc: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> list[int | None]:
    """Waits until all ranks ended well or one ended badly; the others then get a moment to say why."""
    while True:
        codes = [rank.poll() for rank in ranks]
        if all(code is not None for code in codes):
            return codes
        if any(code not in (None, 0) for code in codes):
            deadline = time.monotonic() + 5.0
            while time.monotonic() < deadline and any(rank.poll() is None for rank in ranks):
                time.sleep(0.05)
            return [rank.poll() for rank in ranks]
        time.sleep(0.05)


def _stop(ranks: list[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.terminate()
    deadline = time.monotonic() + KILL_AFTER_S
    for rank in ranks:
        try:
            rank.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()


def _raise_failure(codes: list[int | None], failures: list[dict[str, Any]]) -> None:
    if failures:
        # A rank's own fault explains more than the retryable ends of its neighbours.
        failure = min(failures, key=lambda event: event["type"] == "RetryableError")
        error_class = getattr(errors, failure["type"], InternError)
        raise error_class(failure["message"])
    # When one rank is killed, its neighbours fail in their next collective: the kill is the cause.
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            raise RetryableError(
                f"rank {rank} was killed by {signal.Signals(-code).name} (out of memory?); the same command resumes"
            )
    for rank, code in enumerate(codes):
        if code:
            raise InternError(f"rank {rank} ended with code {code}; its traceback is in the log above")


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
        except InternError as error:
            emit({"event": "error", "type": type(error).__name__, "message": str(error)})
            return error.exit_code
    return 0


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
