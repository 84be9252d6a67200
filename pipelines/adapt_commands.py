"""``intern adapt``: a person's own labelled images become a registered model, after a look at the images."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from intern_vision.address import listing_digest
from intern_vision.config import parse_json_object
from intern_vision.console import reporting_errors, show
from intern_vision.errors import ConfigError, DataError
from intern_vision.options import DEFAULT_STATE, AsJson, Debug, StateDir

DEFAULT_MODEL = "models:/intern-generalist@candidate"
PIPELINE = "adapt"
RESERVED_NAMES = ("upstream", "generalist")
"""The upstream dataset, and what an adapted model must not be registered as."""
Task = Literal["auto", "classify", "multilabel", "detect", "segment", "depth"]
Method = Literal["auto", "frozen", "lora", "fine_tuned", "ensemble", "lbfgs", "ridge", "sgd"]
AUTO, FROZEN = "auto", "frozen"
PROBES = {"lbfgs": "logistic regression", "ridge": "ridge regression", "sgd": "a linear probe by SGD"}
CURVE_SHARES = (0.25, 0.5, 1.0)
"""Shares of the labels of a learning curve, where a class has at least four images."""
NUM_MISTAKES, NUM_RESAMPLES = 8, 200
LABEL_CHARS = 11
"""Of a printed line, before its text."""
MANY_IMAGES = 2_000
"""From here on the check takes so long that it is announced."""
# Rough costs on one processor core: the servers and five steps, an image through a nano backbone and back from the
# store, and an image of a training step of the head or of the whole model.
_START_S, _IMAGE_S, _HEAD_IMAGE_S, _TUNED_IMAGE_S = 35.0, 0.02, 0.003, 0.012
_NUM_TUNINGS = {"frozen": 0, "ensemble": 2}
"""Trainings of the whole model that a recipe takes; others take one."""
LIMITS = (
    "The score comes from one draw of the training and test images and one seed; with few test images its interval "
    "says how little that is.",
    "The interval covers the chance in which test images were drawn, not another training seed or draw of the labels.",
    "What more labels would buy is a power law through few points: it sees no error that labels cannot remove, such "
    "as wrong labels or unclear pictures.",
    "Pictures of another camera, place or season than the training images are not tested by these.",
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(adapt)


def adapt(
    data: Annotated[
        Path, typer.Option("--data", exists=True, help="Image folder, COCO json, labels.csv, masks or depth.")
    ],
    task: Annotated[Task, typer.Option("--task", help="What to learn, where the labels serve several tasks.")] = "auto",
    model: Annotated[str, typer.Option("--model", help="Registered model to start from.")] = DEFAULT_MODEL,
    name: Annotated[str, typer.Option("--name", help="Name of the dataset; the folder's where empty.")] = "",
    method: Annotated[
        Method, typer.Option("--method", help="How to adapt; auto chooses by task and number of labels.")
    ] = "auto",
    minutes: Annotated[
        float, typer.Option("--minutes", min=0, help="How long auto may take, roughly; else the backbone stays frozen.")
    ] = 2.0,
    check: Annotated[bool, typer.Option("--check", help="Only look at the data and say what would happen.")] = False,
    allow_leaks: Annotated[bool, typer.Option("--allow-leaks", help="Take one picture in two splits.")] = False,
    allow_unlabelled: Annotated[
        bool, typer.Option("--allow-unlabelled", help="Leave out images without a label.")
    ] = False,
    near_duplicates: Annotated[
        bool, typer.Option("--near-duplicates", help="Name pictures that look alike in two splits, too.")
    ] = False,
    preset: Annotated[str, typer.Option("--preset", help="smoke, nano or small.")] = "nano",
    override: Annotated[str, typer.Option("--override", help="JSON object of changes to the preset.")] = "",
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Refuse (or accept) a changed config.")] = True,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the embedded servers running.")] = False,
    state_dir: StateDir = DEFAULT_STATE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check your own labelled images, adapt a registered model to them and register the result."""
    from intern_pipelines.runner import run_pipeline
    from intern_vision.presets import resolve

    with reporting_errors(debug, as_json):
        dataset = dataset_name(name or folder_name(data))
        own = parse_json_object(override, "overrides") if override.strip() else {}
        given = _settings(dataset, data, task, allow_leaks, allow_unlabelled)
        config = resolve(preset, json.dumps(merged(own, given)))  # a wrong setting is told before the images are read
        settings = merged(own, given)["downstream"]
        reading = _read(data, task, settings.get("seed", 0))
        given["downstream"]["content_digest"] = listing_digest(
            data, (item.path for item in reading.items) if data.is_file() else ()
        )
        findings = _check(reading, settings, near_duplicates)
        given["adapt"], note = choose_method(findings, config, method, minutes)
        if "recipes" in own.get("adapt", {}):
            given["adapt"]["shares"], note = [1.0], ""
        given["report"]["limits"] += [note] if note else []
        overrides = json.dumps(merged(own, given))
        config = resolve(preset, overrides)
        plan = plan_lines(findings, config, note)
        bare = [line[LABEL_CHARS:] for line in plan]
        if check:
            show({"findings": findings.to_dict(), "plan": bare}, [*findings.lines(), *plan], as_json)
            _exit_where_wrong(findings)
            return
        findings.require_none_wrong()
        if not as_json:
            print("\n".join([*findings.lines(), *plan]), flush=True)
        arguments = {"datasets": [dataset], "model": model, "preset": preset, "overrides": overrides}
        identity = {"data": config.downstream.to_dict(), "adapt": config.adapt.to_dict(), "model": model}
        local_run = run_pipeline(
            PIPELINE,
            f"{PIPELINE}-{dataset}",
            arguments,
            identity,
            state_dir=state_dir,
            num_ranks=1,
            resume=resume,
            keep=keep,
            quiet=as_json,
        )
        value, lines = summary(local_run, keep)
        show(value | {"findings": findings.to_dict(), "plan": bare}, lines, as_json)


def _settings(dataset: str, data: Path, task: str, allow_leaks: bool, allow_unlabelled: bool) -> dict[str, Any]:
    """What the command changes in the preset, but for the adaptation itself."""
    return {
        "downstream": {
            "path": str(data.absolute()),
            "family": task,
            "allow_leaks": allow_leaks,
            "allow_unlabelled": allow_unlabelled,
        },
        "fine_tuned_arms": [],
        "evaluate": {"num_mistakes": NUM_MISTAKES, "num_resamples": NUM_RESAMPLES},
        "report": {
            "title": f"{dataset}: adapted to own images",
            "baseline": "",
            "references": [],
            "cost_baseline": "",
            "limits": list(LIMITS),
        },
    }


def merged(own: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Overrides of the command under those of the person, section by section; neither is changed."""
    result = dict(given) | own
    for section, values in given.items():
        if isinstance(values, dict) and isinstance(result[section], dict):
            result[section] = values | result[section]
    return result


def curve_shares(findings: Any) -> tuple[float, ...]:
    """Shares of the labels to adapt to on frozen features: a learning curve where that takes seconds, else all."""
    fewest = min((counts.get("train", 0) for counts in findings.classes.values()), default=0)
    return CURVE_SHARES if findings.families == ("classify",) and fewest >= 1 / CURVE_SHARES[0] else (1.0,)


def choose_method(findings: Any, config: Any, method: str, minutes: float) -> tuple[dict[str, Any], str]:
    """Settings of the adaptation, and a sentence where the time allowed decided.

    Args:
        findings: of the data.
        config: the run's whole config, for what its recipes cost.
        method: as given to the command; ``auto`` takes the recipe that erred least with so many labels, as long as
            it is expected to keep within the time.
        minutes: the time.
    """
    from intern_vision.train.choices import choose_recipe

    if method in PROBES:
        return {"method": method, "recipes": [FROZEN], "shares": list(curve_shares(findings))}, ""
    note, recipe = "", method
    if method == AUTO:
        recipe, _ = choose_recipe(_task(findings), findings.num_images.get("train", 0))
        needed = _rough_s(findings, config, (recipe,), 1) / 60
        if recipe != FROZEN and needed > minutes:
            better = recipe.replace("_", "-")
            note = (
                f"The backbone stays frozen: {better} errs less with so many labels, but takes about {needed:.0f} min; "
                f"--minutes {math.ceil(needed)} allows it."
            )
            method = recipe = FROZEN
    shares = curve_shares(findings) if recipe == FROZEN else (1.0,)
    return {"method": AUTO, "recipes": [method], "shares": list(shares)}, note


def plan_lines(findings: Any, config: Any, note: str = "") -> list[str]:
    """What will be done with checked data, and roughly how long it takes, for people.

    Args:
        findings: of the data.
        config: the run's whole config.
        note: on the choice of the method.
    """
    from intern_vision.train.choices import choose_probe, choose_recipe

    (family,) = findings.families
    num_train, task = findings.num_images.get("train", 0), _task(findings)
    recipes, reasons = config.adapt.recipes, [note]
    if recipes == (AUTO,):
        recipe, reason = choose_recipe(task, num_train)
        recipes, reasons = (recipe,), [reason]
    probe = config.adapt.method
    if family == "classify" and probe == AUTO:
        probe, reason = choose_probe(num_train, task.num_classes)
        reasons.append(reason)
    head = PROBES[probe] if family == "classify" else f"a head for {family}"
    shares = ", ".join(f"{100 * share:g} %" for share in config.adapt.shares)
    backbone = " and ".join(recipes).replace("_", "-")
    seconds = _rough_s(findings, config, recipes, len(config.adapt.shares))
    lines = [
        f"plan       {head}, {backbone} backbone, on {shares} of {num_train} images",
        *(f"           {reason}" for reason in reasons if reason),
        f"           scored on {findings.num_images.get('test', 0)} test images, registered as a candidate",
        f"           about {max(1, round(seconds / 60))} min with a nano backbone on two processor cores, longer with "
        "a larger one",
    ]
    return lines


def _task(findings: Any) -> Any:
    from intern_vision.task import Task as TaskOf

    (family,) = findings.families
    return TaskOf(family=family, class_names=tuple(findings.classes), max_depth_m=float(family == "depth"))


def _rough_s(findings: Any, config: Any, recipes: tuple[str, ...], num_models: int) -> float:
    """A guess within a factor of two for a nano backbone on two processor cores."""
    dense, tune = config.adapt.dense, config.adapt.fine_tune
    seconds = _START_S + _IMAGE_S * sum(findings.num_images.values())
    if findings.families != ("classify",):
        seconds += _HEAD_IMAGE_S * num_models * dense.num_steps_large * dense.batch_size
    batch_size = min(tune.batch_size, max(1, findings.num_images.get("train", 1)))
    tuned_s = _TUNED_IMAGE_S * num_models * tune.num_steps_large * batch_size
    return seconds + tuned_s * sum(_NUM_TUNINGS.get(recipe, 1) for recipe in recipes)


def _read(data: Path, task: str, seed: int) -> Any:
    from intern_vision.data.readers import read_dataset
    from intern_vision.data.reading import SplitRule

    reading = read_dataset(data, SplitRule(seed=seed), task)
    if reading.num_samples >= MANY_IMAGES:
        print(f"checking {reading.num_samples:,} images", file=sys.stderr, flush=True)
    return reading


def _check(reading: Any, settings: dict[str, Any], near_duplicates: bool) -> Any:
    from intern_vision.data.check import check_reading

    return check_reading(
        reading,
        allow_leaks=settings["allow_leaks"],
        allow_unlabelled=settings["allow_unlabelled"],
        near_duplicates=near_duplicates,
    )


def _exit_where_wrong(findings: Any) -> None:
    """Ends with one line and the code of wrong data, after everything has been shown."""
    try:
        findings.require_none_wrong()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def summary(local_run: Any, keep: bool) -> tuple[dict[str, Any], list[str]]:
    """The score, where the report lies, and the lines that load, ask and serve the model."""
    from intern_vision.bench.scores import unit_of

    report, table_path, _ = local_run.results(("report.html", "table.json", "table.txt"), "report")
    (registered_path,) = local_run.results(("registered.json",), "export")
    registered = json.loads(registered_path.read_text())
    table = json.loads(table_path.read_text())
    (row,) = table["rows"]
    unit = unit_of(row["metric"])
    lines = [""]
    for column, error in sorted(row["errors"].items(), key=lambda each: row["num_train"][each[0]]):
        interval = row["intervals"].get(column)
        bounds = f" (95 %: {interval[0]:.1f} to {interval[1]:.1f})" if interval else ""
        labels = f"{row['num_train'][column]} labelled, {row['num_test'][column]} test images"
        lines.append(f"error      {error:.1f} {unit}{bounds} with {labels}, {row['methods'][column]}")
    lines.append(f"report     {report}")
    lines.append(
        f"MLflow     {local_run.servers.mlflow_uri if keep else f'intern up{_state(local_run)} shows its address'}"
    )
    for model in registered:
        address = f"models:/{model['name']}@{model['alias']}"
        lines += [
            f"model      {address} version {model['version']}",
            f'load       model = mlflow.pyfunc.load_model("{address}")',
            f"predict    intern predict {model['name']}@{model['alias']} PICTURE.jpg{_state(local_run)}",
            f"serve      intern serve {model['name']}@{model['alias']}{_state(local_run)}",
        ]
    return {"report": str(report), "table": table, "models": registered}, lines


def _state(local_run: Any) -> str:
    return "" if str(local_run.state_dir) == str(DEFAULT_STATE) else f" --state-dir {local_run.state_dir}"


def dataset_name(text: str) -> str:
    """A plain name of a dataset; ConfigError where nothing is left of ``text`` or the name is taken."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name:
        raise ConfigError(f"--name: expected letters or digits, got {text!r}")
    if name in RESERVED_NAMES:
        raise ConfigError(f"--name: {name!r} is taken by INTERN itself; give the dataset another name")
    return name


def folder_name(data: Path) -> str:
    """The name of a person's folder; of a file in it, or in its ``annotations/``, the folder's too."""
    data = data.absolute()
    folder = data.parent if data.is_file() else data
    return (folder.parent if folder.name == "annotations" else folder).name
