"""Ref: the one thing that flows between steps; about 1 kB of JSON that names bytes in the store."""

from typing import Literal

from pydantic import Field

from intern_vision.config import Config

Kind = Literal["manifest", "dataset", "genotype", "weights", "model", "scores", "report"]


class Ref(Config):
    """Where a stage's committed output lies, what it is and what it was made from.

    The bytes under ``uri`` are valid only when ``<uri>/_COMMITTED`` exists; that file is
    the output's ``Record`` (``intern_vision.stages.base``), so lineage is followed from
    ``parents`` without any server.

    Attributes:
        kind: what the bytes are.
        name: a short human name, for example ``expert-detect``.
        uri: address of the output's prefix, ``file://`` or ``s3://``, without a trailing slash.
        digest: SHA-256 over the sorted (file name, file digest) pairs.
        num_bytes: total size of the files.
        parents: addresses of the outputs this one was made from.
    """

    kind: Kind
    name: str
    uri: str
    digest: str = Field(min_length=64, max_length=64)
    num_bytes: int = Field(ge=0)
    parents: tuple[str, ...]
