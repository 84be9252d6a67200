"""What is known of one model on one dataset: its scores by protocol, or why there are none."""

from typing import Literal

from pydantic import Field

from intern_vision.bench.comparisons import is_protocol
from intern_vision.config import Config
from intern_vision.ref import Ref
from intern_vision.store import join_uri, open_store
from intern_vision.task import Family

SCORES_FILE = "scores.json"

# Families whose error is by default the share of independent test images that are answered wrongly, and the metrics
# by which it is in any case.
PROPORTION_FAMILIES: tuple[Family, ...] = ("classify",)
PROPORTION_METRICS = ("", "top1", "quadratic_kappa")
# Metrics whose error is a length in metres; all others are fractions, shown in percent.
METRE_METRICS = ("kitti_rmse", "nyu_rmse")


class ProtocolScore(Config):
    """What one adapted model scores on one dataset.

    Attributes:
        error: lower is better: by default 1 - top-1, 1 - mAP, 1 - AP50, 1 - mIoU, or the mean absolute relative depth
            error; a fraction, not percent, or metres for a metric in metres.
        metrics: every metric computed, by name.
        num_train: labelled training images the adaptation used.
        num_test: images scored.
        method: how the model was adapted, for example ``probe``.
        interval: 95 % interval of the error in the same unit, where the scorer gave one.
    """

    error: float = Field(ge=0.0, allow_inf_nan=False)
    metrics: dict[str, float]
    num_train: int = Field(ge=0)
    num_test: int = Field(ge=0)
    method: str
    interval: tuple[float, float] | None = None


class Scores(Config):
    """One model on one dataset; the JSON of ``scores.json``.

    Attributes:
        dataset: name of the dataset.
        model: which arm was adapted, for example ``clip`` or ``intern``.
        family: what is predicted.
        protocols: score by protocol: ``10`` and ``100`` in GV-B (percent of the training labels, frozen backbone),
            and the others of ``intern_vision.bench.comparisons``.
        metric: name of the metric the error comes from; empty for the family's default.
    """

    dataset: str
    model: str
    family: Family
    protocols: dict[str, ProtocolScore]
    metric: str = ""

    def faults(self) -> list[str]:
        """Protocols have known names."""
        wrong = [name for name in self.protocols if not is_protocol(name)]
        expected = "percentages in (0, 100] such as 10, 4shot.0, or 0 for zero-shot, with suffixes such as +ft or +knn"
        return [f"protocols: expected {expected}, got {wrong[0]!r}"] if wrong else []


class Gap(Config):
    """A dataset, or one arm on it, that has no score.

    Attributes:
        dataset: its name.
        family: its family; empty where it is not known.
        arm: the arm without a score; empty for all.
        status: ``absent`` (its files are not there) or ``failed``.
        text: one line: how to get it, or what went wrong.
        exit_code: of the error; 0 where there is none.
    """

    dataset: str
    family: Family | Literal[""] = ""
    arm: str = ""
    status: Literal["absent", "failed"]
    text: str
    exit_code: int = 0


def unit_of(metric: str) -> str:
    """Unit in which a metric's error is shown: ``m`` or ``%``."""
    return "m" if metric in METRE_METRICS else "%"


def read_scores(ref: Ref) -> Scores:
    """The scores that the stage ``evaluate`` committed; DataError or ConfigError where the file is not theirs."""
    uri = join_uri(ref.uri, SCORES_FILE)
    return Scores.from_json(open_store(ref.uri).read(uri).decode(), at=uri)
