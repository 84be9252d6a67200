"""Concepts below chosen items from a Wikidata JSON dump, streamed: an entity a line in one array.

The dump is read twice. The first pass keeps 16 bytes an edge, the second the names of what lies below the roots, so
memory does not grow with what is not kept.
"""

import bz2
import gzip
import json
import lzma
import zlib
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from intern_vision.data.labels.concept import ENGLISH, Concept, LabelSystem
from intern_vision.errors import DataError

SUBCLASS_OF, INSTANCE_OF = "P279", "P31"
_OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@dataclass(slots=True, frozen=True, kw_only=True)
class WikidataBranch:
    """What lies at and below the roots.

    Attributes:
        system: the concepts, ids ``Q<number>``.
        cut_edges: child and parent of the edges left out because they close a cycle; Wikidata has some.
    """

    system: LabelSystem
    cut_edges: tuple[tuple[str, str], ...]


def read_wikidata(
    path: Path, roots: Sequence[str], *, languages: Sequence[str] = (ENGLISH,), with_instances: bool = False
) -> WikidataBranch:
    """Reads the items at and below ``roots``.

    Args:
        path: the dump, plain or ``.gz``, ``.bz2``, ``.xz``.
        roots: item ids, for example ``("Q11442",)``.
        languages: languages whose labels and aliases are kept.
        with_instances: follow instance-of edges (P31) besides subclass-of ones (P279).

    Raises:
        DataError: no such file, a line that is no entity, a damaged archive, or a root that is not in the dump.
    """
    properties = (SUBCLASS_OF, INSTANCE_OF) if with_instances else (SUBCLASS_OF,)
    edges_N2 = _all_edges(path, properties)
    kept, parents, cut = _below([_number(root) for root in roots], edges_N2)
    found: dict[int, Concept] = {}
    for number, entity in _entities(path):
        item = _item(entity, path, number)
        if item in kept:
            found[item] = _concept(entity, languages)
    missing = [f"Q{number}" for number in kept if number not in found]
    if missing:
        raise DataError(f"{path}: {missing[0]} is not in the dump; give roots that it holds, or a whole dump")
    edges = {f"Q{child}": [f"Q{parent}" for parent in own] for child, own in parents.items()}
    pairs = tuple((f"Q{child}", f"Q{parent}") for child, parent in cut)
    return WikidataBranch(system=LabelSystem([found[item] for item in kept], edges), cut_edges=pairs)


def _all_edges(path: Path, properties: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """``(N, 2)`` int64: numbers of child and parent."""
    edges = array("q")
    marks = tuple(f'"{name}"'.encode() for name in properties)
    for number, entity in _entities(path, marks):
        child = _item(entity, path, number)
        for name in properties:
            for statement in _table(entity, "claims").get(name, ()):
                value = statement.get("mainsnak", {}).get("datavalue", {}).get("value", {})
                if statement.get("rank") != "deprecated" and isinstance(value, dict) and "numeric-id" in value:
                    edges.extend((child, int(value["numeric-id"])))
    return np.frombuffer(edges, np.int64).reshape(-1, 2) if edges else np.empty((0, 2), np.int64)


def _below(
    roots: Sequence[int], edges_N2: np.ndarray[Any, np.dtype[np.int64]]
) -> tuple[dict[int, None], dict[int, list[int]], list[tuple[int, int]]]:
    """Items reached from the roots, their parents among these, and the edges that would close a cycle."""
    by_parent_N2 = edges_N2[np.argsort(edges_N2[:, 1], kind="stable")]
    kept: dict[int, None] = dict.fromkeys(roots)
    waiting = deque(kept)
    while waiting:
        parent = waiting.popleft()
        first, last = np.searchsorted(by_parent_N2[:, 1], (parent, parent + 1))
        for child in map(int, by_parent_N2[first:last, 0]):
            if child not in kept:
                kept[child] = None
                waiting.append(child)
    above: dict[int, list[int]] = {}
    inside_N = np.isin(edges_N2, np.fromiter(kept, np.int64)).all(axis=1)
    for child, parent in edges_N2[inside_N].tolist():
        above.setdefault(child, []).append(parent)
    cut = _back_edges(kept, above)
    closed = set(cut)
    parents = {
        child: [parent for parent in dict.fromkeys(own) if (child, parent) not in closed]
        for child, own in above.items()
    }
    return kept, parents, cut


def _back_edges(items: dict[int, None], above: dict[int, list[int]]) -> list[tuple[int, int]]:
    """Edges to an item that the walk upwards is still above of, in a fixed order: without them there is no cycle."""
    open_items: set[int] = set()
    done: set[int] = set()
    cut: list[tuple[int, int]] = []
    for start in items:
        if start in done:
            continue
        open_items.add(start)
        stack = [(start, iter(above.get(start, ())))]
        while stack:
            child, parents = stack[-1]
            parent = next(parents, None)
            if parent is None:
                stack.pop()
                open_items.discard(child)
                done.add(child)
            elif parent in open_items:
                cut.append((child, parent))
            elif parent not in done:
                open_items.add(parent)
                stack.append((parent, iter(above.get(parent, ()))))
    return list(dict.fromkeys(cut))


def _entities(path: Path, marks: Sequence[bytes] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and entities; of lines without any of ``marks``, where given, nothing is parsed."""
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, 1):
                text = line.strip().rstrip(b",")
                if text in (b"", b"[", b"]") or (marks and not any(mark in text for mark in marks)):
                    continue
                try:
                    entity = json.loads(text)
                except ValueError:
                    entity = None
                if not isinstance(entity, dict):
                    raise DataError(f"{path}:{number}: expected an entity of a Wikidata JSON dump, got {text[:60]!r}")
                if entity.get("type", "item") == "item":
                    yield number, entity
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give a Wikidata JSON dump") from None
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{path}: damaged archive ({error}); download it again") from None


def _open(path: Path) -> BinaryIO:
    return _OPENERS.get(path.suffix, open)(path, "rb")  # type: ignore[return-value]


def _item(entity: dict[str, Any], path: Path, number: int) -> int:
    try:
        return _number(entity["id"])
    except (KeyError, DataError):
        raise DataError(f"{path}:{number}: expected an item id Q<number>, got {entity.get('id')!r}") from None


def _number(id: str) -> int:
    if not isinstance(id, str) or not (id[:1] == "Q" and id[1:].isdigit()):
        raise DataError(f"wikidata: expected an item id Q<number>, got {id!r}")
    return int(id[1:])


def _table(entity: dict[str, Any], key: str) -> dict[str, Any]:
    """A table of an entity; in dumps an empty one is written as an empty list."""
    return entity.get(key) or {}


def _concept(entity: dict[str, Any], languages: Sequence[str]) -> Concept:
    names, descriptions = {}, {}
    for code in languages:
        label = _table(entity, "labels").get(code)
        aliases = _table(entity, "aliases").get(code, ())
        texts = dict.fromkeys(entry["value"] for entry in ((label,) if label else ()) + tuple(aliases))
        if texts:
            names[code] = tuple(texts)
        if text := _table(entity, "descriptions").get(code):
            descriptions[code] = text["value"]
    return Concept(id=entity["id"], names=names, descriptions=descriptions)
