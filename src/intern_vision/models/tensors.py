"""Whether weights by name fit a module, said in one line."""

from collections.abc import Mapping

from torch import Size, Tensor

from intern_vision.errors import CheckpointError


def check_tensors(found: Mapping[str, Tensor], shapes: Mapping[str, Size], *, source: str) -> None:
    """Compares weights with the names and shapes that a module has.

    Args:
        found: weights by name.
        shapes: shape by name, all of them.
        source: where the weights are from, for the error.

    Raises:
        CheckpointError: the first four tensors that are missing, unknown or of another shape, and
            the number of the others.
    """
    faults = [f"missing {name}" for name in shapes if name not in found]
    faults += [f"unknown {name}" for name in found if name not in shapes]
    faults += [
        f"{name} is {tuple(found[name].shape)}, not {tuple(shape)}"
        for name, shape in shapes.items()
        if name in found and found[name].shape != shape
    ]
    if faults:
        shown = "; ".join(faults[:4]) + (f"; and {len(faults) - 4} more" if len(faults) > 4 else "")
        raise CheckpointError(f"{source}: weights of another architecture: {shown}")
