import numpy as np
import pytest
from helpers import AUGMENT, HEAD, SIZE_PX, save_backbone

from intern_vision.bench.review import Review
from intern_vision.bench.scores import SCORES_FILE, Scores
from intern_vision.bench.task_report import read_task_reports
from intern_vision.data.codec import decode_image
from intern_vision.data.loader import ShardSource
from intern_vision.errors import ConfigError
from intern_vision.models.vision import VisionModel
from intern_vision.stages import adapt, evaluate, prepare
from intern_vision.stages.base import Inputs, fetch, read_record, run_stage
from intern_vision.store import open_store
from intern_vision.train.settings import DenseConfig


@pytest.fixture
def scored(world, tmp_path):
    """Adapts to a set and scores the result; gives the scores, their folder, the models' and the record."""
    upstream = save_backbone(world, tmp_path / "upstream")
    store = open_store(world.store_root)

    def run(name, split="test", **settings):
        data = world.flower
        if name != "flower":
            config = prepare.Config(dataset=name, num_train=24, num_test=10, image_size_px=SIZE_PX)
            data = run_stage("prepare", config, Inputs(), name=name)
        dense = DenseConfig(num_steps_small=2, num_steps_large=2, batch_size=4)
        config = adapt.Config(name="tiny", augment=AUGMENT, dense=dense, head=HEAD, precision="fp32")
        model = run_stage("adapt", config, Inputs(model=(upstream,), data=(data,)))
        config = evaluate.Config(**{"model_name": "tiny", "split": split, "precision": "fp32"} | settings)
        ref = run_stage("evaluate", config, Inputs(model=(model,), data=(data,)))
        folder = fetch(store, ref, tmp_path / "scores")
        scores = Scores.from_json((folder / SCORES_FILE).read_text())
        return data, scores, folder, fetch(store, model, tmp_path / "models"), read_record(store, ref.uri)

    return run


def test_scores_are_those_of_the_saved_model(world, tmp_path, scored):
    data, scores, folder, models, record = scored("flower", num_examples=3)
    source = ShardSource(
        open_store(world.store_root), data.uri, cache_dir=tmp_path / "cache", split="test", fields=("label",)
    )
    images, labels = [source[i].image for i in range(len(source))], np.array(source.labels)
    assert scores.dataset == "flower" and scores.model == "tiny" and scores.family == "classify"
    assert set(scores.protocols) == {"10", "100"}
    for protocol, score in scores.protocols.items():
        predictions = VisionModel.load(models / f"p{protocol}").predict(images)["classify"]
        error = np.mean([p.label for p in predictions] != labels)
        assert score.error == pytest.approx(error, abs=1e-6) == record.facts[f"error/{protocol}"]
        assert score.num_test == 24 and score.method == "frozen"
        picture = decode_image((folder / f"examples-{protocol}.png").read_bytes())
        assert picture.ndim == 3 and picture.std() > 0
    assert [scores.protocols[p].num_train for p in ("10", "100")] == [6, 60]


@pytest.mark.parametrize("name", ["det_novel", "seg_night", "depth_room"])
def test_dense_families_are_scored_and_drawn(scored, name):
    _, scores, folder, _, _ = scored(name)
    for protocol, score in scores.protocols.items():
        assert np.isfinite(score.error) and score.metrics["error"] == score.error and score.num_test == 10
        assert (folder / f"examples-{protocol}.png").stat().st_size > 1000


def test_no_examples_are_drawn_where_none_are_wanted(scored):
    _, _, folder, _, record = scored("flower", num_examples=0, batch_size=7)
    assert {path.name for path in folder.iterdir()} == {SCORES_FILE} == record.files.keys()


def test_batch_size_does_not_change_scores(scored):
    one, other = (scored("depth_room", batch_size=size)[1] for size in (3, 64))
    for protocol in ("10", "100"):
        assert one.protocols[protocol].metrics == pytest.approx(other.protocols[protocol].metrics, rel=1e-4)


def test_only_known_splits():
    with pytest.raises(ConfigError, match="split"):
        evaluate.Config(model_name="a").with_overrides({"split": "dev"})


@pytest.mark.parametrize("name", ["flower", "det_novel", "seg_night", "depth_room"])
def test_review_names_the_worst_images_and_agrees_with_the_score(scored, name):
    data, scores, folder, _, record = scored(name, num_mistakes=3, num_resamples=20)
    for protocol, score in scores.protocols.items():
        review = Review.from_json((folder / evaluate.review_file(protocol)).read_text())
        assert review.num_images == score.num_test and len(review.mistakes) == min(3, review.num_faulty) > 0
        assert [m.badness for m in review.mistakes] == sorted((m.badness for m in review.mistakes), reverse=True)
        assert decode_image((folder / evaluate.worst_file(protocol)).read_bytes()).std() > 0
        assert evaluate.worst_file(protocol) in record.files
        if name == "flower":
            assert review.num_faulty == round(score.error * score.num_test) and score.interval is None
        else:
            low, high = score.interval
            assert low <= high and "error_low" not in score.metrics
    if name == "seg_night":
        assert score.metrics["miou"] == pytest.approx(np.mean([c.iou for c in review.classes if c.iou is not None]))


def test_report_of_a_task_is_read_back_from_the_store(world, scored):
    _, scores, _, _, record = scored("flower", num_mistakes=2)
    store = open_store(world.store_root)
    records = {uri: read_record(store, uri) for uris in record.inputs.values() for uri in uris}
    (task,) = read_task_reports(store, [(record.ref.uri, scores)], records | {record.ref.uri: record})
    assert (task.protocol, task.scores, task.findings) == ("100", scores, None)
    assert task.method.startswith("frozen") and "keys_digest" not in task.choices
    assert len(task.review.mistakes) == 2 and decode_image(task.worst_png).std() > 0
    _, scores, _, _, record = scored("flower", num_mistakes=0)
    assert read_task_reports(store, [(record.ref.uri, scores)], records | {record.ref.uri: record}) == []
