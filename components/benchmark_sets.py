"""The datasets of a benchmark that are there, as a component: what its pipeline loops over."""

from typing import List

from intern_components.base import component


@component
def benchmark_sets(preset: str, overrides: str, datasets: str, data_root: str) -> List[str]:
    """Names the datasets that were asked for and are there.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        datasets: Names with commas between them; empty for all.
        data_root: Folder that holds a folder a dataset; empty for the made world.
    """
    from intern_vision.benchmark_steps import benchmark_sets

    return benchmark_sets(preset, overrides, datasets, data_root)
