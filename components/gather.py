"""Several results as one file, because a loop cannot read the collected results of another."""

from typing import List, Optional

from kfp.dsl import Artifact, Input, Output

from intern_components.base import component


@component
def gather(
    items: Input[List[Artifact]],
    result: Output[Artifact],
    first: Optional[Input[Artifact]] = None,
    second: Optional[Input[Artifact]] = None,
    third: Optional[Input[Artifact]] = None,
):
    """Puts the Refs of a loop's results, and of others, into one list.

    Args:
        items: The results.
        result: List of their Refs.
        first: One or more Refs that come before.
        second: More of them.
        third: More of them.
    """
    from intern_vision.steps import gather_refs, paths

    gather_refs([*paths(first), *paths(second), *paths(third), *paths(items)], result.path)
