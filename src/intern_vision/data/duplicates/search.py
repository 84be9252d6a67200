"""All near pairs: of 64-bit hashes by a table of their parts, of embeddings by faiss. N stored, M queries, D width."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

PART_BITS = (22, 21, 21)
"""A hash is cut into parts of these lengths."""
MAX_SEARCH_DISTANCE = 8
_QUERIES_AT_ONCE = 2**15
_CANDIDATES_AT_ONCE = 2**21
_EMBEDDINGS_AT_ONCE = 2**12


@dataclass(frozen=True, slots=True)
class Hits:
    """What a search found, a row each: number of the query, number of the stored one, and how far apart they are.

    ``distances`` are bits for hashes, 1 minus the cosine for embeddings.
    """

    queries: NDArray[np.int64]
    rows: NDArray[np.int64]
    distances: NDArray[np.float64]


def no_hits() -> Hits:
    """Nothing found."""
    return Hits(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))


def joined_hits(*parts: Hits) -> Hits:
    """The hits of all parts, one after the other; at least one part."""
    return Hits(*(np.concatenate([getattr(part, name) for part in parts]) for name in Hits.__slots__))


class HashIndex:
    """Finds every stored hash within a Hamming distance, by multi-index hashing (Norouzi, Punjani, Fleet; CVPR 2012).

    Of two hashes at most ``d`` bits apart, one of three parts differs in at most ``d // 3`` bits. Rows are sorted by
    each part, a query looks its own parts up with up to that many bits changed, and whole hashes are compared only
    with what lies there. Nothing is missed. Everything is done for thousands of queries at once.

    Args:
        hashes_N: uint64.
    """

    def __init__(self, hashes_N: NDArray[np.uint64]) -> None:
        self._hashes_N = hashes_N
        self._tables = []
        for part, num_bits in enumerate(PART_BITS):
            parts_N = _part(hashes_N, part)
            ends = np.zeros(2**num_bits + 1, np.int32)
            np.cumsum(np.bincount(parts_N, minlength=2**num_bits), out=ends[1:])
            self._tables.append((np.argsort(parts_N, kind="stable").astype(np.int32), ends))

    def search(self, queries_M: NDArray[np.uint64], max_distance: int) -> Hits:
        """All pairs of a query and a stored hash at most so many bits apart, each once, in order.

        Args:
            queries_M: uint64.
            max_distance: 0 to ``MAX_SEARCH_DISTANCE`` bits.
        """
        found = [np.empty((2, 0), np.int64)]
        for start in range(0, len(queries_M), _QUERIES_AT_ONCE):
            batch_Q = queries_M[start : start + _QUERIES_AT_ONCE]
            pairs = [np.empty(0, np.int64)]
            for queries, rows in self._candidates(batch_Q, max_distance // len(PART_BITS)):
                is_near = np.bitwise_count(batch_Q[queries] ^ self._hashes_N[rows]) <= max_distance
                pairs.append((queries[is_near].astype(np.int64) << 32) | rows[is_near])
            merged = np.unique(np.concatenate(pairs))
            found.append(np.stack([(merged >> 32) + start, merged & 0xFFFFFFFF]))
        queries, rows = np.concatenate(found, axis=1)
        distances = np.bitwise_count(queries_M[queries] ^ self._hashes_N[rows]).astype(np.float64)
        return Hits(queries, rows, distances)

    def _candidates(
        self, batch_Q: NDArray[np.uint64], num_flips: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
        """Queries and rows that agree in one part but for so many bits, a bounded number at a time."""
        for part, (order_N, ends) in enumerate(self._tables):
            own_Q = _part(batch_Q, part)
            for mask in _masks(PART_BITS[part], num_flips):
                key_Q = own_Q ^ mask
                start_Q = ends[key_Q]
                count_Q = ends[key_Q + 1] - start_Q
                hit = np.flatnonzero(count_Q)
                yield from _spread(hit, start_Q[hit], count_Q[hit], order_N)


def _spread(
    hit: NDArray[np.int64], starts: NDArray[np.int32], counts: NDArray[np.int32], order_N: NDArray[np.int32]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
    ends = np.cumsum(counts, dtype=np.int64)
    first = 0
    while first < len(hit):
        before = ends[first - 1] if first else 0
        # At least one query at a time, however many rows share its part.
        last = max(first + 1, int(np.searchsorted(ends, before + _CANDIDATES_AT_ONCE, side="right")))
        own = counts[first:last]
        shift = starts[first:last] - (ends[first:last] - own - before)
        positions = np.arange(ends[last - 1] - before) + np.repeat(shift, own)
        yield np.repeat(hit[first:last], own), order_N[positions]
        first = last


def cosine_hits(queries_MD: NDArray[np.float32], stored_ND: NDArray[np.float32], min_cosine: float) -> Hits:
    """All pairs of a query and a stored embedding with at least this cosine, in order; exact (faiss ``IndexFlatIP``).

    Args:
        queries_MD: float32 of length 1.
        stored_ND: float32 of length 1.
        min_cosine: in [-1, 1].
    """
    import faiss

    index = faiss.IndexFlatIP(stored_ND.shape[1])
    index.add(np.ascontiguousarray(stored_ND))
    found = [np.empty((3, 0))]
    for start in range(0, len(queries_MD), _EMBEDDINGS_AT_ONCE):
        batch = np.ascontiguousarray(queries_MD[start : start + _EMBEDDINGS_AT_ONCE])
        # faiss gives what lies above the limit; rounding must not decide about equal images.
        limits, cosines, rows = index.range_search(batch, min_cosine - 1e-6)
        queries = np.repeat(np.arange(len(batch)) + start, np.diff(limits).astype(np.int64))
        order = np.lexsort((rows, queries))
        found.append(np.stack([queries, rows, np.maximum(0.0, 1.0 - cosines)])[:, order])
    queries, rows, distances = np.concatenate(found, axis=1)
    return Hits(queries.astype(np.int64), rows.astype(np.int64), distances)


def _part(hashes_N: NDArray[np.uint64], part: int) -> NDArray[np.int64]:
    shift, mask = sum(PART_BITS[:part]), 2 ** PART_BITS[part] - 1
    return ((hashes_N >> np.uint64(shift)) & np.uint64(mask)).astype(np.int64)


def _masks(num_bits: int, num_flips: int) -> list[int]:
    """Every number of this many bits with at most so many of them set."""
    flips = (chosen for number in range(num_flips + 1) for chosen in combinations(range(num_bits), number))
    return [sum(1 << bit for bit in chosen) for chosen in flips]
