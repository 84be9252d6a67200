"""Up-A-G: images and captions into one space. B batch, D embedding width, L tokens, W text width.

Source: DeCLIP (arXiv 2110.05208, code Sense-GVT/DeCLIP). With v1, v2 the views' and t, t' the captions' normalised
embeddings, C(v, t) CLIP's symmetric contrast, p and z SimSiam's prediction and projection, and n, n' the nearest
queue rows of t and t', the source minimises::

    0.4 * 1/4 [C(v1,t) + C(v2,t) + C(v1,t') + C(v2,t')]          image_text 0.1, multi_view 0.3
  + 0.2 * -1/2 [cos(p1, z2) + cos(p2, z1)]                       image_self
  + 0.2 * masked-token cross-entropy                             text_self
  + 0.2 * 1/4 [CE(v1,n) + CE(v2,n) + CE(v1,n') + CE(v2,n')]      neighbour, image to text only
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intern_vision.models.vision import VisionModel
from intern_vision.train.batch_norm import GlobalBatchNorm
from intern_vision.train.losses import (
    NeighbourQueue,
    contrastive_loss,
    gather_rows,
    masked_token_loss,
    negative_cosine,
    sigmoid_loss,
)
from intern_vision.train.objective import Batch, Losses, Objective
from intern_vision.train.settings import SignalWeights

SIGMOID_SCALE, SIGMOID_BIAS = 10.0, -10.0


class ImageTextObjective(Objective):
    """CLIP's contrast and DeCLIP's further signals; the module's docstring has the sum.

    Every term equals that of one process with the joint batch, whatever the number of ranks: rows
    are gathered with their gradients, and the projector's and predictor's BatchNorms see all ranks.

    Args:
        model: must have a text tower.
        weights: which signals count how much.
        queue_rows: length of the neighbour queue.
        contrast: ``softmax`` (CLIP) or ``sigmoid`` (SigLIP, arXiv 2303.15343, which starts from scale
            10 and bias -10); it holds for image-text, multi-view and neighbour terms alike.
        contrast_masked: whether the masked caption's pass also gives the contrast's t, as in the
            source; else the whole caption takes a pass of its own.
        log_scale_range: the learned log scale acts as the nearest value of this range; DeCLIP: 3 to 6 on
            YFCC. The scale itself is at most 100.
    """

    def __init__(
        self,
        model: VisionModel,
        weights: SignalWeights,
        *,
        queue_rows: int,
        contrast: Literal["softmax", "sigmoid"] = "softmax",
        contrast_masked: bool = True,
        log_scale_range: tuple[float, float] = (-10.0, 10.0),
    ) -> None:
        """Adds the parts that only training needs: predictors, token head, queue and SigLIP's bias."""
        super().__init__(model)
        self.weights = weights
        self.contrast_masked = contrast_masked
        self.log_scale_range = log_scale_range
        self.passes_per_sample = weights.num_views
        text = model.spec.text
        assert text is not None, "an amateur has a text tower"
        width = text.embedding_width
        self.is_sigmoid = contrast == "sigmoid"
        if self.is_sigmoid:
            nn.init.constant_(model.text.log_scale, torch.tensor(SIGMOID_SCALE).log().item())
            self.bias = nn.Parameter(torch.full((1,), SIGMOID_BIAS))
        if weights.image_self:
            self.projector = nn.Sequential(
                *(nn.Linear(width, width, bias=False), GlobalBatchNorm(width), nn.ReLU()),
                *(nn.Linear(width, width, bias=False), GlobalBatchNorm(width), nn.ReLU()),
                *(nn.Linear(width, width, bias=False), GlobalBatchNorm(width)),
            )
            self.predictor = nn.Sequential(
                *(nn.Linear(width, width // 2, bias=False), GlobalBatchNorm(width // 2), nn.ReLU()),
                nn.Linear(width // 2, width),
            )
        if weights.text_self:
            self.token_head = nn.Linear(text.width, text.vocab_size)
        if weights.neighbour:
            self.queue = NeighbourQueue(queue_rows, width)

    def forward(self, batch: Batch) -> tuple[Losses, Losses]:
        """See ``Objective``.

        Needs ``image_BCHW`` and ``tokens_BL``; for two views the second ones too; for ``text_self``
        ``masked_tokens_BL`` and ``token_targets_BL``.
        """
        weights, tower = self.weights, self.model.text
        scale = tower.scale(*self.log_scale_range).float()
        raw_views = self._project_views(batch)
        views = [gather_rows(F.normalize(raw_BD.float(), dim=-1)) for raw_BD in raw_views]
        losses: Losses = {}
        if weights.text_self:
            masked_BD, hidden_BLW = tower.encoder(batch["masked_tokens_BL"])
            logits_BLV = self.token_head(hidden_BLW)
            losses["text_self"] = weights.text_self * masked_token_loss(logits_BLV, batch["token_targets_BL"])
        if weights.text_self and self.contrast_masked:
            text_BD = gather_rows(F.normalize(masked_BD.float(), dim=-1))
        else:
            text_BD = self._embed(batch["tokens_BL"])
        image_text = self._contrast(views[0], text_BD, scale)
        losses["image_text"] = weights.image_text * image_text
        if weights.multi_view or weights.neighbour:
            second_BD = self._embed(batch["second_tokens_BL"])
        if weights.multi_view:
            others = ((views[1], text_BD), (views[0], second_BD), (views[1], second_BD))
            losses["multi_view"] = weights.multi_view * sum(self._contrast(v, t, scale) for v, t in others) / 3
        if weights.image_self:
            losses["image_self"] = weights.image_self * self._image_self(*raw_views)
        if weights.neighbour:
            losses["neighbour"] = weights.neighbour * self._neighbour(views, text_BD, second_BD, scale)
        return losses, {"image_text": image_text.detach(), "scale": scale.detach()}

    def _project_views(self, batch: Batch) -> list[Tensor]:
        images = [batch["image_BCHW"]]
        if self.weights.num_views == 2:
            images.append(batch["second_image_BCHW"])
        vectors_BD = self.model(torch.cat(images)).vector_BD
        return list(self.model.text.projection(vectors_BD).chunk(len(images)))

    def _embed(self, tokens_BL: Tensor) -> Tensor:
        """Normalised text embeddings of all ranks."""
        embedding_BD, _ = self.model.text.encoder(tokens_BL)
        return gather_rows(F.normalize(embedding_BD.float(), dim=-1))

    def _contrast(self, image_BD: Tensor, text_BD: Tensor, scale: Tensor) -> Tensor:
        if self.is_sigmoid:
            return sigmoid_loss(image_BD, text_BD, scale, self.bias.squeeze())
        return contrastive_loss(image_BD, text_BD, scale)

    def _image_self(self, first_BD: Tensor, second_BD: Tensor) -> Tensor:
        first, second = self.projector(first_BD), self.projector(second_BD)
        predicted_first, predicted_second = self.predictor(first).float(), self.predictor(second).float()
        return 0.5 * (
            negative_cosine(predicted_first, second.float()) + negative_cosine(predicted_second, first.float())
        )

    def _neighbour(self, views: list[Tensor], text_BD: Tensor, second_BD: Tensor, scale: Tensor) -> Tensor:
        # Look up before pushing, or a caption would be its own neighbour.
        neighbours = (self.queue.nearest(text_BD), self.queue.nearest(second_BD))
        self.queue.push(second_BD)
        self.queue.push(text_BD)
        if self.is_sigmoid:
            terms = [self._contrast(v, n, scale) for v in views for n in neighbours]
        else:
            targets_B = torch.arange(len(text_BD), device=text_BD.device)
            terms = [F.cross_entropy(scale * v @ n.T, targets_B) for v in views for n in neighbours]
        return torch.stack(terms).mean()
