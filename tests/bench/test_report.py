import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from intern_vision.bench.draw import draw_predictions
from intern_vision.bench.report import MAX_REPORT_BYTES, Picture, ReportContent, build_report, format_fact
from intern_vision.bench.table import BenchmarkTable, ProtocolScore, Scores
from intern_vision.data import world
from intern_vision.data.codec import encode_png
from intern_vision.data.shard import DatasetInfo, write_dataset
from intern_vision.errors import DataError
from intern_vision.heads.base import Prediction
from intern_vision.ref import Ref
from intern_vision.stages import report as stage
from intern_vision.stages.base import COMMIT_MARKER, Inputs, Record, read_record, run_stage
from intern_vision.store import FileStore, digest_of_files, file_sha256, join_uri

START_S = 1_700_000_000.0
# (stage, output, image passes, wall seconds) of what each arm is made from.
AMATEUR = ("amateur", "amateur", 200_000, 380.0)
DENSE_AMATEUR = ("amateur_local", "amateur-local", 20_000, 70.0)
EXPERTS = [("expert", "expert-multilabel", 60_000, 110.0), ("expert", "expert-detect", 60_000, 150.0)]
JOINT = ("generalist", "generalist-joint", 140_000, 330.0)
CENTRAL = ("generalist", "generalist-central", 180_000, 510.0)
TRAINED = {
    "clip": [("amateur", "clip", 480_000, 900.0)],
    "clip-cpu": [("amateur", "clip-cpu", 640_000, 1_200.0)],
    "scratch": [("generalist", "generalist-random", 0, 0.5)],
    "expert": [AMATEUR, DENSE_AMATEUR, *EXPERTS],
    "central": [AMATEUR, DENSE_AMATEUR, *EXPERTS, CENTRAL],
    "intern": [AMATEUR, DENSE_AMATEUR, *EXPERTS, JOINT],
}
# Error over the baseline's.
STRENGTH = {"clip": 1.0, "clip-cpu": 0.96, "scratch": 1.12, "expert": 0.93, "central": 0.87, "intern": 0.82}
DENSE_FACTS = {"image_passes": 20_000, "accepted": "yes", "error_dense/before": 0.71, "error_dense/after": 0.6342}
SEARCH_FACTS = {"num_trials": 12, "best_reward": 0.5137, "num_parameters": 1_803_264}


class Run:
    """Commits outputs of a made run to a store, one after the other in time."""

    def __init__(self, root: Path):
        self.root = root
        self.uri = f"file://{root}/store"
        self.store = FileStore(self.uri)
        self.now_s = START_S

    def commit(self, stage_name, name, kind, parents, files=None, *, folder=None, facts=None, wall_s=1.0, config=None):
        folder = folder or self.root / "made" / f"{stage_name}-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        for file_name, data in (files or {}).items():
            (folder / file_name).write_bytes(data)
        digests = {p.relative_to(folder).as_posix(): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
        uri = join_uri(self.uri, stage_name, f"{name}-{len(name):016x}")
        for file_name in digests:
            self.store.put(folder / file_name, join_uri(uri, *file_name.split("/")))
        ref = Ref(
            kind=kind,
            name=name,
            uri=uri,
            digest=digest_of_files(digests | {name: "0" * 64}),
            num_bytes=sum((folder / file_name).stat().st_size for file_name in digests),
            parents=tuple(parent.uri for parent in parents),
        )
        record = Record(
            ref=ref,
            stage=stage_name,
            key=f"{len(uri):064x}",
            code="c0de" * 16,
            config=config or {"seed": 7},
            inputs={"parents": ref.parents},
            files=digests,
            facts=facts or {},
            started_unix_s=self.now_s,
            wall_s=wall_s,
            cpu_s=1.9 * wall_s,
        )
        self.now_s += wall_s
        self.store.put(record.to_json().encode(), join_uri(uri, COMMIT_MARKER))
        return ref

    def dataset(self, world_set, num_samples, image_size_px):
        split = "train"
        samples = world.render(world_set, 0, split, range(num_samples), image_size_px)
        concepts = world.CONCEPTS if "concepts" in world_set.fields else ()
        info = DatasetInfo(name=world_set.name, tasks=world_set.tasks, concept_names=concepts)
        folder = self.root / "made" / world_set.name
        write_dataset(samples, info, folder)
        return self.commit("prepare", world_set.name, "dataset", (), folder=folder, wall_s=12.0), samples


def history(num_steps, names, level=3.0):
    lines = []
    for step in range(10, num_steps + 1, 10):
        parts = {f"loss/{n}": level / (i + 1) * math.exp(-step / 400) + 0.2 for i, n in enumerate(names)}
        lines.append(json.dumps({"step": step, "loss": sum(parts.values()), **parts, "steps_per_s": 4.0}))
    return ("\n".join(lines) + "\n").encode()


def guess(sample, task, rng, skill):
    if task.family == "classify":
        logits = rng.normal(size=task.num_classes)
        logits[sample.label] += skill
        scores = (np.exp(logits) / np.exp(logits).sum()).astype(np.float32)
        return Prediction(label=int(scores.argmax()), scores=scores)
    if task.family == "detect":
        boxes = sample.boxes + rng.normal(0, 6 / skill, sample.boxes.shape).astype(np.float32)
        scores = np.linspace(0.9, 0.4, len(boxes)).astype(np.float32)
        return Prediction(boxes=boxes, labels=sample.box_labels, scores=scores)
    if task.family == "segment":
        noisy = rng.random(sample.mask.shape) < 0.3 / skill
        return Prediction(mask=np.where(noisy, 0, sample.mask).astype(np.uint8))
    return Prediction(depth=(sample.depth * rng.normal(1, 0.5 / skill, sample.depth.shape)).astype(np.float32))


def make_inputs(run, sets, *, num_samples=4, image_size_px=32, num_steps=200):
    """Commits data, every arm, adapted models and scores; gives the report stage's inputs."""
    rng = np.random.default_rng(0)
    upstream, _ = run.dataset(world.UPSTREAM, num_samples, image_size_px)
    finals, chosen = train_arms(run, upstream, num_steps)
    data, scores = [upstream], []
    for name in sets:
        world_set = world.DOWNSTREAM[name]
        ref, samples = run.dataset(world_set, num_samples, image_size_px)
        data.append(ref)
        ((family, task),) = world_set.tasks.items()
        level = float(rng.uniform(0.25, 0.6)) * (0.3 if family == "depth" else 1)
        for arm in TRAINED:
            adapted = run.commit("adapt", f"{arm}-{name}", "model", [finals[arm], ref], {"m": b"1"}, wall_s=9.0)
            error = level * STRENGTH[arm] * float(rng.uniform(0.95, 1.05))
            result = Scores(dataset=name, model=arm, family=family, protocols=protocols_of(arm, family, error))
            files = {"scores.json": result.to_json().encode()}
            if arm in ("clip", "intern"):
                skill = 1.5 if arm == "clip" else 3.0
                files["examples-10.png"] = draw_predictions(
                    samples, [guess(s, task, rng, skill) for s in samples], task
                )
            scores.append(run.commit("evaluate", f"{arm}-{name}", "scores", [adapted, ref], files, wall_s=3.0))
    listed = [{"name": "intern-generalist", "version": "1", "alias": "candidate"}]
    files = {"registered.json": json.dumps(listed).encode()}
    registered = run.commit("export", "registered", "model", [finals["intern"]], files, wall_s=5.0)
    return Inputs(scores=tuple(scores), data=tuple(data), registered=(registered,), selected=(chosen,))


def protocols_of(arm, family, error):
    """Frozen for all, fine-tuned at 100 % for two arms, zero-shot for the one with a text tower."""
    factors = {"10": (1.0, 120), "100": (0.7, 1200), "10+ft": (0.8, 120)}
    if arm in ("clip", "intern"):
        factors["100+ft"] = (0.5, 1200)
    if arm == "clip" and family == "classify":
        factors["0"] = (1.2, 0)
    return {
        name: ProtocolScore(error=error * factor, metrics={}, num_train=num, num_test=600, method=method_of(name))
        for name, (factor, num) in factors.items()
    }


def method_of(protocol):
    return "zero-shot" if protocol == "0" else "strong" if protocol.endswith("+ft") else "probe"


def train_arms(run, upstream, num_steps):
    """Commits the search and every training once; the arm ``intern`` is a selection between two generalists."""
    picture = encode_png(np.full((40, 60, 3), 200, np.uint8))
    files = {"genotype.json": b"{}", "trials.json": b"[]", "pareto.png": picture}
    made = {"search": run.commit("search", "genotype-nano", "genotype", [upstream], files, facts=SEARCH_FACTS)}
    for stages in TRAINED.values():
        parents = [upstream, made["search"]]
        for name, output, passes, wall_s in stages:
            if output not in made:
                losses = ("contrastive", "multilabel") if name == "amateur" else ("detect", "segment", "depth")
                files = {"weights.safetensors": bytes(2_000), "history.jsonl": history(num_steps, losses)}
                facts = DENSE_FACTS if name == "amateur_local" else {"image_passes": passes}
                made[output] = run.commit(name, output, "weights", parents, files, facts=facts, wall_s=wall_s)
            parents = [*parents, made[output]]
    candidates = [made["generalist-joint"], made["generalist-central"]]
    rows = [
        {
            "name": name,
            "uri": ref.uri,
            "errors": {
                "multilabel": 0.52 * score,
                "detect": 0.61 * score,
                "segment": 0.48 * score,
                "depth": 0.12 * score,
            },
            "score": score,
            "num_parameters": 1_803_264 * num_backbones,
            "num_macs": 42_000_000 * num_backbones,
            "image_passes": passes,
            "chosen": name == "joint",
        }
        for ref, (name, score, num_backbones, passes) in zip(
            candidates, [("joint", 1.0, 1, 480_000), ("central", 1.04, 2, 520_000)], strict=True
        )
    ]
    times = {"cpu_s/joint": 1.9 * 1_040, "cpu_s/central": 1.9 * 1_220}
    files = {"candidates.json": json.dumps(rows).encode(), "weights.safetensors": bytes(2_000)}
    chosen = run.commit("select", "generalist", "weights", [upstream, *candidates], files, facts=times, wall_s=8.0)
    finals = {arm: made[stages[-1][1]] for arm, stages in TRAINED.items()} | {"intern": chosen}
    return finals, chosen


class Page(HTMLParser):
    """Every tag with its attributes, and the headings' text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.headings, self._in_heading = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in_heading = tag == "h2"

    def handle_data(self, data):
        if self._in_heading:
            self.headings.append(data.strip())
            self._in_heading = False


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    run = Run(root)
    inputs = make_inputs(run, ("flower", "sketch", "det_novel", "seg_night", "depth_room"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERN_STORE", run.uri)
        patch.setenv("INTERN_STATE", str(root / "state"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        ref = run_stage("report", stage.Config(title="A <made> run", preset="nano", num_examples=3), inputs)
    return run, inputs, ref


def text_of(made, name):
    run, _, ref = made
    return run.store.read(join_uri(ref.uri, name)).decode()


def test_stage_commits_page_and_tables_with_all_inputs_as_parents(made):
    run, inputs, ref = made
    record = read_record(run.store, ref.uri)
    assert set(record.files) == {"report.html", "table.json", "table.txt"}
    assert set(ref.parents) == {item.uri for refs in inputs.values() for item in refs}
    assert "intern@10 vs clip@10" in text_of(made, "table.txt")


def test_facts_are_the_family_means(made):
    run, _, ref = made
    facts = read_record(run.store, ref.uri).facts
    table = BenchmarkTable.from_json(text_of(made, "table.json"))
    classify = next(row for row in table.families if row.family == "classify")
    assert facts["error/classify/intern/10"] == pytest.approx(classify.errors["intern@10"] / 100)
    assert facts["error/classify/clip/100+ft"] == pytest.approx(classify.errors["clip@100+ft"] / 100)
    assert facts["wins/10_vs_10"] == table.overall["intern@10 vs clip@10"].num_wins
    assert facts["wins/10_vs_expert_10"] == table.overall["intern@10 vs expert@10"].num_wins
    against_cpu = classify.reductions["intern@10 vs clip-cpu@100"].mean_of_reductions
    assert facts["reduction/classify/10_vs_clip-cpu_100"] == against_cpu


def test_costs_are_summed_over_each_arms_training_stages_once(made):
    table = BenchmarkTable.from_json(text_of(made, "table.json"))
    assert table.costs.keys() == TRAINED.keys()
    # What the selection did not take is no part of the arm: intern pays for joint, not for central.
    for arm, stages in TRAINED.items():
        assert table.costs[arm].image_passes == sum(passes for _, _, passes, _ in stages)
        assert table.costs[arm].cpu_s == pytest.approx(1.9 * sum(wall_s for *_, wall_s in stages))


def test_page_has_every_section_and_asks_for_nothing_from_outside(made):
    text = text_of(made, "report.html")
    page = Page(text)
    assert page.headings == [
        "Summary", "Error by family", "Relative reduction of the error", "Error by dataset",
        "Labels and datasets at a glance", "Data efficiency",
        "Every set", "Cost of pre-training", "Generalist candidates", "Architecture search",
        "Dense continuation of the amateur", "What ran, and for how long", "Training", "Predictions", "Data", "Lineage",
        "How to use", "Limits",
    ]  # fmt: skip
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    addresses = [attrs[name] for _, attrs in page.tags for name in ("src", "href", "srcset", "data") if name in attrs]
    assert addresses and all(address.startswith("data:image/") for address in addresses)
    assert not re.search(r"url\(|@import", text)
    assert len(text.encode()) < MAX_REPORT_BYTES


def test_page_is_accessible_and_escapes_names(made):
    text = text_of(made, "report.html")
    page = Page(text)
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    # Six datasets, two arms on five sets, the search.
    assert len(images) == 6 + 2 * 5 + 1 and all(attrs.get("alt") for attrs in images)
    assert all(attrs.get("scope") for tag, attrs in page.tags if tag == "th")
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") for attrs in drawings)
    assert "A &lt;made&gt; run" in text and "<made>" not in text
    assert "prefers-color-scheme: dark" in text


def test_page_says_what_is_thin_and_how_to_load_the_model(made):
    text = text_of(made, "report.html")
    assert "thin: 1 set" in text
    assert "models:/intern-generalist@candidate" in text
    assert "nano" in text and "c0dec0dec0de" in text
    assert "<td>480,000</td>" in text


def test_page_shows_how_the_generalist_was_chosen_and_what_was_recorded(made):
    text = re.sub(r"\s+", " ", text_of(made, "report.html"))
    assert re.search(r'joint <span class="tag">chosen</span></th><td>52.0</td><td>61.0</td>', text)
    assert "<td>1.040</td><td>3.61 M</td><td>84.0 M</td><td>520,000</td>" in text
    assert "chosen among these on validation images" in text
    assert "<dt>error_dense/after</dt><dd>0.6342</dd>" in text
    assert "<dt>num_trials</dt><dd>12</dd>" in text


def test_page_keeps_what_is_missing_apart_from_nothing(made):
    text = text_of(made, "report.html")
    table = BenchmarkTable.from_json(text_of(made, "table.json"))
    assert "scratch@100+ft" not in table.columns and "clip@0" in table.columns
    # Among the fine-tuned, only two arms were given all labels.
    fine_tuned = text[text.index("<h3>strong fine-tuning</h3>") :]
    row = re.search(r">scratch</th>(.*?)</tr>", fine_tuned).group(1)
    assert re.findall(r"<td[^>]*>([^<]*)</td>", row)[1::2] == ["-"] * len(table.families)


def test_page_without_optional_inputs_leaves_their_sections_out(made, monkeypatch, tmp_path):
    run, inputs, _ = made
    monkeypatch.setenv("INTERN_STORE", run.uri)
    monkeypatch.setenv("INTERN_STATE", str(tmp_path))
    only_clip = tuple(ref for ref in inputs["scores"] if ref.name.startswith("clip-flower"))
    ref = run_stage("report", stage.Config(), Inputs(scores=only_clip[:1]))
    page = Page(run.store.read(join_uri(ref.uri, "report.html")).decode())
    absent = {"Data", "Relative reduction of the error", "Generalist candidates", "Dense continuation of the amateur"}
    assert not absent & set(page.headings)
    assert {"Summary", "Error by dataset", "Training", "How to use"} <= set(page.headings)


def test_stage_names_a_candidates_file_that_it_cannot_read(tmp_path):
    run = Run(tmp_path)
    ref = run.commit("select", "generalist", "weights", (), {"candidates.json": b'[{"name": "joint"}]'})
    with pytest.raises(DataError, match="candidates.json: expected a JSON list of candidates.*'uri'"):
        stage._candidates(run.store, read_record(run.store, ref.uri))


def test_stage_names_the_arms_it_looked_for(made, monkeypatch, tmp_path):
    run, inputs, _ = made
    monkeypatch.setenv("INTERN_STORE", run.uri)
    monkeypatch.setenv("INTERN_STATE", str(tmp_path))
    with pytest.raises(DataError, match="'resnet' or 'vit'"):
        run_stage("report", stage.Config(baseline="resnet", candidate="vit"), inputs)


def test_curve_counts_a_repeated_step_once_and_names_a_bad_line(tmp_path):
    run = Run(tmp_path)
    rows = [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.0}, {"step": 10, "loss": 2.5}]
    good = "".join(json.dumps(row) + "\n" for row in rows).encode()
    ref = run.commit("amateur", "a", "weights", (), {"history.jsonl": good})
    curve = stage.read_curve(run.store, read_record(run.store, ref.uri))
    assert (curve.steps, curve.losses["loss"]) == ([10, 20], [2.5, 2.0])
    ref = run.commit("amateur", "bad", "weights", (), {"history.jsonl": good + b'{"loss": 1}\n'})
    with pytest.raises(DataError, match="line 4"):
        stage.read_curve(run.store, read_record(run.store, ref.uri))
    ref = run.commit("amateur", "none", "weights", (), {"weights": b"w"})
    assert stage.read_curve(run.store, read_record(run.store, ref.uri)) is None


def test_large_pictures_are_made_smaller_until_the_page_is_small_enough(made):
    noise = np.random.default_rng(0).integers(0, 256, (1600, 1240, 3), np.uint8)
    table = BenchmarkTable.from_json(text_of(made, "table.json"))
    pictures = [Picture(title="noise", png=encode_png(noise))] * 4
    page = build_report(ReportContent(title="x", table=table, summary={}, data=pictures))
    assert len(page.encode()) < MAX_REPORT_BYTES


def test_facts_are_shown_with_four_digits_and_words_as_they_are():
    texts = [format_fact(value) for value in (0.63421, 1_803_264, 20_000.0, "yes", True)]
    assert texts == ["0.6342", "1,803,264", "20,000", "yes", "True"]
