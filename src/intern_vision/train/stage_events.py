"""What a stage's process does with the events of rank 0: metrics to the tracker, rows to the history, progress."""

import json
import statistics
from typing import IO, Any

from intern_vision.stages.base import StageContext

HISTORY_FILE = "history.jsonl"


class StageEvents:
    """Takes events in the order in which rank 0 reported them; used as a block, it closes the history at the end.

    Args:
        context: of the stage; its tracker, progress, facts and the history in its ``output_dir`` are written.
    """

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._speeds: list[float] = []
        self._history = open(context.output_dir / HISTORY_FILE, "a+", encoding="utf-8")  # noqa: SIM115 - closed by exit

    def __enter__(self) -> "StageEvents":
        return self

    def __exit__(self, *exc: object) -> None:
        self._history.close()

    def take(self, event: dict[str, Any]) -> None:
        """Acts on one event; those of unknown kinds are left alone."""
        context = self._context
        if event["event"] == "step":
            metrics, speed = event["metrics"], event["speed"]
            self._record(event["done"], metrics, speed)
            self._speeds.append(speed["steps_per_s"])
            context.facts |= {"num_steps": event["done"], "steps_per_s": statistics.median(self._speeds)}
            context.progress.step(
                event["done"], event["total"], f"loss {metrics['loss']:.4g} {speed['steps_per_s']:.2f} steps/s"
            )
        elif event["event"] == "past_step":
            self._record(event["done"], event["metrics"], {})
        elif event["event"] == "resumed":
            context.progress.say(f"resumed at step {event['done']} of {event['total']}")
            context.progress.restart_clock(event["done"])
            context.facts["resumed_at_step"] = event["done"]
            context.elsewhere_cpu_s = event["cpu_s"]
        elif event["event"] == "spent":
            context.elsewhere_cpu_s = event["cpu_s"]
        elif event["event"] == "rolled_back":
            _forget_after(event["done"], self._history)
            context.progress.say(f"back to step {event['done']}: {event['cause']}")
            context.facts["num_rollbacks"] = event["num_rollbacks"]
        elif event["event"] == "started":
            context.progress.restart_clock()
        elif event["event"] == "fact":
            context.facts[event["name"]] = event["value"]

    def _record(self, step: int, metrics: dict[str, float], speed: dict[str, float]) -> None:
        # Speeds stay out of the file: equal trainings give equal outputs, and so equal keys downstream.
        self._history.write(json.dumps({"step": step, **metrics}) + "\n")
        self._context.tracker.log_metrics({f"train/{k}": v for k, v in (metrics | speed).items()}, step=step)


def _forget_after(step: int, history: IO[str]) -> None:
    """Takes the rows of later steps out of the history: these steps are trained again."""
    history.seek(0)
    kept = [line for line in history if json.loads(line)["step"] <= step]
    history.seek(0)
    history.truncate()
    history.writelines(kept)
