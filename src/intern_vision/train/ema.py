"""Exponential moving average of trained weights; what is exported where ``trainer.ema_decay`` is set."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of every trained parameter, float32, in the layout the parameter has on this rank.

    Under ZeRO stage 3 that is the rank's own part, so the average costs 4 bytes a parameter over all
    ranks together; below, 4 bytes a parameter on each. Buffers, such as BatchNorm's running
    statistics, are averages already and are exported as they are.

    Args:
        module: its parameters that require a gradient are averaged.
        decay: weight of the past, in (0, 1); the first steps use less, ``(1 + n) / (10 + n)`` after
            ``n`` updates, or the random start would be remembered.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.parts = {name: local_part(p).detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights after an optimizer step; no rank waits for another or for the device."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        weights = [local_part(p).detach() for p in self._parameters.values()]
        torch._foreach_lerp_(list(self.parts.values()), weights, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges weights and averages; a second call undoes the first."""
        for name, parameter in self._parameters.items():
            release(parameter)
            part = local_part(parameter).detach()
            held = part.clone()
            part.copy_(self.parts[name])
            self.parts[name].copy_(held)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages are the weights inside."""
        self.swap()
        try:
            yield
        finally:
            self.swap()


def local_part(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of a parameter: its flat, padded part under ZeRO stage 3, else all of it."""
    return getattr(parameter, "ds_tensor", parameter)


def release(parameter: Any) -> None:
    """Frees the gathered copy that ZeRO stage 3 keeps of a small parameter: the part counts again."""
    if hasattr(parameter, "ds_tensor") and parameter.ds_status.name == "AVAILABLE":
        parameter.partition()
