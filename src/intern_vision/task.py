"""The four task families of GV-B and what one sample or one model of a family is about."""

from typing import Literal

from intern_vision.config import Config

Family = Literal["classify", "multilabel", "detect", "segment", "depth"]


class Task(Config):
    """A family with its label names.

    Attributes:
        family: ``classify`` (one class an image), ``multilabel`` (any number of concepts),
            ``detect`` (boxes), ``segment`` (a class a pixel), ``depth`` (metres a pixel).
        class_names: label names in index order; empty for depth.
        max_depth_m: largest valid depth in metres; 0 for the other families.
    """

    family: Family
    class_names: tuple[str, ...] = ()
    max_depth_m: float = 0.0

    @property
    def num_classes(self) -> int:
        """Number of label names."""
        return len(self.class_names)

    def faults(self) -> list[str]:
        """Label names are required but for depth, which needs a largest depth."""
        if self.family == "depth":
            return [] if self.max_depth_m > 0 else ["max_depth_m must be > 0 for family depth"]
        return [] if self.class_names else [f"class_names must not be empty for family {self.family}"]


class View(Config):
    """How a central model (Up-G) serves a family: which expert is the main one, with which BatchNorms.

    Attributes:
        main: the expert whose features the heads read.
        bn_set: that expert's BatchNorm set; empty where it has only one.
    """

    main: str
    bn_set: str = ""


def is_vector_family(family: Family) -> bool:
    """Whether the family's heads read the image vector; those of the others read feature maps."""
    return family in ("classify", "multilabel")
