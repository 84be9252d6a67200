"""A set of the benchmark from its official files to its official score."""

import numpy as np
import pytest
from helpers import AUGMENT, HEAD, save_backbone
from official_layouts import WRITERS

from intern_vision.bench.scores import SCORES_FILE, Scores
from intern_vision.bench.suite import find_row
from intern_vision.stages import adapt, evaluate, prepare
from intern_vision.stages.base import Inputs, fetch, run_stage
from intern_vision.store import open_store
from intern_vision.train.settings import DenseConfig

# What the error of each metric is made of.
ERRORS = {
    "flowers102": lambda scores: 1 - scores["mean_per_class"],
    "retinopathy": lambda scores: 1 - scores["top1"],
    "kinetics700": lambda scores: 1 - scores["top1"],
    "voc0712": lambda scores: 1 - scores["voc_ap50"],
    "wider_face": lambda scores: 1 - np.mean([scores[f"ap_{name}"] for name in ("easy", "medium", "hard")]),
    "citypersons": lambda scores: np.mean([scores[f"miss_rate_{name}"] for name in ("reasonable", "heavy")]),
    "voc2012_seg": lambda scores: 1 - scores["miou"],
    "kitti_eigen": lambda scores: scores["rmse_m"],
    "nyu_v2": lambda scores: scores["rmse_m"],
}


@pytest.fixture(scope="module")
def upstream(made_world, tmp_path_factory):
    return save_backbone(made_world, tmp_path_factory.mktemp("upstream"))


@pytest.mark.parametrize("name", ERRORS)
def test_an_official_set_is_adapted_to_and_scored(world, upstream, tmp_path, name):
    WRITERS[name](tmp_path / "data")
    config = prepare.Config(dataset=f"gvb-{name}", path=str(tmp_path / "data"), official=name)
    data = run_stage("prepare", config, Inputs(), name=config.dataset)
    dense = DenseConfig(num_steps_small=2, num_steps_large=2, batch_size=4)
    config = adapt.Config(name="tiny", augment=AUGMENT, dense=dense, head=HEAD, precision="fp32", shares=(1.0,))
    model = run_stage("adapt", config, Inputs(model=(upstream,), data=(data,)))
    config = evaluate.Config(model_name="tiny", precision="fp32", num_examples=0)
    ref = run_stage("evaluate", config, Inputs(model=(model,), data=(data,)))
    folder = fetch(open_store(world.store_root), ref, tmp_path / "scores")
    scores = Scores.from_json((folder / SCORES_FILE).read_text())
    (score,) = scores.protocols.values()
    assert scores.family == find_row(name).family and score.num_test > 0
    assert score.error == pytest.approx(ERRORS[name](score.metrics))
