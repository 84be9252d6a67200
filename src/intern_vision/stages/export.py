"""Export: the generalist and every adapted model into MLflow's registry, with card, scores and parents."""

import json
import os
from collections.abc import Mapping, Sequence

from intern_vision import config as base
from intern_vision.bench.scores import Scores, read_scores, unit_of
from intern_vision.data.manifest import SourceInfo
from intern_vision.errors import MissingObjectError
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, Record, StageContext, read_record
from intern_vision.stages.select import scored_arm
from intern_vision.store import Store
from intern_vision.task import Task

REGISTERED_FILE = "registered.json"
# The whole list lies beside the weights; the card is cut at 5,000 characters.
_MAX_LISTED_LABELS = 100


class Config(base.Config):
    """What is registered under which names.

    Attributes:
        generalist_name: registered name of the generalist.
        prefix: an adapted model is registered as this and its dataset's name.
        alias: alias that moves to each new version.
        adapted: whether adapted models are registered too.
        arm: registers only the adapted models of this arm, or of the generalist chosen for it; empty for all.
    """

    generalist_name: str = "intern-generalist"
    prefix: str = "intern-"
    alias: str = "candidate"
    adapted: bool = True
    arm: str = ""


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Registers the inputs ``generalist`` and ``adapted``, with the scores of the input ``scores``.

    Without a tracking server (``MLFLOW_TRACKING_URI`` unset) nothing is registered and the result says so.

    Raises:
        RetryableError: the server is away; the same command resumes.
        AccessError: the server refuses the credentials.
    """
    registered: list[dict[str, str]] = []
    scores = _scores_by_model(inputs, context)
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        context.progress.say("no MLFLOW_TRACKING_URI: models stay in the store, none is registered")
    else:
        generalists = inputs.many("generalist")
        jobs = [(ref, config.generalist_name) for ref in generalists]
        selected = read_record(context.store, generalists[0].uri) if generalists else None
        arm = scored_arm(config.arm, {item.model for item in scores.values()}, selected)
        for ref in inputs.many("adapted") if config.adapted else ():
            if not arm or (ref.uri in scores and scores[ref.uri].model == arm):
                jobs.append((ref, config.prefix + _dataset_name(context, ref)))
        for number, (ref, name) in enumerate(jobs, start=1):
            version = _register(config, context, ref, name, scores.get(ref.uri))
            registered.append({"name": name, "version": version, "alias": config.alias, "uri": ref.uri})
            context.progress.step(number, len(jobs), f"{name} version {version}")
    (context.output_dir / REGISTERED_FILE).write_text(json.dumps(registered, indent=1))
    context.facts["num_registered"] = len(registered)
    return context.commit("report", "registered")


def _register(config: Config, context: StageContext, ref: Ref, name: str, scores: Scores | None) -> str:
    from intern_vision.data.loader import ShardSource, load_info
    from intern_vision.models.vision import best_labelled_dir, read_spec
    from intern_vision.registry import register_model

    record = read_record(context.store, ref.uri)
    folder = best_labelled_dir(context.fetch(ref))
    data_uri = record.inputs["data"][0]
    info = load_info(context.store, data_uri)
    split = "test" if info.num_test else "train"
    example = ShardSource(context.store, data_uri, cache_dir=context.cache_dir, split=split, fields=())[0].image
    tasks = {head: spec.task for head, spec in read_spec(folder).heads.items()}
    metrics = {}
    if scores is not None:
        metrics = {f"{p}/{name}": v for p, s in scores.protocols.items() for name, v in s.metrics.items()}
    return register_model(
        folder,
        name=name,
        description=f"{ref.name} from run {record.run_id or 'without tracking'}",
        card=model_card(name, ref, record, data_lines(context.store, ref.uri), scores, tasks),
        tags={"intern.uri": ref.uri, "intern.digest": ref.digest, "intern.stage": record.stage},
        metrics=metrics,
        parents=[read_record(context.store, uri).ref for uri in ref.parents],
        input_example=example,
        alias=config.alias,
        run_id=record.run_id,
    )


def model_card(
    name: str, ref: Ref, record: Record, data: Sequence[str], scores: Scores | None, tasks: Mapping[str, Task]
) -> str:
    """A model card in Markdown: what it is, what it says, what it was made from, what it scores, how to use it.

    Args:
        name: of the registered model.
        ref: the model.
        record: how it was made.
        data: a line for each source of images, with its licence.
        scores: on test images, where there are any.
        tasks: by head.
    """
    lines = [
        f"# {name}",
        "",
        f"`{ref.name}`, made by the stage `{record.stage}` of INTERN (arXiv 2111.08687).",
        "",
        # Before the labels: these may be many, and the end of a long card is cut.
        "## Images it learned from",
        "",
        *(f"- {line}" for line in data),
        "",
        "## Heads",
        "",
        *(f"- `{head}` ({task.family}): {_in_words(task)}" for head, task in tasks.items()),
        "",
        "## Made from",
        "",
        *(f"- `{uri}`" for uri in ref.parents),
        f"- code digest: `{record.code[:16]}`, weights digest: `{ref.digest[:16]}`",
        "",
    ]
    if scores is not None:
        lines += ["## Scores on test images", "", "| protocol | images | error | metrics |", "|---|---|---|---|"]
        for protocol, score in scores.protocols.items():
            metrics = ", ".join(f"{key} {value:.4g}" for key, value in score.metrics.items() if key != "error")
            error = f"{score.error:.3g} m" if unit_of(scores.metric) == "m" else f"{100 * score.error:.1f} %"
            lines.append(f"| @{protocol} | {score.num_train} | {error} | {metrics} |")
        lines.append("")
    lines += [
        "## Use",
        "",
        "```python",
        "import mlflow",
        f'model = mlflow.pyfunc.load_model("models:/{name}@candidate")',
        'print(model.predict([{"image": "picture.jpg"}]))',
        "```",
        "",
        "```sh",
        f"intern predict {name} picture.jpg",
        f"intern serve {name}",
        "```",
    ]
    return "\n".join(lines)


def data_lines(store: Store, uri: str) -> list[str]:
    """A line for each source of the datasets that an output was made from, however far back: name, licence, address.

    Args:
        store: where the outputs lie.
        uri: address of a committed output.
    """
    from intern_vision.data.loader import load_info

    lines: dict[str, None] = {}
    seen, waiting = {uri}, [uri]
    while waiting:
        at = waiting.pop(0)
        try:
            ref = read_record(store, at).ref
        except MissingObjectError:
            lines[f"`{at}`: no longer on the store, whatever its licence was"] = None
            continue
        if ref.kind == "dataset":
            info = load_info(store, at)
            for source in info.sources or (SourceInfo(name=info.name, uri=info.source, licence=info.licence),):
                origin = f", from {source.uri}" if source.uri else ""
                lines[f"`{source.name}`: {source.licence or 'licence not stated'}{origin}"] = None
        elif ref.kind != "manifest":
            # What a dataset was made from is said by the dataset itself.
            waiting += [parent for parent in ref.parents if parent not in seen]
            seen.update(ref.parents)
    return list(lines)


def _in_words(task: Task) -> str:
    if task.family == "depth":
        return f"metres, at most {task.max_depth_m:g}"
    shown = ", ".join(task.class_names[:_MAX_LISTED_LABELS])
    return f"{task.num_classes} labels: {shown}{', ...' if task.num_classes > _MAX_LISTED_LABELS else ''}"


def _dataset_name(context: StageContext, ref: Ref) -> str:
    return read_record(context.store, read_record(context.store, ref.uri).inputs["data"][0]).ref.name


def _scores_by_model(inputs: Inputs, context: StageContext) -> dict[str, Scores]:
    found = {}
    for ref in inputs.many("scores"):
        (model_uri,) = read_record(context.store, ref.uri).inputs["model"]
        found[model_uri] = read_scores(ref)
    return found
