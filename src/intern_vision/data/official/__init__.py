"""The benchmark's datasets as downloaded: one reader a layout, each giving a ``Reading`` with the official splits.

``<data root>/<name>/`` holds a set as its archives unpack, with or without their top folder. Images are opened one by
one; of packed formats one file is open at a time. Keys are the official paths (``train/00001`` in packed formats), in a
form that ``sample_key`` makes safe and unique: they enter the rule by which labels are drawn, so they depend neither on
where a copy lies nor on the order of files.
"""

from collections.abc import Callable
from pathlib import Path

from intern_vision.bench.suite import find_row
from intern_vision.data.official.dense import read_kitti_eigen, read_nyu_v2, read_voc_segmentation
from intern_vision.data.official.detection import read_citypersons, read_voc_detection, read_wider_face
from intern_vision.data.official.image_lists import (
    read_caltech101,
    read_class_folders,
    read_dtd,
    read_fgvc_aircraft,
    read_flowers102,
    read_food101,
    read_gtsrb,
    read_imagenet,
    read_oxford_pets,
    read_stanford_cars,
    read_sun397,
)
from intern_vision.data.official.layout import OfficialCopy, OfficialReading
from intern_vision.data.official.packed import read_cifar, read_fer2013, read_pcam, read_svhn
from intern_vision.data.official.retinopathy import read_retinopathy
from intern_vision.data.official.videos import read_kinetics700, read_ucf101
from intern_vision.data.reading import SplitRule

READERS: dict[str, Callable[[OfficialCopy, SplitRule | None], OfficialReading]] = {
    "caltech101": read_caltech101,
    "cifar": read_cifar,
    "citypersons": read_citypersons,
    "class_folders": read_class_folders,
    "dtd": read_dtd,
    "fer2013": read_fer2013,
    "fgvc_aircraft": read_fgvc_aircraft,
    "flowers102": read_flowers102,
    "food101": read_food101,
    "gtsrb": read_gtsrb,
    "imagenet": read_imagenet,
    "kinetics700": read_kinetics700,
    "kitti_eigen": read_kitti_eigen,
    "nyu_v2": read_nyu_v2,
    "oxford_pets": read_oxford_pets,
    "pcam": read_pcam,
    "retinopathy": read_retinopathy,
    "stanford_cars": read_stanford_cars,
    "sun397": read_sun397,
    "svhn": read_svhn,
    "ucf101": read_ucf101,
    "voc_detection": read_voc_detection,
    "voc_segmentation": read_voc_segmentation,
    "wider_face": read_wider_face,
}


def read_official(name: str, root: Path, rule: SplitRule | None = None) -> OfficialReading:
    """Finds the images of one of the suite's sets; they are opened by iterating.

    Args:
        name: of the set in ``intern_vision.bench.suite``.
        root: the data root, which holds the folder ``<name>``.
        rule: of the split where none is published (Caltech-101, EuroSAT, RESISC45); only its seed is used.

    Raises:
        ConfigError: the suite has no such set.
        DataError: the copy is absent, lacks an official file or has one that cannot be parsed; names the file, and says
            where to get what is missing.
    """
    row = find_row(name)
    return READERS[row.reader](OfficialCopy.at(row, root), rule)
