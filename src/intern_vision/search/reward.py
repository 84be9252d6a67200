"""What a search maximises: MnasNet's trade of quality against cost (arXiv 1807.11626), with a hard cap."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """Quality x (cost / target)^exponent within the cap.

    Attributes:
        target_macs: cost at which the reward is the quality itself.
        exponent: of the cost ratio; MnasNet's -0.07 makes twice the cost worth 5 % more quality.
        max_ratio: largest cost over the target.
    """

    target_macs: int
    exponent: float = -0.07
    max_ratio: float = 1.0

    def ratio(self, num_macs: int) -> float:
        """Cost over the target."""
        return num_macs / self.target_macs

    def fits(self, num_macs: int) -> bool:
        """Whether a candidate may be evaluated."""
        return self.ratio(num_macs) <= self.max_ratio

    def __call__(self, quality: float, num_macs: int) -> float:
        """Reward of an evaluated candidate.

        Args:
            quality: 0 to 1, higher is better.
            num_macs: multiply-adds of one image.
        """
        return quality * self.ratio(num_macs) ** self.exponent

    def penalty(self, num_macs: int) -> float:
        """Reward of a candidate beyond the cap, 0 to -1: the dearer the worse, so that a controller learns the way."""
        return -min(1.0, self.ratio(num_macs) / self.max_ratio - 1)


def hypervolume(points: Sequence[tuple[float, float]], max_ratio: float) -> float:
    """Share of the rectangle (cost 0 to ``max_ratio``, quality 0 to 1) that some point dominates.

    Args:
        points: cost ratio and quality of each candidate; dearer ones than ``max_ratio`` count nothing.
        max_ratio: right edge of the rectangle.
    """
    area, best = 0.0, 0.0
    edges = sorted((ratio, quality) for ratio, quality in points if ratio <= max_ratio)
    for index, (ratio, quality) in enumerate(edges):
        best = max(best, quality)
        end = edges[index + 1][0] if index + 1 < len(edges) else max_ratio
        area += best * (end - ratio)
    return area / max_ratio


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost ratio, quality) that no other one is cheaper and better than, cheapest first."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front
