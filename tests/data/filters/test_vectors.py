import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from intern_vision.data.filters import vectors
from intern_vision.data.filters.vectors import clusters, repeats


def unit_vectors(seed, num, width=6):
    found = np.random.default_rng(seed).normal(size=(num, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 7), st.floats(-0.2, 0.95))
def test_repeats_are_those_of_a_plain_loop(seed, num, chunk, limit):
    vectors_CD = unit_vectors(seed, num)
    near_C = vectors_CD @ unit_vectors(seed + 1, 1)[0]
    order = sorted(range(num), key=lambda row: (near_C[row], row))
    expected = {}
    for place, row in enumerate(order):
        values = [float(vectors_CD[row] @ vectors_CD[other]) for other in order[:place]]
        if values and max(values) > limit + 1e-5:
            expected[row] = max(values)
    before, vectors._CHUNK_ROWS = vectors._CHUNK_ROWS, chunk
    try:
        found = {row: (other, value) for row, other, value in repeats(vectors_CD, near_C, limit)}
    finally:
        vectors._CHUNK_ROWS = before
    assert expected.keys() <= found.keys()
    for row, (other, value) in found.items():
        assert value > limit and abs(value - float(vectors_CD[row] @ vectors_CD[other])) < 1e-5
        assert order.index(other) < order.index(row)


def test_kmeans_finds_separate_groups():
    centres = np.eye(4, 6, dtype=np.float32)
    rng = np.random.default_rng(0)
    group_N = rng.integers(0, 4, 400)
    found = centres[group_N] + rng.normal(0, 0.05, (400, 6)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    centroids_KD, cluster_N = clusters(found, 4, 0)
    pairs = set(zip(group_N.tolist(), cluster_N.tolist(), strict=True))
    assert len(pairs) == 4 and np.allclose(np.linalg.norm(centroids_KD, axis=1), 1, atol=1e-5)
    assert np.array_equal(clusters(found, 4, 0)[1], cluster_N)
