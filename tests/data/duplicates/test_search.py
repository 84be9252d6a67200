import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intern_vision.data.duplicates.search import MAX_SEARCH_DISTANCE, HashIndex, cosine_hits


def by_loop(queries, stored, limit):
    return [
        (number, row, (query ^ other).bit_count())
        for number, query in enumerate(map(int, queries))
        for row, other in enumerate(map(int, stored))
        if (query ^ other).bit_count() <= limit
    ]


def found(hits):
    return list(zip(hits.queries.tolist(), hits.rows.tolist(), hits.distances.tolist(), strict=True))


@given(st.integers(0, 2**32 - 1), st.integers(0, MAX_SEARCH_DISTANCE))
def test_every_hash_within_the_distance_is_found(seed, limit):
    rng = np.random.default_rng(seed)
    stored = rng.integers(0, 2**64, 40, np.uint64, endpoint=False)
    stored[:4] = [0, 0, 2**64 - 1, 2**64 - 1]
    # Queries at every distance from a stored one, changed bits anywhere.
    queries = stored[rng.integers(0, len(stored), 12)]
    for number in range(len(queries)):
        for bit in rng.choice(64, number, replace=False):
            queries[number] ^= np.uint64(1) << np.uint64(bit)
    assert found(HashIndex(stored).search(queries, limit)) == by_loop(queries, stored, limit)


def test_many_equal_hashes_and_many_queries():
    stored = np.zeros(3000, np.uint64)
    hits = HashIndex(stored).search(np.zeros(1000, np.uint64), 5)
    assert len(hits.rows) == 3_000_000 and hits.rows[:3000].tolist() == list(range(3000))
    assert not len(HashIndex(stored[:0]).search(stored[:3], 5).rows)
    assert not len(HashIndex(stored[:3]).search(stored[:0], 5).rows)


@pytest.mark.parametrize("limit", [0.0, 0.6, 1.0])
def test_cosines_against_a_product(limit):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 5)).astype(np.float32)
    vectors[7] = vectors[3]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    hits = cosine_hits(vectors[:20], vectors, limit)
    cosines = vectors[:20] @ vectors.T
    assert list(zip(hits.queries, hits.rows, strict=True)) == list(
        zip(*np.nonzero(cosines >= limit - 1e-6), strict=True)
    )
    assert hits.distances == pytest.approx(1 - cosines[hits.queries, hits.rows], abs=1e-6)
    assert (3, 7) in set(zip(hits.queries, hits.rows, strict=True)) and hits.distances.min() >= 0
