"""What a model makes of images: their vectors, a classifier on the labelled ones, or boxes.

B batch, D feature width, K classes, N images.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.annotation.rectify import Described
from intern_vision.data.annotation.spoil import STATISTICS, image_statistics
from intern_vision.data.annotation.tasks import Question
from intern_vision.data.image_vectors import BATCH_IMAGES, ImageVectors
from intern_vision.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from intern_vision.heads.base import Prediction
    from intern_vision.models.vision import VisionModel

AUTO, PROBE = "auto", "probe"
Probabilities = Callable[[NDArray[np.floating]], NDArray[np.float32]]


class ImageEncoder:
    """A frozen model's vectors of images, what one of its heads says, and the images' statistics.

    Attributes:
        class_names: of the head; empty without one.
        width: D.

    Args:
        model: as ``ImageVectors`` takes it.
        head: name of the head to ask; empty for none.
    """

    def __init__(self, model: "VisionModel", head: str = "") -> None:
        self._vectors = ImageVectors(model)
        self.model = self._vectors.model
        self.head = head
        self.class_names = model.spec.heads[head].task.class_names if head else ()
        self.width = sum(model.backbone.channels[:-1]) + model.backbone.vector_width

    @classmethod
    def load(
        cls, folder: Path, question: Question = "label", head: str = PROBE, labels: Sequence[str] = ()
    ) -> "ImageEncoder":
        """The weights that a training stage wrote, with the head that proposes.

        Args:
            folder: the weights.
            question: what is asked: heads of the family ``classify`` or ``detect`` can propose.
            head: a head's name, ``probe`` for none, or ``auto`` for the first one of the family whose classes are all
                of ``labels`` and more.
            labels: labels of the labelled rows.

        Raises:
            ConfigError: no such head, one of another family, or none for boxes.
        """
        from intern_vision.models.vision import VisionModel, best_labelled_dir

        model = VisionModel.load(best_labelled_dir(folder))
        family = "classify" if question == "label" else "detect"
        fitting = [name for name, each in model.spec.heads.items() if each.task.family == family]
        known = [name for name in fitting if set(labels) <= set(model.spec.heads[name].task.class_names)]
        if head not in (AUTO, PROBE) and head not in fitting:
            raise ConfigError(
                f"selection.head: expected a head of family {family} ({', '.join(fitting) or 'none'}), got {head!r}"
            )
        if question == "box" and (head == PROBE or not fitting):
            raise ConfigError("selection.head: boxes are proposed by a head of family detect; give a model with one")
        if head == AUTO:
            head = next(iter(known), fitting[0] if question == "box" else PROBE)
        return cls(model, "" if head == PROBE else head)

    def look(self, images: Sequence[NDArray[np.uint8]]) -> "tuple[Described, list[Prediction]]":
        """Vectors and statistics of images ``(H, W, 3)`` uint8 of any size, and the head's predictions."""
        vectors, predictions = [np.zeros((0, self.width), np.float32)], []
        for number, x_BCHW in enumerate(self._vectors.batches(images)):
            batch = images[number * BATCH_IMAGES :][:BATCH_IMAGES]
            own, said = self._forward(x_BCHW, [image.shape[:2] for image in batch])
            vectors.append(own)
            predictions += said
        statistics = [image_statistics(image) for image in images]
        described = Described(
            vectors_ND=np.concatenate(vectors),
            statistics_NS=np.array(statistics, np.float32).reshape(len(images), len(STATISTICS)),
        )
        return described, predictions

    def describe(self, images: Sequence[NDArray[np.uint8]]) -> Described:
        """Vectors and statistics alone."""
        return self.look(images)[0]

    def _forward(
        self, x_BCHW: "Tensor", sizes_px: list[tuple[int, int]]
    ) -> "tuple[NDArray[np.float32], list[Prediction]]":
        import torch

        from intern_vision.heads.resize import predict_at

        with torch.inference_mode():
            if not self.head:
                return self._vectors.features(x_BCHW).pooled_pyramid().float().cpu().numpy(), []
            features = self.model.head_features(x_BCHW, [self.head])[self.head]
            head = self.model.heads[self.head]
            said = predict_at(head, head(features), tuple(x_BCHW.shape[2:]), sizes_px)
            return features.pooled_pyramid().float().cpu().numpy(), said


def fit_probabilities(vectors_ND: NDArray[np.floating], labels_N: NDArray[np.int64], num_classes: int) -> Probabilities:
    """A ridge probe on labelled vectors, as a function from vectors to class probabilities ``(N, K)``."""
    import torch

    from intern_vision.bench.ridge_probe import fit_ridge_probe
    from intern_vision.train.settings import ProbeConfig

    x_ND = torch.from_numpy(np.asarray(vectors_ND, np.float32))
    probe = fit_ridge_probe(x_ND, torch.from_numpy(labels_N), num_classes, ProbeConfig())

    def probabilities(vectors_MD: NDArray[np.floating]) -> NDArray[np.float32]:
        x_MD = (torch.from_numpy(np.asarray(vectors_MD, np.float32)) - probe.mean_D) / probe.std_D
        return (x_MD @ probe.weight_KD.T + probe.bias_K).softmax(1).numpy()

    return probabilities
