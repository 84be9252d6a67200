"""Which layout a source has, and the ones that are told by folders alone: classes, masks, depth, plain images."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from intern_vision.data.ingest import AUTO, LAYOUTS
from intern_vision.data.ingest.archives import ArchiveTree
from intern_vision.data.ingest.coco import read_coco
from intern_vision.data.ingest.files import File, Tree
from intern_vision.data.ingest.label_studio import read_label_studio
from intern_vision.data.ingest.offer import Offer, Offers
from intern_vision.data.ingest.origin import Origin
from intern_vision.data.ingest.tables import TABLE_SUFFIXES, read_table
from intern_vision.data.ingest.voc import read_voc
from intern_vision.data.ingest.webdataset import is_webdataset, read_webdataset
from intern_vision.data.reading import IMAGE_SUFFIXES, SPLIT_FOLDERS, UNSUPPORTED_SUFFIXES
from intern_vision.errors import DataError
from intern_vision.task import Task

_PICTURES = (*IMAGE_SUFFIXES, *UNSUPPORTED_SUFFIXES)


def read_offers(origin: Origin, layout: str) -> Offers:
    """The images of a source, in the layout asked for or found.

    Args:
        origin: the source.
        layout: one of ``LAYOUTS``, or ``auto``.

    Raises:
        DataError: no layout fits or several do; or an annotation file is wrong, which may be found while reading.
    """
    if layout == AUTO:
        tree, layout = detect_layout(origin.tree, origin.file)
        origin = replace(origin, tree=tree)
    return READERS[layout](origin)


def detect_layout(tree: Tree, file: str = "") -> tuple[Tree, str]:
    """The layout that alone fits, and the folder that it begins in: archives often hold one folder with all the rest.

    Raises:
        DataError: none fits, or several; the message lists the layouts.
    """
    if file:
        suffix = PurePosixPath(file).suffix.lower()
        if suffix in TABLE_SUFFIXES:
            return tree, "table"
        if suffix == ".json":
            return tree, "label_studio" if _is_task_list(tree, file) else "coco"
        raise _unclear(f"{tree.shown}/{file}: not a file that can be read as a source")
    found = _fitting(tree)
    while not found and (top := _only_folder(tree)):
        tree = tree.below(top)
        found = _fitting(tree)
    if not found:
        raise _unclear(f"{tree.shown}: holds no layout that can be read")
    if len(found) > 1:
        raise _unclear(f"{tree.shown}: can be read as {' and as '.join(found)}")
    return tree, found[0]


def _unclear(text: str) -> DataError:
    layouts = "; ".join(f"{name} ({what})" for name, what in LAYOUTS.items())
    return DataError(f"{text}; name its layout with --layout: {layouts}")


def _fitting(tree: Tree) -> list[str]:
    """Layouts that fit; folders of classes are looked for only where no annotation is found."""
    if isinstance(tree, ArchiveTree) and is_webdataset(tree):
        return ["webdataset"]
    paths = [PurePosixPath(name) for name in tree.names]
    tops = {path.parts[0] for path in paths if len(path.parts) > 1}
    alone = {path.suffix.lower() for path in paths if len(path.parts) == 1}
    found = [folder for folder in ("masks", "depth") if {"images", folder} <= tops]
    if "Annotations" in tops and "JPEGImages" in tops:
        found.append("voc")
    if ".tar" in alone:
        # img2dataset puts a table and a file of statistics beside every tar.
        return [*found, "webdataset"]
    if jsons := [
        path for path in paths if path.suffix.lower() == ".json" and path.parts[:-1] in ((), ("annotations",))
    ]:
        found.append("label_studio" if _is_task_list(tree, str(jsons[0])) else "coco")
    if alone & set(TABLE_SUFFIXES):
        found.append("table")
    return found or _without_annotations(tree)


def _without_annotations(tree: Tree) -> list[str]:
    names = _pictures(tree)
    top = _only_folder(tree)
    classes = set(map(_class_of, names)) - {""}
    if classes and classes != {"images"}:
        # One folder that holds nothing but folders is no class but the place where the classes are.
        is_wrapped = top and top.lower() not in SPLIT_FOLDERS and all(name.count("/") > 1 for name in names)
        return [] if is_wrapped else ["image_folder"]
    return ["images"] if names else []


def _only_folder(tree: Tree) -> str:
    tops = {name.split("/", 1)[0] for name in tree.names if "/" in name}
    alone = [name for name in tree.names if "/" not in name and name.lower().endswith(_PICTURES)]
    return tops.pop() if len(tops) == 1 and not alone else ""


def _is_task_list(tree: Tree, name: str) -> bool:
    with tree.stream(name) as file:
        return file.read(2**10).decode("utf-8-sig", "replace").lstrip().startswith("[")


def read_image_folder(origin: Origin) -> Offers:
    """One class a folder, below split folders or not; the class is the first folder's name.

    Raises:
        DataError: no class folder with images.
    """
    tree = origin.tree
    found = _pictures(tree)
    labels = {_class_of(name) for name in found}
    names = tuple(sorted(label for label in labels if label))
    if not names:
        raise DataError(f"{tree.shown}: expected class folders with images, got none; see --layout images")

    def rows() -> Iterator[Offer]:
        for name in found:
            label = _class_of(name)
            offer = Offer(name=name, image=tree.file(name), split=_split_and_rest(name)[0])
            offer.labels, offer.fault = ((label,), "") if label else (None, "label: lies in no class folder")
            yield offer

    return Offers(
        layout="image_folder",
        rows=rows(),
        tasks={"classify": Task(family="classify", class_names=names)},
        num_rows=len(found),
    )


def read_images(origin: Origin) -> Offers:
    """Images without labels, at any depth; a first folder named as a split gives the split."""
    tree = origin.tree
    names = _pictures(tree)
    if not names:
        raise DataError(f"{tree.shown}: no image in it")
    rows = (Offer(name=name, image=tree.file(name), split=_split_and_rest(name)[0]) for name in names)
    return Offers(layout="images", rows=rows, num_rows=len(names))


def read_masks(origin: Origin) -> Offers:
    """``images/`` and ``masks/`` with PNG class indices under the same names; 255 is ignored.

    Class names are the lines of ``classes.txt``; without it they follow from the masks.
    """
    tree = origin.tree
    tasks = {}
    if tree.has("classes.txt"):
        names = tuple(line.strip() for line in tree.text("classes.txt").splitlines() if line.strip())
        tasks["segment"] = Task(family="segment", class_names=names)
    rows = (
        Offer(name=name, image=tree.file(name), split=split, mask=mask)
        for name, split, mask in _pairs(tree, "masks", (".png",))
    )
    return Offers(layout="masks", rows=rows, tasks=tasks)


def read_depth(origin: Origin) -> Offers:
    """``images/`` and ``depth/`` under the same names: PNG of 16 bits in units of ``scale.txt``, ``.npy`` in metres.

    Raises:
        DataError: ``scale.txt`` holds no positive number.
    """
    tree = origin.tree
    scale_m = 0.001
    if tree.has("scale.txt"):
        try:
            scale_m = float(tree.text("scale.txt"))
        except ValueError:
            scale_m = 0.0
        if not 0 < scale_m < float("inf"):
            raise DataError(f"{tree.shown}/scale.txt: expected metres per unit, a number above 0")

    def rows() -> Iterator[Offer]:
        for name, split, depth in _pairs(tree, "depth", (".png", ".npy")):
            scale = 1.0 if depth.shown.endswith(".npy") else scale_m
            yield Offer(name=name, image=tree.file(name), split=split, depth=depth, depth_scale=scale)

    return Offers(layout="depth", rows=rows())


def _pairs(tree: Tree, folder: str, suffixes: tuple[str, ...]) -> Iterator[tuple[str, str, File]]:
    """Name and split of each image, and its partner; one that does not exist is found out when it is read."""
    names = [name for name in _pictures(tree) if name.startswith("images/")]
    if not names:
        raise DataError(f"{tree.shown}: expected the folders images/ and {folder}/ with images in the first")
    for name in names:
        relative = PurePosixPath(name).relative_to("images")
        candidates = [str(PurePosixPath(folder) / relative.with_suffix(suffix)) for suffix in suffixes]
        partner = next((each for each in candidates if tree.has(each)), candidates[0])
        yield name, _split_and_rest(str(relative))[0], tree.file(partner)


def _pictures(tree: Tree) -> list[str]:
    return [name for name in tree.names if name.lower().endswith(_PICTURES)]


def _class_of(name: str) -> str:
    """The class folder that an image lies in; empty where there is none."""
    return _split_and_rest(name)[1].rpartition("/")[0].split("/", 1)[0]


def _split_and_rest(name: str) -> tuple[str, str]:
    """The split that the first folder names, or none, and the path below it."""
    first, _, rest = name.partition("/")
    split = SPLIT_FOLDERS.get(first.lower()) if rest else None
    return (split, rest) if split else ("", name)


READERS: dict[str, Callable[[Origin], Offers]] = {
    "image_folder": read_image_folder,
    "images": read_images,
    "masks": read_masks,
    "depth": read_depth,
    "coco": read_coco,
    "voc": read_voc,
    "table": read_table,
    "webdataset": read_webdataset,
    "label_studio": read_label_studio,
}
