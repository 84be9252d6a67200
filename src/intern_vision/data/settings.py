"""Settings of data; free of numpy, so that a pipeline step reads its config without loading it."""

from pydantic import Field

from intern_vision.config import Config


class AugmentConfig(Config):
    """What happens to a training image.

    The defaults are the MoCo-v2 set that DeCLIP trains with (arXiv 2110.05208), less blur, which small
    images do not need.

    Attributes:
        image_size_px: side of the square result.
        scale_min: smallest area of the random crop, as a share of the image's.
        scale_max: largest; above 1 the image can also shrink inside the result, where the image's edge pixels repeat,
            the mask is 255 and the depth 0.
        aspect_max: the crop's width over height lies in ``[1 / aspect_max, aspect_max]``.
        hflip_probability: of mirroring left and right.
        brightness: the factor lies in ``[1 - brightness, 1 + brightness]``.
        contrast: likewise, about the image's mean grey.
        saturation: likewise.
        hue: the hue turns by up to this share of the circle, either way; at most 0.5.
        colour_probability: of the four above.
        grey_probability: of removing all colour.
        blur_probability: of Gaussian blur.
        blur_sigma_min_px: smallest standard deviation of the blur.
        blur_sigma_max_px: largest.
        num_views: 1, or 2 for contrastive training; only the first view carries mask, depth and boxes.
        min_box_visibility: a box is dropped when less than this share of its area stays in view.
    """

    image_size_px: int = Field(64, ge=8)
    scale_min: float = Field(0.2, gt=0)
    scale_max: float = Field(1.0, gt=0)
    aspect_max: float = Field(4 / 3, ge=1)
    hflip_probability: float = Field(0.5, ge=0, le=1)
    brightness: float = Field(0.4, ge=0, le=1)
    contrast: float = Field(0.4, ge=0, le=1)
    saturation: float = Field(0.4, ge=0, le=1)
    hue: float = Field(0.1, ge=0, le=0.5)
    colour_probability: float = Field(0.8, ge=0, le=1)
    grey_probability: float = Field(0.2, ge=0, le=1)
    blur_probability: float = Field(0.0, ge=0, le=1)
    blur_sigma_min_px: float = Field(0.1, gt=0)
    blur_sigma_max_px: float = Field(2.0, gt=0)
    num_views: int = Field(1, ge=1, le=2)
    min_box_visibility: float = Field(0.3, ge=0, le=1)

    def faults(self) -> list[str]:
        """The ranges must not be empty."""
        pairs = (("scale_min", "scale_max"), ("blur_sigma_min_px", "blur_sigma_max_px"))
        return [f"{low} must be <= {high}" for low, high in pairs if getattr(self, low) > getattr(self, high)]


class MixtureConfig(Config):
    """How the samples of several datasets are mixed.

    Attributes:
        temperature: a dataset's share is proportional to its number of samples to this power, in [0, 1]: 1 draws every
            sample equally often, 0 every dataset. Datasets written with weights get shares in their ratio instead.
        homogeneous: all samples of a batch from one dataset, whose turn comes by the same shares; else mixed batches.
    """

    temperature: float = Field(0.5, ge=0, le=1)
    homogeneous: bool = False


class SplitRule(Config):
    """How splits that the data does not name are drawn from its training part, class by class.

    Attributes:
        val_share: share held out for validation, where no ``val`` is given; 0 = none.
        test_share: share held out for the final score, where no ``test`` is given; 0 = none.
        seed: which of the possible draws.
    """

    val_share: float = Field(0.1, ge=0, lt=0.5)
    test_share: float = Field(0.2, ge=0, lt=0.5)
    seed: int = 0


MOCO_V2 = AugmentConfig(image_size_px=224, blur_probability=0.5, num_views=2)
"""How DeCLIP makes its views: MoCo v2's set (arXiv 2003.04297), which is the defaults and blur."""

CLIP_CROP = AugmentConfig(
    image_size_px=224, scale_min=0.5, hflip_probability=0, colour_probability=0, grey_probability=0
)
"""What the plain CLIP baseline of the same code sees: a random crop of half the image or more, and nothing else."""
