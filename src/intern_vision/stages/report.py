"""Report: scores, records, samples and curves of a run as one page, with the table as JSON and as text."""

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import Field

from intern_vision import config as base
from intern_vision.bench.report import Curve, Examples, Picture, ReportContent, build_report, format_time
from intern_vision.bench.table import SCORES_FILE, ArmCost, BenchmarkTable, Scores, build_table, render_text
from intern_vision.errors import DataError
from intern_vision.lineage import Lineage, render_svg, trace
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, Record, StageContext, flatten, read_record
from intern_vision.store import Store, join_uri
from intern_vision.train.launch import HISTORY_FILE

REPORT_FILE = "report.html"
TABLE_FILE = "table.json"
TEXT_FILE = "table.txt"
REGISTERED_FILE = "registered.json"
# What pre-training an arm takes; adaptation and scoring cost both arms the same.
TRAINING_STAGES = ("amateur", "expert", "generalist")
LIMITS = (
    "Each number comes from one run with one seed; differences of a few percent may be chance.",
    "The made world stands in for GV-B's 26 datasets: it shows that the method and the code work, and its figures "
    "do not carry over to photographs.",
    "The mean of a family with one or two sets is little more than those sets.",
    "CPU-seconds compare the arms on one kind of machine; image passes compare them on any, but a pass of a larger "
    "model costs more.",
)


class Config(base.Config):
    """What the report says besides what it reads.

    Attributes:
        title: heading.
        baseline: the arm compared with, as named in the scores.
        candidate: the arm under test.
        num_examples: samples drawn a dataset.
        preset: name of the run's preset; left out where empty.
        hardware: what the run ran on; empty describes the machine of the report stage.
        limits: what the numbers do not show, one sentence each.
    """

    title: str = "INTERN benchmark"
    baseline: str = "clip"
    candidate: str = "intern"
    num_examples: int = Field(default=8, ge=1)
    preset: str = ""
    hardware: str = ""
    limits: tuple[str, ...] = LIMITS


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Reads the inputs ``scores``, ``data`` and ``registered`` and writes page and tables.

    Raises:
        DataError: no scores of either arm, or an input that cannot be read.
    """
    store = context.store
    lineages = {ref.uri: trace(store, ref.uri) for refs in inputs.values() for ref in refs}
    records = _records(store, lineages.values())
    scores = {ref.uri: _scores(store, ref) for ref in inputs.many("scores")}
    arms = {
        model: [lineages[uri] for uri, item in scores.items() if item.model == model]
        for model in (config.baseline, config.candidate)
    }
    costs = {model: arm_cost(traced, records) for model, traced in arms.items() if traced}
    table = build_table(scores.values(), baseline=config.baseline, candidate=config.candidate, costs=costs)
    context.progress.say(f"{len(records)} records, {len(table.rows)} datasets")
    page = build_report(
        ReportContent(
            title=config.title,
            table=table,
            summary=_summary(config, records.values()),
            records=tuple(records.values()),
            data=[_sample_grid(context, ref, config.num_examples) for ref in inputs.many("data")],
            curves=_curves(store, records.values()),
            examples=_examples(store, scores, records, table),
            lineages=_graphs(store, arms[config.candidate]),
            registered=_registered(store, inputs.optional("registered")),
            limits=config.limits,
        )
    )
    _write(context.output_dir, {REPORT_FILE: page, TABLE_FILE: table.to_json(), TEXT_FILE: render_text(table)})
    for name in (REPORT_FILE, TABLE_FILE):
        context.tracker.log_artifact(context.output_dir / name)
    context.facts |= table_facts(table)
    return context.commit("report", "report")


def arm_cost(traced: Iterable[Lineage], records: Mapping[str, Record]) -> ArmCost:
    """The sum over the training stages that an arm's outputs come from, each counted once."""
    uris = {uri for lineage in traced for uri, node in lineage.nodes.items() if node.stage in TRAINING_STAGES}
    made = [records[uri] for uri in sorted(uris)]
    return ArmCost(
        image_passes=sum(float(record.facts.get("image_passes", 0)) for record in made),
        cpu_s=sum(record.cpu_s for record in made),
        wall_s=sum(record.wall_s for record in made),
    )


def table_facts(table: BenchmarkTable) -> dict[str, float | int]:
    """Family means by name: ``error/<family>/<model>/<protocol>`` as a fraction, reductions in percent, wins."""
    facts: dict[str, float | int] = {}
    for row in table.families:
        for column, error in row.errors.items():
            model, _, protocol = column.rpartition("@")
            facts[f"error/{row.family}/{model}/{protocol}"] = error / 100
        for name, reduction in row.reductions.items():
            if reduction.mean_of_reductions is not None:
                facts[f"reduction/{row.family}/{_protocols(name)}"] = reduction.mean_of_reductions
    return facts | {f"wins/{_protocols(name)}": total.num_wins for name, total in table.overall.items()}


def read_curve(store: Store, record: Record) -> Curve | None:
    """The losses in a trained output's ``history.jsonl``, or ``None`` where it has none.

    A step that was repeated after a resume counts once, as it was last.

    Raises:
        DataError: a line is not a JSON object with ``step``.
    """
    if HISTORY_FILE not in record.files:
        return None
    uri = join_uri(record.ref.uri, HISTORY_FILE)
    rows: dict[int, dict[str, float]] = {}
    for number, line in enumerate(store.read(uri).decode().splitlines(), start=1):
        try:
            row = json.loads(line)
            rows[int(row["step"])] = row
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{uri}: line {number} is not a JSON object with a step: {line[:60]!r}") from error
    steps = sorted(rows)
    names = dict.fromkeys(name for step in steps for name in rows[step] if name == "loss" or name.startswith("loss/"))
    if not names:
        return None
    return Curve(
        name=record.ref.name,
        steps=steps,
        losses={name: [float(rows[step].get(name, "nan")) for step in steps] for name in names},
        steps_per_s=float(record.facts.get("steps_per_s", 0)),
    )


def _curves(store: Store, records: Iterable[Record]) -> list[Curve]:
    """The losses of every training that a result came from, in the order they were run."""
    trained = sorted((r for r in records if r.stage in TRAINING_STAGES), key=lambda record: record.started_unix_s)
    return [curve for record in trained if (curve := read_curve(store, record))]


def _records(store: Store, lineages: Iterable[Lineage]) -> dict[str, Record]:
    uris = {uri for lineage in lineages for uri, node in lineage.nodes.items() if node.kind != "missing"}
    return {uri: read_record(store, uri) for uri in sorted(uris)}


def _scores(store: Store, ref: Ref) -> Scores:
    uri = join_uri(ref.uri, SCORES_FILE)
    return Scores.from_json(store.read(uri).decode(), at=uri)


def _summary(config: Config, records: Iterable[Record]) -> dict[str, str]:
    records = list(records)
    started_s = min(record.started_unix_s for record in records)
    ended_s = max(record.started_unix_s + record.wall_s for record in records)
    codes = sorted({record.code[:12] for record in records})
    values = [item for record in records for item in flatten(record.config).items()]
    seeds = sorted({value for name, value in values if name.endswith("seed") and isinstance(value, int)})
    lines = {
        "Started": format_time(started_s),
        "Ended": format_time(ended_s),
        "Stages": f"{len(records)} committed outputs",
        "Preset": config.preset,
        "Seeds": ", ".join(map(str, seeds)),
        "Code": ", ".join(codes),
        "Hardware": config.hardware or f"report stage on {_machine()}",
    }
    return {name: text for name, text in lines.items() if text}


def _machine() -> str:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{platform.machine()} with {os.cpu_count()} CPU cores and {gib:.0f} GiB of memory"


def _sample_grid(context: StageContext, ref: Ref, num_examples: int) -> Picture:
    from intern_vision.bench.draw import draw_samples
    from intern_vision.data.loader import ShardSource, load_info

    info = load_info(context.store, ref.uri)
    fields = [name for name in info.fields if name != "image"]
    source = ShardSource(context.store, ref.uri, cache_dir=context.cache_dir, fields=fields)
    # From the first shard only, where the index begins: a few pictures are not worth downloading a large dataset.
    num_near = min(len(source), info.shards[0].num_samples)
    num_drawn = min(num_examples, num_near)
    samples = [source[index * num_near // num_drawn] for index in range(num_drawn)]
    counts = f"{info.num_train:,} train, {info.num_val:,} val, {info.num_test:,} test"
    return Picture(title=f"{ref.name}: {', '.join(info.tasks)}; {counts}", png=draw_samples(samples, info.tasks))


def _examples(
    store: Store, scores: Mapping[str, Scores], records: Mapping[str, Record], table: BenchmarkTable
) -> list[Examples]:
    found = []
    for row in table.rows:
        # The fewest labels: what the first comparison of the table is about.
        protocol = min((column.rpartition("@")[2] for column in row.errors), key=float)
        name = f"examples-{protocol}.png"
        pictures = {
            model: store.read(join_uri(uri, name))
            for model in (table.candidate, table.baseline)
            for uri, item in scores.items()
            if (item.model, item.dataset) == (model, row.dataset) and name in records[uri].files
        }
        if pictures:
            found.append(Examples(dataset=row.dataset, family=row.family, protocol=protocol, pictures=pictures))
    return found


def _graphs(store: Store, traced: Sequence[Lineage]) -> list[tuple[str, str]]:
    """The generalist's graph and that of one model adapted from it."""
    graphs = []
    for stage, title in (("generalist", "the generalist"), ("adapt", "one adapted model")):
        nodes = [node for lineage in traced for node in lineage.nodes.values() if node.stage == stage]
        if nodes:
            graphs.append((f"{nodes[0].name}: {title}", render_svg(trace(store, nodes[0].uri))))
    return graphs


def _registered(store: Store, ref: Ref | None) -> list[dict[str, str]]:
    if ref is None:
        return []
    uri = join_uri(ref.uri, REGISTERED_FILE)
    try:
        rows = [{name: str(row[name]) for name in ("name", "version", "alias")} for row in json.loads(store.read(uri))]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{uri}: expected a JSON list of objects with name, version and alias") from error
    return rows


def _protocols(comparison: str) -> str:
    ours, theirs = comparison.split(" vs ")
    return f"{ours.rpartition('@')[2]}_vs_{theirs.rpartition('@')[2]}"


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
