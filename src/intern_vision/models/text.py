"""Text encoder of the amateur stage. B batch, L tokens of a text, W width, D output width.

Source: the DeCLIP repository's causal transformer (arXiv 2110.05208), itself CLIP's
(arXiv 2103.00020): pre-norm blocks, and weights drawn with a deviation that falls with width and depth.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from intern_vision.errors import ConfigError, DataError
from intern_vision.models.layers import Mlp, SelfAttention
from intern_vision.models.vit import QuickGelu

PAD_TOKEN = 0


class TextEncoder(nn.Module):
    """Token ids to one vector a text and one hidden state a token.

    With ``num_blocks`` 0 it is a bag of words: hidden states are word plus position embeddings.

    Args:
        vocab_size: number of token ids; id 0 is padding, the largest id ends a text.
        context_length: longest text in tokens.
        width: hidden width.
        num_blocks: transformer blocks.
        num_heads: attention heads a block; divides ``width``.
        out_width: width of the text vector.
        pooling: ``end`` takes the hidden state at the largest id of the text, ``mean`` averages
            those that are not padding.
        quick_gelu: CLIP's approximation of GELU, as in OpenAI's own weights.

    Raises:
        ConfigError: the heads do not divide the width, or a bag of words is pooled at its end.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        width: int,
        num_blocks: int,
        num_heads: int,
        out_width: int,
        pooling: Literal["end", "mean"],
        quick_gelu: bool = False,
    ):
        """Builds the encoder with fresh weights."""
        super().__init__()
        if num_blocks and width % num_heads:
            raise ConfigError(f"text.width: expected a multiple of num_heads {num_heads}, got {width}")
        if not num_blocks and pooling == "end":
            raise ConfigError(
                'text.pooling: expected "mean" when num_blocks is 0, got "end", which sees one token only'
            )
        self.pooling = pooling
        self.context_length = context_length
        self.token = nn.Embedding(vocab_size, width)
        self.position = nn.Parameter(torch.empty(context_length, width))
        self.blocks = nn.ModuleList(TextBlock(width, num_heads, quick_gelu) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width) if num_blocks else nn.Identity()
        self.projection = nn.Linear(width, out_width)
        self._init_weights(width)

    def forward(self, tokens_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes texts.

        Args:
            tokens_BL: int64 ids, padded with 0 at the end, at most ``context_length`` of them.

        Returns:
            ``embedding_BD``, not normalised, and ``hidden_BLW``, whose padded positions mean nothing.

        Raises:
            DataError: the texts are longer than ``context_length``.
        """
        length = tokens_BL.shape[1]
        if length > self.context_length:
            raise DataError(
                f"tokens: expected at most {self.context_length} a text, got {length}; truncate the captions"
            )
        is_word_BL = tokens_BL != PAD_TOKEN
        hidden_BLW = self.token(tokens_BL) + self.position[:length]
        if self.blocks:
            allowed_BLL = _causal(is_word_BL)
            for block in self.blocks:
                hidden_BLW = block(hidden_BLW, allowed_BLL)
        hidden_BLW = self.norm(hidden_BLW)
        return self.projection(self._pool(hidden_BLW, tokens_BL, is_word_BL)), hidden_BLW

    def _pool(self, hidden_BLW: Tensor, tokens_BL: Tensor, is_word_BL: Tensor) -> Tensor:
        if self.pooling == "end":
            rows_B = torch.arange(len(tokens_BL), device=tokens_BL.device)
            return hidden_BLW[rows_B, tokens_BL.argmax(1)]
        weights_BL1 = is_word_BL[:, :, None].to(hidden_BLW.dtype)
        return (hidden_BLW * weights_BL1).sum(1) / weights_BL1.sum(1).clamp(min=1)

    def _init_weights(self, width: int) -> None:
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.position, std=0.01)
        in_std, out_std = width**-0.5, width**-0.5 * (2 * max(len(self.blocks), 1)) ** -0.5
        for block in self.blocks:
            nn.init.normal_(block.attention.qkv.weight, std=in_std)
            nn.init.normal_(block.attention.projection.weight, std=out_std)
            nn.init.normal_(block.mlp[0].weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp[-1].weight, std=out_std)
        nn.init.normal_(self.projection.weight, std=in_std)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


class TextBlock(nn.Module):
    """Pre-norm attention and a four times wider GELU MLP, both added to the stream."""

    def __init__(self, width: int, num_heads: int, quick_gelu: bool = False):
        """Builds the block; ``num_heads`` divides ``width``."""
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = SelfAttention(width, width, width // num_heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width, width, "gelu")
        if quick_gelu:
            self.mlp[1] = QuickGelu()

    def forward(self, x_BLW: Tensor, allowed_BLL: Tensor) -> Tensor:
        """Mixes tokens where ``allowed_BLL`` (query, key) is True."""
        x_BLW = x_BLW + self.attention(self.norm_attention(x_BLW), allowed_BLL)
        return x_BLW + self.mlp(self.norm_mlp(x_BLW))


def _causal(is_word_BL: Tensor) -> Tensor:
    # A position always sees itself: a row with nothing allowed would make the softmax NaN.
    length = is_word_BL.shape[1]
    past_LL = torch.ones(length, length, dtype=torch.bool, device=is_word_BL.device).tril()
    self_LL = torch.eye(length, dtype=torch.bool, device=is_word_BL.device)
    return past_LL & is_word_BL[:, None, :] | self_LL
