"""The label system as an HTML fragment: what was merged from where, and the tree with counts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from intern_vision.data.labels.concept import LabelSystem
from intern_vision.data.labels.merge import MatchKind, Merged

MAX_CHILDREN = 60
"""Children shown of one concept; the rest is counted."""
MAX_NODES = 4_000
"""Concepts shown in all; deeper ones are counted, so that the page stays one that a browser opens."""


@dataclass(slots=True, kw_only=True)
class _Node:
    id: str
    name: str
    depth: int
    sources: tuple[str, ...]
    num_classes: int
    num_images: int
    num_parents: int
    children: list["_Node"]
    num_more: int


def tree_html(merged: Merged, num_images: Mapping[str, int] | None = None) -> str:
    """A ``<section>`` for a report; every name in it is escaped.

    Args:
        merged: the label system and its mappings.
        num_images: images of each concept or one below it.
    """
    from jinja2 import Environment, PackageLoader

    system = merged.system
    num_classes = Counter(mapping.concept for mapping in merged.mappings)
    rolled: Counter[str] = Counter()
    for id, count in num_classes.items():
        for above in system.ancestors(id) | {id}:
            rolled[above] += count
    isolated = system.isolated
    nodes = _nodes(system, [id for id in system.roots if system.children(id)], rolled, num_images or {})
    alone = _nodes(system, isolated, rolled, num_images or {})[:MAX_CHILDREN]
    environment = Environment(
        loader=PackageLoader("intern_vision.data.labels", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("tree.html.j2").render(
        nodes=nodes,
        isolated=alone,
        rows=merge_rows(merged),
        kinds=get_args(MatchKind),
        num_concepts=len(system),
        num_classes=len(merged.mappings),
        num_vocabularies=len({mapping.vocabulary for mapping in merged.mappings}),
        num_uncertain=sum(mapping.is_uncertain for mapping in merged.mappings),
        num_isolated=len(isolated),
    )


def merge_rows(merged: Merged) -> list[dict[str, Any]]:
    """A row a vocabulary: ``name``, ``counts`` of certain and decided classes by kind, ``num_uncertain``."""
    counts: dict[str, Counter[str]] = {}
    uncertain: Counter[str] = Counter()
    for mapping in merged.mappings:
        own = counts.setdefault(mapping.vocabulary, Counter())
        if mapping.is_uncertain:
            uncertain[mapping.vocabulary] += 1
        else:
            own[mapping.kind] += 1
    return [{"name": name, "counts": own, "num_uncertain": uncertain[name]} for name, own in counts.items()]


def _nodes(
    system: LabelSystem, roots: Sequence[str], num_classes: Mapping[str, int], num_images: Mapping[str, int]
) -> list[_Node]:
    def node(id: str, depth: int) -> _Node:
        concept = system[id]
        return _Node(
            id=id,
            name=concept.name,
            depth=depth,
            sources=concept.sources,
            num_classes=num_classes.get(id, 0),
            num_images=num_images.get(id, 0),
            num_parents=len(system.parents(id)),
            children=[],
            num_more=0,
        )

    def by_size(ids: Sequence[str]) -> list[str]:
        return sorted(ids, key=lambda id: (-num_images.get(id, 0), -num_classes.get(id, 0), system[id].name, id))

    # Level by level, so that the limit cuts the deepest first.
    top = [node(id, 0) for id in by_size(roots)]
    num_shown, level = len(top), top
    while level:
        below = []
        for parent in level:
            ids = by_size(system.children(parent.id))
            room = max(0, min(MAX_CHILDREN, MAX_NODES - num_shown))
            parent.children = [node(id, parent.depth + 1) for id in ids[:room]]
            parent.num_more = len(ids) - len(parent.children)
            num_shown += len(parent.children)
            below += parent.children
        level = below
    return top
