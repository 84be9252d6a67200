"""Report: scores, records, samples and curves of a run as one page, with the table as JSON and as text."""

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field

from intern_vision import config as base
from intern_vision.bench.charts import Curve
from intern_vision.bench.comparisons import sorted_protocols, split_column, split_comparison
from intern_vision.bench.report import Examples, FactSheet, GeneralistCandidate, Picture, ReportContent, build_report
from intern_vision.bench.scores import Gap, Scores, read_scores
from intern_vision.bench.table import ArmCost, BenchmarkTable, build_table
from intern_vision.bench.table_text import render_text
from intern_vision.bench.timeline import format_time
from intern_vision.errors import DataError
from intern_vision.lineage import Lineage, render_svg, trace
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, Record, StageContext, flatten
from intern_vision.stages.search import PICTURE_FILE, TRIALS_FILE
from intern_vision.stages.select import CANDIDATES_FILE, scored_arm
from intern_vision.store import Store, join_uri
from intern_vision.train.launch import HISTORY_FILE

REPORT_FILE = "report.html"
TABLE_FILE = "table.json"
TEXT_FILE = "table.txt"
REGISTERED_FILE = "registered.json"
# What pre-training an arm takes; adaptation and scoring cost every arm the same.
TRAINING_STAGES = ("amateur", "amateur_local", "expert", "generalist")
SEARCH_STAGE, SELECT_STAGE, DENSE_AMATEUR_STAGE = "search", "select", "amateur_local"
IMPORT_STAGE = "import_weights"
LIMITS = (
    "Each number comes from one run with one seed; differences of a few percent may be chance. The command "
    "intern table joins runs with other seeds.",
    "The 95 % intervals cover the draw of the test images alone, not the training seed or the draw of the labels.",
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
        arms: order of display; arms not named follow as found. Empty: baseline and candidate first.
        references: further arms that the candidate is compared with at equal labels, those of them that were scored;
            a pattern such as ``expert*`` stands for the best of its arms in each family.
        cost_baseline: the baseline trained for as many processor seconds as the candidate; compared like the baseline
            where it was scored.
        num_examples: samples drawn a dataset.
        preset: name of the run's preset; left out where empty.
        hardware: what the run ran on; empty describes the machine of the report stage.
        limits: what the numbers do not show, one sentence each.
        gaps: datasets and arms that were asked for and have no score.
    """

    title: str = "INTERN benchmark"
    baseline: str = "clip"
    candidate: str = "intern"
    arms: tuple[str, ...] = ()
    references: tuple[str, ...] = ("expert*", "joint-scratch")
    cost_baseline: str = "clip-cpu"
    num_examples: int = Field(default=8, ge=1)
    preset: str = ""
    hardware: str = ""
    limits: tuple[str, ...] = LIMITS
    gaps: tuple[Gap, ...] = ()


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Reads the inputs ``scores``, ``data``, ``registered`` and ``selected`` and writes page and tables.

    Raises:
        DataError: no scores of either arm, or an input that cannot be read.
    """
    from intern_vision.bench.task_report import read_task_reports

    store = context.store
    read: dict[str, Record] = {}
    lineages = {ref.uri: trace(store, ref.uri, read) for refs in inputs.values() for ref in refs}
    records = dict(sorted(read.items()))
    scores = [(ref.uri, read_scores(ref)) for ref in inputs.many("scores")]
    selected = inputs.optional("selected")
    arm = scored_arm(config.candidate, {item.model for _, item in scores}, records[selected.uri] if selected else None)
    if arm != config.candidate:
        scores += [
            (uri, item.model_copy(update={"model": config.candidate})) for uri, item in scores if item.model == arm
        ]
    chosen = {uri: _candidates(store, record) for uri, record in records.items() if record.stage == SELECT_STAGE}
    arms: dict[str, list[Lineage]] = {}
    for uri, item in scores:
        arms.setdefault(item.model, []).append(lineages[uri])
    table = build_table(
        [item for _, item in scores],
        baseline=config.baseline,
        candidate=config.candidate,
        costs=_costs(arms, records, _chosen_uris(chosen)),
        arms=config.arms,
        references=config.references,
        cost_baseline=config.cost_baseline,
        gaps=config.gaps,
        runs={(item.dataset, item.model): run_address(records[uri].run_id) for uri, item in scores},
    )
    context.progress.say(f"{len(records)} records, {len(table.arms)} arms, {len(table.rows)} datasets")
    page = build_report(
        ReportContent(
            title=config.title,
            table=table,
            summary=_summary(config, records.values()),
            records=tuple(records.values()),
            tasks=read_task_reports(store, scores, records),
            candidates=[candidate for _, candidate in _selection(chosen, selected)],
            searches=_searches(store, records.values()),
            dense_amateurs=_dense_amateurs(records.values()),
            data=[_sample_grid(context, ref, config.num_examples) for ref in inputs.many("data")],
            curves=_curves(store, records.values()),
            examples=_examples(store, scores, records, table),
            lineages=_graphs(
                store, [*arms.get(config.candidate, []), *([lineages[selected.uri]] if selected else [])], records
            ),
            registered=_registered(store, inputs.optional("registered")),
            limits=config.limits,
        )
    )
    _write(context.output_dir, {REPORT_FILE: page, TABLE_FILE: table.to_json(), TEXT_FILE: render_text(table)})
    for name in (REPORT_FILE, TABLE_FILE):
        context.tracker.log_artifact(context.output_dir / name)
    context.facts |= table_facts(table)
    return context.commit("report", "report")


def arm_cost(
    traced: Iterable[Lineage], records: Mapping[str, Record], chosen: Mapping[str, str] | None = None
) -> ArmCost:
    """The sum over the training stages that an arm's outputs come from, each counted once.

    Args:
        traced: lineage of each output.
        records: every record of these lineages by address.
        chosen: for the address of a selection that of the candidate it took; what the others were made from is not
            part of the arm.
    """
    chosen = chosen or {}
    uris: set[str] = set()
    for lineage in traced:
        waiting, seen = [lineage.uri], set()
        while waiting:
            uri = waiting.pop()
            if uri in seen:
                continue
            seen.add(uri)
            waiting += (chosen[uri],) if uri in chosen else lineage.parents(uri)
        uris |= {uri for uri in seen if uri in records and records[uri].stage in TRAINING_STAGES}
    made = [records[uri] for uri in sorted(uris)]
    return ArmCost(
        image_passes=sum(float(record.facts.get("image_passes", 0)) for record in made),
        cpu_s=sum(record.cpu_s for record in made),
        wall_s=sum(record.wall_s for record in made),
    )


def run_address(run_id: str) -> str:
    """Address of a run in the tracking server's pages; empty without a run or a server.

    Credentials that are part of the server's address are left out.
    """
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not run_id or not server:
        return ""
    parts = urlsplit(server)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/#/runs/{run_id}"


def _costs(
    arms: Mapping[str, Sequence[Lineage]], records: Mapping[str, Record], chosen: Mapping[str, str]
) -> dict[str, ArmCost]:
    """The cost of each arm, but for one from a public file, of whose training nothing is known here."""
    imported = {uri for uri, record in records.items() if record.stage == IMPORT_STAGE}
    return {
        model: arm_cost(traced, records, chosen)
        for model, traced in arms.items()
        if not any(imported & lineage.nodes.keys() for lineage in traced)
    }


def table_facts(table: BenchmarkTable) -> dict[str, float | int]:
    """Family means by name: ``error/<family>/<model>/<protocol>`` (a fraction, or metres), reductions in percent, wins.

    Reductions and wins are named by their two protocols, with the other arm between them where it is not the baseline.
    """
    facts: dict[str, float | int] = {}
    for row in table.families:
        for column, error in row.errors.items():
            facts["/".join(("error", row.family, *split_column(column)))] = error / (1 if row.unit == "m" else 100)
        for name, reduction in row.reductions.items():
            if reduction.mean_of_reductions is not None:
                facts[f"reduction/{row.family}/{_sides(name, table)}"] = reduction.mean_of_reductions
    return facts | {f"wins/{_sides(name, table)}": total.num_wins for name, total in table.overall.items()}


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


def _candidates(store: Store, record: Record) -> list[tuple[str, GeneralistCandidate]]:
    """Addresses and facts of the models that a selection chose from."""
    uri = join_uri(record.ref.uri, CANDIDATES_FILE)
    try:
        return [
            (
                str(row["uri"]),
                GeneralistCandidate(
                    name=str(row["name"]),
                    errors={family: float(error) for family, error in row["errors"].items()},
                    score=float(row["score"]),
                    num_parameters=int(row["num_parameters"]),
                    num_macs=int(row["num_macs"]),
                    image_passes=float(row["image_passes"]),
                    # Records of earlier versions do not say.
                    cpu_s=float(record.facts.get(f"cpu_s/{row['name']}", "nan")),
                    chosen=bool(row["chosen"]),
                ),
            )
            for row in json.loads(store.read(uri))
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{uri}: expected a JSON list of candidates with errors, score and costs: {error!r}") from error


def _chosen_uris(selections: Mapping[str, Sequence[tuple[str, GeneralistCandidate]]]) -> dict[str, str]:
    """For each selection the address of what it took."""
    return {uri: made for uri, rows in selections.items() for made, candidate in rows if candidate.chosen}


def _selection(
    selections: Mapping[str, Sequence[tuple[str, GeneralistCandidate]]], selected: Ref | None
) -> Sequence[tuple[str, GeneralistCandidate]]:
    """The selection given as an input, else the first that a result came from."""
    if selected is not None and selected.uri in selections:
        return selections[selected.uri]
    return next(iter(selections.values()), [])


def _searches(store: Store, records: Iterable[Record]) -> list[FactSheet]:
    """Concluded architecture searches that left a picture or their trials."""
    sheets = []
    for record in records:
        if record.stage != SEARCH_STAGE or not {PICTURE_FILE, TRIALS_FILE} & set(record.files):
            continue
        png = store.read(join_uri(record.ref.uri, PICTURE_FILE)) if PICTURE_FILE in record.files else b""
        facts: dict[str, float | int | str] = {}
        if TRIALS_FILE in record.files:
            facts["num_trials"] = len(json.loads(store.read(join_uri(record.ref.uri, TRIALS_FILE))))
        sheets.append(FactSheet(title=record.ref.name, facts=facts | record.facts, png=png))
    return sheets


def _dense_amateurs(records: Iterable[Record]) -> list[FactSheet]:
    """What each continuation of an amateur on dense signals recorded."""
    found = [record for record in records if record.stage == DENSE_AMATEUR_STAGE]
    return [FactSheet(title=record.ref.name, facts=record.facts) for record in found]


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
    store: Store, scores: Sequence[tuple[str, Scores]], records: Mapping[str, Record], table: BenchmarkTable
) -> list[Examples]:
    found = []
    for row in table.rows:
        # The fewest labels: what the first comparison of the table is about.
        protocol = sorted_protocols(row.errors)[0]
        name = f"examples-{protocol}.png"
        pictures = {
            model: store.read(join_uri(uri, name))
            for model in (table.candidate, table.baseline)
            for uri, item in scores
            if (item.model, item.dataset) == (model, row.dataset) and name in records[uri].files
        }
        if pictures:
            found.append(Examples(dataset=row.dataset, family=row.family, protocol=protocol, pictures=pictures))
    return found


def _graphs(store: Store, traced: Sequence[Lineage], records: dict[str, Record]) -> list[tuple[str, str]]:
    """The graph of the generalist, with the candidates it was chosen from, and that of one model adapted from it."""
    graphs = []
    nodes = [node for lineage in traced for node in lineage.nodes.values()]
    for stages, title in (((SELECT_STAGE, "generalist"), "the generalist"), (("adapt",), "one adapted model")):
        found = sorted((node for node in nodes if node.stage in stages), key=lambda node: stages.index(node.stage))
        if found:
            graphs.append((f"{found[0].name}: {title}", render_svg(trace(store, found[0].uri, records))))
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


def _sides(comparison: str, table: BenchmarkTable) -> str:
    (_, ours), (arm, theirs) = map(split_column, split_comparison(comparison))
    return f"{ours}_vs_{theirs}" if arm == table.baseline else f"{ours}_vs_{arm}_{theirs}"


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
