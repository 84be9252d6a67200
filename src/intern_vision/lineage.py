"""Lineage: which outputs an output was made from, read from the store alone, as text and as a drawing."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from types import MappingProxyType

from intern_vision.errors import MissingObjectError
from intern_vision.stages.base import Record, read_record
from intern_vision.store import Store

_FILLS = {
    "manifest": "#e0f2fe",
    "dataset": "#dbeafe",
    "genotype": "#ede9fe",
    "weights": "#dcfce7",
    "model": "#bbf7d0",
    "scores": "#fef3c7",
    "report": "#fde68a",
    "missing": "#ffffff",
}
_BOX_WIDTH_PX, _BOX_HEIGHT_PX = 190, 56
_COLUMN_GAP_PX, _ROW_GAP_PX, _MARGIN_PX = 60, 16, 12
_BEND_HEIGHT_PX = 12
_MAX_NAME_CHARS, _MAX_NOTE_CHARS = 24, 31
_NUM_SWEEPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One output of the graph.

    Attributes:
        uri: its address.
        name: its short name; the last part of the address where it is missing.
        stage: the stage that made it; empty where it is missing.
        kind: the Ref's kind, or ``missing``: no committed output lies at the address.
        digest: 64 hexadecimal digits; empty where it is missing.
        num_bytes: total size of its files.
        facts: small results of the stage by name.
        run_id: MLflow run id, empty where there is none.
        wall_s: elapsed seconds of the stage.
    """

    uri: str
    name: str
    stage: str = ""
    kind: str = "missing"
    digest: str = ""
    num_bytes: int = 0
    facts: Mapping[str, float | int | str] = field(default_factory=lambda: MappingProxyType({}))
    run_id: str = ""
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """A directed acyclic graph of outputs.

    Attributes:
        uri: the output asked for.
        nodes: every output by address, the one asked for first.
        edges: (parent, child) addresses, in the order of each child's parents.
    """

    uri: str
    nodes: dict[str, Node]
    edges: tuple[tuple[str, str], ...]

    def parents(self, uri: str) -> tuple[str, ...]:
        """Addresses of what an output was made from."""
        return tuple(parent for parent, child in self.edges if child == uri)


def trace(store: Store, uri: str, records: dict[str, Record] | None = None) -> Lineage:
    """Follows an output's parents to the first datasets.

    Args:
        store: where the outputs lie.
        uri: address of a committed output.
        records: records by address that need not be read again; those read are added, for the next graph.

    Returns:
        The graph; a parent that is no longer there is a node of kind ``missing``.

    Raises:
        MissingObjectError: no committed output lies at ``uri`` itself.
    """
    records = {} if records is None else records
    nodes: dict[str, Node] = {}
    edges: list[tuple[str, str]] = []
    waiting = [uri]
    while waiting:
        at = waiting.pop(0)
        if at in nodes:
            continue
        try:
            record = records[at] if at in records else read_record(store, at)
        except MissingObjectError:
            if at == uri:
                raise
            nodes[at] = Node(uri=at, name=at.rsplit("/", 1)[-1])
            continue
        records[at] = record
        ref = record.ref
        nodes[at] = Node(
            uri=at,
            name=ref.name,
            stage=record.stage,
            kind=ref.kind,
            digest=ref.digest,
            num_bytes=ref.num_bytes,
            facts=record.facts,
            run_id=record.run_id,
            wall_s=record.wall_s,
        )
        parents = tuple(dict.fromkeys(ref.parents))
        edges += [(parent, at) for parent in parents]
        waiting += parents
    return Lineage(uri=uri, nodes=nodes, edges=tuple(edges))


def render_text(lineage: Lineage) -> str:
    """The graph as a tree for a terminal, parents below children; what was shown already is marked ``(see above)``."""
    shown: set[str] = set()

    def lines(uri: str, first: str, rest: str) -> Iterator[str]:
        parents = lineage.parents(uri)
        is_repeated = uri in shown
        shown.add(uri)
        yield first + _text_line(lineage.nodes[uri]) + (" (see above)" if is_repeated and parents else "")
        if is_repeated:
            return
        for index, parent in enumerate(parents):
            is_last = index == len(parents) - 1
            yield from lines(parent, rest + ("└─ " if is_last else "├─ "), rest + ("   " if is_last else "│  "))

    return "\n".join(lines(lineage.uri, "", ""))


def render_svg(lineage: Lineage) -> str:
    """The graph as an SVG element, parents left of children; needs no script, font or style sheet.

    Columns follow the longest path; an edge that spans columns bends between their boxes,
    and boxes are ordered by the mean place of their neighbours (Sugiyama et al. 1981).
    """
    columns = _columns(lineage)
    layers, chains = _layers(lineage, columns)
    _order(layers, chains)
    places, height = _places(layers, lineage)
    width = 2 * _MARGIN_PX + len(layers) * _BOX_WIDTH_PX + (len(layers) - 1) * _COLUMN_GAP_PX
    title = f"Lineage of {_clean(lineage.nodes[lineage.uri].name)}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" width="{width}" height="{height:g}" '
        f'role="img" aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="12">',
        *(_edge_svg([places[slot] for slot in chain]) for chain in chains),
        *(_box_svg(node, *places[uri]) for uri, node in lineage.nodes.items()),
        "</svg>",
    ]
    return "\n".join(parts)


def _text_line(node: Node) -> str:
    if node.kind == "missing":
        return f"{_clean(node.name)}  MISSING: nothing is committed at {_clean(node.uri)}"
    facts = f"{node.kind} by {node.stage}, {_size_text(node.num_bytes)}, {node.digest[:8]}, {node.wall_s:.1f} s"
    return f"{_clean(node.name)}  ({facts})"


def _columns(lineage: Lineage) -> dict[str, int]:
    """Longest path to each node from a node without parents."""
    columns = dict.fromkeys(lineage.nodes, 0)
    # Bounded by the number of nodes, so that even a cycle, which no stage can write, ends.
    for _ in lineage.nodes:
        has_moved = False
        for parent, child in lineage.edges:
            if columns[child] <= columns[parent]:
                columns[child], has_moved = columns[parent] + 1, True
        if not has_moved:
            break
    return columns


def _layers(lineage: Lineage, columns: Mapping[str, int]) -> tuple[list[list[str]], list[list[str]]]:
    """Slots by column, and each edge's slots from parent to child with a bend in every column between."""
    layers: list[list[str]] = [[] for _ in range(max(columns.values()) + 1)]
    for uri, column in columns.items():
        layers[column].append(uri)
    chains = []
    for number, (parent, child) in enumerate(lineage.edges):
        bends = []
        for column in range(columns[parent] + 1, columns[child]):
            # Two colons start no address, so a bend is never taken for a node.
            bends.append(f"::{number}:{column}")
            layers[column].append(bends[-1])
        chains.append([parent, *bends, child])
    return layers, chains


def _order(layers: list[list[str]], chains: list[list[str]]) -> None:
    """Sorts each column's slots by the mean place of their neighbours, sweeping left to right and back."""
    before: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    for chain in chains:
        for left, right in zip(chain, chain[1:], strict=False):
            before.setdefault(right, []).append(left)
            after.setdefault(left, []).append(right)
    for sweep in range(_NUM_SWEEPS):
        neighbours = after if sweep % 2 else before
        for layer in reversed(layers) if sweep % 2 else layers:
            row = {slot: index / max(1, len(each) - 1) for each in layers for index, slot in enumerate(each)}
            means = {}
            for slot in layer:
                rows = [row[other] for other in neighbours.get(slot, [])]
                means[slot] = sum(rows) / len(rows) if rows else row[slot]
            layer.sort(key=means.__getitem__)


def _places(layers: list[list[str]], lineage: Lineage) -> tuple[dict[str, tuple[float, float]], float]:
    """The left middle of every slot in pixels, and the drawing's height; columns are centred."""

    def height_px(slot: str) -> int:
        return _BOX_HEIGHT_PX if slot in lineage.nodes else _BEND_HEIGHT_PX

    heights = [sum(map(height_px, layer)) + _ROW_GAP_PX * (len(layer) - 1) for layer in layers]
    places = {}
    for column, layer in enumerate(layers):
        x = float(_MARGIN_PX + column * (_BOX_WIDTH_PX + _COLUMN_GAP_PX))
        y = _MARGIN_PX + (max(heights) - heights[column]) / 2
        for slot in layer:
            places[slot] = (x, y + height_px(slot) / 2)
            y += height_px(slot) + _ROW_GAP_PX
    return places, max(heights) + 2 * _MARGIN_PX


def _edge_svg(points: list[tuple[float, float]]) -> str:
    x, y = points[0][0] + _BOX_WIDTH_PX, points[0][1]
    path = f"M{x:g} {y:g}"
    for index, (next_x, next_y) in enumerate(points[1:], start=1):
        middle = (x + next_x) / 2
        path += f" C{middle:g} {y:g} {middle:g} {next_y:g} {next_x:g} {next_y:g}"
        x, y = next_x, next_y
        if index < len(points) - 1:
            x += _BOX_WIDTH_PX
            path += f" H{x:g}"
    return f'<path d="{path}" fill="none" stroke="#64748b" stroke-width="1.5"/>'


def _box_svg(node: Node, x: float, y: float) -> str:
    is_missing = node.kind == "missing"
    note = "missing" if is_missing else f"{node.kind} by {node.stage}"
    size = "" if is_missing else f"{_size_text(node.num_bytes)}, {node.wall_s:.1f} s, {node.digest[:8]}"
    facts = [f"{name}: {value}" for name, value in node.facts.items()]
    hover = "\n".join([node.name, node.uri, *([f"run {node.run_id}"] if node.run_id else []), *facts])
    top, left = y - _BOX_HEIGHT_PX / 2, x + 10
    dash = ' stroke-dasharray="4 3"' if is_missing else ""
    return (
        f"<g><title>{escape(_clean(hover))}</title>"
        f'<rect x="{x:g}" y="{top:g}" width="{_BOX_WIDTH_PX}" height="{_BOX_HEIGHT_PX}" rx="6" '
        f'fill="{_FILLS.get(node.kind, "#e2e8f0")}" stroke="#475569"{dash}/>'
        f'<text x="{left:g}" y="{top + 18:g}" fill="#0f172a" font-weight="600">'
        f"{_label(node.name, _MAX_NAME_CHARS)}</text>"
        f'<text x="{left:g}" y="{top + 33:g}" fill="#334155" font-size="11">{_label(note, _MAX_NOTE_CHARS)}</text>'
        f'<text x="{left:g}" y="{top + 47:g}" fill="#334155" font-size="11">{_label(size, _MAX_NOTE_CHARS)}</text></g>'
    )


def _label(text: str, max_chars: int) -> str:
    text = _clean(text)
    return escape(text if len(text) <= max_chars else text[: max_chars - 1] + "…")


def _clean(text: str) -> str:
    """Without the control characters that XML and terminals do not take."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff]", "", text)


def _size_text(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 100 else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
