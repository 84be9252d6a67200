"""Concepts as a directed acyclic graph: a concept may have several parents (arXiv 2203.07845, section 3)."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from types import MappingProxyType

from intern_vision.data.labels.names import surface
from intern_vision.errors import DataError

ENGLISH = "en"


@dataclass(slots=True, frozen=True, kw_only=True)
class Concept:
    """One thing that a label can mean.

    Attributes:
        id: ``n02084071`` for a WordNet noun, ``Q144`` for a Wikidata item, ``c0123456789`` for one of neither.
        names: names by language code, the preferred one first.
        descriptions: a sentence by language code.
        visual: whether it can be seen; ``None`` = nobody said.
        common: whether it is widely known; ``None`` = nobody said.
        sources: the datasets that annotate it.
        same_as: its ids in other systems.
    """

    id: str
    names: Mapping[str, tuple[str, ...]]
    descriptions: Mapping[str, str] = field(default_factory=dict)
    visual: bool | None = None
    common: bool | None = None
    sources: tuple[str, ...] = ()
    same_as: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The preferred English name, else that of another language, else the id."""
        for names in (self.names.get(ENGLISH, ()), *self.names.values()):
            if names:
                return names[0]
        return self.id


class LabelSystem:
    """Concepts and their is-a edges; never changed once it is made.

    A query with an id that is not here raises ``DataError``.

    Args:
        concepts: in the order that lists are given in; ids are unique.
        parents: parents by child; a concept without an entry has none. An edge given twice counts once.

    Raises:
        DataError: an edge to or from a concept that is not there, or a cycle, with its path.
    """

    def __init__(self, concepts: Iterable[Concept], parents: Mapping[str, Iterable[str]]) -> None:
        self._concepts: dict[str, Concept] = {}
        for concept in concepts:
            if concept.id in self._concepts:
                raise DataError(f"concept {concept.id}: given twice ({concept.name}); keep one")
            self._concepts[concept.id] = concept
        self._parents: dict[str, tuple[str, ...]] = {}
        self._children: dict[str, list[str]] = {}
        for child, own in parents.items():
            if child not in self._concepts:
                raise DataError(f"taxonomy: {child} has parents and is no concept; add the concept or remove the edges")
            self._parents[child] = tuple(dict.fromkeys(own))
            for parent in self._parents[child]:
                if parent not in self._concepts:
                    raise DataError(
                        f"taxonomy: orphan {self._shown(child)} -> {parent}: no such parent; "
                        "add the concept or remove the edge"
                    )
                self._children.setdefault(parent, []).append(child)
        try:
            self._order = tuple(
                TopologicalSorter({id: self._parents.get(id, ()) for id in self._concepts}).static_order()
            )
        except CycleError as error:
            # The library lists parents before children; people read from the special to the general.
            path = " -> ".join(self._shown(id) for id in reversed(error.args[1]))
            raise DataError(f"taxonomy: cycle {path}; remove one of these edges") from None

    def __len__(self) -> int:
        return len(self._concepts)

    def __contains__(self, id: object) -> bool:
        return id in self._concepts

    def __getitem__(self, id: str) -> Concept:
        try:
            return self._concepts[id]
        except KeyError:
            raise DataError(f"concept {id}: not in this label system of {len(self)}; find ids by name") from None

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, every parent before its children."""
        return self._order

    @property
    def concepts(self) -> Mapping[str, Concept]:
        """The concepts by id, in the order they were given in."""
        return MappingProxyType(self._concepts)

    def parents(self, id: str) -> tuple[str, ...]:
        """Direct parents."""
        return self._parents.get(self[id].id, ())

    def children(self, id: str) -> tuple[str, ...]:
        """Direct children."""
        return tuple(self._children.get(self[id].id, ()))

    @property
    def roots(self) -> tuple[str, ...]:
        """Concepts without parents."""
        return tuple(id for id in self._concepts if not self._parents.get(id))

    @property
    def isolated(self) -> tuple[str, ...]:
        """Concepts with neither parents nor children: no query by hierarchy reaches them."""
        return tuple(id for id in self.roots if id not in self._children)

    def ancestors(self, id: str) -> frozenset[str]:
        """All concepts above, without ``id`` itself."""
        return self._reached(self[id].id, self._parents)

    def descendants(self, id: str) -> frozenset[str]:
        """All concepts below, without ``id`` itself."""
        return self._reached(self[id].id, self._children)

    def is_a(self, id: str, ancestor: str) -> bool:
        """Whether every ``id`` is an ``ancestor``; a concept is one itself."""
        return self[ancestor].id in self.ancestors(id) | {id}

    def lowest_common_ancestors(self, *ids: str) -> tuple[str, ...]:
        """Concepts above or equal to all ``ids`` that have no such concept below them, sorted; there may be several."""
        if not ids:
            raise DataError("lowest common ancestor: expected 1 concept or more, got none")
        common = frozenset.intersection(*(self.ancestors(id) | {id} for id in ids))
        above = frozenset().union(*(self.ancestors(id) for id in common))
        return tuple(sorted(common - above))

    def path_up(self, id: str) -> tuple[str, ...]:
        """From ``id`` by first parents to a root."""
        path = [self[id].id]
        while own := self._parents.get(path[-1]):
            path.append(own[0])
        return tuple(path)

    def require_rooted(self, roots: Collection[str]) -> None:
        """Checks that every concept lies below or at one of ``roots``.

        Raises:
            DataError: one does not; with the path that leads up from it.
        """
        reached = set(roots).union(*(self.descendants(root) for root in roots))
        for id in self._order:
            if id not in reached:
                path = " -> ".join(self._shown(step) for step in self.path_up(id))
                raise DataError(f"taxonomy: orphan {path}: not below {', '.join(roots)}; give it a parent there")

    def find(self, name: str, language: str = "") -> tuple[str, ...]:
        """Ids of the concepts with this name, whatever its case and spaces, or with this id in another system."""
        wanted = surface(name)
        return tuple(
            id
            for id, concept in self._concepts.items()
            if name in concept.same_as
            or any(
                surface(known) == wanted
                for code, names in concept.names.items()
                if language in ("", code)
                for known in names
            )
        )

    def rolled_up_counts(self, images: Iterable[Iterable[str]]) -> dict[str, int]:
        """How many images show each concept or one below it; an image counts once for each.

        Args:
            images: the concepts of each image, read once.

        Returns:
            Counts above 0 by id.
        """
        # Images of equal labels are equal here: as many sets are closed upwards as there are distinct ones.
        counts: Counter[str] = Counter()
        above: dict[str, frozenset[str]] = {}
        for ids, num_images in Counter(frozenset(ids) for ids in images).items():
            for id in ids:
                if id not in above:
                    above[id] = self.ancestors(id) | {id}
            for id in frozenset().union(*(above[id] for id in ids)):
                counts[id] += num_images
        return dict(counts)

    def _reached(self, start: str, edges: Mapping[str, Iterable[str]]) -> frozenset[str]:
        reached: set[str] = set()
        waiting = [start]
        while waiting:
            for id in edges.get(waiting.pop(), ()):
                if id not in reached:
                    reached.add(id)
                    waiting.append(id)
        return frozenset(reached)

    def _shown(self, id: str) -> str:
        return f"{id} ({self._concepts[id].name})"
