"""Pairs of duplicates to groups, and which image of a group is kept. N images, P pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.duplicates.search import Hits

if TYPE_CHECKING:
    import pyarrow as pa

Method = Literal["exact", "perceptual", "embedding"]
METHODS: tuple[Method, ...] = get_args(Method)
"""From the surest to the least sure; a pair found by several is called by the first."""


@dataclass(frozen=True, slots=True)
class Links:
    """Pairs of images taken for the same, with how each was found.

    Attributes:
        first: ``(P,)`` numbers of images.
        second: ``(P,)`` numbers of the others, in the same or in another collection.
        methods: ``(P,)`` indices into ``METHODS``.
        distances: ``(P,)``; 0 for exact ones.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    methods: NDArray[np.int8]
    distances: NDArray[np.float64]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.first)

    def best_by_first(self) -> "Links":
        """For every image that is first in a pair the surest and nearest of its pairs, in order."""
        order = np.lexsort((self.second, self.distances, self.methods, self.first))
        _, places = np.unique(self.first[order], return_index=True)
        chosen = order[places]
        return Links(self.first[chosen], self.second[chosen], self.methods[chosen], self.distances[chosen])

    def both_ways(self) -> "Links":
        """Every pair and its reverse."""
        return joined_links(self, Links(self.second, self.first, self.methods, self.distances))


def as_links(hits: Hits, method: Method) -> Links:
    """What a search found, as pairs of query and stored image."""
    methods = np.full(len(hits.queries), METHODS.index(method), np.int8)
    return Links(hits.queries, hits.rows, methods, hits.distances)


def joined_links(*parts: Links) -> Links:
    """The pairs of all parts, one after the other; at least one part."""
    return Links(*(np.concatenate([getattr(part, name) for part in parts]) for name in Links.__slots__))


def digest_links(digests_N: "pa.ChunkedArray", others_M: "pa.ChunkedArray | None" = None) -> Links:
    """Pairs of files of the same bytes.

    Args:
        digests_N: SHA-256 as text; empty where it is not known.
        others_M: digests of another collection; without it, each image is paired with the first of its digest.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    stored = digests_N if others_M is None else others_M
    unique = pc.unique(stored)
    place_of = pa.array(np.arange(len(stored))).take(pc.index_in(unique, value_set=stored))
    found = pc.index_in(digests_N, value_set=unique)
    known = pc.fill_null(pc.and_(pc.is_valid(found), pc.not_equal(digests_N, "")), False)
    first = np.flatnonzero(known.to_numpy())
    second = place_of.take(found.take(pa.array(first))).to_numpy().astype(np.int64)
    if others_M is None:
        is_later = first != second
        first, second = first[is_later], second[is_later]
    return Links(first, second, np.zeros(len(first), np.int8), np.zeros(len(first)))


def group_numbers(num_images: int, links: Links) -> NDArray[np.int64]:
    """``(N,)``: connected components of the pairs, numbered by their first image; -1 for an image in no pair."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(links), bool)
    graph = coo_array((ones, (links.first, links.second)), shape=(num_images, num_images))
    _, component_N = connected_components(graph, directed=False)
    paired = np.zeros(num_images, bool)
    paired[links.first] = paired[links.second] = True
    numbers = np.full(num_images, -1, np.int64)
    _, firsts, inverse = np.unique(component_N[paired], return_index=True, return_inverse=True)
    rank = np.empty(len(firsts), np.int64)
    rank[np.argsort(firsts, kind="stable")] = np.arange(len(firsts))
    numbers[paired] = rank[inverse]
    return numbers


def best_of_groups(groups_N: NDArray[np.int64], *orders: NDArray[Any]) -> NDArray[np.int64]:
    """The image of each group that is kept: the largest by the first order, ties by the next, then the earliest.

    Args:
        groups_N: as ``group_numbers`` gives them.
        orders: numbers ``(N,)``.

    Returns:
        An image a group, in the groups' order.
    """
    members = np.flatnonzero(groups_N >= 0)
    keys = [members, *(-order[members].astype(np.int64) for order in reversed(orders)), groups_N[members]]
    order = members[np.lexsort(keys)]
    return order[np.unique(groups_N[order], return_index=True)[1]]


def keep_orders(table: "pa.Table", protected_splits: Sequence[str]) -> tuple[NDArray[np.int64], ...]:
    """What decides which row of a manifest is kept: protected splits first, then area, then annotations.

    Args:
        table: columns ``split``, ``width_px``, ``height_px``, ``caption``, ``labels``, ``boxes``, ``mask``, ``depth``.
        protected_splits: the first is protected most.
    """
    import pyarrow.compute as pc

    split = table["split"].to_numpy()
    rank = np.zeros(len(table), np.int64)
    for number, name in enumerate(reversed(protected_splits), 1):
        rank[split == name] = number
    area = table["width_px"].to_numpy() * table["height_px"].to_numpy()
    num_annotations = np.zeros(len(table), np.int64)
    for name in ("caption", "mask", "depth"):
        num_annotations += pc.is_valid(table[name]).to_numpy()
    for name in ("labels", "boxes"):
        num_annotations += pc.fill_null(pc.list_value_length(table[name]), 0).to_numpy()
    return rank, area, num_annotations
