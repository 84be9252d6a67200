"""What a backbone gives to heads. B batch, C channels, H W height and width, D vector width."""

from dataclasses import dataclass

import torch
from torch import Tensor


# Without slots: ZeRO stage 3 looks into what a module returns through vars().
@dataclass
class Features:
    """Feature maps from fine to coarse and one pooled vector an image.

    Attributes:
        maps: ``(B, C_k, H_k, W_k)`` floating point, one a pyramid level; level k has the
            backbone's ``channels[k]`` and ``strides[k]``.
        vector_BD: pooled image vector, ``D`` = the backbone's ``vector_width``.
    """

    maps: tuple[Tensor, ...]
    vector_BD: Tensor

    def pooled_pyramid(self) -> Tensor:
        """``(B, sum of the finer maps' C + D)``: the mean of every map but the coarsest, and the image vector."""
        means = [map_BCHW.mean((2, 3)) for map_BCHW in self.maps[:-1]]
        return torch.cat([*means, self.vector_BD], dim=1)
