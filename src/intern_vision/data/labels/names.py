"""When two class names are spelled alike: case, separators, articles and plurals.

Plurals follow the detachment rules of WordNet's morphy (morphy(7WN)). They may give a word that does not exist
("glasse"); this does no harm, because a form counts only where a vocabulary has that very name. A table of whole
words, as lemma libraries bring, would have to be kept up for species and products, which it does not hold.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

_DETACHED = (
    ("ches", "ch"),
    ("shes", "sh"),
    ("sses", "ss"),
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ies", "y"),
    ("ves", "f"),
    ("ves", "fe"),
    ("oes", "o"),
    ("men", "man"),
    ("s", ""),
)
_IRREGULAR = {
    "people": "person",
    "children": "child",
    "mice": "mouse",
    "geese": "goose",
    "feet": "foot",
    "teeth": "tooth",
    "oxen": "ox",
    "cacti": "cactus",
    "fungi": "fungus",
}
# Words in these endings are no plurals: glass, octopus, tennis.
_SINGULAR_ENDINGS = ("ss", "us", "is")
_MIN_PLURAL_LETTERS = 4
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SEPARATORS = re.compile(r"[\s_\-/.,:;()]+")
_ARTICLES = ("a", "an", "the")
_TOKEN = re.compile(r"[^\W_]+")
_MIN_FOUND_LETTERS = 3


def folded(name: str) -> str:
    """The name without differences of case and outer or repeated spaces; what an exact match compares."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def surface(name: str) -> str:
    """The name's letters and digits in one piece: ``Hot_dog``, ``the hot-dog`` and ``hotDog`` are ``hotdog``."""
    return "".join(_words(name))


def lemma_forms(name: str, exceptions: Mapping[str, tuple[str, ...]] | None = None) -> frozenset[str]:
    """Surfaces of the name itself and of its singulars, where its last word is a plural.

    Args:
        name: a class name.
        exceptions: irregular plural to its singulars, such as WordNet's noun.exc; ``None`` = a few common ones.
    """
    words = _words(name)
    if not words:
        return frozenset()
    *first, last = words
    return frozenset("".join((*first, form)) for form in (last, *_singulars(last, exceptions)))


class NameFinder:
    """Finds names of concepts in running text.

    A name is found as whole words, whatever their case and the signs between them, also with its last word in the
    plural: *traffic lights* holds *traffic light* and *light*. Names of fewer than three letters are not looked for.

    Args:
        names: pairs of a name and the id of what it means; one name may mean several.
    """

    def __init__(self, names: Iterable[tuple[str, str]]) -> None:
        self._ids: dict[str, frozenset[str]] = {}
        self._max_words = 0
        for name, id in names:
            words = _tokens(_CAMEL.sub(" ", name))
            key = "".join(words)
            self._ids[key] = self._ids.get(key, frozenset()) | {id}
            self._max_words = max(self._max_words, len(words))

    def __len__(self) -> int:
        """Number of different names."""
        return len(self._ids)

    def named(self, name: str) -> frozenset[str]:
        """Ids that a whole name means."""
        words = _tokens(_CAMEL.sub(" ", name))
        return frozenset().union(*(self._ids.get(form, ()) for form in _phrase_forms(words)))

    def find(self, text: str) -> frozenset[str]:
        """Ids that any words of a text mean."""
        words = _tokens(text)
        found: set[str] = set()
        for start in range(len(words)):
            for end in range(start + 1, min(start + self._max_words, len(words)) + 1):
                for form in _phrase_forms(words[start:end]):
                    if len(form) >= _MIN_FOUND_LETTERS:
                        found |= self._ids.get(form, frozenset())
        return frozenset(found)


def _tokens(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", text).casefold().replace("'", "").replace("’", "")
    return _TOKEN.findall(folded)


def _phrase_forms(words: Sequence[str]) -> list[str]:
    """The words in one piece, and the same with a singular of the last one."""
    if not words:
        return []
    head = "".join(words[:-1])
    return [head + form for form in (words[-1], *_common_singulars(words[-1]))]


@lru_cache(maxsize=2**16)
def _common_singulars(word: str) -> tuple[str, ...]:
    return tuple(_singulars(word, None))


def _words(name: str) -> list[str]:
    text = unicodedata.normalize("NFKC", _CAMEL.sub(" ", name)).casefold().replace("'", "").replace("’", "")
    words = [word for word in _SEPARATORS.split(text) if word]
    return words[1:] if len(words) > 1 and words[0] in _ARTICLES else words


def _singulars(word: str, exceptions: Mapping[str, tuple[str, ...]] | None) -> list[str]:
    found = list((exceptions or {}).get(word, ()))
    if word in _IRREGULAR:
        found.append(_IRREGULAR[word])
    if len(word) >= _MIN_PLURAL_LETTERS and not word.endswith(_SINGULAR_ENDINGS):
        found += [word.removesuffix(end) + new for end, new in _DETACHED if word.endswith(end)]
    return found
