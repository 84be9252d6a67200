"""Noisy captions of the made world, in place of the image-text pairs that a web crawl gives.

They are noisy in the ways alt texts are (arXiv 2111.08687 trains its amateur on such pairs): they leave most of a
scene out, name things loosely, and are wrong now and then. All words come from ``VOCABULARY``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from intern_vision.data.world_names import (
    BACKGROUNDS,
    COLOURS,
    CONCEPT_PARENTS,
    CONCEPTS,
    FAMILIES,
    SHAPES,
    SIZES,
    SYNONYMS,
    TEXTURES,
)

_PREFIXES = (
    "a photo of",
    "a picture of",
    "an image of",
    "a view of",
    "there is",
    "here is",
    "this is",
    "we see",
    "look",
    "my",
    "",
)
_RELATIONS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "front": ("in front of", "closer than"),
    "behind": ("behind", "farther than"),
    "none": ("and", "with", "beside", "near", "next to"),
}
_DETERMINERS = ("a", "a", "the", "one", "some")
_PLACES = ("in the", "at the", "on the")
_PHRASES = (*_PREFIXES, *_PLACES, *(phrase for phrases in _RELATIONS.values() for phrase in phrases), *_DETERMINERS)
VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {*CONCEPTS, *SIZES, *BACKGROUNDS, *SYNONYMS.values()} | {word for phrase in _PHRASES for word in phrase.split()}
    )
)
MAX_CAPTION_WORDS = 20

COLOUR_RATE = 0.7
TEXTURE_RATE = 0.5
SIZE_RATE = 0.3
BACKGROUND_RATE = 0.35
WRONG_RATE = 0.06
FAMILY_WORD_RATE = 0.12
SYNONYM_RATE = 0.35
TWO_OBJECTS_RATE = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a caption can say about one visible object.

    Attributes:
        shape: one of ``SHAPES``.
        texture: one of ``TEXTURES``.
        colour: one of ``COLOURS``.
        size: one of ``SIZES``.
        x: horizontal centre as a share of the image width.
        depth_m: distance along the optical axis in metres.
    """

    shape: str
    texture: str
    colour: str
    size: str
    x: float
    depth_m: float


def caption_scene(rng: np.random.Generator, objects: Sequence[Described], background: str) -> str:
    """Writes a noisy caption of one or two of the objects.

    Every attribute that is said (shape, colour, texture, size, background, relation) is wrong with ``WRONG_RATE``.

    Args:
        rng: the scene's own random stream.
        objects: visible objects, at least one.
        background: one of ``BACKGROUNDS``.

    Returns:
        At most ``MAX_CAPTION_WORDS`` words of ``VOCABULARY``, separated by single spaces.
    """
    order = rng.permutation(len(objects))
    parts = [pick(rng, _PREFIXES), _phrase(rng, objects[order[0]])]
    if len(objects) > 1 and rng.random() < TWO_OBJECTS_RATE:
        first, second = objects[order[0]], objects[order[1]]
        parts += [pick(rng, _RELATIONS[_relation(rng, first, second)]), _phrase(rng, second)]
    if rng.random() < BACKGROUND_RATE:
        parts += [pick(rng, _PLACES), _word(rng, background, BACKGROUNDS)]
    return " ".join(part for part in parts if part)


def _phrase(rng: np.random.Generator, item: Described) -> str:
    words = [pick(rng, _DETERMINERS)]
    if rng.random() < SIZE_RATE:
        words.append(_word(rng, item.size, SIZES))
    if rng.random() < TEXTURE_RATE:
        words.append(_word(rng, item.texture, TEXTURES))
    if rng.random() < COLOUR_RATE:
        words.append(_word(rng, item.colour, COLOURS))
    if rng.random() < FAMILY_WORD_RATE:
        words.append(_word(rng, CONCEPT_PARENTS[item.shape], FAMILIES))
    else:
        words.append(_word(rng, item.shape, SHAPES))
    return " ".join(words)


def _relation(rng: np.random.Generator, first: Described, second: Described) -> str:
    """A relation that holds by a clear margin, from the camera's point of view; ``none`` where there is none."""
    if rng.random() < WRONG_RATE:
        return pick(rng, ("left", "right", "front", "behind"))
    holding = ["none"]
    if abs(first.x - second.x) > 0.12:
        holding += 2 * ["left" if first.x < second.x else "right"]
    if abs(first.depth_m - second.depth_m) > 0.5:
        holding += 2 * ["front" if first.depth_m < second.depth_m else "behind"]
    return pick(rng, holding)


def _word(rng: np.random.Generator, truth: str, choices: Sequence[str]) -> str:
    word = pick(rng, [other for other in choices if other != truth]) if rng.random() < WRONG_RATE else truth
    return SYNONYMS[word] if rng.random() < SYNONYM_RATE else word


def pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    """One of the choices, each as likely as the others; several times faster than ``rng.choice``."""
    return choices[int(rng.random() * len(choices))]
