"""Which images are the same: within a collection, and between it and another. N images, M of the other."""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from intern_vision.config import Config
from intern_vision.data.duplicates.groups import Links, as_links, digest_links, joined_links
from intern_vision.data.duplicates.near import MAX_DIFFERENCE, MAX_HASH_DISTANCE, PictureIndex, near_between
from intern_vision.data.duplicates.prints import Prints
from intern_vision.data.duplicates.search import MAX_SEARCH_DISTANCE, Hits, cosine_hits


class FindConfig(Config):
    """What counts as the same image; files of the same bytes always do.

    Attributes:
        perceptual: also images that look the same: saved anew, resized, grey, mirrored, cropped by up to a tenth of
            each side, or with something laid over a small part.
        max_hash_distance: bits by which hashes of candidates may differ; up to 5 bits none is missed.
        max_difference: variation that they may not share once aligned, in [0, 2].
        min_cosine: of the embeddings of the input ``model``, where there is one; 0 takes the least cosine that at most
            ``max_false_share`` of distinct images reach, as measured on some of the images.
        max_false_share: in [0, 1].
    """

    perceptual: bool = True
    max_hash_distance: int = Field(default=MAX_HASH_DISTANCE, ge=0, le=MAX_SEARCH_DISTANCE)
    max_difference: float = Field(default=MAX_DIFFERENCE, ge=0, le=0.5)
    min_cosine: float = Field(default=0.0, ge=0, le=1)
    max_false_share: float = Field(default=1e-3, gt=0, lt=1)


class ImageSet:
    """Images ready to be compared; of files of the same bytes one is looked at.

    Attributes:
        prints: the images.
        config: what counts as the same; its ``min_cosine`` is a number above 0 where there are embeddings.
    """

    def __init__(self, prints: Prints, config: FindConfig) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        self.prints = prints
        self.config = config
        is_looked_at = prints.rows["fault"].to_numpy() == ""
        self._digests = pc.if_else(pa.array(is_looked_at), prints.rows["digest"], "")
        self._exact = digest_links(self._digests)
        is_looked_at[self._exact.first] = False
        self._numbers = np.flatnonzero(is_looked_at)
        self._pictures: PictureIndex | None = None
        if config.perceptual:
            self._pictures = PictureIndex(
                self._looked_at(prints.thumbnails),
                max_hash_distance=config.max_hash_distance,
                max_difference=config.max_difference,
            )

    @property
    def num_plain(self) -> int:
        """Images too plain for their shape to be recognised; 0 where nobody looked."""
        return self._pictures.num_plain if self._pictures else 0

    @property
    def num_crowded(self) -> int:
        """Images that too many others resemble for all of them to be compared; known once links were asked for."""
        return self._pictures.num_crowded if self._pictures else 0

    def links(self) -> Links:
        """Pairs of the same image."""
        found = [self._exact]
        if self._pictures:
            found.append(self._own(as_links(self._pictures.pairs(), "perceptual"), self))
        if self.prints.embeddings is not None:
            vectors = self._looked_at(self.prints.embeddings)
            hits = cosine_hits(vectors, vectors, self.config.min_cosine)
            is_pair = hits.queries > hits.rows
            hits = Hits(hits.queries[is_pair], hits.rows[is_pair], hits.distances[is_pair])
            found.append(self._own(as_links(hits, "embedding"), self))
        return joined_links(*found)

    def links_to(self, other: "ImageSet") -> Links:
        """Pairs of an image here (``first``) that is also an image there (``second``), by any way."""
        found = [digest_links(self._digests, other._digests)]
        if self._pictures and other._pictures:
            found.append(self._own(as_links(near_between(self._pictures, other._pictures), "perceptual"), other))
        if self.prints.embeddings is not None and other.prints.embeddings is not None:
            own, others = self._looked_at(self.prints.embeddings), other._looked_at(other.prints.embeddings)
            found.append(self._own(as_links(cosine_hits(own, others, self.config.min_cosine), "embedding"), other))
        return joined_links(*found)

    def _looked_at(self, array: NDArray) -> NDArray:
        # A copy only where something is left out: the array may be larger than memory.
        return array if len(self._numbers) == len(array) else array[self._numbers]

    def _own(self, links: Links, other: "ImageSet") -> Links:
        return Links(self._numbers[links.first], other._numbers[links.second], links.methods, links.distances)
