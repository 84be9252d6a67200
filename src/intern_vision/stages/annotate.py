"""Annotate (GV-D): chooses what people are asked about next, or takes their answers up."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from intern_vision import config as base
from intern_vision.data.annotation.settings import AnswerFile, PictureConfig, SelectionConfig, VoteConfig
from intern_vision.errors import ConfigError
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext

if TYPE_CHECKING:
    from intern_vision.data.manifest import ManifestInfo


class Config(base.Config):
    """A round of questions, or with ``answers`` what came back of it.

    Attributes:
        name: what the result is called.
        question: ``label`` (is the proposed label right?) or ``box`` (are the proposed boxes?).
        selection: which images are asked about.
        pictures: how tasks refer to images.
        votes: when answers count.
        answers: Label Studio's JSON exports of the round that the input ``manifest`` is.
    """

    name: str = "annotated"
    question: Literal["label", "box"] = "label"
    selection: SelectionConfig = SelectionConfig()
    pictures: PictureConfig = PictureConfig()
    votes: VoteConfig = VoteConfig()
    answers: tuple[AnswerFile, ...] = ()


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Asks, or takes answers up.

    To ask, the input ``model`` has a head that proposes, or a backbone for a probe on the labelled rows; with the
    input ``labels`` the images of a concept count for those above it. With ``answers``, the input ``manifest`` is the
    output of this stage that asked, or that took the first answers up.

    Raises:
        ConfigError: a missing or unfit input.
        DataError: no pool, too few labelled rows, or answers that cannot be understood.
    """
    return _take(config, inputs, context) if config.answers else _ask(config, inputs, context)


def _ask(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    from intern_vision.data.annotation.asking import Questions
    from intern_vision.data.annotation.rows import labelled_and_pool
    from intern_vision.data.labels.output import LABELS_FILE
    from intern_vision.data.labels.public import read_label_system
    from intern_vision.data.manifest_store import fetch_file, load_manifest

    folder = context.scratch_dir / "inputs"
    manifest, path = load_manifest(context, inputs.one("manifest"), folder)
    labels = inputs.optional("labels")
    system = read_label_system(fetch_file(context.store, labels, LABELS_FILE, folder)) if labels else None
    labelled, pool = labelled_and_pool(path, config.question, config.selection.sources)
    weights = context.fetch(inputs.one("model"))
    questions = Questions(config.question, config.selection, config.pictures, context.scratch_dir, context.progress)
    changes, facts = questions.ask(labelled, pool, weights, system, context.output_dir)
    context.facts |= facts
    context.progress.say(f"{facts['num_asked']} of {facts['num_pool']} pool rows to ask about")
    return _commit(config, manifest, path, changes, context)


def _take(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    import shutil

    from intern_vision.data.annotation import files, taking
    from intern_vision.data.manifest_store import fetch_file, load_manifest
    from intern_vision.stages.base import read_record

    ref, folder = inputs.one("manifest"), context.scratch_dir / "inputs"
    manifest, path = load_manifest(context, ref, folder)
    there = read_record(context.store, ref.uri).files
    if files.ROUND_FILE not in there:
        raise ConfigError("inputs.manifest: answers belong to the manifest that asked; give the output of annotate")

    def fetched(name: str) -> Path:
        return fetch_file(context.store, ref, name, folder)

    about = files.Round.from_json(fetched(files.ROUND_FILE).read_text(encoding="utf-8"), at=ref.uri)
    asked = files.read_asked(fetched(files.SELECTION_FILE))
    earlier = fetched(files.VOTES_FILE) if files.VOTES_FILE in there else None
    votes = taking.gather_votes(config.answers, earlier, asked, about)
    ballot = taking.count_votes(votes, asked, path, about, config.votes)
    changes = taking.changes_of(ballot, asked, path)
    num_open = taking.write_answers(ballot, votes, fetched(files.TASKS_FILE), context.output_dir)
    for name in (files.ROUND_FILE, files.SELECTION_FILE, files.LABELLING_FILE):
        shutil.copy(fetched(name), context.output_dir / name)
    summary = ballot.summary()
    context.facts |= {name: value for name, value in summary.items() if isinstance(value, int | float)}
    for name, facts in summary["annotators"].items():
        if facts["is_left_out"]:
            context.progress.say(f"annotator {name} left out: {facts['audit_accuracy']:.0%} of the audits right")
    context.progress.say(f"{len(changes)} decided, {num_open} need another annotator")
    sources = taking.sources_with_classes(manifest.sources, path, changes, about)
    return _commit(config, manifest.model_copy(update={"sources": sources}), path, changes, context)


def _commit(
    config: Config, manifest: "ManifestInfo", path: Path, changes: "dict[int, dict[str, Any]]", context: StageContext
) -> Ref:
    from collections import Counter

    from intern_vision.data.annotation.rows import rewrite
    from intern_vision.data.manifest import MANIFEST_NAME, StepInfo
    from intern_vision.data.manifest_store import commit_manifest

    ends = rewrite(path, context.output_dir / MANIFEST_NAME, changes)
    reasons = Counter(values["reason"].partition(":")[0] for values in changes.values() if values["reason"])
    step = StepInfo(name="annotate", settings=config.to_dict(), **ends, counts=dict(sorted(reasons.items())))
    return commit_manifest(context, manifest.model_copy(update={"steps": (*manifest.steps, step)}), config.name)
