"""Low-rank adapters (LoRA, arXiv 2106.09685) on any network's linears and convolutions, merged back for use.

O outputs of a matrix, I inputs (with a kernel's cells), R rank.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from intern_vision.errors import ConfigError


class LowRank(nn.Module):
    """A weight plus a product of rank R, which is 0 at the start.

    Attributes:
        down_RI: random at the start.
        up_OR: zeros at the start.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        """Makes the two factors for a weight of shape ``(O, ...)``."""
        super().__init__()
        num_outputs, num_inputs = weight.shape[0], weight[0].numel()
        rank = min(rank, num_outputs, num_inputs)
        self.down_RI = nn.Parameter(torch.empty(rank, num_inputs, device=weight.device))
        self.up_OR = nn.Parameter(torch.zeros(num_outputs, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.down_RI, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight to compute with, of the given one's shape."""
        return weight + (self.up_OR @ self.down_RI).view_as(weight)


def add_adapters(network: nn.Module, rank: int) -> list[nn.Parameter]:
    """Puts an adapter on every linear and every convolution without groups; everything else is frozen.

    Depthwise kernels are left alone: 9 numbers a channel have no lower rank to speak of.

    Returns:
        The adapters' parameters.

    Raises:
        ConfigError: the network has no such layer.
    """
    network.requires_grad_(False)
    modules = [
        module
        for module in network.modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    ]
    if not modules:
        raise ConfigError(
            f"recipes: lora needs linear or convolution layers, and {type(network).__name__} has none; leave it out"
        )
    parameters: list[nn.Parameter] = []
    for module in modules:
        adapter = LowRank(module.weight, rank)
        parametrize.register_parametrization(module, "weight", adapter)
        parameters += adapter.parameters()
    return parameters


def merge_adapters(network: nn.Module) -> None:
    """Replaces every adapted weight by the sum it stands for; the network computes exactly what it did."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    network.requires_grad_(True)
