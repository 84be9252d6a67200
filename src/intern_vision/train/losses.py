"""Losses of Up-A (science of DeCLIP, arXiv 2110.05208) and of distillation.

B batch, D embedding width, L tokens, V vocabulary, Q queue length.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks in rank order; the gradient of each row returns to its owner."""

    @staticmethod
    def forward(ctx, rows_BD: Tensor) -> Tensor:  # noqa: D102
        gathered = [torch.empty_like(rows_BD) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows_BD.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, grad_GD: Tensor) -> Tensor:  # noqa: D102
        # Every rank computes the same global loss, and the engine averages gradients over ranks:
        # summing here makes the average equal the gradient of one process with the joint batch.
        grad_GD = grad_GD.contiguous()
        dist.all_reduce(grad_GD)
        return grad_GD.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(rows_BD: Tensor) -> Tensor:
    """Rows of every rank, ``(B * ranks, D)``, differentiable; the input itself on one rank."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return _GatherRows.apply(rows_BD)
    return rows_BD


def contrastive_loss(image_BD: Tensor, text_BD: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric InfoNCE over normalised float32 rows; row i of one matches row i of the other."""
    logits_BB = scale * image_BD @ text_BD.T
    targets_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return 0.5 * (F.cross_entropy(logits_BB, targets_B) + F.cross_entropy(logits_BB.T, targets_B))


def negative_cosine(prediction_BD: Tensor, target_BD: Tensor) -> Tensor:
    """SimSiam's term: minus the mean cosine to a target that takes no gradient, in [-1, 1]."""
    return -F.cosine_similarity(prediction_BD, target_BD.detach(), dim=-1).mean()


def mask_tokens(
    tokens_BL: Tensor, *, mask_id: int, first_special_id: int, share: float = 0.15
) -> tuple[Tensor, Tensor]:
    """BERT's corruption: of the chosen positions 80 % become the mask, 10 % a random token, 10 % stay.

    Args:
        tokens_BL: int64 ids; 0 is padding.
        mask_id: id of the mask token.
        first_special_id: ids from here on (mask, start, end) are never chosen.
        share: share of ordinary tokens chosen, in [0, 1].

    Returns:
        The corrupted tokens and the targets, -100 where no prediction is asked.
    """
    ordinary_BL = (tokens_BL > 0) & (tokens_BL < first_special_id)
    chosen_BL = ordinary_BL & (torch.rand(tokens_BL.shape, device=tokens_BL.device) < share)
    dice_BL = torch.rand(tokens_BL.shape, device=tokens_BL.device)
    random_BL = torch.randint(1, first_special_id, tokens_BL.shape, device=tokens_BL.device)
    corrupted_BL = torch.where(chosen_BL & (dice_BL < 0.8), mask_id, tokens_BL)
    corrupted_BL = torch.where(chosen_BL & (dice_BL >= 0.9), random_BL, corrupted_BL)
    return corrupted_BL, torch.where(chosen_BL, tokens_BL, -100)


def masked_token_loss(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    """Cross-entropy at the chosen positions; 0 where a batch has none."""
    sums = F.cross_entropy(logits_BLV.flatten(0, 1).float(), targets_BL.flatten(), ignore_index=-100, reduction="sum")
    return sums / (targets_BL >= 0).sum().clamp(min=1)


class NeighbourQueue(nn.Module):
    """First-in first-out queue of normalised text embeddings (DeCLIP's nearest-neighbour supervision).

    It holds the embeddings of all ranks, so every rank has the same queue and a resumed run
    finds it in the checkpoint.

    Args:
        num_rows: queue length Q.
        width: embedding width D.
    """

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("rows_QD", F.normalize(torch.randn(num_rows, width, generator=generator), dim=-1))
        self.register_buffer("next_row", torch.zeros((), dtype=torch.long))

    def nearest(self, text_BD: Tensor) -> Tensor:
        """The most similar row to each embedding, ``(B, D)``, without gradient."""
        with torch.no_grad():
            return self.rows_QD[(text_BD.detach() @ self.rows_QD.T).argmax(dim=-1)]

    def push(self, text_BD: Tensor) -> None:
        """Overwrites the oldest rows."""
        with torch.no_grad():
            num_rows = len(self.rows_QD)
            positions_B = (self.next_row + torch.arange(len(text_BD), device=text_BD.device)) % num_rows
            self.rows_QD.index_copy_(0, positions_B, text_BD.detach().to(self.rows_QD.dtype))
            self.next_row.copy_((self.next_row + len(text_BD)) % num_rows)


def standardise(map_BCHW: Tensor) -> Tensor:
    """Zero mean and unit variance a channel over batch and space, so that no teacher dominates by its scale."""
    mean_C = map_BCHW.mean((0, 2, 3), keepdim=True)
    std_C = map_BCHW.std((0, 2, 3), keepdim=True)
    return (map_BCHW - mean_C) / (std_C + 1e-4)
