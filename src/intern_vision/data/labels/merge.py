"""Merges the vocabularies of any number of datasets into one label system.

A class is looked for by its stated concept id, its exact name, its lemma, its synonyms and, where names can be
embedded, by the nearest name. What is certain merges; what is not stays a concept of its own until a person decides.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from intern_vision.config import Config, text_digest
from intern_vision.data.labels.concept import ENGLISH, Concept, LabelSystem
from intern_vision.data.labels.names import folded, lemma_forms, surface
from intern_vision.data.labels.vocabulary import Vocabulary, VocabularyClass, shipped_synonyms
from intern_vision.errors import DataError

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Names to vectors: ``(num_names, width)`` float32 of length 1."""

MatchKind = Literal["id", "exact", "lemma", "synonym", "embedding", "decided", "new"]
CONFIDENCE: Mapping[str, float] = {"id": 1.0, "exact": 1.0, "lemma": 0.95, "synonym": 0.9, "decided": 1.0, "new": 1.0}
SECOND_NAME = 0.7
"""Confidence of a match with one of several names of a concept: *roundabout* is a second name of *carousel* too."""
UNSURE = 0.5
"""Confidence of a match by name that has another candidate, or whose classes are known to differ in kind."""
SAME, NEW = "same", "new"
_OWN_ID = re.compile(r"c\d{10}")


class MergeConfig(Config):
    """When a match counts.

    Attributes:
        min_confidence: confidence from which a match by name merges without a person.
        min_similarity: cosine from which an embedding's nearest name is proposed for review.
        accept_similarity: cosine from which it is taken without a person; above 1 = never.
    """

    min_confidence: float = Field(default=0.8, ge=0, le=1)
    min_similarity: float = Field(default=0.8, ge=-1, le=1)
    accept_similarity: float = Field(default=1.01, ge=0)


@dataclass(slots=True, frozen=True, kw_only=True)
class ClassMapping:
    """Where a class of a vocabulary went.

    Attributes:
        vocabulary: the vocabulary's name.
        family: its task family.
        index: the class's index there.
        class_name: as the dataset spells it.
        concept: id of the concept it belongs to.
        kind: how it was found; ``new`` where nothing was, and for an uncertain class the kind of what is proposed.
        confidence: in [0, 1]; of the proposal for an uncertain class.
        proposal: id of the concept it may be the same as, where that is not certain.
        decision: what a person decided: ``same``, ``new`` or an id; empty where nobody did.
    """

    vocabulary: str
    family: str
    index: int
    class_name: str
    concept: str
    kind: MatchKind
    confidence: float
    proposal: str = ""
    decision: str = ""

    @property
    def is_uncertain(self) -> bool:
        """Whether a person has to decide."""
        return bool(self.proposal) and not self.decision


@dataclass(slots=True, frozen=True, kw_only=True)
class Merged:
    """A label system and how each class got into it; ``mappings`` in the order of vocabularies and classes."""

    system: LabelSystem
    mappings: tuple[ClassMapping, ...]


@dataclass(slots=True, kw_only=True)
class _Node:
    id: str
    names: list[str]
    sources: list[str]
    about: set[str]
    unlike: set[str] = field(default_factory=set)
    base: Concept | None = None
    stated: str = ""
    """Its id in WordNet or Wikidata, where that is known."""

    @property
    def name(self) -> str:
        return self.names[0] if self.names else self.base.name if self.base else self.id


@dataclass(slots=True, frozen=True)
class _Match:
    id: str
    kind: MatchKind
    confidence: float
    certain: bool


def merge(
    vocabularies: Sequence[Vocabulary],
    *,
    base: LabelSystem | None = None,
    config: MergeConfig | None = None,
    decisions: Mapping[tuple[str, str, int], str] | None = None,
    synonyms: Iterable[Sequence[str]] | None = None,
    exceptions: Mapping[str, tuple[str, ...]] | None = None,
    senses: Mapping[str, tuple[str, ...]] | None = None,
    embed: Embed | None = None,
) -> Merged:
    """Merges vocabularies, in their order, into ``base``.

    Args:
        vocabularies: a pair of name and family may occur once.
        base: concepts that are there beforehand, with their edges.
        config: when a match by embedding counts.
        decisions: ``new``, or the id of a concept that the class belongs to, by vocabulary, family and index.
        synonyms: groups of names of one meaning; ``None`` = the shipped ones.
        exceptions: irregular plurals, as WordNet's ``noun.exc`` lists them.
        senses: ids in ``base`` by name, the most frequent first, as WordNet's ``index.noun`` lists them.
        embed: of names; without it no embedding match.

    Raises:
        DataError: two vocabularies of one name and family, a decision for a class or concept that is not there, or
            parents that form a cycle.
    """
    keys = [(vocabulary.name, vocabulary.family) for vocabulary in vocabularies]
    for key in keys:
        if keys.count(key) > 1:
            raise DataError(f"vocabulary {key[0]}: given twice for family {key[1]}; rename one or leave it out")
    groups = shipped_synonyms() if synonyms is None else synonyms
    merger = _Merger(base, config or MergeConfig(), groups, exceptions or {}, senses or {})
    if embed is not None:
        merger.embed_names(vocabularies, embed)
    left = dict(decisions or {})
    mappings = [
        merger.take(vocabulary, index, left.pop((vocabulary.name, vocabulary.family, index), ""))
        for vocabulary in vocabularies
        for index in range(len(vocabulary.classes))
    ]
    if left:
        name, family, index = next(iter(left))
        raise DataError(f"decision for {name} ({family}), class {index}: no such class is merged; remove the row")
    return Merged(system=merger.finish(), mappings=tuple(mappings))


class _Merger:
    def __init__(
        self,
        base: LabelSystem | None,
        config: MergeConfig,
        synonyms: Iterable[Sequence[str]],
        exceptions: Mapping[str, tuple[str, ...]],
        senses: Mapping[str, tuple[str, ...]],
    ) -> None:
        self.config = config
        self.exceptions, self.senses = exceptions, senses
        self.nodes: dict[str, _Node] = {}
        self.parents: dict[str, list[str]] = {}
        self.by_stated: dict[str, str] = {}
        self.taken: set[tuple[str, str, str]] = set()
        # Concepts by the spelling of their first names (exact and lemma) and of their second ones.
        self.exact: dict[str, dict[str, None]] = {}
        self.first: dict[str, dict[str, None]] = {}
        self.plural: dict[str, dict[str, None]] = {}
        self.second: dict[str, dict[str, None]] = {}
        self.vectors: dict[str, NDArray[np.float32]] = {}
        # Concepts that have a vector, in the order of the rows; there is room for all that may come.
        self.embedded: list[str] = []
        self.rows_ND = np.empty((0, 0), np.float32)
        self.groups: dict[str, tuple[str, ...]] = {}
        for group in synonyms:
            for name in group:
                self.groups[surface(name)] = tuple(group)
        for id, concept in (base.concepts if base else {}).items():
            names = list(concept.names.get(ENGLISH, ()))
            stated = next(iter(concept.same_as), "") if _OWN_ID.fullmatch(id) else id
            node = _Node(id=id, names=names, sources=list(concept.sources), about=set(), base=concept, stated=stated)
            self._add(node)
            self.by_stated |= dict.fromkeys(concept.same_as, id)
            self.parents[id] = list(base.parents(id)) if base else []

    def embed_names(self, vocabularies: Sequence[Vocabulary], embed: Embed) -> None:
        """Embeds every name once, in one call."""
        names = dict.fromkeys(_plain(item.name) for vocabulary in vocabularies for item in vocabulary.classes)
        names |= dict.fromkeys(node.name for node in self.nodes.values())
        vectors_ND = np.asarray(embed(list(names)), np.float32)
        if vectors_ND.ndim != 2 or len(vectors_ND) != len(names):
            raise DataError(f"embedding: expected ({len(names)}, width) vectors, got {vectors_ND.shape}")
        self.vectors = dict(zip(names, vectors_ND, strict=True))
        num_classes = sum(len(vocabulary.classes) for vocabulary in vocabularies)
        # A class may add itself and its parent.
        self.rows_ND = np.empty((len(self.nodes) + 2 * num_classes, vectors_ND.shape[1]), np.float32)
        for node in self.nodes.values():
            self._embed(node)

    def take(self, vocabulary: Vocabulary, index: int, decision: str) -> ClassMapping:
        """Finds or makes the concept of a class and tells how."""
        item = vocabulary.classes[index]
        match = self._match(vocabulary, item)
        own = match is None or not match.certain
        kind: MatchKind = match.kind if match else "new"
        proposal = match.id if match and not match.certain else ""
        if decision:
            kind, own = "decided", decision == NEW
        if own:
            id = self._new(vocabulary, item)
        elif decision:
            id = decision = self._decided(vocabulary, index, decision)
        else:
            id = match.id  # type: ignore[union-attr]
        self._join(id, vocabulary, item)
        confidence = CONFIDENCE["decided"] if decision else match.confidence if match else CONFIDENCE["new"]
        return ClassMapping(
            vocabulary=vocabulary.name,
            family=vocabulary.family,
            index=index,
            class_name=item.name,
            concept=id,
            kind=kind,
            confidence=round(confidence, 4),
            proposal=proposal,
            decision=decision,
        )

    def finish(self) -> LabelSystem:
        """The label system of all that was taken."""
        concepts = []
        for id, node in self.nodes.items():
            names = {ENGLISH: tuple(dict.fromkeys(node.names))} if node.names else {}
            sources = tuple(dict.fromkeys(node.sources))
            base = node.base
            same_as = dict.fromkeys([*(base.same_as if base else ()), node.stated])
            concepts.append(
                Concept(
                    id=id,
                    names={**base.names, **names} if base else names,
                    descriptions=base.descriptions if base else {},
                    # What a dataset of images annotates can be seen.
                    visual=base.visual if base and base.visual is not None else (True if sources else None),
                    common=base.common if base else None,
                    sources=sources,
                    same_as=tuple(other for other in same_as if other not in ("", id)),
                )
            )
        return LabelSystem(concepts, self.parents)

    def _match(self, vocabulary: Vocabulary, item: VocabularyClass) -> _Match | None:
        if item.concept in self.nodes or item.concept in self.by_stated:
            id = self.by_stated.get(item.concept, item.concept)
            return _Match(id, "id", CONFIDENCE["id"], True)
        grouped = [id for name in self.groups.get(surface(item.name), ()) for id in self._by_lemma(name)]
        tries: tuple[tuple[MatchKind, float, Iterable[str]], ...] = (
            ("exact", CONFIDENCE["exact"], self.exact.get(folded(item.name), ())),
            ("lemma", CONFIDENCE["lemma"], self._by_lemma(item.name)),
            ("synonym", CONFIDENCE["synonym"], grouped),
            ("synonym", SECOND_NAME, self._by_second_name(item)),
        )
        for kind, confidence, found in tries:
            fitting = [id for id in dict.fromkeys(found) if self._may_mean(id, item)]
            if fitting:
                return self._judged(kind, confidence, fitting, vocabulary, item)
        return self._nearest(vocabulary, item)

    def _judged(
        self, kind: MatchKind, confidence: float, fitting: list[str], vocabulary: Vocabulary, item: VocabularyClass
    ) -> _Match:
        """The likeliest of the concepts that the name fits, and whether that is beyond doubt."""
        senses = self.senses.get(folded(_plain(item.name)), ())
        best = min(fitting, key=lambda id: senses.index(id) if id in senses else len(senses))
        if senses == (best,):
            # A dictionary that knows one meaning of the name rules the others out.
            confidence = max(confidence, CONFIDENCE["synonym"])
        if (len(fitting) > 1 and senses != (best,)) or not self._is_free(best, vocabulary):
            confidence = min(confidence, UNSURE)
        return _Match(best, kind, confidence, confidence >= self.config.min_confidence)

    def _by_lemma(self, name: str) -> list[str]:
        forms = lemma_forms(name, self.exceptions)
        found = [id for form in sorted(forms) for id in self.first.get(form, ())]
        return list(dict.fromkeys([*found, *self.plural.get(surface(name), ())]))

    def _by_second_name(self, item: VocabularyClass) -> list[str]:
        found = [id for name in item.synonyms for id in self._by_lemma(name)]
        found += [id for form in sorted(lemma_forms(item.name, self.exceptions)) for id in self.second.get(form, ())]
        return list(dict.fromkeys(found))

    def _nearest(self, vocabulary: Vocabulary, item: VocabularyClass) -> _Match | None:
        vector_D = self.vectors.get(_plain(item.name))
        if vector_D is None:
            return None
        similarity_N = self.rows_ND[: len(self.embedded)] @ vector_D
        for row in np.argsort(-similarity_N, kind="stable"):
            similarity, id = float(similarity_N[row]), self.embedded[row]
            if similarity < self.config.min_similarity:
                break
            if self._may_mean(id, item) and self._is_free(id, vocabulary):
                certain = similarity >= self.config.accept_similarity
                return _Match(id, "embedding", min(similarity, 1.0), certain)
        return None

    def _may_mean(self, id: str, item: VocabularyClass) -> bool:
        """Not where both have a stated id, or one is known not to be the other: two meanings of one word."""
        node = self.nodes[id]
        return not ((item.concept and node.stated) or node.stated in item.unlike or item.concept in node.unlike)

    def _is_free(self, id: str, vocabulary: Vocabulary) -> bool:
        """Whether the words are of one kind, and no other class of the vocabulary is this concept already."""
        about = self.nodes[id].about
        is_kind = not about or vocabulary.about in about
        return is_kind and (id, vocabulary.name, vocabulary.family) not in self.taken

    def _decided(self, vocabulary: Vocabulary, index: int, decision: str) -> str:
        id = self.by_stated.get(decision, decision)
        if id not in self.nodes:
            raise DataError(
                f"decision for {vocabulary.name} ({vocabulary.family}), class {index} "
                f"({vocabulary.classes[index].name}): {decision} is no concept of the vocabularies before it; "
                f"write {SAME}, {NEW} or an id of labels.json"
            )
        return id

    def _new(self, vocabulary: Vocabulary, item: VocabularyClass) -> str:
        # A stated id is kept where its class comes first; later ones stand in ``same_as``, for ids shall not change.
        id = item.concept or self._free_id(surface(item.name), f"{vocabulary.name}/{vocabulary.family}/{item.name}")
        self._add(_Node(id=id, names=[_plain(item.name)], sources=[], about=set()))
        return id

    def _join(self, id: str, vocabulary: Vocabulary, item: VocabularyClass) -> None:
        node = self.nodes[id]
        node.names += map(_plain, (item.name, *item.synonyms))
        node.sources.append(vocabulary.name)
        node.about.add(vocabulary.about)
        node.unlike.update(item.unlike)
        self.taken.add((id, vocabulary.name, vocabulary.family))
        if item.concept and not node.stated:
            node.stated = item.concept
            self.by_stated[item.concept] = id
        # What a dataset calls its class is as good a name as the first one.
        self._index(node.id, (item.name,), item.synonyms)
        parent = item.parent or vocabulary.parent
        if parent:
            above = self._parent(parent)
            if above != id and above not in self.parents.setdefault(id, []):
                self.parents[id].append(above)

    def _parent(self, name: str) -> str:
        found = [*self.exact.get(folded(name), ()), *self._by_lemma(name)]
        if found:
            return found[0]
        node = _Node(id=self._free_id(surface(name)), names=[name], sources=[], about=set())
        self._add(node)
        return node.id

    def _free_id(self, *texts: str) -> str:
        """The id of the first text whose id is free: it follows from the texts, so it is the same in the next run."""
        numbered = (f"{texts[-1]}/{number}" for number in itertools.count())
        return next(id for text in itertools.chain(texts, numbered) if (id := _own_id(text)) not in self.nodes)

    def _add(self, node: _Node) -> None:
        self.nodes[node.id] = node
        self._index(node.id, (node.name,), node.names[1:])
        self._embed(node)

    def _embed(self, node: _Node) -> None:
        if node.name in self.vectors:
            self.rows_ND[len(self.embedded)] = self.vectors[node.name]
            self.embedded.append(node.id)

    def _index(self, id: str, first_names: Iterable[str], second_names: Iterable[str]) -> None:
        for name in first_names:
            self.exact.setdefault(folded(name), {})[id] = None
            self.first.setdefault(surface(name), {})[id] = None
            for form in lemma_forms(name, self.exceptions):
                self.plural.setdefault(form, {})[id] = None
        for name in second_names:
            self.second.setdefault(surface(name), {})[id] = None


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _own_id(text: str) -> str:
    """``c`` and ten digits."""
    return f"c{int(text_digest(text)[:15], 16) % 10**10:010d}"
