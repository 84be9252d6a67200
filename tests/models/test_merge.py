import helpers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from intern_vision.models.merge import average, reestimate_statistics, task_arithmetic, task_vector, ties
from intern_vision.models.vision import ModelSpec, VisionModel

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def weights(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(3, 2, generator=generator),
        "norm.bias": torch.randn(4, generator=generator),
        "norm.running_var": torch.rand(4, generator=generator),
        "norm.num_batches_tracked": torch.tensor(seed),
    }


def test_average_is_the_mean_of_the_weights_and_passes_statistics_on():
    models = [weights(seed) for seed in (1, 2, 3)]
    merged = average(models)
    for name in ("conv.weight", "norm.bias"):
        assert torch.allclose(merged[name], sum(model[name] for model in models) / 3)
    assert torch.equal(merged["norm.running_var"], models[0]["norm.running_var"])
    assert merged["norm.num_batches_tracked"] == 1


def test_task_arithmetic_adds_what_training_changed():
    start, models = weights(0), [weights(1), weights(2)]
    vectors = [task_vector(start, model) for model in models]
    assert set(vectors[0]) == {"conv.weight", "norm.bias"}
    for name in vectors[0]:
        expected = start[name] + 0.3 * ((models[0][name] - start[name]) + (models[1][name] - start[name]))
        assert torch.allclose(task_arithmetic(start, vectors, 0.3)[name], expected)
        assert torch.equal(task_arithmetic(start, vectors, 0.0)[name], start[name])
        assert torch.allclose(task_arithmetic(start, vectors, 0.5)[name], average(models)[name], atol=1e-6)
        assert torch.allclose(task_arithmetic(start, vectors[:1], 1.0)[name], models[0][name], atol=1e-6)


def ties_loop(vectors, density):
    """Trim, elect, average: entry by entry, as the paper's algorithm 1 says."""
    num_entries = len(vectors[0])
    num_kept = max(1, round(density * num_entries))
    trimmed = []
    for vector in vectors:
        floor = sorted((abs(value) for value in vector), reverse=True)[num_kept - 1]
        trimmed.append([value if abs(value) >= floor else 0.0 for value in vector])
    merged = []
    for index in range(num_entries):
        values = [vector[index] for vector in trimmed]
        mass = sum(values)
        agreeing = [value for value in values if value * mass > 0]
        merged.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return merged


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(-8, 8), min_size=6, max_size=6), min_size=1, max_size=4),
    st.floats(0.05, 1.0),
    st.floats(0.1, 2.0),
)
def test_ties_equals_a_loop(rows, density, scale):
    vectors = [[float(value) for value in row] for row in rows]
    start = {"a": torch.arange(4.0).view(2, 2), "b": torch.ones(2)}
    split = [{"a": torch.tensor(v[:4]).view(2, 2), "b": torch.tensor(v[4:])} for v in vectors]
    merged = ties(start, split, scale, density)
    expected = torch.tensor([0.0, 1, 2, 3, 1, 1]) + scale * torch.tensor(ties_loop(vectors, density))
    assert torch.allclose(torch.cat([merged["a"].flatten(), merged["b"]]), expected, atol=1e-5)


def test_statistics_are_those_of_the_images_given():
    torch.manual_seed(0)
    model = VisionModel(ModelSpec(genotype=helpers.GENOTYPE, image_size_px=helpers.SIZE_PX)).eval()
    generator = torch.Generator().manual_seed(1)
    shape = (6, 3, helpers.SIZE_PX, helpers.SIZE_PX)
    batches = [{"image_BCHW": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)} for _ in range(3)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    stem_norm = next(module for module in model.backbone.stem if isinstance(module, nn.BatchNorm2d))
    hook = stem_norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    assert reestimate_statistics(model, batches, bf16=False) == 18
    hook.remove()
    moments = [(x.mean((0, 2, 3)), x.transpose(0, 1).flatten(1).var(1)) for x in seen]
    assert torch.allclose(stem_norm.running_mean, sum(mean for mean, _ in moments) / 3, atol=1e-5)
    assert torch.allclose(stem_norm.running_var, sum(var for _, var in moments) / 3, rtol=1e-4)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.endswith(STATISTICS) for name in changed)
    assert not any(module.training for module in model.modules())
    assert {module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}
    # Of the same images in one batch each, a second measurement gives the same.
    again = {name: value.clone() for name, value in model.state_dict().items()}
    reestimate_statistics(model, batches, bf16=False)
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_a_merge_of_equal_models_is_that_model():
    start, trained = weights(0), weights(1)
    vectors = [task_vector(start, trained)] * 3
    for merged in (average([trained] * 3), ties(start, vectors, 1.0, 1.0), task_arithmetic(start, vectors, 1 / 3)):
        assert all(torch.allclose(merged[name], trained[name], atol=1e-6) for name in vectors[0])
    with pytest.raises(KeyError):
        task_vector(start, {})
