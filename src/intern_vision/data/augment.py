"""Augmentation of an image together with its mask, depth and boxes, in uint8 from decoder to device.

One affine map a view moves everything; one colour matrix a view does brightness, contrast, saturation, hue and grey.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.batch import Example
from intern_vision.data.sample import IGNORE_LABEL, Sample
from intern_vision.data.settings import AugmentConfig
from intern_vision.data.text import Tokenizer, augment_caption, mask_tokens
from intern_vision.errors import DataError

Matrix = NDArray[np.float64]

# Luma of ITU-R BT.601 and the I and Q axes of NTSC: hue is a rotation in the I-Q plane.
_RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)
_MIN_BOX_SIDE_PX = 1.0


class _Transform:
    """What training and evaluation share: the fields that do not depend on the crop."""

    keeps_ignored_boxes = True

    def __init__(self, config: AugmentConfig, tokenizer: Tokenizer | None, context_length: int, num_concepts: int):
        import cv2

        # Threads inside OpenCV would fight the loader's own.
        cv2.setNumThreads(0)
        self.config = config
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.num_concepts = num_concepts

    def _fixed_fields(self, sample: Sample) -> Example:
        example: Example = {"key": sample.key}
        if sample.source is not None:
            example["source"] = sample.source
        if sample.label is not None:
            example["label"] = sample.label
        if sample.concepts is not None:
            concepts = np.zeros(self.num_concepts, np.float32)
            try:
                concepts[list(sample.concepts)] = 1.0
            except IndexError:
                raise DataError(
                    f"sample {sample.key}: concepts {sample.concepts}, but num_concepts is {self.num_concepts}"
                ) from None
            example["concepts"] = concepts
        if sample.caption is not None and self.tokenizer is not None:
            example["tokens"] = self.tokenizer.encode(sample.caption, self.context_length)
        return example

    def _place(self, example: Example, sample: Sample, affine: Matrix) -> None:
        size_px = self.config.image_size_px
        example["image"] = warp_image(sample.image, affine, size_px)
        if sample.mask is not None:
            example["mask"] = warp_labels(sample.mask, affine, size_px, IGNORE_LABEL)
        if sample.depth is not None:
            example["depth"] = warp_labels(sample.depth, affine, size_px, 0)
        if sample.boxes is not None and sample.box_labels is not None:
            example["boxes"], kept = warp_boxes(sample.boxes, affine, size_px, self.config.min_box_visibility)
            if not self.keeps_ignored_boxes and "ignored" in sample.box_attributes:
                learnt = sample.box_attributes["ignored"] != 1
                example["boxes"], kept = example["boxes"][learnt[kept]], kept & learnt
            example["box_labels"] = sample.box_labels[kept]
            example["box_attributes"] = {name: values[kept] for name, values in sample.box_attributes.items()}


class Augment(_Transform):
    """Training transform: ``Sample`` and generator to the example that ``collate`` takes; no ignored boxes."""

    keeps_ignored_boxes = False

    def __init__(
        self,
        config: AugmentConfig,
        *,
        tokenizer: Tokenizer | None = None,
        context_length: int = 32,
        num_concepts: int = 0,
        synonyms: Mapping[str, str | Sequence[str]] | None = None,
        mask_share: float = 0.0,
    ) -> None:
        """Prepares the transform.

        Args:
            config: the random ranges.
            tokenizer: adds ``tokens`` where a sample has a caption; with two views also ``second_tokens``
                of the caption changed by ``augment_caption``.
            context_length: tokens a caption.
            num_concepts: length of the multi-hot ``concepts``.
            synonyms: for ``augment_caption``.
            mask_share: share of a caption's tokens hidden by ``mask_tokens``, in [0, 1]; above 0 it adds
                ``masked_tokens`` and ``token_targets``.
        """
        super().__init__(config, tokenizer, context_length, num_concepts)
        self.synonyms = synonyms
        self.mask_share = mask_share

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Example:
        """One example; DataError where a concept is beyond ``num_concepts``."""
        example = self._fixed_fields(sample)
        height, width = sample.image.shape[:2]
        # All of a view's random numbers at once: a call to the generator costs as much as a hundred numbers.
        for view, draws in enumerate(rng.random((self.config.num_views, 14)).tolist()):
            affine = crop_affine(self.config, width, height, draws[:5])
            if self.config.num_views == 2:
                example["second_affine" if view else "affine"] = affine.astype(np.float32)
            if view == 0:
                self._place(example, sample, affine)
                example["image"] = change_colours(self.config, example["image"], draws[5:])
            else:
                image = warp_image(sample.image, affine, self.config.image_size_px)
                example["second_image"] = change_colours(self.config, image, draws[5:])
        if self.config.num_views == 2 and "tokens" in example and self.tokenizer is not None:
            words = augment_caption((sample.caption or "").split(), rng, self.synonyms)
            example["second_tokens"] = self.tokenizer.encode(" ".join(words), self.context_length)
        if self.mask_share and "tokens" in example and self.tokenizer is not None:
            example["masked_tokens"], example["token_targets"] = mask_tokens(
                example["tokens"], rng, mask_id=self.tokenizer.mask_id, share=self.mask_share
            )
        return example


class Resize(_Transform):
    """Evaluation transform: the whole image stretched to the square, nothing random, no box dropped.

    The example also holds ``original_size_px`` = (height, width): box x times ``width / image_size_px`` and y times
    ``height / image_size_px`` give the original pixels.
    """

    def __init__(
        self,
        config: AugmentConfig,
        *,
        tokenizer: Tokenizer | None = None,
        context_length: int = 32,
        num_concepts: int = 0,
    ) -> None:
        """Takes only ``image_size_px`` from the config; the rest as for ``Augment``."""
        still = config.model_copy(update={"min_box_visibility": 0.0})
        super().__init__(still, tokenizer, context_length, num_concepts)

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Example:
        """One example; ``rng`` is not used."""
        example = self._fixed_fields(sample)
        height, width = sample.image.shape[:2]
        size_px = self.config.image_size_px
        self._place(example, sample, stretch_affine(width, height, size_px))
        example["original_size_px"] = np.array([height, width], np.int64)
        return example


def stretch_affine(width: int, height: int, size_px: int) -> Matrix:
    """The ``(2, 3)`` map of the whole image onto the square."""
    return np.array([[size_px / width, 0.0, 0.0], [0.0, size_px / height, 0.0]])


def resize_image(image: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """An RGB image stretched to the square as ``Resize`` does it: ``(size_px, size_px, 3)`` uint8."""
    height, width = image.shape[:2]
    return warp_image(image, stretch_affine(width, height, size_px), size_px)


def crop_affine(config: AugmentConfig, width: int, height: int, draws: Sequence[float]) -> Matrix:
    """The ``(2, 3)`` map of a random resized crop with flip.

    Coordinates are continuous: pixel i covers [i, i + 1). A crop wider or higher than the image is cut to it (no
    second try), unless the zoom is above 1.

    Args:
        config: the ranges.
        width: of the image, in pixels.
        height: of the image, in pixels.
        draws: five uniform numbers in [0, 1).
    """
    area = config.scale_min + (config.scale_max - config.scale_min) * draws[0]
    aspect = config.aspect_max ** (2 * draws[1] - 1)
    crop_width = math.sqrt(area * width * height * aspect)
    crop_height = math.sqrt(area * width * height / aspect)
    if area <= 1:
        crop_width, crop_height = min(crop_width, width), min(crop_height, height)
    x0 = (width - crop_width) * draws[2]
    y0 = (height - crop_height) * draws[3]
    scale_x, scale_y = config.image_size_px / crop_width, config.image_size_px / crop_height
    if draws[4] < config.hflip_probability:
        return np.array([[-scale_x, 0.0, (x0 + crop_width) * scale_x], [0.0, scale_y, -y0 * scale_y]])
    return np.array([[scale_x, 0.0, -x0 * scale_x], [0.0, scale_y, -y0 * scale_y]])


def warp_image(image: NDArray[np.uint8], affine: Matrix, size_px: int) -> NDArray[np.uint8]:
    """Moves ``(H, W, 3)`` uint8 by an affine map to ``(size_px, size_px, 3)``; linear, edge pixels repeated outside."""
    import cv2

    # Linear sampling sees 2 x 2 pixels: a map that shrinks by 2 or more would skip pixels, so they are averaged first.
    shrink_x, shrink_y = int(1 / abs(affine[0, 0])), int(1 / abs(affine[1, 1]))
    if shrink_x >= 2 or shrink_y >= 2:
        height, width = image.shape[:2]
        small_width, small_height = max(1, width // max(1, shrink_x)), max(1, height // max(1, shrink_y))
        image = cv2.resize(image, (small_width, small_height), interpolation=cv2.INTER_AREA)
        affine = affine * np.array([width / small_width, height / small_height, 1.0])
    # Repeated edges, because black would bleed half a pixel into every view that touches the image's border.
    return cv2.warpAffine(
        image, _pixel_centres(affine), (size_px, size_px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def warp_labels(values: NDArray[Any], affine: Matrix, size_px: int, outside: float) -> NDArray[Any]:
    """Moves ``(H, W)`` uint8 or float32 to ``(size_px, size_px)``; nearest neighbour, ``outside`` beyond the image."""
    import cv2

    return cv2.warpAffine(
        values,
        _pixel_centres(affine),
        (size_px, size_px),
        flags=cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=outside,
    )


def warp_boxes(
    boxes: NDArray[np.float32], affine: Matrix, size_px: int, min_visibility: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Moves boxes by their corners and clips them to the view.

    Returns:
        Boxes kept, ``(num_kept, 4)`` float32, and which of the given ones they are, ``(num_boxes,)`` bool.
    """
    xs = boxes[:, 0::2] * affine[0, 0] + affine[0, 2]
    ys = boxes[:, 1::2] * affine[1, 1] + affine[1, 2]
    moved = np.stack([xs.min(1), ys.min(1), xs.max(1), ys.max(1)], axis=1) if len(boxes) else np.zeros((0, 4))
    clipped = moved.clip(0, size_px)
    sides = clipped[:, 2:] - clipped[:, :2]
    whole = moved[:, 2:] - moved[:, :2]
    kept = sides.prod(1) >= min_visibility * whole.prod(1)
    if min_visibility > 0:
        kept &= sides.min(1, initial=np.inf) >= _MIN_BOX_SIDE_PX
    return clipped[kept].astype(np.float32), kept


def change_colours(config: AugmentConfig, image: NDArray[np.uint8], draws: Sequence[float]) -> NDArray[np.uint8]:
    """Colour jitter, grey and blur of ``(H, W, 3)`` uint8.

    The jitter is one 3 x 4 matrix, in the order brightness, contrast, saturation, hue, rounded once; hue turns in
    the YIQ plane, which keeps luma, where torchvision turns in HSV.

    Args:
        config: the ranges.
        image: RGB.
        draws: nine uniform numbers in [0, 1).
    """
    import cv2

    jitter = draws[0] < config.colour_probability
    grey = draws[1] < config.grey_probability
    if jitter or grey:
        strengths = (config.brightness, config.contrast, config.saturation, config.hue)
        steps = [
            strength * (2 * draw - 1) if jitter else 0.0 for strength, draw in zip(strengths, draws[2:6], strict=True)
        ]
        brightness, contrast = 1 + steps[0], 1 + steps[1]
        saturation = 0.0 if grey else 1 + steps[2]
        angle = 2 * math.pi * steps[3]
        turn = saturation * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        colour = _YIQ_TO_RGB[:, :1] @ _RGB_TO_YIQ[:1] + _YIQ_TO_RGB[:, 1:] @ turn @ _RGB_TO_YIQ[1:]
        mean_grey = float(_RGB_TO_YIQ[0] @ cv2.mean(image)[:3])
        matrix = np.empty((3, 4))
        matrix[:, :3] = brightness * contrast * colour
        # A grey offset passes the colour matrix unchanged, because that keeps every grey as it is.
        matrix[:, 3] = (1 - contrast) * brightness * mean_grey
        image = cv2.transform(image, matrix)
    if draws[6] < config.blur_probability:
        low, high = config.blur_sigma_min_px, config.blur_sigma_max_px
        image = cv2.GaussianBlur(image, (0, 0), low + (high - low) * draws[7])
    return image


def _pixel_centres(affine: Matrix) -> Matrix:
    # OpenCV puts pixel centres at whole numbers; here they lie at halves.
    moved = affine.copy()
    moved[:, 2] += 0.5 * (affine[:, 0] + affine[:, 1]) - 0.5
    return moved
