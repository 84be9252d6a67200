"""What happened since a trainer's last report, kept on the device: no step waits for it."""

import collections
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from intern_vision.train.trainer import RankContext


class Interval:
    """Sums, faults and the largest loss of the steps since the last report.

    Args:
        num_steps: steps whose sample keys are remembered.
        device: where the losses are.
    """

    def __init__(self, num_steps: int, device: torch.device) -> None:
        self._recent: collections.deque[tuple[int, list[str]]] = collections.deque(maxlen=num_steps)
        self._device = device
        self.reset()

    def reset(self) -> None:
        """Forgets everything but the recent samples."""
        self._sums: dict[str, Tensor] = {}
        self._num_added = 0
        self._weights_fault_step = -1
        self._first_bad_step = torch.full((), -1, device=self._device, dtype=torch.long)
        self._largest_loss = torch.full((), -torch.inf, device=self._device, dtype=torch.float64)
        self._terms: list[str] = []
        self._bad_terms: Tensor | None = None
        self.waiting_s = 0.0
        self._started = time.perf_counter()

    def add(
        self, step: int, keys: list[str], loss: Tensor, losses: dict[str, Tensor], values: dict[str, Tensor]
    ) -> None:
        """Notes one micro-batch; reads nothing from the device."""
        self._recent.append((step, keys))
        is_first_bad = ~torch.isfinite(loss) & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(is_first_bad, step, self._first_bad_step)
        is_bad = ~torch.isfinite(torch.stack([value.detach().float() for value in losses.values()]))
        if self._bad_terms is None or self._terms != list(losses):
            self._terms, self._bad_terms = list(losses), torch.zeros_like(is_bad)
        self._bad_terms = torch.where(is_first_bad, is_bad, self._bad_terms)
        # A loss that is not a number is reported as such; here it would hide the largest one.
        self._largest_loss = torch.fmax(self._largest_loss, loss.double())
        for name, value in {"loss": loss, **{f"loss/{k}": v for k, v in losses.items()}, **values}.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._num_added += 1

    def mark_bad(self, step: int) -> None:
        """Notes that the weights were not finite after ``step``."""
        self._weights_fault_step = step
        self._first_bad_step = torch.where(self._first_bad_step < 0, step, self._first_bad_step)

    def reduce(self, context: "RankContext") -> tuple[dict[str, float], int, float, bool]:
        """What all ranks saw.

        Returns:
            Means by name, the first step at which any rank saw a fault (-1: none), the largest loss
            of a rank's micro-batch, and whether any rank was asked to stop.
        """
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        # The first of all ranks as a maximum, so that one reduction serves all flags.
        earliness = torch.where(self._first_bad_step < 0, -torch.inf, -self._first_bad_step.double())
        flags = torch.stack([earliness, self._largest_loss, earliness.new_tensor(float(context.should_stop()))])
        if context.num_ranks > 1:
            torch.distributed.all_reduce(sums)
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        means = (sums / (self._num_added * context.num_ranks)).tolist()
        first_bad, largest_loss, stop = flags.tolist()
        bad_step = -1 if first_bad == -float("inf") else int(-first_bad)
        return dict(zip(names, means, strict=True)), bad_step, largest_loss, stop > 0

    def speed(self) -> dict[str, float]:
        """How fast this rank went: what differs from run to run."""
        elapsed_s = time.perf_counter() - self._started
        return {"steps_per_s": self._num_added / elapsed_s, "waiting_for_data_share": self.waiting_s / elapsed_s}

    def fault_at(self, step: int) -> tuple[str, list[str]]:
        """What this rank saw first at ``step`` (empty: nothing) and its samples of that step."""
        if int(self._first_bad_step) != step:
            return "", []
        keys = [key for recent_step, recent_keys in self._recent if recent_step == step for key in recent_keys]
        flags = [] if self._bad_terms is None else self._bad_terms.tolist()
        terms = [term for term, is_bad in zip(self._terms, flags, strict=True) if is_bad]
        if step == self._weights_fault_step and not terms:
            return "weights are not finite after the update", keys
        # Finite terms can still have a sum that is not.
        what = f"loss term{'s' if len(terms) > 1 else ''} {', '.join(terms)}" if terms else "the sum of the losses"
        return f"{what} {'are' if len(terms) > 1 else 'is'} not finite", keys
