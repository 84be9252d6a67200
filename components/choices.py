"""A run's lists, read from its preset, as a component: what a pipeline loops over."""

from typing import List

from intern_components.base import component


@component
def choices(preset: str, overrides: str, what: str) -> List[str]:
    """Names a list of the run's preset.

    Args:
        preset: Name of the run's preset.
        overrides: JSON object of changes to the preset; empty for none.
        what: ``downstream_sets``, ``experts``, ``generalists``, ``others`` or ``cases``.
    """
    from intern_vision.steps import list_choices

    return list_choices(preset, overrides, what)
