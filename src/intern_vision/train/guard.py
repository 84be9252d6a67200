"""The divergence guard: a loss far above its running mean sends a training back to its last checkpoint.

Source: DeCLIP's solver (arXiv 2110.05208; Sense-GVT/DeCLIP), where a loss that is not a number or lies more than
10 above its running mean reloads an earlier checkpoint and lowers the peak learning rate by 0.3 %.
"""

import statistics
from collections.abc import Sequence

ROLLBACK_RATE_FACTOR = 0.997
NUM_REPORTS_IN_MEAN = 20


class DivergenceGuard:
    """Counts rollbacks and says when the next one is due.

    Args:
        margin: how far a micro-batch's loss may lie above the running mean; 0 switches the guard off.
        max_rollbacks: rollbacks after which a divergence ends the training.

    Attributes:
        num_rollbacks: rollbacks so far.
    """

    def __init__(self, margin: float, max_rollbacks: int) -> None:
        self.margin = margin
        self.max_rollbacks = max_rollbacks
        self.num_rollbacks = 0

    @property
    def rate_factor(self) -> float:
        """Factor on the whole learning-rate curve, in (0, 1]: 0.997 to the power of the rollbacks."""
        return ROLLBACK_RATE_FACTOR**self.num_rollbacks

    def fault(self, largest_loss: float, past_losses: Sequence[float]) -> str:
        """What is wrong with an interval's largest loss, in words; empty where nothing is.

        Args:
            largest_loss: of any micro-batch of any rank since the last report.
            past_losses: mean loss of every earlier report; the last 20 make the running mean.
        """
        if not self.margin or not past_losses:
            return ""
        mean = statistics.fmean(past_losses[-NUM_REPORTS_IN_MEAN:])
        if largest_loss <= mean + self.margin:
            return ""
        return (
            f"loss {largest_loss:.4g} is more than trainer.divergence_margin {self.margin:g} "
            f"above its running mean {mean:.4g}"
        )
