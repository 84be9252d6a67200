"""Pickles from outside, read without running them: plain containers, text, numbers, arrays of bytes; nothing else."""

import io
import pickle
from math import prod
from typing import Any, NoReturn

import numpy as np

# Old and new names of what numpy puts into the pickle of an array.
_RECONSTRUCT = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}


def load_plain(data: bytes) -> Any:
    """The value of a pickle that holds dicts, lists, tuples, text, bytes, numbers and uint8 arrays.

    A pickle is a program: it may name any function and call it. Here it gets a few names, all of them ours, which make
    an array from bytes and can do nothing else. The plain text of Python 2 comes as ``bytes``.

    Raises:
        ValueError: it asks for anything else, or ends early.
    """
    try:
        return _plain(_PlainUnpickler(io.BytesIO(data), encoding="bytes").load())
    except ValueError:
        raise
    # A pickle cut short or made by hand raises whatever its opcodes stumble over.
    except Exception as error:
        raise ValueError(f"not a pickle of plain values: {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _RECONSTRUCT:
            return _NewArray()
        if (module, name) == ("numpy", "ndarray"):
            return "ndarray"
        if (module, name) == ("numpy", "dtype"):
            return _NewType()
        if (module, name) == ("_codecs", "encode"):
            return _Latin1()
        raise ValueError(f"the pickle asks for {module}.{name}; only plain values and arrays of bytes are read")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise ValueError("the pickle refers to objects outside itself")


class _Array:
    """An array that the pickle is filling: shape, type and bytes as it states them."""

    __slots__ = ("state",)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def value(self) -> np.ndarray:
        _, shape, dtype, is_fortran, data = self.state
        if not isinstance(dtype, _Type) or not isinstance(data, bytes) or len(data) != prod(shape):
            raise ValueError("an array in the pickle is not of bytes, or its size is not that of its shape")
        return np.frombuffer(data, np.uint8).reshape(shape, order="F" if is_fortran else "C")


class _Type:
    """The type of an array; only unsigned bytes are known."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment, which bytes do not have."""


class _NewArray:
    __slots__ = ()

    def __call__(self, *arguments: Any) -> _Array:
        return _Array()


class _NewType:
    __slots__ = ()

    def __call__(self, name: Any, *flags: Any) -> _Type:
        if name not in ("u1", b"u1"):
            raise ValueError(f"an array in the pickle is of type {name!r}; only u1 is read")
        return _Type()


class _Latin1:
    __slots__ = ()

    def __call__(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise ValueError("the pickle encodes text in an unknown way")
        return text.encode("latin1")


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.value()
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise ValueError(f"the pickle holds a {type(value).__name__}; only plain values and arrays of bytes are read")
