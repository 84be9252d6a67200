"""WordNet's nouns from its dictionary files, in the format of wndb(5WN); the files are the user's own copy."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from intern_vision.data.labels.concept import ENGLISH, Concept, LabelSystem
from intern_vision.errors import DataError

DATA_FILE, INDEX_FILE, EXCEPTIONS_FILE = "data.noun", "index.noun", "noun.exc"
_HYPERNYMS = ("@", "@i")
"""Pointers to what a noun is: kind of, and instance of."""


@dataclass(slots=True, frozen=True, kw_only=True)
class WordNet:
    """What the three files of nouns hold.

    Attributes:
        system: a concept a synset; its id is ``n`` and the 8 digits of its place in ``data.noun``.
        senses: ids by lemma (lower case, with spaces), the most frequent sense first.
        exceptions: irregular plural to its singulars.
    """

    system: LabelSystem
    senses: dict[str, tuple[str, ...]]
    exceptions: dict[str, tuple[str, ...]]


def read_wordnet(folder: Path) -> WordNet:
    """Reads ``data.noun``, ``index.noun`` and, where it is there, ``noun.exc``.

    Raises:
        DataError: a missing file, or the line that is not in the format.
    """
    concepts, parents = [], {}
    for number, line in _lines(folder / DATA_FILE):
        try:
            concept, own = _synset(line)
        except (ValueError, IndexError):
            raise _fault(folder / DATA_FILE, number, line) from None
        concepts.append(concept)
        parents[concept.id] = own
    senses = {}
    for number, line in _lines(folder / INDEX_FILE):
        try:
            lemma, ids = _index_entry(line)
        except (ValueError, IndexError):
            raise _fault(folder / INDEX_FILE, number, line) from None
        senses[lemma] = ids
    exceptions: dict[str, tuple[str, ...]] = {}
    if (folder / EXCEPTIONS_FILE).exists():
        for _, line in _lines(folder / EXCEPTIONS_FILE):
            plural, *singulars = line.split()
            exceptions[plural.replace("_", " ")] = tuple(word.replace("_", " ") for word in singulars)
    try:
        return WordNet(system=LabelSystem(concepts, parents), senses=senses, exceptions=exceptions)
    except DataError as error:
        raise DataError(f"{folder / DATA_FILE}: {error}") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                # The licence stands at the top in lines that begin with two spaces.
                if line.strip() and not line.startswith("  "):
                    yield number, line.rstrip("\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give the folder dict/ of a WordNet release") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file ({error})") from None


def _synset(line: str) -> tuple[Concept, list[str]]:
    data, _, gloss = line.partition("|")
    fields = data.split()
    id, num_words = _id(fields[0]), int(fields[3], 16)
    # Each word is followed by a digit that tells it apart from the same word in other files.
    words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * num_words : 2]]
    at = 4 + 2 * num_words
    num_pointers = int(fields[at])
    pointers = [fields[at + 1 + 4 * i : at + 5 + 4 * i] for i in range(num_pointers)]
    if fields[2] != "n" or len(words) != num_words or any(len(pointer) != 4 for pointer in pointers):
        raise ValueError("another format")
    parents = [_id(offset) for symbol, offset, part, _ in pointers if symbol in _HYPERNYMS and part == "n"]
    description = {ENGLISH: gloss.strip()} if gloss.strip() else {}
    return Concept(id=id, names={ENGLISH: tuple(words)}, descriptions=description), parents


def _index_entry(line: str) -> tuple[str, tuple[str, ...]]:
    fields = line.split()
    num_senses, num_symbols = int(fields[2]), int(fields[3])
    offsets = fields[6 + num_symbols :]
    if fields[1] != "n" or len(offsets) != num_senses:
        raise ValueError("another format")
    return fields[0].replace("_", " "), tuple(_id(offset) for offset in offsets)


def _id(offset: str) -> str:
    if len(offset) != 8 or not offset.isdigit():
        raise ValueError("no offset")
    return f"n{offset}"


def _fault(path: Path, number: int, line: str) -> DataError:
    return DataError(f"{path}:{number}: expected a line of {path.name} as in wndb(5WN), got {line[:60]!r}")
