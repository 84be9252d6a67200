"""D14: candidates of a search whose cost is known a second, over building and tracing them.

Ours decodes a list of choices and counts parameters and multiply-adds in closed form. The other way builds the
candidate's network without memory for its weights and counts what one forward pass does. Both must agree.
"""

import functools
import itertools
import random
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Figure, Settings, interleave, median_ratio, run_script
from intern_vision.models.genotype import GENOTYPES, Genotype, num_macs, num_parameters
from intern_vision.models.metanet import MetaNet
from intern_vision.search.space import Choices, Space, SpaceConfig


def draw(space: Space, number: int, seed: int) -> list[Choices]:
    """Uniform lists of choices."""
    rng = random.Random(seed)
    return [tuple(rng.randrange(len(decision.options)) for decision in space.decisions) for _ in range(number)]


def counted(space: Space, choices: Choices) -> tuple[int, int]:
    """Parameters and multiply-adds in closed form."""
    genotype = space.decode(choices)
    return num_parameters(genotype), num_macs(genotype, genotype.image_size_px)


def traced(genotype: Genotype) -> tuple[int, int]:
    """Parameters and multiply-adds of a built network."""
    size_px = genotype.image_size_px
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net = MetaNet(genotype).eval()
        net(torch.empty(1, 3, size_px, size_px))
    return sum(parameter.numel() for parameter in net.parameters()), counter.get_total_flops() // 2


def measure(settings: Settings) -> list[Figure]:
    """The nano space at 64 px and MN-B4's at 224."""
    torch.set_num_threads(1)
    return [figure_of(name, size_px, settings) for name, size_px in (("nano", 64), ("mn_b4", 224))]


def figure_of(name: str, size_px: int, settings: Settings) -> Figure:
    """One space's candidates; fresh ones in every round, as a search has them."""
    space = Space(GENOTYPES[name], SpaceConfig(), size_px)
    num_traced = 1 if settings.quick else 5
    num_counted = 40 * num_traced
    seeds = itertools.count()

    def run(cost: Callable[[Choices], object], number: int) -> None:
        for choices in draw(space, number, next(seeds)):
            cost(choices)

    arms = {
        "counted": functools.partial(run, functools.partial(counted, space), num_counted),
        "decoded": functools.partial(run, space.decode, num_counted),
        "traced": functools.partial(run, lambda choices: traced(space.decode(choices)), num_traced),
    }
    seconds = interleave(arms, settings.num_rounds)
    for choices in draw(space, 2, next(seeds)):
        if counted(space, choices) != traced(space.decode(choices)):
            raise AssertionError(f"{space.named(choices)}: the closed form differs from the traced count")
    us = {arm: 1e6 * min(seconds[arm]) / num_counted for arm in ("counted", "decoded")}
    return Figure(
        name=f"D14 search cost, {name}",
        value=median_ratio(seconds, "traced", "counted") * num_counted / num_traced,
        target=100,
        at_most=False,
        reference=f"FlopCounterMode on the network built without weights; ours {us['counted']:.0f} us a candidate",
        limit=f"decoding the choices: {us['decoded']:.0f} us",
    )


if __name__ == "__main__":
    run_script(measure, __doc__.splitlines()[0])
