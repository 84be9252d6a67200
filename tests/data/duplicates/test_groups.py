import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from intern_vision.data.duplicates.groups import Links, best_of_groups, digest_links, group_numbers, joined_links


def links(pairs, methods=None, distances=None):
    first, second = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    methods = np.array(methods if methods is not None else [1] * len(pairs), np.int8)
    return Links(first, second, methods, np.array(distances if distances is not None else [0.1] * len(pairs)))


@given(st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)).filter(lambda p: p[0] != p[1]), max_size=20))
def test_groups_are_what_repeated_merging_gives(pairs):
    groups = {number: {number} for number in range(15)}
    for first, second in pairs:
        merged = groups[first] | groups[second]
        groups |= dict.fromkeys(merged, merged)
    numbers = group_numbers(15, links(pairs))
    ordered = sorted({min(group) for group in groups.values() if len(group) > 1})
    expected = [ordered.index(min(groups[n])) if len(groups[n]) > 1 else -1 for n in range(15)]
    assert numbers.tolist() == expected


def test_the_best_of_each_group():
    groups = np.array([-1, 0, 0, 1, 1, 1, 0])
    area = np.array([99, 5, 7, 4, 4, 4, 7])
    num_annotations = np.array([9, 9, 1, 0, 2, 2, 1])
    assert best_of_groups(groups, area, num_annotations).tolist() == [2, 4]
    assert best_of_groups(np.full(3, -1), area[:3]).tolist() == []


def test_digests():
    own = pa.chunked_array([["a", "b", ""], ["a", "", "c", "a"]])
    found = digest_links(own)
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(3, 0), (6, 0)]
    found = digest_links(own, pa.chunked_array([["", "c", "a", "a"]]))
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(0, 2), (3, 2), (5, 1), (6, 2)]
    assert not len(digest_links(own.slice(0, 0)))


def test_the_surest_pair_of_an_image():
    both = joined_links(links([(0, 1), (0, 2)], [1, 0], [0.0, 0.5]), links([(3, 2)], [2], [0.01])).both_ways()
    best = both.best_by_first()
    assert best.first.tolist() == [0, 1, 2, 3] and best.second.tolist() == [2, 0, 0, 2]
    assert best.methods.tolist() == [0, 1, 0, 2] and best.distances.tolist() == [0.5, 0.0, 0.5, 0.01]
