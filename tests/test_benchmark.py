import json
from types import SimpleNamespace

import official_layouts
import pytest
import torch
from helpers import commit_folder, make_world, save_backbone, set_environment
from safetensors.torch import save_file

from intern_vision import benchmark, benchmark_steps
from intern_vision.bench.scores import Gap
from intern_vision.bench.suite import SUITE, find_row
from intern_vision.bench.table import BenchmarkTable
from intern_vision.errors import CheckpointError, ConfigError, DataError, MissingObjectError, RetryableError
from intern_vision.models.public_backbones import PUBLIC_BACKBONES, PublicBackbone, make_public_backbone
from intern_vision.models.vision import read_spec
from intern_vision.presets import resolve
from intern_vision.stages.base import fetch, read_record, read_ref, read_refs
from intern_vision.store import open_store

TINY_CLIP = PublicBackbone(
    kind="clip_resnet",
    num_blocks=(1, 1, 1, 1),
    width=8,
    num_heads=4,
    vector_width=16,
    position_size_px=64,
    mean=PUBLIC_BACKBONES["clip_rn50"].mean,
    std=PUBLIC_BACKBONES["clip_rn50"].std,
)
SETS = ("cifar10", "oxford_pets", "voc0712", "voc2012_seg", "nyu_v2")
BROKEN = "svhn"
OVERRIDES = json.dumps(
    {
        "downstream": {"num_train": 40, "num_test": 20, "image_size_px": 32},
        "adapt": {
            "precision": "fp32",
            "dense": {"num_steps_small": 2, "num_steps_large": 2, "batch_size": 4},
            "head": {"neck_width": 8},
        },
        "evaluate": {"precision": "fp32", "num_examples": 1},
        "report": {"num_examples": 2},
    }
)


def artifacts(files):
    return {name: [SimpleNamespace(path=path) for path in paths] for name, paths in files.items()}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = make_world(tmp_path_factory.mktemp("world"))
    with pytest.MonkeyPatch.context() as patch:
        set_environment(patch, made.environment)
        yield made


@pytest.fixture(scope="module")
def model(world, tmp_path_factory):
    return save_backbone(world, tmp_path_factory.mktemp("model"), ("multilabel", "detect"))


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    """A file as open_clip writes it: the image tower below ``visual.``, and a text tower beside it."""
    torch.manual_seed(1)
    tensors = {f"visual.{name}": tensor for name, tensor in make_public_backbone(TINY_CLIP).state_dict().items()}
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_file(tensors | {"token_embedding.weight": torch.zeros(4, 2), "logit_scale": torch.zeros(1)}, path)
    return path


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in (*SETS, BROKEN):
        getattr(official_layouts, f"write_{name}")(root)
    (file,) = (root / BROKEN).rglob("test_32x32.mat")
    file.unlink()
    return root


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("10%,100%", ("10", "100")),
        ("knn, zero-shot", ("100+knn", "0")),
        ("10%+ft,4shot,4shot.1,10+ft", ("10+ft", "4shot")),
        ("", ("10", "100")),
    ],
)
def test_protocols_as_people_write_them(text, names):
    assert benchmark.parse_protocols(text) == names


@pytest.mark.parametrize("text", ["ten", "101%", "0%+ft", "10+lp", "0shot"])
def test_words_that_are_no_protocol_are_named(text):
    with pytest.raises(ConfigError, match=f"--protocol: expected 10%.* got '{text}'".replace("+", r"\+")):
        benchmark.parse_protocols(text)


@pytest.mark.parametrize(
    ("text", "line"), [("4shot+ft", "few-shot is done on the frozen backbone"), ("10%+ft+wise", "expected one suffix")]
)
def test_methods_that_are_not_done_together_are_refused(text, line):
    with pytest.raises(ConfigError, match=f"--protocol: {line}"):
        benchmark.parse_protocols(text)


def test_only_what_was_asked_for_is_trained():
    names = benchmark.parse_protocols("10,100,10+ft,100+knn,4shot,1shot,0")
    assert benchmark.adapt_changes(names, "classify", has_text=True) == [
        {"shares": [0.1], "shots": [], "recipes": ["frozen", "fine_tuned"], "knn": False},
        {"shares": [1.0], "shots": [], "recipes": ["frozen"], "knn": True},
        {"shares": [], "shots": [1, 4], "recipes": ["frozen"], "knn": False},
        {"shares": [0.0], "shots": [], "recipes": ["frozen"], "knn": False},
    ]
    assert benchmark.adapt_changes(names, "detect", has_text=True) == [
        {"shares": [0.1], "shots": [], "recipes": ["frozen", "fine_tuned"], "knn": False},
        {"shares": [1.0], "shots": [], "recipes": ["frozen"], "knn": False},
    ]


def test_sets_are_the_suites_with_a_data_root_and_the_made_worlds_without(tmp_path):
    run = resolve("smoke")
    assert benchmark.selected_sets(run, "", "") == run.downstream_sets
    assert benchmark.selected_sets(run, "", str(tmp_path)) == tuple(row.name for row in SUITE)
    assert benchmark.selected_sets(run, "nyu_v2, flower,nyu_v2", str(tmp_path)) == ("nyu_v2", "flower")
    with pytest.raises(ConfigError, match=r"--datasets: expected names among cifar10, .*, flower, .* got 'cifar11'"):
        benchmark.selected_sets(run, "cifar11", str(tmp_path))
    with pytest.raises(ConfigError, match=r"--datasets: cifar10 is read from a folder; give --data-root"):
        benchmark.selected_sets(run, "cifar10", "")
    with pytest.raises(ConfigError, match=r"--data-root: .*/nowhere is no folder"):
        benchmark.selected_sets(run, "", str(tmp_path / "nowhere"))


def test_absent_sets_say_how_to_get_them(tmp_path):
    (tmp_path / "cifar10").mkdir()
    names = ("cifar10", "wider_face", "flower")
    (gap,) = benchmark.absent_gaps(names, str(tmp_path))
    row = find_row("wider_face")
    assert (gap.dataset, gap.family, gap.status, gap.exit_code) == ("wider_face", "detect", "absent", 0)
    assert all(part in gap.text for part in (row.source_url, row.licence, "non-commercial", f"{tmp_path}/wider_face"))
    assert benchmark.present_sets(names, str(tmp_path)) == ["cifar10", "flower"]
    with pytest.raises(DataError, match=r"holds none of wider_face/; wider_face for example is to be had at http"):
        benchmark.present_sets(("wider_face",), str(tmp_path))


def test_weights_of_another_kind_are_refused(world, model, tmp_path):
    with pytest.raises(ConfigError, match=r"--model: .* is a genotype made by the stage search; give weights"):
        benchmark.find_arms(world.genotype.uri, "intern", "", "")
    with pytest.raises(ConfigError, match=r"--baseline: .* is a dataset made by the stage prepare"):
        benchmark.find_arms(model.uri, "intern", world.flower.uri, "")
    with pytest.raises(MissingObjectError):
        benchmark.find_arms(f"{model.uri}-gone", "intern", "", "")


def test_a_baseline_file_needs_to_fit_its_architecture(world, model, clip_file, tmp_path):
    with pytest.raises(ConfigError, match=r"--baseline: .*gone.pt is no file"):
        benchmark.find_arms(model.uri, "intern", str(tmp_path / "gone.pt"), "resnet18")
    with pytest.raises(ConfigError, match=r"--baseline-architecture: a file of weights needs one of resnet18"):
        benchmark.find_arms(model.uri, "intern", str(clip_file), "")
    with pytest.raises(ConfigError, match=r"architecture: expected one of .* got 'clip_rn5'"):
        benchmark.find_arms(model.uri, "intern", str(clip_file), "clip_rn5")
    with pytest.raises(CheckpointError, match=str(clip_file)):
        benchmark.find_arms(model.uri, "intern", str(clip_file), "resnet18")


def test_a_public_file_is_given_images_at_its_own_size(world, model, clip_file, tmp_path):
    candidate, baseline = benchmark.find_arms(model.uri, "intern", str(clip_file), TINY_CLIP.to_json())
    assert (candidate.name, candidate.digest) == ("intern", model.digest)
    spec = read_spec(fetch(open_store(baseline.uri), baseline, tmp_path))
    assert (spec.image_size_px, spec.backbone) == (64, TINY_CLIP)
    (config,) = benchmark._adapt_configs(resolve("smoke"), "flower", "classify", ("10",), baseline)
    assert config.augment.image_size_px == 64
    assert benchmark.find_arms(model.uri, "intern", model.uri, "")[1].name == model.name


def test_the_papers_baseline_has_its_published_shape():
    sizes = PUBLIC_BACKBONES["clip_rn50x16"]
    with torch.device("meta"):
        network = make_public_backbone(sizes)
        vector_BD = network.eval()(torch.empty(1, 3, 384, 384)).vector_BD
    assert sizes.position_size_px == 384 and vector_BD.shape == (1, 768)
    # open_clip's profile of the image tower.
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2) == 167.33


def test_four_families_a_broken_set_and_absent_ones_become_one_table(world, model, clip_file, data_root, tmp_path):
    run = {"preset": "smoke", "overrides": OVERRIDES}
    root, names = str(data_root), ",".join((*SETS, BROKEN, "wider_face"))
    arms = str(tmp_path / "arms.json")
    benchmark_steps.benchmark_arms(model.uri, "intern", str(clip_file), TINY_CLIP.to_json(), arms)
    present = benchmark_steps.benchmark_sets(datasets=names, data_root=root, **run)
    assert present == [*SETS, BROKEN]
    files = {kind: [str(tmp_path / f"{name}-{kind}.json") for name in present] for kind in ("data", "scores", "gaps")}
    for index, name in enumerate(present):
        outputs = {kind: paths[index] for kind, paths in files.items()}
        protocols = "50,100,100+knn,1shot" if name == "oxford_pets" else "50,100"
        benchmark_steps.benchmark_dataset(
            dataset=name, data_root=root, protocols=protocols, arms=arms, outputs=outputs, **run
        )
    output, page = str(tmp_path / "ref.json"), str(tmp_path / "page.html")
    benchmark_steps.benchmark_report(
        datasets=names, data_root=root, inputs=artifacts(files | {"arms": [arms]}), output=output, page=page, **run
    )
    store = open_store(world.store_root)
    report = read_ref(output)
    table = BenchmarkTable.from_json((fetch(store, report, tmp_path / "report") / "table.json").read_text())
    assert (table.candidate, table.baseline) == ("intern", "baseline")
    assert {row.dataset for row in table.rows} == set(SETS)
    assert [(gap.dataset, gap.status) for gap in table.gaps] == [(BROKEN, "failed"), ("wider_face", "absent")]
    assert "test_32x32.mat" in table.gaps[0].text and table.gaps[0].exit_code == 2
    rows = {row.dataset: row for row in table.rows}
    for row in table.rows:
        assert {f"{arm}@{share}" for arm in ("intern", "baseline") for share in (50, 100)} <= row.errors.keys()
        assert row.intervals.keys() >= {"intern@50"} or row.family == "detect"
    assert rows["nyu_v2"].unit == "m" and rows["cifar10"].unit == "%"
    pets = rows["oxford_pets"]
    assert {"intern@100+knn", "intern@1shot"} <= pets.errors.keys()
    assert len(pets.draws["intern@1shot"]) == 3
    assert pets.errors["intern@1shot"] == pytest.approx(sum(pets.draws["intern@1shot"]) / 3)
    # Nothing is known of the training of a public file.
    assert list(table.costs) == ["intern"]
    text = (tmp_path / "page.html").read_text()
    assert "Not scored" in text and find_row("wider_face").source_url in text
    # The same step finds everything committed: nothing is adapted or scored anew.
    outputs = {kind: paths[0] for kind, paths in files.items()}
    refs = read_refs(outputs["scores"])
    started = [read_record(store, ref.uri).started_unix_s for ref in refs]
    benchmark_steps.benchmark_dataset(
        dataset="cifar10", data_root=root, protocols="50,100", arms=arms, outputs=outputs, **run
    )
    assert read_refs(outputs["scores"]) == refs and len(refs) == 2
    assert [read_record(store, ref.uri).started_unix_s for ref in refs] == started
    assert {ref.uri for ref in refs} <= set(read_record(store, report.uri).inputs["scores"])


def test_a_server_that_is_away_ends_the_step_for_a_retry(world, model, monkeypatch):
    def away(*args, **kwargs):
        raise RetryableError("store is away")

    monkeypatch.setattr("intern_vision.stages.base.run_stage", away)
    with pytest.raises(RetryableError, match="store is away"):
        benchmark.score_dataset(resolve("smoke", OVERRIDES), "flower", "", ("10",), (model,))


def test_nothing_scored_is_an_error_with_the_first_reason(world, model, tmp_path):
    arms, gaps, empty = (str(tmp_path / name) for name in ("arms", "gaps", "empty"))
    benchmark_steps.benchmark_arms(model.uri, "intern", "", "", arms)
    failed = Gap(dataset="flower", status="failed", text="the reason", exit_code=2)
    (tmp_path / "gaps").write_text(json.dumps([failed.to_dict()]))
    (tmp_path / "empty").write_text("[]")
    inputs = artifacts({"arms": [arms], "data": [empty], "scores": [empty], "gaps": [gaps]})
    with pytest.raises(SystemExit) as stopped:
        benchmark_steps.benchmark_report("smoke", "", "flower", "", inputs, str(tmp_path / "o"), str(tmp_path / "p"))
    assert stopped.value.code == DataError.exit_code


def test_a_committed_folder_without_weights_is_named(world, tmp_path):
    (tmp_path / "x").write_text("x")
    ref = commit_folder(world.store_root, "adapt", "model", "adapted", tmp_path)
    with pytest.raises(ConfigError, match="is a model made by the stage adapt"):
        benchmark.find_arms(ref.uri, "intern", "", "")
