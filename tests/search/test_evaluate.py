import pytest
import torch
from helpers import AUGMENT, GENOTYPE, HEAD, SIZE_PX, make_world, train_here, trainer_config

from intern_vision.bench.scoring import score_head
from intern_vision.errors import DataError
from intern_vision.models.genotype import num_macs
from intern_vision.models.vision import ModelSpec, VisionModel
from intern_vision.search.evaluate import ProxyEvaluator, ProxyTask, SupernetEvaluator
from intern_vision.search.reward import Reward
from intern_vision.search.space import Space, SpaceConfig
from intern_vision.search.supernet import SUPERNET_FILE, SupernetObjective, supernet_model
from intern_vision.store import open_store

SPACE = Space(GENOTYPE, SpaceConfig(expansions=(2,), width_factors=(0.5, 1), block_offsets=(0, 1)), SIZE_PX)
OTHER = SPACE.decode([len(decision.options) - 1 for decision in SPACE.decisions])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def task(made, tmp_path_factory):
    return ProxyTask(
        open_store(made.store_root), made.upstream.uri, tmp_path_factory.mktemp("cache"), "multilabel", AUGMENT
    )


def test_proxy_training_starts_from_the_seed(task):
    jobs = []

    def train(job):
        jobs.append(job)
        train_here(job)

    evaluator = ProxyEvaluator(task, trainer_config(num_steps=2), 3, train)
    first, second = evaluator.quality(GENOTYPE), evaluator.quality(GENOTYPE)
    assert first == pytest.approx(second, abs=1e-6) and 0 < first < 1
    model = jobs[0].objective.model
    metrics, _ = score_head(model.eval(), model.heads["multilabel"], task.validation, bf16=False)
    assert first == pytest.approx(1 - metrics["error"])
    torch.manual_seed(3)
    fresh = VisionModel(ModelSpec(genotype=GENOTYPE, image_size_px=SIZE_PX, heads=task.heads))
    assert task.score(fresh, bf16=False) != first


def test_shared_weights_score_alike_in_any_order(task, tmp_path):
    torch.manual_seed(0)
    reward = Reward(target_macs=num_macs(GENOTYPE, SIZE_PX), max_ratio=9.0)
    objective = SupernetObjective(supernet_model(SPACE, task.heads), SPACE, reward, num_paths=1, seed=0)
    job = task.job(objective, trainer_config(num_steps=3), {})
    assert job.source is task.train
    train_here(job)
    objective.save(tmp_path)
    evaluator = SupernetEvaluator(task, SPACE, tmp_path / SUPERNET_FILE, num_batches=2, bf16=False)
    weights = {name: tensor.clone() for name, tensor in evaluator.model.state_dict().items()}
    template, other = evaluator.quality(GENOTYPE), evaluator.quality(OTHER)
    assert evaluator.quality(GENOTYPE) == template and evaluator.quality(OTHER) == other and template != other
    again = SupernetEvaluator(task, SPACE, tmp_path / SUPERNET_FILE, num_batches=2, bf16=False)
    assert again.quality(OTHER) == other, "nothing is left of the genotype before"
    assert all(torch.equal(tensor, evaluator.model.state_dict()[name]) for name, tensor in weights.items())


def test_a_dataset_without_the_task_is_refused(made, task, tmp_path):
    with pytest.raises(DataError, match="flower"):
        ProxyTask(open_store(made.store_root), made.flower.uri, tmp_path, "depth", AUGMENT)
    assert list(task.heads) == ["multilabel"] and task.heads["multilabel"].config != HEAD
