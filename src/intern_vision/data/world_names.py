"""Names of everything in the made world, with no heavy import: shapes, textures, colours, sizes, places, concepts."""

FAMILY_SHAPES: dict[str, tuple[str, ...]] = {
    "round": ("disc", "ring", "oval", "crescent"),
    "polygon": ("triangle", "square", "pentagon", "hexagon"),
    "star": ("spark", "pentagram", "sunburst", "gear"),
    "bar": ("cross", "tee", "ell", "zed"),
    "pointer": ("arrow", "chevron", "drop", "kite"),
    "toy": ("house", "tree", "cup", "mushroom"),
}
FAMILIES = tuple(FAMILY_SHAPES)
SHAPES = tuple(shape for shapes in FAMILY_SHAPES.values() for shape in shapes)
TEXTURES = ("plain", "striped", "checked", "dotted", "ringed", "zigzag", "gridded", "speckled")
COLOUR_RGB: dict[str, tuple[float, float, float]] = {
    "red": (0.84, 0.12, 0.12),
    "orange": (0.95, 0.52, 0.08),
    "yellow": (0.94, 0.85, 0.16),
    "green": (0.15, 0.60, 0.18),
    "teal": (0.10, 0.72, 0.70),
    "blue": (0.14, 0.28, 0.86),
    "purple": (0.50, 0.16, 0.68),
    "pink": (0.96, 0.52, 0.72),
    "brown": (0.45, 0.27, 0.12),
    "gray": (0.55, 0.55, 0.57),
}
COLOURS = tuple(COLOUR_RGB)
SIZE_RADIUS_M: dict[str, float] = {"small": 0.45, "medium": 0.62, "large": 0.85}
SIZES = tuple(SIZE_RADIUS_M)
BACKGROUNDS = ("meadow", "desert", "snow", "beach", "forest", "town")

CONCEPTS = FAMILIES + SHAPES + TEXTURES + COLOURS
CONCEPT_PARENTS: dict[str, str] = {shape: family for family, shapes in FAMILY_SHAPES.items() for shape in shapes}

# Downstream only.
NOVEL_SHAPES = ("heart", "key", "hourglass", "dumbbell", "pacman", "fork", "bolt", "flag")
NOVEL_TEXTURES = ("brick", "honeycomb", "scaly", "woven", "plaid", "cracked", "wavy", "sawtooth")
SKETCH_SHAPES = (
    "fish",
    "umbrella",
    "anchor",
    "bottle",
    "sailboat",
    "crown",
    "glasses",
    "bell",
    *NOVEL_SHAPES[:3],
    "bolt",
)

CENTRE_SHAPES = ("disc", "ring", "square", "cross")
NUM_SPECIES = 102
"""As many as Flowers-102 has."""


def _species() -> tuple[tuple[int, str, str, str], ...]:
    """Flower species that differ from each other in two things or more; each that does is taken, in a mixed order."""
    colours, petals = tuple(COLOUR_RGB), range(3, 9)
    found: list[tuple[int, str, str, str]] = []
    for number in range(len(petals) * len(colours) ** 2 * len(CENTRE_SHAPES)):
        rest, petal = divmod(number * 577, len(petals))  # a prime that divides no count: every flower comes once
        rest, outer = divmod(rest, len(colours))
        rest, inner = divmod(rest, len(colours))
        one = (petals[petal], colours[outer], colours[inner], CENTRE_SHAPES[rest % len(CENTRE_SHAPES)])
        if one[1] != one[2] and all(sum(a != b for a, b in zip(one, other, strict=True)) >= 2 for other in found):
            found.append(one)
    return tuple(found[:NUM_SPECIES])


SPECIES = _species()
"""Number of petals, their colour, the centre's colour and the centre's shape of each species."""
SPECIES_NAMES = tuple(f"{petals} {outer} petals, {inner} {centre}" for petals, outer, inner, centre in SPECIES)

MAX_DEPTH_M = 10.0

SYNONYMS: dict[str, str] = {
    "disc": "circle",
    "ring": "hoop",
    "oval": "ellipse",
    "crescent": "moon",
    "triangle": "wedge",
    "square": "box",
    "pentagon": "pentagonal",
    "hexagon": "hexagonal",
    "spark": "twinkle",
    "pentagram": "pentacle",
    "sunburst": "sun",
    "gear": "cog",
    "cross": "plus",
    "tee": "t",
    "ell": "corner",
    "zed": "z",
    "arrow": "dart",
    "chevron": "caret",
    "drop": "teardrop",
    "kite": "rhombus",
    "house": "home",
    "tree": "pine",
    "cup": "mug",
    "mushroom": "toadstool",
    "round": "blob",
    "polygon": "block",
    "star": "spiky",
    "bar": "strip",
    "pointer": "pointy",
    "toy": "object",
    "plain": "solid",
    "striped": "stripy",
    "checked": "checkered",
    "dotted": "spotted",
    "ringed": "banded",
    "zigzag": "jagged",
    "gridded": "lattice",
    "speckled": "grainy",
    "red": "crimson",
    "orange": "amber",
    "yellow": "golden",
    "green": "emerald",
    "teal": "turquoise",
    "blue": "navy",
    "purple": "violet",
    "pink": "rosy",
    "brown": "tan",
    "gray": "grey",
    "small": "little",
    "medium": "regular",
    "large": "big",
    "meadow": "grass",
    "desert": "dunes",
    "snow": "winter",
    "beach": "sea",
    "forest": "woods",
    "town": "city",
}
