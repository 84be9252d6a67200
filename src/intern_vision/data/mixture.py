"""Several datasets as one: which source each position of a training draws from, and what a source leaves unknown."""

import functools
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from intern_vision.data.sample import IGNORE_LABEL, Sample
from intern_vision.data.settings import MixtureConfig
from intern_vision.errors import DataError

if TYPE_CHECKING:
    from intern_vision.data.loader import ShardSource
    from intern_vision.data.shard import DatasetInfo

MIN_BLOCKS = 1000
MIN_GRAIN_LENGTH = 2**16


def source_shares(num_samples: Sequence[int], temperature: float, weights: Sequence[float] = ()) -> list[float]:
    """Share of the drawn samples that each source gets, proportional to ``n ** temperature``; they sum to 1.

    1 draws every sample equally often, 0 every source; multilingual BERT's smoothing between the two. Where
    ``weights`` are given, the shares are in their ratio instead.
    """
    weights = weights or [count**temperature for count in num_samples]
    return [weight / sum(weights) for weight in weights]


def block_counts(
    num_samples: Sequence[int], temperature: float, block_size: int, weights: Sequence[float] = ()
) -> list[int]:
    """Blocks of each source in a virtual epoch: in the ratio of the shares, and enough for every sample to occur.

    The epoch is as long as the source with the lowest ``share / n`` needs to be seen whole once, and long
    enough for whole blocks to give the shares to a thousandth.

    Args:
        num_samples: of each source, at least 1.
        temperature: see ``source_shares``.
        block_size: samples that are drawn together from one source.
        weights: see ``source_shares``.
    """
    shares = source_shares(num_samples, temperature, weights)
    num_drawn = max(count / share for count, share in zip(num_samples, shares, strict=True))
    num_blocks = max(num_drawn / block_size, MIN_BLOCKS)
    return [
        max(round(share * num_blocks), -(-count // block_size))
        for count, share in zip(num_samples, shares, strict=True)
    ]


class MixtureSource:
    """Random access to the samples of several sources, one source after the other; the order does the mixing.

    A sample's ``source`` is the number of its source and its key begins with that source's name. What a
    source does not annotate is unknown: label -1, mask all 255, depth all 0, no boxes, no concepts.

    Attributes:
        infos: the datasets, in the order of their numbers.
        config: how they are mixed.
    """

    def __init__(self, sources: "Sequence[ShardSource]", fields: Sequence[str], config: MixtureConfig) -> None:
        """Keeps the sources.

        Args:
            sources: at least one; their names differ.
            fields: ``Sample`` fields that every sample shall have.
            config: temperature, and whether a batch comes from one source.

        Raises:
            DataError: no source at all, two of one name, or some with a weight and some without.
        """
        names = [source.info.name for source in sources]
        twice = [name for name in names if names.count(name) > 1]
        if twice or not names:
            raise DataError(
                f"data: expected sources with different names, got {', '.join(names) or 'none'}; "
                "prepare them under names of their own"
            )
        self.infos: tuple[DatasetInfo, ...] = tuple(source.info for source in sources)
        self._weights = tuple(info.weight for info in self.infos if info.weight)
        if len(self._weights) not in (0, len(names)):
            bare = next(info.name for info in self.infos if not info.weight)
            raise DataError(f"data: {bare} has no weight and others have one; write it with a weight, or all without")
        self.config = config
        self._sources = tuple(sources)
        self._lacking = [set(fields) - set(source.info.fields) for source in sources]
        self._starts = np.cumsum([0, *(len(source) for source in sources)]).tolist()

    def __len__(self) -> int:
        """Number of different samples."""
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        """The sample at ``index``, 0-based over all sources; called from several threads."""
        number, row = self.place(index)
        sample = self._sources[number][row]
        sample.key = f"{self.infos[number].name}/{sample.key}"
        sample.source = number
        _fill_unknown(sample, self._lacking[number])
        return sample

    def place(self, index: int) -> tuple[int, int]:
        """Source number and row of an index."""
        number = bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]

    def order(self, seed: int, batch_size: int) -> "MixtureOrder":
        """The order of a training; ``batch_size`` is the number of samples of a global batch."""
        block_size = batch_size if self.config.homogeneous else 1
        num_samples = np.diff(self._starts).tolist()
        return MixtureOrder(num_samples, self.config.temperature, block_size, seed, self._weights)


class MixtureOrder:
    """Index of the sample at each position of an endless training, a function of seed and position only.

    The sources' blocks (single samples, or whole batches) are shuffled over a virtual epoch. The samples of
    a source come in permutations of its own, so none comes twice before every other of it came once.
    """

    def __init__(
        self,
        num_samples: Sequence[int],
        temperature: float,
        block_size: int,
        seed: int,
        weights: Sequence[float] = (),
    ) -> None:
        """As ``block_counts``; ``seed`` decides the order."""
        self._block_size = block_size
        self._counts = block_counts(num_samples, temperature, block_size, weights)
        self._starts = np.cumsum([0, *num_samples]).tolist()
        self._block_starts = np.cumsum([0, *self._counts]).tolist()
        deck_seed, *seeds = np.random.SeedSequence(seed).generate_state(1 + len(num_samples)).tolist()
        self._deck = _shuffled(self._block_starts[-1], deck_seed)
        self._rows = [_shuffled(count, own) for count, own in zip(num_samples, seeds, strict=True)]

    def __getitem__(self, position: int) -> int:
        """Index into the ``MixtureSource``."""
        block, within = divmod(position, self._block_size)
        card = int(self._deck[block])
        number = bisect_right(self._block_starts, card) - 1
        # Each epoch of the deck holds every card once, so this numbers the source's blocks without a gap.
        epoch = block // self._block_starts[-1]
        ordinal = epoch * self._counts[number] + card - self._block_starts[number]
        return self._starts[number] + int(self._rows[number][ordinal * self._block_size + within])


class _Permutations:
    """Endless permutations of a small range, one after the other, made when first asked for."""

    def __init__(self, length: int, seed: int) -> None:
        self._length = length
        self._of_epoch = functools.lru_cache(maxsize=8)(
            lambda epoch: np.random.default_rng((seed, epoch)).permutation(length)
        )

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self._length)
        return self._of_epoch(epoch)[place]


def _shuffled(length: int, seed: int) -> Any:
    """A permutation of ``range(length)`` for each epoch, by position."""
    # Grain computes an element of a permutation without the others, but in milliseconds where the range is short.
    if length < MIN_GRAIN_LENGTH:
        return _Permutations(length, seed)
    import grain

    return grain.MapDataset.range(length).shuffle(seed)


def _fill_unknown(sample: Sample, fields: set[str]) -> None:
    size = sample.image.shape[:2]
    if "label" in fields:
        sample.label = -1
    if "concepts" in fields:
        sample.concepts = ()
    if fields & {"boxes", "box_labels"}:
        sample.boxes, sample.box_labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    if "mask" in fields:
        sample.mask = np.full(size, IGNORE_LABEL, np.uint8)
    if "depth" in fields:
        sample.depth = np.zeros(size, np.float32)
