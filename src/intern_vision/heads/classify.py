"""Heads on the pooled vector. B batch, K classes or concepts, D vector width, J neighbours, N known images."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intern_vision.heads import HeadConfig
from intern_vision.heads.base import Batch, Prediction, TaskHead, cross_entropy, to_numpy
from intern_vision.models.features import Features
from intern_vision.models.necks import ChannelStandardizer
from intern_vision.task import Task

UNKNOWN_LABEL = -1
# Share of images a concept is expected in before anything is learned (RetinaNet's prior, arXiv 1708.02002 section 4.1).
CONCEPT_PRIOR = 0.05


class LinearHead(TaskHead):
    """One linear layer from the pooled vector to a logit a class."""

    def __init__(self, task: Task, vector_width: int, config: HeadConfig, frozen_features: bool) -> None:
        """See ``build_head``."""
        super().__init__(task, config)
        self.standardize = ChannelStandardizer(vector_width) if frozen_features else nn.Identity()
        self.linear = nn.Linear(vector_width, task.num_classes)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """``logits_BK``."""
        vector_BD = features.pooled_pyramid() if self.config.pooling == "pyramid" else features.vector_BD
        return {"logits_BK": self.linear(self.standardize(vector_BD))}


class ClassifyHead(LinearHead):
    """One class an image: softmax cross-entropy."""

    def losses(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """``classify``: cross-entropy over the images whose ``label_B`` is known, among their source's classes."""
        loss = cross_entropy(
            outputs["logits_BK"],
            self._target(batch, "label_B"),
            ignore_index=UNKNOWN_LABEL,
            label_smoothing=self.config.label_smoothing,
            known_BK=batch.get("known_BK"),
        )
        return {"classify": self.config.classify_weight * loss}

    def predict(self, outputs: dict[str, Tensor], image_size_px: tuple[int, int]) -> list[Prediction]:
        """``label`` and the softmax ``scores``."""
        scores_BK = to_numpy(outputs["logits_BK"].float().softmax(1))
        return [Prediction(label=int(scores_K.argmax()), scores=scores_K) for scores_K in scores_BK]


class CosineHead(ClassifyHead):
    """One class an image by the cosine between its projected vector and a class embedding (arXiv 2103.00020).

    ``linear.weight`` holds the class embeddings, ``(K, embedding_width)``; a learned temperature
    scales the cosines, at most by 100.
    """

    def __init__(self, task: Task, vector_width: int, config: HeadConfig, frozen_features: bool) -> None:
        """See ``build_head``."""
        super().__init__(task, vector_width, config, frozen_features)
        self.projection = nn.Linear(vector_width, config.embedding_width, bias=False)
        self.linear = nn.Linear(config.embedding_width, task.num_classes, bias=False)
        # One element and not a scalar: DeepSpeed cannot broadcast a tensor without dimensions.
        self.log_scale = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))

    def forward(self, features: Features) -> dict[str, Tensor]:
        """``logits_BK``: scaled cosines."""
        vector_BD = features.pooled_pyramid() if self.config.pooling == "pyramid" else features.vector_BD
        image_BE = F.normalize(self.projection(self.standardize(vector_BD)).float(), dim=-1)
        class_KE = F.normalize(self.linear.weight.float(), dim=-1)
        return {"logits_BK": self.log_scale.exp().clamp(max=100.0) * image_BE @ class_KE.T}


class NeighbourHead(ClassifyHead):
    """One class an image by a vote of the nearest known images, weighted by cosine (DINO, arXiv 2104.14294, 4.1).

    Nothing of it is trained: ``example_ND`` holds the known images' normalised features, ``example_label_N`` their
    classes; ``remember`` fills them. Where fewer images than neighbours are known, all of them vote.
    """

    def __init__(self, task: Task, vector_width: int, config: HeadConfig, frozen_features: bool) -> None:
        """See ``build_head``."""
        super().__init__(task, vector_width, config, frozen_features)
        del self.linear
        # Half the bytes of float32; the features are cached in the same precision.
        self.register_buffer("example_ND", torch.zeros(config.num_examples, vector_width, dtype=torch.float16))
        self.register_buffer("example_label_N", torch.zeros(config.num_examples, dtype=torch.int64))

    @torch.no_grad()
    def remember(self, features_ND: Tensor, labels_N: Tensor) -> None:
        """Takes the known images' features, float32 before standardisation, and their class indices."""
        self.example_ND.copy_(F.normalize(self.standardize(features_ND.to(self.example_ND.device)).float(), dim=-1))
        self.example_label_N.copy_(labels_N)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """``logits_BK``: logarithms of the classes' shares of the vote."""
        vector_BD = features.pooled_pyramid() if self.config.pooling == "pyramid" else features.vector_BD
        image_BD = F.normalize(self.standardize(vector_BD).float(), dim=-1)
        cosine_BN = image_BD @ self.example_ND.float().T
        num_neighbours = min(self.config.num_neighbours, cosine_BN.shape[1])
        nearest_BJ, index_BJ = cosine_BN.topk(num_neighbours)
        weight_BJ = (nearest_BJ / self.config.neighbour_temperature).softmax(1)
        vote_BK = weight_BJ.new_zeros(weight_BJ.shape[0], self.task.num_classes)
        vote_BK = vote_BK.scatter_add(1, self.example_label_N[index_BJ], weight_BJ)
        return {"logits_BK": vote_BK.clamp_min(1e-12).log()}


class MultilabelHead(LinearHead):
    """Any number of concepts an image: a binary cross-entropy for each."""

    def __init__(self, task: Task, vector_width: int, config: HeadConfig, frozen_features: bool) -> None:
        """See ``build_head``."""
        super().__init__(task, vector_width, config, frozen_features)
        nn.init.constant_(self.linear.bias, math.log(CONCEPT_PRIOR / (1 - CONCEPT_PRIOR)))

    def losses(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """``multilabel``: summed over concepts, so that one concept's pull does not fade with their number.

        Only annotated concepts count, and the mean is over images that have any.
        """
        concepts_BK = self._target(batch, "concepts_BK").float()
        loss_BK = F.binary_cross_entropy_with_logits(outputs["logits_BK"].float(), concepts_BK, reduction="none")
        if "known_BK" in batch:
            known_BK = batch["known_BK"]
            loss = (loss_BK * known_BK).sum() / known_BK.any(1).sum().clamp_min(1)
        else:
            loss = loss_BK.sum(1).mean()
        return {"multilabel": self.config.multilabel_weight * loss}

    def predict(self, outputs: dict[str, Tensor], image_size_px: tuple[int, int]) -> list[Prediction]:
        """Sigmoid ``scores``, one a concept."""
        return [Prediction(scores=scores_K) for scores_K in to_numpy(torch.sigmoid(outputs["logits_BK"].float()))]
