"""Selection: of several generalists the one that errs least on upstream validation images."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from intern_vision import config as base
from intern_vision.errors import ConfigError
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, Record, StageContext, read_record
from intern_vision.task import Family

if TYPE_CHECKING:
    from intern_vision.bench.table import ArmCost
    from intern_vision.models.vision import VisionModel

CANDIDATES_FILE = "candidates.json"


class Config(base.Config):
    """How generalists are compared.

    Attributes:
        name: what the result is called.
        split: the images scored; never the test images of a benchmark.
        num_images: only the first so many; 0 = all.
        batch_size: images a forward pass.
        precision: of the forward passes.
    """

    name: str = "intern"
    split: Literal["train", "val"] = "val"
    num_images: int = Field(default=0, ge=0)
    batch_size: int = Field(default=64, ge=1)
    precision: Literal["fp32", "bf16"] = "bf16"


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Scores the heads of the input ``candidates`` on the input ``data`` and commits the best one's weights.

    Writes ``candidates.json``, a row a candidate.

    Raises:
        ConfigError: no candidate, two of one name, or candidates of different families.
    """
    import torch

    from intern_vision.bench.selection import family_errors, relative_score
    from intern_vision.stages.adapt import step_threads

    torch.set_num_threads(step_threads())
    candidates = inputs.many("candidates")
    if not candidates:
        raise ConfigError("inputs.candidates: expected 1 Ref or more, got none")
    names = [ref.name for ref in candidates]
    if len(set(names)) < len(names):
        raise ConfigError(f"inputs.candidates: expected names that differ, got {', '.join(names)}")
    rows: list[dict[str, Any]] = []
    for ref in candidates:
        folder = context.fetch(ref)
        errors = family_errors(
            folder,
            context.store,
            inputs.many("data"),
            cache_dir=context.cache_dir,
            split=config.split,
            num_images=config.num_images,
            batch_size=config.batch_size,
            bf16=config.precision == "bf16",
        )
        first = rows[0]["errors"] if rows else errors
        _check_families(ref, errors, first)
        score = relative_score(errors, first)
        trained = _training(context, ref)
        rows.append(
            {
                "name": ref.name,
                "uri": ref.uri,
                "errors": errors,
                "score": score,
                "image_passes": int(trained.image_passes),
                **_size(folder),
            }
        )
        # Times differ from run to run: outside the files, equal trainings give equal digests.
        context.facts |= {f"score/{ref.name}": score, f"cpu_s/{ref.name}": trained.cpu_s}
        context.progress.say(f"{ref.name}: relative error {score:.3f}")
    best = min(range(len(rows)), key=lambda index: rows[index]["score"])
    rows = [row | {"chosen": index == best} for index, row in enumerate(rows)]
    _copy_model(context.fetch(candidates[best]), context.output_dir)
    (context.output_dir / CANDIDATES_FILE).write_text(json.dumps(rows, indent=1))
    context.facts["chosen"] = candidates[best].name
    return context.commit("weights", config.name)


def scored_arm(candidate: str, scored: Collection[str], selected: Record | None) -> str:
    """The arm whose scores are the candidate's.

    Args:
        candidate: name of the selection's result.
        scored: the arms that were adapted and scored.
        selected: record of the selection.

    Returns:
        The candidate itself; where only what it was chosen from was adapted, the chosen one.
    """
    chosen = str(selected.facts.get("chosen", "")) if selected else ""
    return chosen if candidate not in scored and chosen in scored else candidate


def _check_families(ref: Ref, errors: dict[Family, float], first: dict[Family, float]) -> None:
    if errors.keys() != first.keys():
        raise ConfigError(
            f"inputs.candidates: expected the families {', '.join(first)} in all, {ref.name} has {', '.join(errors)}"
        )


def _training(context: StageContext, ref: Ref) -> "ArmCost":
    """What a candidate and all that it was made from cost to train."""
    from intern_vision.lineage import trace
    from intern_vision.stages.report import arm_cost

    traced = trace(context.store, ref.uri)
    records = {uri: read_record(context.store, uri) for uri, node in traced.nodes.items() if node.kind != "missing"}
    return arm_cost([traced], records)


def _size(folder: Path) -> dict[str, int]:
    """What a candidate costs to run."""
    from intern_vision.models.vision import VisionModel, read_spec

    family = next(iter(read_spec(folder).heads.values())).task.family
    model = VisionModel.load_family(folder, family)
    return {
        "num_parameters": sum(parameter.numel() for parameter in model.backbone.parameters()),
        "num_macs": _count_macs(model),
    }


def _count_macs(model: "VisionModel") -> int:
    """Multiply-adds of one image's pass through all that the model's view runs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    size_px = model.spec.image_size_px
    image_BCHW = torch.zeros(1, 3, size_px, size_px, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(image_BCHW)
    return counter.get_total_flops() // 2


def _copy_model(source: Path, target: Path) -> None:
    from intern_vision.models.vision import SPEC_FILE, WEIGHTS_FILE

    for name in (WEIGHTS_FILE, SPEC_FILE):
        shutil.copyfile(source / name, target / name)
