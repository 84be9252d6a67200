"""MATLAB files: version 5 through scipy, version 7.3 (HDF5) through h5py."""

from pathlib import Path
from typing import Any

import numpy as np


def load_mat(path: Path, *names: str) -> dict[str, Any]:
    """Variables of a version 5 file; structs are objects with attributes, cells object arrays, singletons squeezed.

    A numeric array keeps its dimensions.

    Raises:
        ValueError: it is no such file, or a variable is missing.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        values = loadmat(path, variable_names=list(names) or None, struct_as_record=False)
    except (MatReadError, NotImplementedError) as error:
        raise ValueError(f"not a MATLAB file of version 5: {error}") from error
    if missing := [name for name in names if name not in values]:
        raise ValueError(f"it has no variable {missing[0]}")
    return {name: value for name, value in values.items() if not name.startswith("__")}


def unwrap(value: Any) -> Any:
    """What is inside nested arrays of one element, as MATLAB wraps every cell, struct and text."""
    while isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    return value


def text(value: Any) -> str:
    """A MATLAB text as ``str``; empty for an empty array."""
    value = unwrap(value)
    return "" if isinstance(value, np.ndarray) else str(value)


def number(value: Any) -> int:
    """A MATLAB scalar as ``int``."""
    return int(unwrap(value))


def flat(value: Any) -> list[Any]:
    """The elements of a cell or struct array of any shape, in order."""
    return list(np.asarray(value).reshape(-1, order="F"))


def open_hdf5(path: Path) -> Any:
    """An HDF5 file for reading; close it or use it in ``with``. OSError where it is none."""
    import h5py

    return h5py.File(path, "r")
