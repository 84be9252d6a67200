"""A shop's pictures to ask about, and answers as Label Studio exports them."""

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import GENOTYPE, SIZE_PX, commit_folder, set_environment
from made_manifests import commit_rows, image_row

from intern_vision.data.manifest import SourceInfo
from intern_vision.models.vision import ModelSpec, VisionModel
from intern_vision.ref import Ref
from intern_vision.stages import annotate
from intern_vision.stages.base import Inputs, run_stage
from intern_vision.store import file_sha256

COLOURS = {"lemon": (230, 220, 40), "plum": (120, 40, 140), "lime": (60, 200, 60)}


@dataclass(frozen=True)
class Shop:
    environment: dict[str, str]
    manifest: Ref
    model: Ref
    asked: Ref
    truth: dict[str, str]


SHOP = SourceInfo(name="shop", uri="file:///shop")


def fruit(name, number):
    """A disc of the fruit's colour on a dark ground."""
    rng = np.random.default_rng([number, len(name)])
    image = rng.integers(0, 40, (SIZE_PX, SIZE_PX, 3), np.uint8)
    centre = tuple(int(v) for v in rng.integers(12, 20, 2))
    cv2.circle(image, centre, int(rng.integers(7, 11)), COLOURS[name], -1)
    return image


def blank(number):
    """No fruit."""
    return np.random.default_rng(number).integers(0, 256, (SIZE_PX, SIZE_PX, 3), np.uint8)


def make_shop(root: Path) -> Shop:
    """Per fruit 8 labelled and 12 others, 9 images without one, one broken file; and the round that asks."""
    environment = {"INTERN_STORE": f"file://{root}/store", "INTERN_STATE": str(root / "state")}
    rows, truth = [], {}
    for name in COLOURS:
        for number in range(20):
            key = f"{name}-{number:02d}"
            labels = (name,) if number < 8 else None
            rows.append(image_row(root / "raw", key, fruit(name, number), source="shop", labels=labels))
            truth[key] = name
    for number in range(9):
        rows.append(image_row(root / "raw", f"none-{number}", blank(number), source="shop"))
    broken = image_row(root / "raw", "broken", b"no image", source="shop")
    torch.manual_seed(0)
    VisionModel(ModelSpec(genotype=GENOTYPE, image_size_px=SIZE_PX)).save(root / "weights")
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, environment)
        ref = commit_rows(environment["INTERN_STORE"], root / "m", [*rows, broken], [SHOP], "shop")
        model = commit_folder(environment["INTERN_STORE"], "amateur", "weights", "tiny", root / "weights")
        asked = ask(ref, model)
    return Shop(environment, ref, model, asked, truth)


def ask(ref, model, **selection):
    config = annotate.Config.from_dict({"selection": {"num_tasks": 18, "audit_share": 0.7} | selection})
    return run_stage("annotate", config, Inputs(manifest=(ref,), model=(model,)))


def answered(ref, tmp_path, votes):
    path = tmp_path / f"export-{len(votes)}.json"
    path.write_text(json.dumps(export(votes)))
    return take(ref, path)


def take(ref, path, sha256=""):
    answers = [{"uri": path.as_uri(), "sha256": sha256 or file_sha256(path)}]
    return run_stage("annotate", annotate.Config.from_dict({"answers": answers}), Inputs(manifest=(ref,)))


def label_result(proposed, shown):
    """Regions of an annotator who sees ``shown`` where ``proposed`` is asked about; empty = something else."""
    verdict = "right" if shown == proposed else "wrong"
    result = [choice("verdict", verdict)]
    return [*result, choice("correction", shown)] if verdict == "wrong" and shown else result


def choice(control, value):
    return {"from_name": control, "to_name": "image", "type": "choices", "value": {"choices": [value]}}


def rectangle(label, x0, y0, x1, y1, width_px, height_px):
    """A box in pixels as a region in per cent."""
    value = {"x": 100 * x0 / width_px, "y": 100 * y0 / height_px, "rotation": 0, "rectanglelabels": [label]}
    value |= {"width": 100 * (x1 - x0) / width_px, "height": 100 * (y1 - y0) / height_px}
    region = {"from_name": "boxes", "to_name": "image", "type": "rectanglelabels", "value": value}
    return region | {"original_width": width_px, "original_height": height_px}


def export(votes):
    """A JSON export: one task each item, its annotations from (task, annotator, regions) in the order given."""
    tasks = {}
    for number, (task, annotator, result) in enumerate(votes):
        own = tasks.setdefault(task["data"]["item"], {"id": len(tasks) + 1, "data": task["data"], "annotations": []})
        own["annotations"].append(
            {
                "id": number,
                "completed_by": annotator,
                "result": result,
                "was_cancelled": False,
                "updated_at": f"2026-11-22T10:{number // 60:02d}:{number % 60:02d}.000000Z",
            }
        )
    return list(tasks.values())
