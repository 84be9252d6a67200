"""An auto-encoder whose middle is a grid of whole numbers: images as codes of a finite book, and back.

B batch, C channels, E numbers a code, H W height and width.
"""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from intern_vision.errors import CheckpointError
from intern_vision.models.necks import conv_norm_relu
from intern_vision.models.tensors import check_tensors
from intern_vision.train.settings import CodebookConfig

WEIGHTS_FILE = "codebook.safetensors"
CONFIG_FILE = "codebook.json"
_MIDDLE = 127.5
# Keeps a bounded number off the outermost border between two levels (FSQ's reference code: 1e-3).
_MARGIN = 1e-3


class _Residual(nn.Module):
    """The input plus two 3x3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv_norm_relu(width, width), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.branch(x_BCHW)


class QuantisedAutoencoder(nn.Module):
    """Encoder, finite scalar quantisation (FSQ, arXiv 2309.15505) and decoder.

    Each of a code's E numbers is rounded to one of a few levels; the book is every combination of them. It cannot
    collapse onto a few codes, which a learned book does without further care. There is neither a perceptual nor an
    adversarial loss (VQ-GAN): both need a further network.
    """

    def __init__(self, config: CodebookConfig) -> None:
        """Builds the network with fresh weights."""
        super().__init__()
        self.config = config
        width, num_numbers = config.width, len(config.levels)
        down, up = [], []
        for _ in range(config.num_halvings):
            down += [nn.Conv2d(width, width, 4, 2, 1), nn.ReLU(), _Residual(width)]
            up += [_Residual(width), nn.Conv2d(width, 4 * width, 1), nn.PixelShuffle(2), nn.ReLU()]
        first, last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, num_numbers, 1)
        self.encoder = nn.Sequential(first, nn.ReLU(), *down, last)
        first, last = nn.Conv2d(num_numbers, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.decoder = nn.Sequential(first, *up, last)

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Codes ``(B, E, H / f, W / f)`` float32 of uint8 images, ``f = 2 ** num_halvings``.

        Their numbers are whole multiples of ``1 / (L // 2)`` in [-1, 1] for L levels. The gradient passes the rounding
        unchanged (straight through).
        """
        x_BEHW = self.encoder(image_BCHW.float() / _MIDDLE - 1.0).float()
        levels_E11 = x_BEHW.new_tensor(self.config.levels)[:, None, None]
        half_E11 = (levels_E11 - 1) * (1 - _MARGIN) / 2
        # An even number of levels has no middle one: half a step aside lie as many below 0 as above, and 0 itself.
        offset_E11 = torch.where(levels_E11 % 2 == 0, 0.5, 0.0)
        shift_E11 = (offset_E11 / half_E11).atanh()
        bounded_BEHW = (x_BEHW + shift_E11).tanh() * half_E11 - offset_E11
        whole_BEHW = bounded_BEHW + (bounded_BEHW.round() - bounded_BEHW).detach()
        return whole_BEHW / (levels_E11 // 2)

    def indices(self, code_BEHW: Tensor) -> Tensor:
        """Each code's number in the book, ``(B, H, W)`` int64, 0 to ``num_codes - 1``."""
        levels_E11 = code_BEHW.new_tensor(self.config.levels)[:, None, None]
        digit_BEHW = (code_BEHW * (levels_E11 // 2) + levels_E11 // 2).round().long()
        places = [math.prod(self.config.levels[:place]) for place in range(len(self.config.levels))]
        return (digit_BEHW * digit_BEHW.new_tensor(places)[:, None, None]).sum(1)

    def decode(self, code_BEHW: Tensor) -> Tensor:
        """Images ``(B, 3, H f, W f)`` float32, about -1 to 1."""
        return self.decoder(code_BEHW).float()

    def losses(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        """``pixel``: mean absolute error of restored uint8 images, in halves of the whole range."""
        restored_BCHW = self.decode(self.encode(image_BCHW))
        return {"pixel": (restored_BCHW - (image_BCHW.float() / _MIDDLE - 1.0)).abs().mean()}

    @torch.inference_mode()
    def restore(self, image_BCHW: Tensor) -> Tensor:
        """uint8 images as the codes say them, ``(B, 3, H, W)`` uint8."""
        restored_BCHW = (self.decode(self.encode(image_BCHW)) + 1.0) * _MIDDLE
        return restored_BCHW.round().clamp(0, 255).to(torch.uint8)

    def save(self, folder: Path) -> None:
        """Writes ``codebook.safetensors`` and ``codebook.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(self.config.to_json())

    @classmethod
    def load(cls, folder: Path) -> "QuantisedAutoencoder":
        """Reads what ``save`` wrote, in eval mode.

        Raises:
            CheckpointError: a file is missing, damaged, or does not fit the other.
        """
        path = folder / WEIGHTS_FILE
        try:
            config = CodebookConfig.from_json((folder / CONFIG_FILE).read_text(), at=str(folder / CONFIG_FILE))
            tensors = load_file(path)
        except (FileNotFoundError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); give the output of a represent stage") from None
        model = cls(config)
        check_tensors(tensors, {name: tensor.shape for name, tensor in model.state_dict().items()}, source=str(path))
        model.load_state_dict(tensors)
        return model.eval()
