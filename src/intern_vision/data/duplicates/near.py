"""Pictures near each other, by their thumbnails: hashes of views find candidates, alignment decides.

N stored images, M queries, L looks, C candidates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.duplicates.search import HashIndex, Hits, joined_hits
from intern_vision.data.duplicates.thumbnail import WHOLE, Span, View, opposite, thumbnail, view_hashes
from intern_vision.data.duplicates.verify import differences

MAX_HASH_DISTANCE = 6
MAX_DIFFERENCE = 0.0075
MIN_SEEN = 8
"""A view in which fewer of the 64 frequencies are to be seen is too plain to be recognised by its shape."""
MAX_CUT = 0.1
"""Share of a side that a crop may lack."""
_NUM_CUTS = 3
_SEEN_PER_BIT = 4
MAX_CANDIDATES = 64
"""Of a query, those with the nearest hashes; others are not compared."""
MAX_SHARING = 512
"""Stored images with a third of a hash in common that are found through it; of more of them the first."""
_MAX_FLIPS = 1
_QUERIES_AT_ONCE = 512
_FULL: Span = (0.0, 1.0)
_THIRDS: tuple[Span, ...] = ((0.0, 0.32), (0.34, 0.66), (0.68, 1.0))
_CUT_SPANS = tuple(
    (MAX_CUT * first / _NUM_CUTS, 1 - MAX_CUT * last / _NUM_CUTS)
    for first in range(_NUM_CUTS + 1)
    for last in range(_NUM_CUTS + 1 - first)
)
# Strips of the image: what touches all of the four outer ones covers more than a tenth of the area.
STORED_VIEWS = (WHOLE, *(View(_FULL, span) for span in _THIRDS), *(View(span, _FULL) for span in _THIRDS))


@dataclass(frozen=True, slots=True)
class Look:
    """One way to look for a query: its ``view`` may be the stored view of that number.

    The whole stored picture is then the query's view ``shows``.
    """

    view: View
    stored: int
    shows: View


_MIRRORED = View(_FULL, _FULL, mirrored=True)
LOOKS = (
    *(Look(View(y, x), 0, View(y, x)) for y in _CUT_SPANS for x in _CUT_SPANS),
    Look(_MIRRORED, 0, _MIRRORED),
    *(Look(view, stored, WHOLE) for stored, view in enumerate(STORED_VIEWS[1:], 1)),
    *(
        Look(View(view.y, opposite(view.x), mirrored=True), stored, _MIRRORED)
        for stored, view in enumerate(STORED_VIEWS[1:], 1)
    ),
)
"""Crops of the query by up to a tenth of each side, its mirror image, and strips of both."""
# Candidates of one kind compete: all crops, and the whole picture as it is or mirrored found through strips.
_KINDS = np.array([0 if look.stored == 0 and not look.shows.mirrored else 1 + look.shows.mirrored for look in LOOKS])
_CANDIDATE = np.dtype([("query", np.int32), ("row", np.int32), ("look", np.int16), ("distance", np.uint8)])


class PictureIndex:
    """Stored pictures that can be asked for those near other ones.

    Pictures that are near the first one with the same hash are found through that one only, so that ten thousand copies
    of one picture cost ten thousand comparisons and not their square.

    Attributes:
        thumbnails: as given.
        twins: such pictures (``queries``) and the first one that they are near to (``rows``).
        num_plain: pictures that are too plain to be recognised.
        num_crowded: pictures of which some view is stored under parts of a hash that too many others have.

    Args:
        thumbnails_N: each a ``THUMBNAIL``; may be mapped from a file.
        max_hash_distance: bits, at most 8.
        max_difference: of ``intern_vision.data.duplicates.verify.differences``.
    """

    def __init__(
        self,
        thumbnails_N: NDArray[np.void],
        *,
        max_hash_distance: int = MAX_HASH_DISTANCE,
        max_difference: float = MAX_DIFFERENCE,
    ) -> None:
        self.thumbnails = thumbnails_N
        self._max_hash_distance, self._max_difference = max_hash_distance, max_difference
        self._hashes_NV, self._seen_NV = view_hashes(thumbnails_N["grey"], STORED_VIEWS)
        self.num_plain = int((self._seen_NV[:, 0] < MIN_SEEN).sum())
        self.num_crowded = 0
        self.twins = self._find_twins()

    def search(self, thumbnails_M: NDArray[np.void]) -> Hits:
        """Stored pictures near each query; ``distances`` are differences. Twins stand for the picture they are near."""
        return self._search(thumbnails_M, np.arange(len(thumbnails_M)), itself=False)

    def pairs(self) -> Hits:
        """Stored pictures near each other, each pair once, ``queries`` being the larger number."""
        found = self._search(self.thumbnails, self._originals, itself=True)
        both = joined_hits(found, self.twins)
        return nearest(Hits(np.maximum(both.queries, both.rows), np.minimum(both.queries, both.rows), both.distances))

    def _find_twins(self) -> Hits:
        hash_N = self._hashes_NV[:, 0]
        seen = np.flatnonzero(self._seen_NV[:, 0] >= MIN_SEEN)
        _, first, group = np.unique(hash_N[seen], return_index=True, return_inverse=True)
        firsts = seen[first[group]]
        is_later = firsts != seen
        later, firsts = seen[is_later], firsts[is_later]
        difference = self._compare(self.thumbnails, later, firsts, np.zeros(len(later), np.int64), [WHOLE])
        is_near = difference <= self._max_difference
        return Hits(later[is_near], firsts[is_near], difference[is_near])

    @cached_property
    def _originals(self) -> NDArray[np.int64]:
        is_original = np.ones(len(self.thumbnails), bool)
        is_original[self.twins.queries] = False
        return np.flatnonzero(is_original)

    def _search(self, thumbnails_M: NDArray[np.void], numbers: NDArray[np.int64], itself: bool) -> Hits:
        candidates_C = np.empty(0, _CANDIDATE)
        # One stored view after the other: the index of each is many times larger than its hashes.
        for stored in range(len(STORED_VIEWS)):
            parts = self._candidates(thumbnails_M, numbers, itself, stored)
            candidates_C = _best(np.concatenate([candidates_C, *parts]))
        queries, rows = candidates_C["query"].astype(np.int64), candidates_C["row"].astype(np.int64)
        difference_C = self._compare(thumbnails_M, queries, rows, candidates_C["look"], [look.shows for look in LOOKS])
        is_near = difference_C <= self._max_difference
        return nearest(Hits(queries[is_near], rows[is_near], difference_C[is_near]))

    def _candidates(
        self, thumbnails_M: NDArray[np.void], numbers: NDArray[np.int64], itself: bool, stored: int
    ) -> Iterator[NDArray[np.void]]:
        """Queries and rows whose hashes are near by a look at one stored view, some queries at a time."""
        looks = np.array([number for number, look in enumerate(LOOKS) if look.stored == stored])
        views = [LOOKS[look].view for look in looks]
        rows = self._originals[self._seen_NV[self._originals, stored] >= MIN_SEEN]
        is_worth = len(numbers) * len(looks) > len(rows)
        index = HashIndex(self._hashes_NV[rows, stored], num_stored_flips=int(is_worth), max_sharing=MAX_SHARING)
        self.num_crowded = max(self.num_crowded, index.num_crowded)
        place_N = np.full(len(self.thumbnails), -1, np.int64)
        place_N[rows] = np.arange(len(rows))
        for start in range(0, len(numbers), _QUERIES_AT_ONCE):
            batch = numbers[start : start + _QUERIES_AT_ONCE]
            hashes_QL, seen_QL = view_hashes(thumbnails_M[batch]["grey"], views)
            asked, place = np.nonzero(seen_QL >= MIN_SEEN)
            own_rows = place_N[batch[asked]] if itself else None
            hits = index.search(
                hashes_QL[asked, place], self._max_hash_distance, max_flips=_MAX_FLIPS, own_rows_M=own_rows
            )
            asked, place, found = asked[hits.queries], place[hits.queries], rows[hits.rows]
            # The fewer frequencies there are to see, the fewer may differ.
            seen = np.minimum(seen_QL[asked, place], self._seen_NV[found, stored]).astype(np.int64)
            is_good = _SEEN_PER_BIT * hits.distances <= seen
            part_C = np.empty(int(is_good.sum()), _CANDIDATE)
            values = batch[asked], found, looks[place], hits.distances
            for name, value in zip(_CANDIDATE.names, values, strict=True):
                part_C[name] = value[is_good]
            yield _best(part_C)

    def _compare(
        self,
        thumbnails_M: NDArray[np.void],
        queries: NDArray[np.int64],
        rows: NDArray[np.int64],
        looks: NDArray[np.int64],
        views: list[View],
    ) -> NDArray[np.float64]:
        found = np.empty(len(queries))
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            part = slice(start, start + _QUERIES_AT_ONCE)
            shown = [views[look] for look in looks[part]]
            pairs = thumbnails_M[queries[part]], self.thumbnails[rows[part]]
            found[part] = differences(*pairs, shown, exact_to=self._max_difference)
        return found


def _best(candidates_C: NDArray[np.void]) -> NDArray[np.void]:
    """Of each query, row and kind the look with the nearest hash, and the nearest of each query."""
    queries, rows, looks, distances = (candidates_C[name] for name in _CANDIDATE.names)
    kinds = _KINDS[looks]
    order = np.lexsort((looks, distances, kinds, rows, queries))
    candidates_C = candidates_C[order][_is_new(queries[order], rows[order], kinds[order])]
    queries, rows, looks, distances = (candidates_C[name] for name in _CANDIDATE.names)
    order = np.lexsort((looks, rows, distances, queries))
    rank = np.arange(len(order)) - np.searchsorted(queries[order], queries[order], side="left")
    return candidates_C[np.sort(order[rank < MAX_CANDIDATES])]


def without_near(images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """The images without those that are near to an earlier one."""
    later = set(PictureIndex(np.stack([thumbnail(image) for image in images])).pairs().queries.tolist())
    return [image for number, image in enumerate(images) if number not in later]


def nearest(hits: Hits) -> Hits:
    """Each pair of a query and a row once, with its least distance, in order."""
    order = np.lexsort((hits.distances, hits.rows, hits.queries))
    queries, rows, distances = hits.queries[order], hits.rows[order], hits.distances[order]
    is_first = _is_new(queries, rows)
    return Hits(queries[is_first], rows[is_first], distances[is_first])


def _is_new(*columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where a row of sorted columns differs from the row before it."""
    is_new = np.ones(len(columns[0]), bool)
    if len(is_new) > 1:
        is_new[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return is_new


def near_between(queries: PictureIndex, stored: PictureIndex) -> Hits:
    """Pictures of one index near those of another, each pair once: either may be a part of the other.

    ``Hits.queries`` and ``Hits.rows`` are numbers in ``queries`` and ``stored``. Twins are found through the picture
    that they are near to.
    """
    forth, back = stored.search(queries.thumbnails), queries.search(stored.thumbnails)
    return nearest(joined_hits(forth, Hits(back.rows, back.queries, back.distances)))
