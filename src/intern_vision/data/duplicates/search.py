"""All near pairs: of 64-bit hashes by a table of their parts, of embeddings by faiss. N stored, M queries, D width."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

PART_BITS = (22, 21, 21)
"""A hash is cut into parts of these lengths."""
MAX_SEARCH_DISTANCE = 8
_PLACES_A_HASH = 256
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


def joined_hits(*parts: Hits) -> Hits:
    """The hits of all parts, one after the other; at least one part."""
    return Hits(*(np.concatenate([getattr(part, name) for part in parts]) for name in Hits.__slots__))


class HashIndex:
    """Finds every stored hash within a Hamming distance, by multi-index hashing (Norouzi, Punjani, Fleet; CVPR 2012).

    Of two hashes at most ``d`` bits apart, one of three parts differs in at most ``d // 3`` bits. Rows are sorted by
    each part, a query looks its own parts up with up to that many bits changed, and whole hashes are compared only
    with what lies there. Nothing is missed. Everything is done for thousands of queries at once.

    Attributes:
        num_crowded: stored hashes that cannot be found, each of their parts being that of too many others.

    Args:
        hashes_N: uint64.
        num_stored_flips: changed bits of a part that are stored rather than asked for. One makes 23 entries of a hash
            and a search 22 times shorter, which pays where queries are more than stored hashes.
        max_sharing: entries with the same part that are kept, the first by row; ``None`` for all. It bounds what a
            query costs; without it a million hashes that share a part cost a million comparisons each.
    """

    def __init__(
        self, hashes_N: NDArray[np.uint64], *, num_stored_flips: int = 0, max_sharing: int | None = None
    ) -> None:
        self._hashes_N = hashes_N
        self._num_stored_flips = num_stored_flips
        # A table much larger than what it holds only costs time; bits left out of a part are not compared in it.
        most_bits = max(1, _PLACES_A_HASH * len(hashes_N)).bit_length()
        self._num_bits = [min(num_bits, most_bits) for num_bits in PART_BITS]
        is_crowded_N = np.ones(len(hashes_N), bool)
        self._tables = []
        for part in range(len(PART_BITS)):
            order, ends, is_left_out_N = self._table(part, max_sharing)
            self._tables.append((order, ends))
            is_crowded_N &= is_left_out_N
        self.num_crowded = int(is_crowded_N.sum())

    def search(
        self,
        queries_M: NDArray[np.uint64],
        max_distance: int,
        *,
        max_flips: int | None = None,
        own_rows_M: NDArray[np.int64] | None = None,
    ) -> Hits:
        """All pairs of a query and a stored hash at most so many bits apart, each once, in order.

        Args:
            queries_M: uint64.
            max_distance: 0 to ``MAX_SEARCH_DISTANCE`` bits.
            max_flips: changed bits of a part that are tried in all; ``None`` for as many as find everything. With one,
                everything within 5 bits is found, and of what is 6, 7 or 8 bits apart 88, 71 and 55 % where errors
                fall anywhere.
            own_rows_M: for each query a row that is no find, its own one; -1 for none.
        """
        found = [np.empty((2, 0), np.int64)]
        max_flips = max_distance // len(PART_BITS) if max_flips is None else max_flips
        num_flips = max(0, max_flips - self._num_stored_flips)
        for start in range(0, len(queries_M), _QUERIES_AT_ONCE):
            batch_Q = queries_M[start : start + _QUERIES_AT_ONCE]
            pairs = [np.empty(0, np.int64)]
            for queries, rows in self._near(batch_Q, num_flips, max_distance):
                if own_rows_M is not None:
                    is_other = own_rows_M[start + queries] != rows
                    queries, rows = queries[is_other], rows[is_other]
                pairs.append((queries.astype(np.int64) << 32) | rows)
            merged = np.unique(np.concatenate(pairs))
            found.append(np.stack([(merged >> 32) + start, merged & 0xFFFFFFFF]))
        queries, rows = np.concatenate(found, axis=1)
        distances = np.bitwise_count(queries_M[queries] ^ self._hashes_N[rows]).astype(np.float64)
        return Hits(queries, rows, distances)

    def _table(
        self, part: int, max_sharing: int | None
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]:
        """Rows sorted by a part, where each value of the part ends, and which rows are left out."""
        num_bits, num_rows = self._num_bits[part], len(self._hashes_N)
        part_N = _part(self._hashes_N, part, num_bits)
        masks = _masks(num_bits, self._num_stored_flips)
        entries = np.empty((len(masks), num_rows), np.uint64)
        for entries_N, mask in zip(entries, masks, strict=True):
            entries_N[:] = (part_N ^ mask) << 32 | np.arange(num_rows)
        entries = entries.ravel()
        # Plain numbers are sorted several times faster than an order is found.
        entries.sort()
        counts = np.bincount((entries >> np.uint64(32)).view(np.int64), minlength=2**num_bits)
        entries &= np.uint64(0xFFFFFFFF)
        order = entries.astype(np.int32)
        del entries
        is_left_out_N = np.zeros(num_rows, bool)
        ends = np.zeros(2**num_bits + 1, np.int32)
        np.cumsum(counts, out=ends[1:])
        if max_sharing is not None and counts.max(initial=0) > max_sharing:
            is_kept = np.ones(len(order), bool)
            for key in np.flatnonzero(counts > max_sharing).tolist():
                last = ends[key + 1]
                left_out = order[ends[key] + max_sharing : last]
                # Who is left out under its own part, whatever it is kept under with a bit changed.
                is_left_out_N[left_out[part_N[left_out] == key]] = True
                is_kept[ends[key] + max_sharing : last] = False
            order = order[is_kept]
            np.cumsum(np.minimum(counts, max_sharing), out=ends[1:])
        return order, ends, is_left_out_N

    def _near(
        self, batch_Q: NDArray[np.uint64], num_flips: int, max_distance: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
        """Near queries and rows that agree in one part but for so many bits, found among a bounded number at a time."""
        for part, (order, ends) in enumerate(self._tables):
            own_Q = _part(batch_Q, part, self._num_bits[part])
            for mask in _masks(self._num_bits[part], num_flips):
                key_Q = own_Q ^ mask
                start_Q = ends[key_Q]
                count_Q = ends[key_Q + 1] - start_Q
                hit = np.flatnonzero(count_Q)
                for first, counts, positions in _spread(start_Q[hit], count_Q[hit]):
                    some = hit[first : first + len(counts)]
                    rows = order.take(positions)
                    differing = np.repeat(batch_Q[some], counts)
                    differing ^= self._hashes_N.take(rows)
                    near = np.flatnonzero(np.bitwise_count(differing) <= max_distance)
                    # Few are: which query each is of is asked for these alone.
                    yield some[np.searchsorted(np.cumsum(counts), near, side="right")], rows[near]


def _spread(
    starts: NDArray[np.int32], counts: NDArray[np.int32]
) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.int64]]]:
    """Positions from each start on, as many as its count: the first start's number, the counts and the positions."""
    ends = np.cumsum(counts, dtype=np.int64)
    first = 0
    while first < len(starts):
        before = ends[first - 1] if first else 0
        # At least one query at a time, however many rows share its part.
        last = max(first + 1, int(np.searchsorted(ends, before + _CANDIDATES_AT_ONCE, side="right")))
        own = counts[first:last]
        shift = starts[first:last] - (ends[first:last] - own - before)
        positions = np.arange(ends[last - 1] - before)
        positions += np.repeat(shift, own)
        yield first, own, positions
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


def _part(hashes_N: NDArray[np.uint64], part: int, num_bits: int) -> NDArray[np.int64]:
    """The first bits of a part."""
    shift, mask = sum(PART_BITS[:part]), 2**num_bits - 1
    return ((hashes_N >> np.uint64(shift)) & np.uint64(mask)).astype(np.int64)


def _masks(num_bits: int, num_flips: int) -> list[int]:
    """Every number of this many bits with at most so many of them set."""
    flips = (chosen for number in range(num_flips + 1) for chosen in combinations(range(num_bits), number))
    return [sum(1 << bit for bit in chosen) for chosen in flips]
