"""Which training images a protocol uses: a rule of (keys, labels, seed) alone, so a split is a digest, not a file.

GV-B published its 10 % protocol but not its lists (Gvbenchmark, tools/data/data-prepare.md). What is known of them,
exactly two images a class of Flowers-102, fits a class-stratified draw; the rule here gives that draw. Every order
is by SHA-256 of ``"{seed}:{key}"``: it depends on neither file order nor platform nor random generator.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Sequence

from intern_vision.bench.comparisons import parse_protocol
from intern_vision.config import canonical_json, text_digest
from intern_vision.errors import ConfigError, DataError

Labels = Sequence[Hashable] | None

SPLIT_SEED = 2021
"""Seed of the main draw; few-shot draw number s uses this plus s."""
SHARES = (0.1, 1.0)
SHOTS = (1, 2, 4, 8, 16)
NUM_SHOT_SEEDS = 3
RECIPE_SUFFIXES = ("knn", "", "lora", "mf", "ft", "wise")
"""What follows the ``+`` in a protocol's name, in the order in which one is preferred to those before it."""


def stratified_share(keys: Sequence[str], labels: Labels, share: float, seed: int) -> list[str]:
    """Draws a share of every class: ``max(1, round_half_up(share * n_c))`` of its ``n_c`` images.

    Args:
        keys: unique sample keys, in any order.
        labels: class of each key; ``None`` draws uniformly, as from one class.
        share: in (0, 1].
        seed: which of the possible draws.

    Returns:
        The chosen keys, sorted.

    Raises:
        ConfigError: share out of range.
        DataError: a key occurs twice or the lengths differ.
    """
    _check_share(share)
    return sorted(
        key
        for members in _ranked_classes(keys, labels, seed)
        for key in members[: max(1, _round_half_up(share * len(members)))]
    )


def few_shot(keys: Sequence[str], labels: Labels, shots: int, seed: int) -> list[str]:
    """Draws ``shots`` images of every class, or all of a class that has fewer; sorted keys.

    A draw of k shots is contained in the draw of k + 1 shots of the same seed.

    Raises:
        ConfigError: ``shots`` is below 1.
        DataError: a key occurs twice or the lengths differ.
    """
    if shots < 1:
        raise ConfigError(f"shots: expected at least 1, got {shots}")
    return sorted(key for members in _ranked_classes(keys, labels, seed) for key in members[:shots])


def validation_split(keys: Sequence[str], labels: Labels, share: float, seed: int) -> tuple[list[str], list[str]]:
    """Holds out ``round_half_up(share * n)`` of all ``n`` images, evenly over the classes.

    Unlike ``stratified_share`` it takes no minimum from a class and never the last image of
    one: with two images a class, every class can still be trained on.

    Returns:
        Keys left for training and keys held out, each sorted.

    Raises:
        ConfigError: share out of range.
        DataError: a key occurs twice or the lengths differ.
    """
    _check_share(share)
    candidates = [
        ((rank + 0.5) / len(members), _rank_digest(key, seed), key)
        for members in _ranked_classes(keys, labels, seed)
        for rank, key in enumerate(members[:-1])
    ]
    held_out = {key for _, _, key in sorted(candidates)[: _round_half_up(share * len(keys))]}
    return sorted(set(keys) - held_out), sorted(held_out)


def rarest_classes(classes: Sequence[Collection[int]]) -> list[int]:
    """For each image the class of its own that the fewest images have, -1 where it has none.

    The stratum of a detection or segmentation image: a draw by it reaches the rare classes. Of equally rare
    classes the lower index is taken.

    Args:
        classes: class indices present in each image.
    """
    counts = Counter(index for present in classes for index in set(present))
    return [min(present, key=lambda index: (counts[index], index), default=-1) for present in classes]


def split_digests(
    keys: Sequence[str],
    labels: Labels,
    seed: int = SPLIT_SEED,
    *,
    shares: Sequence[float] = SHARES,
    shots: Sequence[int] = SHOTS,
    num_shot_seeds: int = NUM_SHOT_SEEDS,
) -> dict[str, dict[str, int | str]]:
    """Number of images and list digest of every draw of a training set, by protocol name.

    Args:
        keys: the training images' keys, in any order.
        labels: class (or stratum) of each key.
        seed: of the draw rule.
        shares: shares in (0, 1].
        shots: images a class of the few-shot draws.
        num_shot_seeds: few-shot draws of each size.

    Raises:
        ConfigError: a share or a number of shots out of range.
        DataError: a key occurs twice or the lengths differ.
    """
    lists = {share_name(share): stratified_share(keys, labels, share, seed) for share in shares}
    for number in shots:
        for draw in range(num_shot_seeds):
            lists[shot_name(number, draw)] = few_shot(keys, labels, number, seed + draw)
    return {name: {"num": len(chosen), "digest": list_digest(chosen)} for name, chosen in lists.items()}


def share_name(share: float) -> str:
    """A share as a protocol's name: 0.1 is ``10``."""
    return f"{100 * share:g}"


def shot_name(shots: int, seed: int) -> str:
    """A few-shot draw as a protocol's name: 4 images a class, draw 0, is ``4shot.0``."""
    return f"{shots}shot.{seed}"


def protocol_rank(name: str) -> tuple[float, int]:
    """Sorts protocols: fewer labels first, then by recipe in the order of ``RECIPE_SUFFIXES``.

    Few-shot draws come before every share but zero-shot, the smaller first.

    Raises:
        ConfigError: ``name`` is no protocol's.
    """
    try:
        parts = parse_protocol(name)
        recipes = [RECIPE_SUFFIXES.index(suffix) for suffix in parts.suffixes or ("",)]
    except ValueError:
        suffixes = ", ".join(f"+{suffix}" for suffix in RECIPE_SUFFIXES if suffix)
        raise ConfigError(
            f"protocol: expected PERCENT or NUMBERshot.SEED, alone or with one of {suffixes}; got {name!r}"
        ) from None
    return (1e-9 * (parts.shots or 0) if parts.percent is None else parts.percent), max(recipes)


def list_digest(keys: Sequence[str]) -> str:
    """SHA-256 of the sorted keys, 64 hexadecimal digits: names a split in a report."""
    return text_digest(canonical_json(sorted(keys)))


def _ranked_classes(keys: Sequence[str], labels: Labels, seed: int) -> list[list[str]]:
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if list(keys).count(key) > 1)
        raise DataError(f"key {twice!r} occurs twice; keys must be unique")
    if labels is not None and len(labels) != len(keys):
        raise DataError(f"{len(keys)} keys but {len(labels)} labels; give one label a key")
    classes: dict[Hashable, list[str]] = {}
    for index, key in enumerate(keys):
        classes.setdefault(None if labels is None else labels[index], []).append(key)
    return [sorted(members, key=lambda key: _rank_digest(key, seed)) for members in classes.values()]


def _rank_digest(key: str, seed: int) -> str:
    return text_digest(f"{seed}:{key}")


def _round_half_up(value: float) -> int:
    # 0.1 * 15 is a little above 1.5 and 0.1 * 35 a little below 3.5 in binary; nine decimals restore both.
    return int(round(value, 9) + 0.5)


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ConfigError(f"share: expected a number in (0, 1], got {share}")
