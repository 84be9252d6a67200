"""Closed forms against what autograd really keeps, what an engine really holds, and modules that are really built."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_training import ToyXca, xca_job

from intern_vision.models.central import CentralModel
from intern_vision.models.genotype import MN_B4, MN_B15, NANO, TOY_SA, TOY_XCA
from intern_vision.models.metanet import MetaNet
from intern_vision.models.text import TextEncoder
from intern_vision.plan_memory import (
    HEADROOM,
    backbone_activations,
    state_bytes,
    text_activations,
    text_parameters,
    transfer_parameters,
)
from intern_vision.train.launch import start_distributed
from intern_vision.train.trainer import RankContext, Trainer


class PeakBytes(TorchDispatchMode):
    """Live bytes of tensors made inside, and their peak."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.references = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.references:
            return

        def free(reference):
            self.live -= size
            self.references.pop(key, None)

        self.references[key] = weakref.ref(storage, free)
        self.live += size
        self.peak = max(self.peak, self.live)


def kept_bytes(model, inputs, bf16):
    """Bytes of distinct storages that autograd keeps, weights left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16),
    ):
        model(inputs)
    return sum(size for size, _ in kept.values())


def bytes_a_sample(model, make, bf16):
    """The difference between a larger and a smaller batch: copies of the weights cancel."""
    return (kept_bytes(model, make(6), bf16) - kept_bytes(model, make(2), bf16)) / 4


def images(size_px):
    return lambda num: torch.randn(num, 3, size_px, size_px).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("genotype", [NANO, TOY_SA, TOY_XCA, MN_B4], ids=["nano", "toy_sa", "toy_xca", "mn_b4"])
def test_activations_are_those_that_autograd_keeps(genotype, bf16):
    measured = bytes_a_sample(MetaNet(genotype).train(), images(64), bf16)
    assert backbone_activations(genotype, 64, bf16=bf16).whole == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_text_activations_are_those_that_autograd_keeps(bf16):
    model = TextEncoder(300, 16, 64, 3, 4, 32, "end")
    measured = bytes_a_sample(model, lambda num: torch.randint(1, 300, (num, 16)), bf16)
    assert text_activations(64, 3, 4, 16, bf16=bf16).whole == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_peak_of_a_step_is_within_the_headroom(checkpointed):
    # All that a step makes: activations, gradients and the bfloat16 copies of the weights.
    model, num_images = MetaNet(MN_B4).train(), 12
    model.checkpoint_activations = checkpointed
    x = images(96)(num_images)
    with PeakBytes() as peak:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(x).vector_BD.float().square().mean()
        loss.backward()
    activations = backbone_activations(MN_B4, 96) * num_images
    num_parameters = sum(p.numel() for p in model.parameters())
    planned = (activations.checkpointed if checkpointed else activations.whole) + (4 + 2) * num_parameters
    assert peak.peak <= planned * (1 + HEADROOM)
    assert planned <= peak.peak * 1.5  # with checkpointing, the last gradients come when few activations are left


def test_checkpointing_pays_at_paper_scale():
    for genotype in (MN_B4, MN_B15):
        activations = backbone_activations(genotype, 224)
        assert activations.checkpointed < 0.4 * activations.whole


@pytest.mark.parametrize("zero_stage", range(4))
def test_weights_and_optimizer_are_those_that_an_engine_holds(zero_stage):
    start_distributed()
    job = xca_job(num_steps=1, zero_stage=zero_stage, ema_decay=0.9)
    trainer = Trainer(job, RankContext())
    trainer.train()
    optimizer = trainer.engine.optimizer
    inner = optimizer if zero_stage == 0 else optimizer.optimizer
    held = [getattr(p, "ds_tensor", p) for p in job.objective.parameters()]
    held += [p for group in inner.param_groups for p in group["params"]]
    held += getattr(optimizer, "fp32_partitioned_groups_flat", [])
    held += [t for state in inner.state.values() for name, t in state.items() if name != "step"]
    held += list(trainer._average.parts.values())
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    num_parameters = sum(p.numel() for p in ToyXca().parameters())
    planned = state_bytes(num_parameters, 1, average=True, bf16=False)[zero_stage]
    gradients, gathered = 4 * num_parameters, 4 * num_parameters if zero_stage == 3 else 0
    assert sum(storages.values()) == pytest.approx(planned - gradients - gathered, rel=0.02)


def test_text_and_transfer_parameters_equal_the_modules():
    for blocks, pooling in ((0, "mean"), (3, "end")):
        model = TextEncoder(300, 16, 64, blocks, 4, 32, pooling)
        assert text_parameters(64, blocks, 300, 16, 32) == sum(p.numel() for p in model.parameters())
    central = CentralModel({"one": MetaNet(TOY_SA), "two": MetaNet(TOY_XCA)}, "one")
    transfer = sum(p.numel() for p in central.transfers["one"].parameters())
    assert transfer_parameters(TOY_XCA.channels[:-1], TOY_SA.channels[:-1]) == transfer
    assert transfer_parameters(MN_B15.channels[:-1], MN_B15.channels[:-1]) == 8_003_072


def test_zero_stages_split_more_and_more():
    sizes = state_bytes(1_000_000_000, 64)
    assert sizes[0] == 18_000_000_000  # weights, gradients and AdamW at 16 bytes, and 2 for autocast
    assert sizes[0] > sizes[1] > sizes[2]
    assert state_bytes(1_000, 1)[0] == 18_000
