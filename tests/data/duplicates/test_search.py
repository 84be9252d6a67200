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
    expected = by_loop(queries, stored, limit)
    for num_stored_flips in (0, 1):
        index = HashIndex(stored, num_stored_flips=num_stored_flips)
        assert found(index.search(queries, limit)) == expected and not index.num_crowded
        own = rng.integers(-1, len(stored), len(queries))
        others = [hit for hit in expected if own[hit[0]] != hit[1]]
        assert found(index.search(queries, limit, own_rows_M=own)) == others


@pytest.mark.parametrize("num_stored_flips", [0, 1])
def test_one_changed_bit_finds_all_within_five_bits_and_most_within_eight(num_stored_flips):
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 2**64, 3000, np.uint64, endpoint=False)
    queries = stored.copy()
    for number in range(len(queries)):
        for bit in rng.choice(64, 3 + number % 6, replace=False):
            queries[number] ^= np.uint64(1) << np.uint64(bit)
    hits = HashIndex(stored, num_stored_flips=num_stored_flips).search(queries, 8, max_flips=1)
    is_found = np.zeros(3000, bool)
    is_found[hits.queries[hits.queries == hits.rows]] = True
    shares = is_found.reshape(-1, 6).mean(0)
    # A table for few hashes leaves bits out of the parts, and then finds a few more.
    assert shares[:3].tolist() == [1, 1, 1] and (shares[3:] > [0.83, 0.66, 0.5]).all()


def test_no_more_than_so_many_are_found_through_a_part():
    rng = np.random.default_rng(0)
    # Twenty hashes that share their first two parts, among others that share none.
    stored = rng.integers(0, 2**64, 60, np.uint64, endpoint=False)
    stored[:20] = (stored[:20] >> np.uint64(43) << np.uint64(43)) | np.uint64(12345)
    index = HashIndex(stored, max_sharing=8)
    assert index.num_crowded == 0  # the last part tells them apart
    assert index.search(stored[19:20], 0).rows.tolist() == [19]
    same = np.concatenate([np.repeat(stored[:1], 20), stored[20:]])
    for num_stored_flips in (0, 1):
        index = HashIndex(same, num_stored_flips=num_stored_flips, max_sharing=8)
        assert index.num_crowded == 12
        hits = index.search(same, 0)
        assert hits.rows[hits.queries == 19].tolist() == list(range(8))
        assert hits.rows[hits.queries >= 20].tolist() == list(range(20, 60))


def test_many_equal_hashes_and_many_queries():
    stored = np.zeros(1000, np.uint64)
    hits = HashIndex(stored).search(np.zeros(300, np.uint64), 5)
    assert len(hits.rows) == 300_000 and hits.rows[:1000].tolist() == list(range(1000))
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
