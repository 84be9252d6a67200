"""Filter (GV-D): takes rows out of a manifest by rules, one after the other, and tells how many and why."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from intern_vision import config as base
from intern_vision.data.filters.rules import Rule
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext

if TYPE_CHECKING:
    from intern_vision.data.filters.rows import FilterRows
    from intern_vision.data.manifest import ManifestInfo

FILTERS_FILE = "filters.json"
MAX_THREADS = 8


class Config(base.Config):
    """What is taken out.

    Attributes:
        name: what the result is called.
        rules: applied in this order, each to the rows that the ones before it left.
    """

    name: str = "filtered"
    rules: tuple[Rule, ...] = Field(min_length=1)


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Applies the rules to the rows with status ``ok`` of the input ``manifest``.

    The input ``model`` is what the rules ``score`` (an amateur) and ``cluster`` see with; the input ``labels`` (output
    of a label stage) has the concepts that ``cap`` counts. With the same inputs, the step's settings in
    ``manifest.json`` give the same rows again.

    Raises:
        ConfigError: a rule lacks its input.
        DataError: nothing is left, or a source that a rule names has no row.
    """
    from intern_vision.data.filters.rows import write_without
    from intern_vision.data.manifest import MANIFEST_NAME, StepInfo
    from intern_vision.data.manifest_store import commit_manifest, load_manifest
    from intern_vision.errors import DataError

    manifest, path = load_manifest(context, inputs.one("manifest"), context.scratch_dir / "inputs")
    rows = _rows(manifest, path, inputs, context)
    num_in = rows.num_rows()
    done = [_apply(rule, rows) for rule in config.rules]
    num_out = num_in - len(rows.removed)
    counts = Counter(reason.partition(":")[0] for reason in rows.removed.values())
    if not num_out:
        took = ", ".join(f"{kind} took {count}" for kind, count in counts.items()) or "none had status ok"
        raise DataError(f"filter: no row is left of {num_in} ({took}); give milder rules")
    write_without(path, context.output_dir / MANIFEST_NAME, rows.removed)
    (context.output_dir / FILTERS_FILE).write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    step = StepInfo(
        name="filter", settings=config.to_dict(), num_in=num_in, num_out=num_out, counts=dict(sorted(counts.items()))
    )
    context.facts |= {"num_in": num_in, "num_out": num_out, **{f"num_{kind}": n for kind, n in step.counts.items()}}
    return commit_manifest(context, manifest.model_copy(update={"steps": (*manifest.steps, step)}), config.name)


def _rows(manifest: "ManifestInfo", path: Path, inputs: Inputs, context: StageContext) -> "FilterRows":
    from intern_vision.data.filters.rows import FilterRows
    from intern_vision.data.labels.output import LABELS_FILE
    from intern_vision.data.labels.public import read_label_system
    from intern_vision.data.manifest_store import fetch_file

    labels, model = inputs.optional("labels"), inputs.optional("model")
    folder = context.scratch_dir / "inputs"
    names = [name for source in manifest.sources for task in source.tasks.values() for name in task.class_names]
    return FilterRows(
        path=path,
        removed={},
        out_dir=context.output_dir,
        scratch_dir=context.scratch_dir,
        progress=context.progress,
        num_threads=min(os.cpu_count() or 1, MAX_THREADS),
        system=read_label_system(fetch_file(context.store, labels, LABELS_FILE, folder)) if labels else None,
        class_names=tuple(dict.fromkeys(names)),
        model_dir=context.fetch(model) if model else None,
    )


def _apply(rule: Rule, rows: "FilterRows") -> dict[str, Any]:
    """Takes out what a rule finds and gives its entry of ``filters.json``."""
    from intern_vision.data.filters.balance import cap_faults, share_faults
    from intern_vision.data.filters.caption import size_faults, text_faults
    from intern_vision.data.filters.vectors import cluster_faults, score_faults

    find = {
        "text": text_faults,
        "size": size_faults,
        "score": score_faults,
        "cap": cap_faults,
        "share": share_faults,
        "cluster": cluster_faults,
    }
    num_in = rows.num_rows()
    found = find[rule.rule](rule, rows)
    examples = rows.examples(found)
    rows.removed |= found
    rows.progress.say(f"{rule.rule}: {len(found)} of {num_in} rows taken out")
    return {
        "rule": rule.rule,
        "num_in": num_in,
        "num_out": num_in - len(found),
        "settings": rule.to_dict(),
        "examples": examples,
    }
