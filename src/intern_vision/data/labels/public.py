"""The JSON form of the public 115K label system (Bamboo, arXiv 2203.07845), read and written.

One object with ``father2child`` and ``child2father`` (id to ids), ``id2name`` (id to names, the first preferred),
``id2desc``, and ``id2state``: ``academic`` (datasets that have the concept), ``visual`` and ``common`` (0 no, 1 yes,
2 unknown). A language other than English has a suffix: ``id2name_zh``, ``id2desc_zh``. A table may be left out.
``id2same``, ids in other systems, and ``id2images``, how many images show a concept or one below it, are ours.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from intern_vision.config import canonical_json
from intern_vision.data.labels.concept import ENGLISH, Concept, LabelSystem
from intern_vision.errors import DataError

_FLAGS = {0: False, 1: True, 2: None}
_NAMES, _DESCRIPTIONS, _STATE, _SAME, _IMAGES = "id2name", "id2desc", "id2state", "id2same", "id2images"
_UP, _DOWN = "child2father", "father2child"
_LANGUAGE = re.compile(rf"(?:{_NAMES}|{_DESCRIPTIONS})_([a-z]{{2,3}}(?:-[a-z0-9]+)*)")


def read_label_system(path: Path) -> LabelSystem:
    """Reads the JSON form.

    Raises:
        DataError: no such file, no JSON object, a table of another kind, an edge that only one of the two tables has,
            or whatever ``LabelSystem`` refuses.
    """
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"{path}: no such file; give the label system's JSON file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(tables, dict) or not tables.keys() & {_NAMES, _UP, _DOWN}:
        raise DataError(f"{path}: expected an object with {_UP}, {_DOWN} and {_NAMES}; it is another file")
    for key, table in tables.items():
        if (key.startswith("id2") or key in (_UP, _DOWN)) and not isinstance(table, dict):
            raise DataError(f"{path}: {key}: expected an object by id, got {type(table).__name__}")
    try:
        return _system(tables)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _system(tables: Mapping[str, Any]) -> LabelSystem:
    parents = _edges(tables)
    languages = [ENGLISH, *sorted(match[1] for key in tables if (match := _LANGUAGE.fullmatch(key)))]
    names = {code: tables.get(_key(_NAMES, code), {}) for code in languages}
    descriptions = {code: tables.get(_key(_DESCRIPTIONS, code), {}) for code in languages}
    states = tables.get(_STATE, {})
    if names[ENGLISH]:
        ids: Iterable[str] = names[ENGLISH]
    else:
        ids = dict.fromkeys(id for child, own in parents.items() for id in (child, *own))
    concepts = []
    for id in ids:
        state = states.get(id, {})
        if not isinstance(state, dict):
            raise DataError(f"{_STATE}: {id}: expected an object, got {state!r}")
        concepts.append(
            Concept(
                id=id,
                names={
                    code: _texts(table[id], f"{_key(_NAMES, code)}: {id}")
                    for code, table in names.items()
                    if id in table
                },
                descriptions={code: str(table[id]) for code, table in descriptions.items() if id in table},
                visual=_flag(state, "visual", id),
                common=_flag(state, "common", id),
                sources=_texts(state.get("academic", ()), f"{_STATE}: {id}: academic"),
                same_as=_texts(tables.get(_SAME, {}).get(id, ()), f"{_SAME}: {id}"),
            )
        )
    return LabelSystem(concepts, parents)


def _edges(tables: Mapping[str, Any]) -> dict[str, list[str]]:
    up = {child: list(_texts(own, f"{_UP}: {child}")) for child, own in tables.get(_UP, {}).items()}
    down = {parent: _texts(own, f"{_DOWN}: {parent}") for parent, own in tables.get(_DOWN, {}).items()}
    if _UP not in tables or _DOWN not in tables:
        for parent, own in down.items():
            for child in own:
                up.setdefault(child, []).append(parent)
        return up
    pairs_up = {(child, parent) for child, own in up.items() for parent in own}
    pairs_down = {(child, parent) for parent, own in down.items() for child in own}
    if pairs_up != pairs_down:
        child, parent = min(pairs_up ^ pairs_down)
        has, lacks = (_UP, _DOWN) if (child, parent) in pairs_up else (_DOWN, _UP)
        raise DataError(f"taxonomy: edge {child} -> {parent} is in {has} and not in {lacks}; add or remove it")
    return up


def label_system_json(system: LabelSystem, num_images: Mapping[str, int] | None = None) -> str:
    """The JSON form, one table a line; equal systems give equal text.

    Args:
        system: the concepts.
        num_images: images of each concept or one below it, written beside them; not read back.
    """
    tables: dict[str, dict[str, Any]] = {_DOWN: {}, _UP: {}, _NAMES: {}, _DESCRIPTIONS: {}, _STATE: {}, _SAME: {}}
    numbers = {value: number for number, value in _FLAGS.items()}
    for id, concept in system.concepts.items():
        if own := system.parents(id):
            tables[_UP][id] = own
        if own := system.children(id):
            tables[_DOWN][id] = own
        tables[_NAMES][id] = concept.names.get(ENGLISH, ())
        for code, names in concept.names.items():
            if code != ENGLISH:
                tables.setdefault(_key(_NAMES, code), {})[id] = names
        for code, text in concept.descriptions.items():
            tables.setdefault(_key(_DESCRIPTIONS, code), {})[id] = text
        state = {"academic": concept.sources, "visual": numbers[concept.visual], "common": numbers[concept.common]}
        tables[_STATE][id] = state
        if concept.same_as:
            tables[_SAME][id] = concept.same_as
    if num_images:
        tables[_IMAGES] = {id: num_images[id] for id in system.concepts if id in num_images}
    # The order of id2name is the order of the concepts, so tables are not sorted.
    lines = [f"{json.dumps(key)}:{json.dumps(tables[key], ensure_ascii=False)}" for key in sorted(tables)]
    return "{" + ",\n".join(lines) + "}\n"


def _key(table: str, code: str) -> str:
    return table if code == ENGLISH else f"{table}_{code}"


def _texts(value: Any, where: str) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(item, str) for item in values):
        raise DataError(f"{where}: expected a text or a list of texts, got {canonical_json(value)[:60]}")
    return tuple(values)


def _flag(state: Mapping[str, Any], name: str, id: str) -> bool | None:
    value = state.get(name, 2)
    if value not in _FLAGS:
        raise DataError(f"{_STATE}: {id}: {name}: expected 0 (no), 1 (yes) or 2 (unknown), got {value!r}")
    return _FLAGS[value]
