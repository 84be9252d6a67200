"""Tables and lists of images: CSV, TSV and JSON lines with a path or URL, a caption and labels a row."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from intern_vision.data.ingest.files import Nowhere, Unusable
from intern_vision.data.ingest.offer import Offer, Offers
from intern_vision.data.ingest.origin import Origin
from intern_vision.data.reading import SPLIT_FOLDERS
from intern_vision.errors import DataError

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
COLUMNS = {
    "image": ("file", "path", "image", "url", "uri", "filename", "file_name", "image_path", "image_url"),
    "caption": ("caption", "text"),
    "label": ("label", "class"),
    "labels": ("labels", "tags"),
    "split": ("split",),
    "licence": ("licence", "license"),
}
"""What a column may be called, in any case of letters; the first that exists is taken."""


def read_table(origin: Origin) -> Offers:
    """A table with a header, or an object a line; paths are relative to the table.

    Several labels are split by ``|``, or an array in JSON lines; an empty cell means never annotated. A row that
    something is wrong with is offered with its fault.

    Raises:
        DataError: no such column as the image's, or a line that is no row at all.
    """
    tree = origin.tree
    name = origin.file or next(each for each in tree.names if each.lower().endswith(TABLE_SUFFIXES))
    place = f"{tree.shown}/{name}"
    rows = _json_rows if PurePosixPath(name).suffix.lower() in (".jsonl", ".ndjson") else _csv_rows
    with tree.stream(name) as file:
        first = next(rows(io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline=""), place), None)
    if first is None:
        raise DataError(f"{place}: no row in it")
    columns = _columns(first[1])
    if "image" not in columns:
        raise DataError(
            f"{place}: expected a column with the image ({', '.join(COLUMNS['image'])}), got {', '.join(first[1])}"
        )

    def offers() -> Iterator[Offer]:
        with tree.stream(name) as file:
            # Bytes that are not UTF-8 become lone surrogates, so that they spoil one row and not the file.
            for line, values in rows(io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline=""), place):
                yield _offer(origin, values, _columns(values) if rows is _json_rows else columns, f"line {line}")

    return Offers(layout="table", rows=offers(), several_labels="labels" in columns)


def _csv_rows(file: io.TextIOBase, place: str) -> Iterator[tuple[int, dict[str, Any]]]:
    table = csv.DictReader(file, delimiter="\t" if place.lower().endswith(".tsv") else ",")
    try:
        for row in table:
            yield table.line_num, row
    except csv.Error as error:
        raise DataError(f"{place}: line {table.line_num + 1}: not a row of the table: {error}") from None


def _json_rows(file: io.TextIOBase, place: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: line {number}: expected a JSON object: {error}") from None
        if not isinstance(values, dict):
            raise DataError(f"{place}: line {number}: expected a JSON object, got {type(values).__name__}")
        yield number, values


def _columns(names: Mapping[Any, Any]) -> dict[str, str]:
    """What we call a column to what the table calls it."""
    lower = {str(name).strip().lower(): name for name in names}
    found = {kind: next((lower[name] for name in known if name in lower), None) for kind, known in COLUMNS.items()}
    return {kind: name for kind, name in found.items() if name is not None}


def _offer(origin: Origin, values: Mapping[Any, Any], columns: Mapping[str, str], at: str) -> Offer:
    cells = {kind: values.get(name) for kind, name in columns.items()}
    text = cells.get("image")
    text = text.strip() if isinstance(text, str) else ""
    offer = Offer(name=text or at, image=Nowhere(text or at), at=at)
    try:
        if not text:
            raise Unusable("row", "names no image")
        offer.image = origin.file_at(text)
        if None in values:
            raise Unusable("row", "has more cells than the header")
        _check_text(cells)
        offer.caption = _text(cells, "caption") or None
        offer.licence = _text(cells, "licence")
        offer.labels = _labels(cells)
        split = _text(cells, "split").lower()
        if split and split not in SPLIT_FOLDERS:
            raise Unusable("split", f"expected train, val or test, got {split!r}")
        offer.split = SPLIT_FOLDERS.get(split, "")
    except Unusable as error:
        offer.fault = str(error)
    return offer


def _check_text(cells: Mapping[str, Any]) -> None:
    for kind, value in cells.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Unusable("text", f"{kind} is not UTF-8 text; save the table as UTF-8") from None


def _text(cells: Mapping[str, Any], kind: str) -> str:
    value = cells.get(kind)
    if value is not None and not isinstance(value, str):
        raise Unusable("row", f"{kind}: expected text, got {json.dumps(value)[:60]}")
    return (value or "").strip()


def _labels(cells: Mapping[str, Any]) -> tuple[str, ...] | None:
    value = cells.get("labels")
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(dict.fromkeys(each.strip() for each in value))
    if text := _text(cells, "labels"):
        return tuple(dict.fromkeys(each.strip() for each in text.split("|") if each.strip()))
    label = _text(cells, "label")
    return (label,) if label else None
