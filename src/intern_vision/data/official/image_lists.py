"""Classification sets of image files with their labels in text, .mat or .csv lists.

A key is the image's path below the official top folder.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from intern_vision.bench.protocol import few_shot
from intern_vision.data.official.layout import (
    OfficialCopy,
    OfficialReading,
    classify_reading,
    draw_splits,
    plain_name,
)
from intern_vision.data.official.matlab import flat, load_mat, number, text
from intern_vision.data.official.names import FLOWERS, TRAFFIC_SIGNS
from intern_vision.data.reading import Item, SplitRule, images_under
from intern_vision.data.sample import Split
from intern_vision.errors import DataError

_CALTECH_TRAIN_A_CLASS = 30
_TRAIN_TEST: tuple[Split, ...] = ("train", "test")


def read_food101(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """Food-101: ``meta/train.txt`` and ``meta/test.txt`` hold ``<class>/<number>``."""
    copy = copy.below("food-101")
    names = [row[0] for row in copy.rows(copy.need("meta/classes.txt"))]
    entries = (
        (split, f"images/{name}.jpg", name.split("/")[0], source)
        for split in _TRAIN_TEST
        for source in [copy.need(f"meta/{split}.txt")]
        for (name, *_) in copy.rows(source)
    )
    return classify_reading(copy, _named(copy, entries, names), [plain_name(name) for name in names])


def read_oxford_pets(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """Oxford-IIIT Pets: lines ``<name> <class from 1> <species> <breed>``; a class is called as its images are."""
    copy = copy.below("oxford-iiit-pet")
    splits: dict[Split, str] = {"train": "trainval", "test": "test"}
    names: dict[int, str] = {}
    items = []
    for split, part in splits.items():
        source = copy.need(f"annotations/{part}.txt")
        for name, number_text, *_ in copy.rows(source, 2):
            with copy.parsing(source):
                label = int(number_text) - 1
            names[label] = plain_name(name.rsplit("_", 1)[0])
            items.append(copy.item(copy.inside(f"images/{name}.jpg", source), split, label))
    return classify_reading(copy, items, [names.get(label, f"class {label}") for label in range(1 + max(names))])


def read_flowers102(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """Flowers-102: training and validation ids of ``setid.mat`` together are the training images."""
    labels_path, ids_path = copy.need("imagelabels.mat"), copy.need("setid.mat")
    splits: dict[str, Split] = {"trnid": "train", "valid": "train", "tstid": "test"}
    with copy.parsing(labels_path):
        labels = load_mat(labels_path, "labels")["labels"].ravel().astype(int) - 1
    with copy.parsing(ids_path):
        ids = load_mat(ids_path, *splits)
        items = [
            copy.item(copy.base / f"jpg/image_{image:05d}.jpg", split, int(labels[image - 1]))
            for name, split in splits.items()
            for image in ids[name].ravel().tolist()
        ]
    return classify_reading(copy, items, FLOWERS)


def read_sun397(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """SUN397, partition 1: lines are paths that begin with ``/<letter>/<class>/``."""
    copy = copy.below("SUN397")

    def partition(name: str) -> Path:
        return copy.need(name, f"Partitions/{name}", f"../Partitions/{name}", f"../{name}")

    names = [row[0].strip("/") for row in copy.rows(partition("ClassName.txt"))]
    splits: dict[Split, str] = {"train": "Training_01.txt", "test": "Testing_01.txt"}
    entries = (
        (split, row[0].strip("/"), row[0].strip("/").rsplit("/", 1)[0], source)
        for split, file in splits.items()
        for source in [partition(file)]
        for row in copy.rows(source)
    )
    titles = [plain_name(name.split("/", 1)[-1].replace("/", " ")) for name in names]
    return classify_reading(copy, _named(copy, entries, names), titles)


def read_stanford_cars(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """Stanford Cars: struct arrays ``annotations`` with ``class`` (from 1) and ``fname``."""
    files: dict[Split, Path] = {
        "train": copy.need("devkit/cars_train_annos.mat", "cars_train_annos.mat"),
        "test": copy.need("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat"),
    }
    meta = copy.need("devkit/cars_meta.mat", "cars_meta.mat")
    with copy.parsing(meta):
        names = [text(name) for name in flat(load_mat(meta, "class_names")["class_names"])]
    items = []
    for split, source in files.items():
        with copy.parsing(source):
            for row in flat(load_mat(source, "annotations")["annotations"]):
                path = copy.inside(f"cars_{split}/{text(row.fname)}", source)
                # A MATLAB field may be called "class", which Python cannot write as an attribute.
                items.append(copy.item(path, split, number(getattr(row, "class")) - 1))
    return classify_reading(copy, items, names)


def read_dtd(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """DTD, split 1: training and validation lists together are the training images."""
    copy = copy.below("dtd")
    lists: dict[str, Split] = {"train1": "train", "val1": "train", "test1": "test"}
    rows = [
        (split, row[0], copy.need(f"labels/{name}.txt"))
        for name, split in lists.items()
        for row in copy.rows(copy.need(f"labels/{name}.txt"))
    ]
    names = sorted({name.split("/")[0] for _, name, _ in rows})
    entries = ((split, f"images/{name}", name.split("/")[0], source) for split, name, source in rows)
    return classify_reading(copy, _named(copy, entries, names), [plain_name(name) for name in names])


def read_caltech101(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """Caltech-101 with its background class: 30 images a class for training by the seeded rule, the rest is scored."""
    copy = copy.below("caltech-101/101_ObjectCategories", "101_ObjectCategories", "caltech-101")
    names, items = _class_folders(copy)
    train = set(
        few_shot(
            [item.key for item in items],
            [item.annotation for item in items],
            _CALTECH_TRAIN_A_CLASS,
            rule.seed if rule else 0,
        )
    )
    found = [
        copy.item(item.path, "train" if item.key in train else "test", item.annotation, item.stratum) for item in items
    ]
    return classify_reading(copy, found, [plain_name(name) for name in names])


def read_fgvc_aircraft(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """FGVC-Aircraft by variant: lines ``<image number> <variant>``; a variant may hold blanks."""
    copy = copy.below("fgvc-aircraft-2013b/data", "data")
    names = [" ".join(row) for row in copy.rows(copy.need("variants.txt"))]
    splits: dict[Split, str] = {"train": "trainval", "test": "test"}
    entries = (
        (split, f"images/{image}.jpg", " ".join(variant), source)
        for split, part in splits.items()
        for source in [copy.need(f"images_variant_{part}.txt")]
        for image, *variant in copy.rows(source, 2)
    )
    return classify_reading(copy, _named(copy, entries, names), names)


def read_class_folders(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """EuroSAT and RESISC45: a folder a class, and no official lists.

    Splits are 60/20/20 as in VTAB (arXiv 1910.04867), drawn class by class by the seeded rule. VTAB takes the order of
    TFDS, which only its files hold: with ``lists/train.txt``, ``val.txt`` and ``test.txt`` (paths ``<class>/<file>``)
    beside the class folders, those are taken instead.
    """
    copy = copy.below("2750", "EuroSAT/2750", "EuroSAT_RGB", "EuroSAT", "NWPU-RESISC45")
    names, items = _class_folders(copy)
    splits: tuple[Split, ...] = ("train", "val", "test")
    lists = {split: copy.find(f"lists/{split}.txt", f"../lists/{split}.txt") for split in splits}
    if lists["train"] is None:
        items = draw_splits(items, rule, val_share=0.2, test_share=0.2)
    else:
        sources = {split: copy.need(f"lists/{split}.txt", f"../lists/{split}.txt") for split in splits}
        entries = (
            (split, row[0], row[0].split("/")[0], source)
            for split, source in sources.items()
            for row in copy.rows(source)
        )
        items = list(_named(copy, entries, names))
    return classify_reading(copy, items, [plain_name(name) for name in names])


def read_gtsrb(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """GTSRB: a table ``GT-<class>.csv`` in each training folder, and ``GT-final_test.csv`` with the test labels."""
    copy = copy.below("GTSRB")
    folder = copy.need("Training", "Final_Training/Images")
    tables = sorted(folder.glob("*/GT-*.csv"))
    test = copy.need("GT-final_test.csv", "../GT-final_test.csv", "Final_Test/Images/GT-final_test.csv")
    if not tables:
        raise DataError(f"{folder}: no <class>/GT-<class>.csv in it; get {copy.row.title} from {copy.row.source_url}")
    images = copy.need("Final_Test/Images")
    sources: list[tuple[Split, Path, Path]] = [("train", table, table.parent) for table in tables]
    items = []
    for split, source, parent in [*sources, ("test", test, images)]:
        for row in copy.table(source, ("Filename", "ClassId"), ";"):
            with copy.parsing(source):
                label = int(row["ClassId"])
                relative = (parent / row["Filename"]).relative_to(copy.base).as_posix()
            path = copy.inside(relative, source)
            items.append(copy.item(path, split, label))
    return classify_reading(copy, items, TRAFFIC_SIGNS)


def read_imagenet(copy: OfficialCopy, rule: SplitRule | None) -> OfficialReading:
    """ImageNet-1K: a folder a synset for training; classes follow the sorted synset ids.

    The validation images, which are scored, lie in folders too, or flat with ``LOC_val_solution.csv`` beside them,
    whose prediction strings begin with the synset. Names come from ``LOC_synset_mapping.txt`` where it is there.
    """
    files = copy
    copy = copy.below("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
    train, val = copy.need("train"), copy.need("val")
    synsets = sorted(folder.name for folder in train.iterdir() if folder.is_dir())
    indices = {synset: index for index, synset in enumerate(synsets)}
    items = [copy.item(path, "train", indices[s]) for s in synsets for path in images_under(train / s)]
    solution = files.find("LOC_val_solution.csv", "../LOC_val_solution.csv")
    folders = [folder for folder in sorted(val.iterdir()) if folder.is_dir()]
    for folder in folders:
        label = _index(indices, folder.name, val)
        items += [copy.item(path, "test", label) for path in images_under(folder)]
    if not folders:
        source = solution or files.need("LOC_val_solution.csv")
        for row in copy.table(source, ("ImageId", "PredictionString")):
            label = _index(indices, row["PredictionString"].split(" ", 1)[0], source)
            path = copy.inside(f"val/{row['ImageId']}.JPEG", source)
            items.append(copy.item(path, "test", label))
    titles = dict.fromkeys(synsets, "")
    if mapping := files.find("LOC_synset_mapping.txt"):
        titles |= {row[0]: " ".join(row[1:]).split(",")[0] for row in copy.rows(mapping, 2)}
    return classify_reading(copy, items, _distinct([titles[synset] or synset for synset in synsets], synsets))


def _named(copy: OfficialCopy, entries: Iterator[tuple[Split, str, str, Path]], names: list[str]) -> Iterator[Item]:
    """Items of (split, path below the base, class, list); DataError where a class is unknown or a path leads out."""
    indices = {name: index for index, name in enumerate(names)}
    for split, relative, name, source in entries:
        yield copy.item(copy.inside(relative, source), split, _index(indices, name, source))


def _index(indices: dict[str, int], name: str, source: Path) -> int:
    if name not in indices:
        raise DataError(f"{source}: class {name!r} is not among the {len(indices)} classes of this copy")
    return indices[name]


def _class_folders(copy: OfficialCopy) -> tuple[list[str], list[Item]]:
    """Class names, sorted, and an item for each image in their folders."""
    found = {folder.name: list(images_under(folder)) for folder in sorted(copy.base.iterdir()) if folder.is_dir()}
    names = [name for name, paths in found.items() if paths and not name.startswith(".")]
    if not names:
        raise DataError(f"{copy.base}: no class folder with images; get {copy.row.title} from {copy.row.source_url}")
    return names, [copy.item(path, "train", label) for label, name in enumerate(names) for path in found[name]]


def _distinct(titles: list[str], suffixes: list[Any]) -> list[str]:
    """Names made distinct by a suffix where two are equal, as with the two cranes of ImageNet."""
    count: dict[str, int] = defaultdict(int)
    for title in titles:
        count[title] += 1
    return [
        f"{title} ({suffix})" if count[title] > 1 else title for title, suffix in zip(titles, suffixes, strict=True)
    ]
