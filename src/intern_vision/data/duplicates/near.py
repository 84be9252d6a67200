"""Pictures near each other, by their thumbnails: hashes of views find candidates, alignment decides.

N stored images, M queries, V views.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.duplicates.search import HashIndex, Hits, joined_hits, no_hits
from intern_vision.data.duplicates.thumbnail import WHOLE, Span, View, opposite, thumbnail, view_hashes
from intern_vision.data.duplicates.verify import differences

MAX_HASH_DISTANCE = 5
MAX_DIFFERENCE = 0.0075
MIN_SEEN = 8
"""A view in which fewer of the 64 frequencies are to be seen is too plain to be recognised by its shape."""
MAX_CUT = 0.1
"""Share of a side that a crop may lack."""
_NUM_CUTS = 4
_SEEN_PER_BIT = 4
_MAX_CANDIDATES = 64
_QUERIES_AT_ONCE = 512
_FULL: Span = (0.0, 1.0)
_THIRDS: tuple[Span, ...] = ((0.0, 0.4), (0.3, 0.7), (0.6, 1.0))
_CUT_SPANS = tuple(
    (MAX_CUT * first / _NUM_CUTS, 1 - MAX_CUT * last / _NUM_CUTS)
    for first in range(_NUM_CUTS + 1)
    for last in range(_NUM_CUTS + 1 - first)
)
# Strips of the image: of six of them, something laid over a tenth of the area leaves at least one alone.
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


class PictureIndex:
    """Stored pictures that can be asked for those near other ones.

    Pictures that are near the first one with the same hash are found through that one only, so that ten thousand copies
    of one picture cost ten thousand comparisons and not their square.

    Attributes:
        thumbnails: as given.
        twins: such pictures (``queries``) and the first one that they are near to (``rows``).
        num_plain: pictures that are too plain to be recognised.

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

    @cached_property
    def _indexes(self) -> list[tuple[HashIndex, NDArray[np.int64]]]:
        indexes = []
        for number in range(len(STORED_VIEWS)):
            rows = self._originals[self._seen_NV[self._originals, number] >= MIN_SEEN]
            indexes.append((HashIndex(self._hashes_NV[rows, number]), rows))
        return indexes

    def _search(self, thumbnails_M: NDArray[np.void], numbers: NDArray[np.int64], itself: bool) -> Hits:
        found = [no_hits()]
        for start in range(0, len(numbers), _QUERIES_AT_ONCE):
            batch = numbers[start : start + _QUERIES_AT_ONCE]
            queries, rows, looks = self._candidates(thumbnails_M[batch], batch if itself else None)
            shown = [look.shows for look in LOOKS]
            difference = self._compare(thumbnails_M, batch[queries], rows, looks, shown)
            is_near = difference <= self._max_difference
            found.append(nearest(Hits(batch[queries][is_near], rows[is_near], difference[is_near])))
        return joined_hits(*found)

    def _candidates(
        self, batch_Q: NDArray[np.void], own_rows: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Numbers in the batch, stored rows, and the look that brought them together most closely."""
        hashes_QL, seen_QL = view_hashes(batch_Q["grey"], [look.view for look in LOOKS])
        found = []
        for stored, (index, rows) in enumerate(self._indexes):
            own_looks = np.array([number for number, look in enumerate(LOOKS) if look.stored == stored])
            hits = index.search(hashes_QL[:, own_looks].ravel(), self._max_hash_distance)
            queries, place = np.divmod(hits.queries, len(own_looks))
            stored_rows, looks = rows[hits.rows], own_looks[place]
            # The fewer frequencies there are to see, the fewer may differ.
            seen = np.minimum(seen_QL[queries, looks], self._seen_NV[stored_rows, stored]).astype(np.int64)
            is_good = (seen >= MIN_SEEN) & (_SEEN_PER_BIT * hits.distances <= seen)
            if own_rows is not None:
                is_good &= own_rows[queries] != stored_rows
            found.append(np.stack([queries, stored_rows, looks, hits.distances.astype(np.int64)])[:, is_good])
        queries, stored_rows, looks, distances = np.concatenate(found, axis=1)
        kinds = _KINDS[looks]
        order = np.lexsort((looks, distances, kinds, stored_rows, queries))
        queries, stored_rows, looks, distances, kinds = (
            values[order] for values in (queries, stored_rows, looks, distances, kinds)
        )
        is_first = _is_new(queries, stored_rows, kinds)
        queries, stored_rows, looks, distances = (
            values[is_first] for values in (queries, stored_rows, looks, distances)
        )
        order = np.lexsort((stored_rows, distances, queries))
        rank = np.arange(len(order)) - np.searchsorted(queries[order], queries[order], side="left")
        kept = np.sort(order[rank < _MAX_CANDIDATES])
        return queries[kept], stored_rows[kept], looks[kept]

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
            found[part] = differences(thumbnails_M[queries[part]], self.thumbnails[rows[part]], shown)
        return found


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
