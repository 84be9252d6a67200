import json
import shutil

import own_data
import pytest
from typer.testing import CliRunner

from intern_pipelines import adapt_commands
from intern_vision.bench.scores import ProtocolScore, Scores
from intern_vision.bench.table import build_table
from intern_vision.cli import app
from intern_vision.errors import ConfigError
from intern_vision.presets import resolve


@pytest.fixture
def runs(monkeypatch):
    """What the command would run, in place of running it."""
    calls = []

    def run(pipeline, name, *arguments, **options):
        calls.append((name.removeprefix(f"{pipeline}-"), *arguments))

    monkeypatch.setattr("intern_pipelines.runner.run_pipeline", run)
    monkeypatch.setattr(adapt_commands, "summary", lambda local_run, keep: ({"models": []}, ["error      10 %"]))
    return calls


@pytest.fixture
def shapes(tmp_path):
    return own_data.image_folder(tmp_path / "My Shapes")


def invoke(*arguments):
    return CliRunner().invoke(app, ["adapt", *map(str, arguments)])


def test_data_is_checked_and_the_plan_told_before_the_run(runs, shapes):
    done = invoke("--data", shapes, "--preset", "smoke")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("data       classify: 35 train, 5 val, 10 test images")
    plan = next(index for index, line in enumerate(lines) if line.startswith("plan "))
    assert "25 %, 50 %, 100 % of 35 images" in lines[plan] and lines[-1] == "error      10 %"
    ((dataset, arguments, identity, *_),) = runs
    assert dataset == "my-shapes" and arguments["datasets"] == ["my-shapes"]
    assert arguments["model"] == "models:/intern-generalist@candidate"
    config = resolve("smoke", arguments["overrides"])
    assert config.adapt.shares == (0.25, 0.5, 1.0) and config.adapt.method == "auto"
    assert config.fine_tuned_arms == () and config.evaluate.num_mistakes > 0
    assert config.downstream.path == str(shapes) and identity["data"] == config.downstream.to_dict()


def test_what_a_person_overrides_stays(runs, shapes):
    override = {"adapt": {"seed": 1, "shares": [1.0], "recipes": ["fine_tuned"]}, "downstream": {"seed": 2}}
    done = invoke("--data", shapes, "--preset", "smoke", "--override", json.dumps(override))
    assert done.exit_code == 0, done.output
    config = resolve("smoke", runs[0][1]["overrides"])
    assert (config.adapt.seed, config.adapt.shares, config.adapt.recipes) == (1, (1.0,), ("fine_tuned",))
    assert config.downstream.seed == 2 and config.downstream.content_digest


@pytest.mark.parametrize(
    ("method", "probe", "recipes", "num_shares"),
    [("ridge", "ridge", ("frozen",), 3), ("lora", "auto", ("lora",), 1), ("frozen", "auto", ("frozen",), 3)],
)
def test_method_names_a_probe_or_a_recipe(runs, shapes, method, probe, recipes, num_shares):
    done = invoke("--data", shapes, "--preset", "smoke", "--method", method)
    assert done.exit_code == 0, done.output
    config = resolve("smoke", runs[0][1]["overrides"]).adapt
    assert (config.method, config.recipes, len(config.shares)) == (probe, recipes, num_shares)


@pytest.mark.parametrize(("minutes", "recipes", "num_shares"), [(0, ("frozen",), 3), (1e6, ("auto",), 1)])
def test_auto_keeps_within_the_time_and_says_so(runs, shapes, minutes, recipes, num_shares):
    done = invoke("--data", shapes, "--preset", "nano", "--minutes", minutes)
    assert done.exit_code == 0, done.output
    config = resolve("nano", runs[0][1]["overrides"])
    assert (config.adapt.recipes, len(config.adapt.shares)) == (recipes, num_shares)
    told = "The backbone stays frozen: ensemble errs less with so many labels"
    assert (told in done.stdout) == any(told in limit for limit in config.report.limits) == (minutes == 0)


def test_too_few_labels_for_a_choice_stay_frozen_by_themselves(runs, tmp_path):
    done = invoke("--data", own_data.image_folder(tmp_path / "few", 3), "--preset", "smoke")
    assert done.exit_code == 0, done.output
    config = resolve("smoke", runs[0][1]["overrides"]).adapt
    assert (config.recipes, config.shares) == (("auto",), (1.0,)) and "too few to hold some out" in done.stdout


def test_check_alone_runs_nothing_and_names_what_is_wrong(runs, shapes):
    assert invoke("--data", shapes, "--check").exit_code == 0
    (shapes / "blob").mkdir()
    done = invoke("--data", shapes, "--check")
    assert done.exit_code == 2 and "wrong      class 'blob'" in done.stdout
    assert done.stderr.splitlines() == ["error: class 'blob': the folder has no image; add images or remove the folder"]
    told = invoke("--data", shapes, "--check", "--json")
    value = json.loads(told.stdout)
    assert told.exit_code == 2 and value["findings"]["errors"] and value["plan"]
    assert not runs


def test_wrong_data_stops_the_command_before_anything_runs(runs, shapes, tmp_path):
    shutil.copy(shapes / "circle" / "0.png", shapes / "square" / "0.jpg.png")
    done = invoke("--data", shapes, "--preset", "smoke", "--state-dir", tmp_path / "state")
    assert done.exit_code == 2 and not runs and not (tmp_path / "state").exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: one picture with two labels: ")


def test_another_task_than_the_labels_serve_is_refused(runs, shapes):
    done = invoke("--data", shapes, "--task", "detect")
    assert done.exit_code == 2 and "expected labels for detect, got image folder (classify)" in done.stderr


def test_task_chooses_between_labels_of_one_folder(runs, tmp_path):
    own_data.masks(tmp_path)
    own_data.depth(tmp_path)
    assert "data       segment: " in invoke("--data", tmp_path, "--check").stdout
    assert "data       depth: " in invoke("--data", tmp_path, "--check", "--task", "depth").stdout


def test_settings_are_checked_before_images_are_read(runs, tmp_path):
    done = invoke("--data", tmp_path, "--preset", "smoke", "--override", '{"adapt": 3}')
    assert done.exit_code == 2 and "adapt: expected an object, got 3" in done.stderr and not runs


def test_summary_gives_the_score_and_the_lines_to_go_on_with(tmp_path):
    protocols = {
        name: ProtocolScore(error=error, metrics={}, num_train=num, num_test=10, method="frozen")
        for name, error, num in (("100", 0.1, 40), ("50", 0.3, 20))
    }
    scores = [Scores(dataset="pets", model="intern", family="classify", protocols=protocols)]
    table = build_table(scores, baseline="", candidate="intern")
    (tmp_path / "table.json").write_text(table.to_json())
    (tmp_path / "registered.json").write_text('[{"name": "intern-pets", "version": "3", "alias": "candidate"}]')

    class Finished:
        state_dir = tmp_path

        def results(self, names, step):
            return [tmp_path / name for name in names]

    value, lines = adapt_commands.summary(Finished(), keep=False)
    assert value["models"][0]["version"] == "3"
    assert [line.split()[1] for line in lines if line.startswith("error")] == ["30.0", "10.0"]
    assert "error      10.0 % (95 %: 1.8 to 40.4) with 40 labelled, 10 test images, frozen" in lines
    assert 'load       model = mlflow.pyfunc.load_model("models:/intern-pets@candidate")' in lines
    assert f"predict    intern predict intern-pets@candidate PICTURE.jpg --state-dir {tmp_path}" in lines
    assert f"serve      intern serve intern-pets@candidate --state-dir {tmp_path}" in lines


def test_files_are_called_after_their_folder(tmp_path):
    pairs, boxes = own_data.labels_csv(tmp_path / "pairs"), own_data.coco(tmp_path / "boxes")
    assert [adapt_commands.folder_name(path) for path in (pairs, pairs.parent)] == ["pairs", "pairs"]
    assert adapt_commands.folder_name(boxes / "annotations" / "instances.json") == "boxes"


@pytest.mark.parametrize(
    ("text", "name"), [("Flowers 102", "flowers-102"), ("--a__b--", "a-b"), ("x", "x"), ("Äpfel", "pfel")]
)
def test_dataset_name_is_plain(text, name):
    assert adapt_commands.dataset_name(text) == name


@pytest.mark.parametrize("text", ["花", "---", "", "upstream", "Generalist"])
def test_dataset_name_that_says_nothing_or_belongs_to_intern_is_refused(text):
    with pytest.raises(ConfigError, match="--name: "):
        adapt_commands.dataset_name(text)
