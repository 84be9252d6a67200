"""The benchmark (GV-B of arXiv 2111.08687): which datasets are there, which models compete, and their scores.

A dataset that cannot be scored does not end the run: it becomes a ``Gap`` of the table. A failure is never committed,
so the same command tries it again.
"""

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intern_vision.address import listing_digest
from intern_vision.bench.comparisons import ZERO_SHOT, parse_protocol
from intern_vision.bench.scores import Gap
from intern_vision.bench.suite import SUITE, SuiteRow, find_row
from intern_vision.config import parse_json_object
from intern_vision.console import file_error
from intern_vision.errors import ConfigError, DataError, InternError, RetryableError
from intern_vision.events import Progress
from intern_vision.ref import Ref

if TYPE_CHECKING:
    from intern_vision.config import Config
    from intern_vision.run_config import RunConfig
    from intern_vision.stages.base import Inputs

DEFAULT_PROTOCOLS = ("10", "100")
NUM_RESAMPLES = 200
"""Draws for the interval of an official set's score that is no share of images."""
FEW_SHOT = "shot"
OWN_LIMITS = (
    "Each number comes from one training seed; differences of a few percent may be chance.",
    "The intervals cover the draw of the test images alone, not the training seed or the draw of the labels.",
    "The lists of 10 % of the labels are ours: GV-B's were never published, so its figures compare only roughly.",
    "The mean of a family with one or two sets is little more than those sets.",
)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What one dataset gave.

    Attributes:
        data: the prepared dataset; ``None`` where it could not be read.
        scores: Refs of the scores.
        gaps: what went wrong.
    """

    data: Ref | None = None
    scores: list[Ref] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)


def selected_sets(run: "RunConfig", datasets: str, data_root: str) -> tuple[str, ...]:
    """Names of the datasets asked for; without names the whole suite, or without a data root the made world's.

    Args:
        run: the preset's run.
        datasets: names with commas between them; empty for all.
        data_root: folder that holds a folder a dataset; empty for the made world.

    Raises:
        ConfigError: an unknown name; lists the known ones. Or the data root is no folder.
    """
    from intern_vision.run_config import DOWNSTREAM_SETS, MORE_SETS

    if data_root and not Path(data_root).is_dir():
        raise ConfigError(f"--data-root: {data_root} is no folder; give the one that holds <dataset>/ folders")
    made = (*DOWNSTREAM_SETS, *MORE_SETS)
    known = [*(row.name for row in SUITE), *made]
    names = [name.strip() for name in datasets.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ConfigError(f"--datasets: expected names among {', '.join(known)}, got {name!r}")
        if not data_root and name not in made:
            raise ConfigError(f"--datasets: {name} is read from a folder; give --data-root DIR that holds {name}/")
    if names:
        return tuple(dict.fromkeys(names))
    return tuple(row.name for row in SUITE) if data_root else run.downstream_sets


def suite_row(dataset: str) -> SuiteRow | None:
    """The suite's row, or ``None`` for a set of the made world, which is drawn where it is needed."""
    return next((row for row in SUITE if row.name == dataset), None)


def is_present(dataset: str, data_root: str) -> bool:
    """Whether a dataset can be read: ``<data root>/<name>/`` is there, or it is of the made world."""
    return suite_row(dataset) is None or (Path(data_root) / dataset).is_dir()


def present_sets(datasets: Sequence[str], data_root: str) -> list[str]:
    """Those of the datasets that can be read.

    Raises:
        DataError: none of them can.
    """
    present = [name for name in datasets if is_present(name, data_root)]
    if not present:
        first = find_row(datasets[0])
        raise DataError(
            f"--data-root: {data_root} holds none of {', '.join(f'{name}/' for name in datasets)}; "
            f"{first.name} for example is to be had at {first.source_url}"
        )
    return present


def absent_gaps(datasets: Sequence[str], data_root: str) -> list[Gap]:
    """A row for each dataset whose folder is not there, with where a person gets it."""
    gaps = []
    for row in (find_row(name) for name in datasets if not is_present(name, data_root)):
        terms = row.licence + ("; non-commercial" if row.non_commercial else "")
        text = f"get it from {row.source_url} (licence: {terms}) and unpack it as {Path(data_root) / row.name}"
        gaps.append(Gap(dataset=row.name, family=row.family, status="absent", text=text))
    return gaps


def parse_protocols(text: str) -> tuple[str, ...]:
    """Protocols as a person writes them, such as ``10%,100%+ft,4shot,knn,0``; each once.

    A percent sign may follow a percentage; ``knn`` alone stands for ``100+knn``, ``zero-shot`` for ``0``, and
    ``4shot`` for its draws.

    Raises:
        ConfigError: a word that is no protocol, or joins methods that are not done together.
    """
    aliases = {"knn": "100+knn", "zero-shot": ZERO_SHOT}
    names = []
    for word in (part.strip() for part in text.split(",") if part.strip()):
        name = aliases.get(word, word.replace("%", ""))
        try:
            protocol = parse_protocol(name)
        except ValueError:
            raise ConfigError(
                f"--protocol: expected 10%, 100%, knn, zero-shot or 4shot, with suffixes such as +ft, got {word!r}"
            ) from None
        if len(protocol.suffixes) > (0 if protocol.shots else 1):
            what = "few-shot is done on the frozen backbone alone" if protocol.shots else "expected one suffix"
            raise ConfigError(f"--protocol: {what}, got {word!r}")
        names.append(protocol.mean_name)
    return tuple(dict.fromkeys(names)) or DEFAULT_PROTOCOLS


def adapt_changes(protocols: Sequence[str], family: str, has_text: bool) -> list[dict[str, Any]]:
    """What must change in the stage adapt's config to give these protocols: one entry a run of the stage.

    Labels that are used by the same methods share a run, so that nothing is trained that was not asked for. k-NN,
    few-shot and zero-shot are for classification, the last for models with a text tower: elsewhere they are left out.
    """
    from intern_vision.stages.adapt import NEIGHBOURS, SUFFIXES

    by_labels: dict[str, list[str]] = {}
    for name in protocols:
        protocol = parse_protocol(name)
        is_for_labels = name == ZERO_SHOT or protocol.shots is not None or NEIGHBOURS in protocol.suffixes
        if is_for_labels and (family != "classify" or (name == ZERO_SHOT and not has_text)):
            continue
        by_labels.setdefault(protocol.labels, []).append("+".join(protocol.suffixes))
    groups: dict[tuple[bool, bool, tuple[str, ...]], list[str]] = {}
    for labels, suffixes in by_labels.items():
        # In the order in which the stage does them; with k-NN alone the frozen head comes along.
        recipes = tuple(recipe for recipe, suffix in SUFFIXES.items() if suffix.removeprefix("+") in suffixes)
        key = (labels == ZERO_SHOT, NEIGHBOURS in suffixes, recipes or ("frozen",))
        groups.setdefault(key, []).append(labels)
    return [_changes(has_knn, recipes, labels) for (_, has_knn, recipes), labels in groups.items()]


def _changes(has_knn: bool, recipes: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    shots = sorted(int(name.removesuffix(FEW_SHOT)) for name in labels if name.endswith(FEW_SHOT))
    shares = sorted(float(name) / 100 for name in labels if not name.endswith(FEW_SHOT))
    return {"shares": shares, "shots": shots, "recipes": list(recipes), "knn": has_knn}


def find_arms(model: str, arm: str, baseline: str, architecture: str) -> tuple[Ref, ...]:
    """The weights that compete, each under the name of its arm, the candidate first.

    Args:
        model: ``models:/NAME@ALIAS``, or the address of committed weights on the store.
        arm: what the candidate is called.
        baseline: likewise, or the path of a file of public weights; empty for none.
        architecture: of such a file: a name of ``PUBLIC_BACKBONES``, or its sizes as a JSON object.

    Raises:
        ConfigError: weights of another kind, or a file without an architecture.
        CheckpointError: a file of another architecture.
    """
    found = [_committed(model, "--model", arm)]
    if baseline.startswith(("models:/", "s3://", "file://")):
        registered = baseline.startswith("models:/")
        name = baseline.removeprefix("models:/").partition("@")[0] if registered else ""
        found.append(_committed(baseline, "--baseline", name))
    elif baseline:
        found.append(_imported(Path(baseline), architecture))
    if len(found) > 1 and found[1].name == arm:
        found[1] = found[1].model_copy(update={"name": f"{arm}-baseline"})
    return tuple(found)


def _committed(model: str, option: str, arm: str) -> Ref:
    from intern_vision.registry import weights_uri
    from intern_vision.stages.base import read_record
    from intern_vision.store import open_store

    uri = weights_uri(model)
    record = read_record(open_store(uri), uri)
    if record.ref.kind != "weights":
        raise ConfigError(
            f"{option}: {model} is a {record.ref.kind} made by the stage {record.stage}; give weights to adapt: "
            "a generalist, expert or amateur"
        )
    return record.ref.model_copy(update={"name": arm or record.ref.name})


def _imported(path: Path, architecture: str) -> Ref:
    """Committed weights of a file; images are given to it at the size its position embedding was made for."""
    from intern_vision.models.public_backbones import PUBLIC_BACKBONES, PublicBackbone, public_backbone
    from intern_vision.stages.base import Inputs, run_stage
    from intern_vision.stages.import_weights import Config
    from intern_vision.store import file_sha256

    if not path.is_file():
        raise ConfigError(f"--baseline: {path} is no file; give models:/NAME@ALIAS or the path of downloaded weights")
    if not architecture:
        known = ", ".join(PUBLIC_BACKBONES)
        raise ConfigError(f"--baseline-architecture: a file of weights needs one of {known}, got none")
    own = architecture.lstrip().startswith("{")
    sizes = (
        PublicBackbone.from_dict(parse_json_object(architecture, "--baseline-architecture"))
        if own
        else public_backbone(architecture)
    )
    config = Config(
        name="baseline" if own else architecture,
        architecture="" if own else architecture,
        backbone=sizes if own else None,
        path=str(path.absolute()),
        sha256=file_sha256(path),
        image_size_px=sizes.position_size_px,
    )
    return run_stage("import_weights", config, Inputs(), name=config.name)


def score_dataset(
    run: "RunConfig", dataset: str, data_root: str, protocols: Sequence[str], arms: Sequence[Ref]
) -> Outcome:
    """Prepares a dataset, adapts every arm to it and scores them; what fails is told in the outcome.

    Raises:
        RetryableError: a server is away or the process was asked to stop: the same command resumes.
    """
    from intern_vision.data.loader import load_info
    from intern_vision.stages.base import Inputs, run_stage
    from intern_vision.store import open_store

    outcome = Outcome()
    progress = Progress(f"benchmark-{dataset}")
    row = suite_row(dataset)
    family: Any = row.family if row else ""
    with _kept(outcome, progress, dataset, family, ""):
        outcome.data = run_stage("prepare", _prepare_config(run, dataset, data_root), Inputs(), name=dataset)
        info = load_info(open_store(outcome.data.uri), outcome.data.uri)
        family = next(iter(info.tasks.values())).family
    if outcome.data is None:
        return outcome
    for arm in arms:
        configs: list[Config] = []
        with _kept(outcome, progress, dataset, family, arm.name):
            configs = _adapt_configs(run, dataset, family, protocols, arm)
        for config in configs:
            with _kept(outcome, progress, dataset, family, arm.name):
                outcome.scores.append(_adapt_and_score(run, dataset, config, arm, outcome.data))
    return outcome


def join_scores(
    run: "RunConfig", datasets: str, data_root: str, inputs: "Inputs", failed: Sequence[Mapping[str, Any]]
) -> Ref:
    """Runs the report stage over the scores of all datasets.

    Args:
        run: the preset's run.
        datasets: names as asked for, see ``selected_sets``.
        data_root: folder that holds them.
        inputs: Refs of ``data``, ``scores`` and ``arms``.
        failed: plain values of the gaps that scoring left.

    Raises:
        DataError: nothing could be scored; gives the first reason.
    """
    from intern_vision.stages.base import Inputs, run_stage

    gaps = [Gap.from_dict(dict(gap), at="gaps") for gap in failed]
    gaps += absent_gaps(selected_sets(run, datasets, data_root), data_root)
    if not inputs.many("scores"):
        raise DataError(f"no dataset could be scored; {gaps[0].dataset}: {gaps[0].text}")
    config = _report_config(run, inputs.many("arms"), gaps, data_root)
    given = {name: inputs.many(name) for name in ("data", "scores") if inputs.many(name)}
    return run_stage("report", config, Inputs(given), name="report")


def _report_config(run: "RunConfig", arms: Sequence[Ref], gaps: Sequence[Gap], data_root: str) -> "Config":
    """The report stage's config: the candidate, the baseline where there is one, and what has no score."""
    from intern_vision.run_config import stage_config

    names = [arm.name for arm in arms]
    changes = {
        "title": "INTERN benchmark",
        "candidate": names[0],
        "baseline": names[1] if len(names) > 1 else "",
        "arms": names[::-1],
        "references": [],
        "cost_baseline": "",
        "gaps": [gap.to_dict() for gap in gaps],
    }
    return stage_config(run, "report")[1].with_overrides(changes | ({"limits": list(OWN_LIMITS)} if data_root else {}))


def _prepare_config(run: "RunConfig", dataset: str, data_root: str) -> "Config":
    from intern_vision.run_config import stage_config

    config = stage_config(run, "prepare", dataset)[1]
    if suite_row(dataset) is None:
        return config
    whole = {"num_train": 0, "num_val": 0, "num_test": 0}  # an official set is taken as it is
    # Changed data is prepared anew; its bytes are not read for that.
    digest = listing_digest(Path(data_root) / dataset)
    return config.with_overrides(whole | {"official": dataset, "path": data_root, "content_digest": digest})


def _adapt_configs(run: "RunConfig", dataset: str, family: str, protocols: Sequence[str], arm: Ref) -> list["Config"]:
    """The stage adapt's config for each group of protocols; images are given at the size that the arm was made for."""
    from intern_vision.models.vision import SPEC_FILE, ModelSpec
    from intern_vision.run_config import stage_config
    from intern_vision.store import join_uri, open_store

    at = join_uri(arm.uri, SPEC_FILE)
    spec = ModelSpec.from_json(open_store(arm.uri).read(at).decode(), at=at)
    config = stage_config(run, "adapt", dataset, arm.name)[1]
    size = {"augment": {"image_size_px": spec.image_size_px}}
    groups = adapt_changes(protocols, family, spec.text is not None)
    return [config.with_overrides(size | changes) for changes in groups]


def _adapt_and_score(run: "RunConfig", dataset: str, config: "Config", arm: Ref, data: Ref) -> Ref:
    from intern_vision.run_config import stage_config
    from intern_vision.stages.base import Inputs, run_stage

    case = f"{arm.name}-{dataset}"
    adapted = run_stage("adapt", config, Inputs(model=(arm,), data=(data,)), name=f"adapt-{case}")
    scored = stage_config(run, "evaluate", dataset, arm.name)[1]
    if suite_row(dataset):
        scored = scored.with_overrides({"num_resamples": NUM_RESAMPLES})
    return run_stage("evaluate", scored, Inputs(model=(adapted,), data=(data,)), name=f"evaluate-{case}")


@contextmanager
def _kept(outcome: Outcome, progress: Progress, dataset: str, family: Any, arm: str) -> Iterator[None]:
    """Turns a failure into a gap of the outcome, but for one that the same command mends."""
    try:
        yield
    except RetryableError:
        raise
    except Exception as error:
        fault = file_error(error) if isinstance(error, OSError) else error
        if isinstance(fault, RetryableError):
            raise fault from None
        text, code = str(error), getattr(error, "exit_code", InternError.exit_code)
        if not isinstance(error, InternError):
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}"
        gap = Gap(dataset=dataset, family=family, arm=arm, status="failed", text=text, exit_code=code)
        if gap not in outcome.gaps:  # each group of protocols may stumble over the same thing
            outcome.gaps.append(gap)
            progress.say(f"failed: {text}")
