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
    return _GatherRows.apply(rows_BD) if num_ranks() > 1 else rows_BD


def num_ranks() -> int:
    """Processes that train together; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a floating-point tensor over the ranks, without gradient; the input itself on one rank."""
    if num_ranks() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / num_ranks()


def contrastive_loss(image_BD: Tensor, text_BD: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric InfoNCE over normalised float32 rows; row i of one matches row i of the other."""
    logits_BB = scale * image_BD @ text_BD.T
    targets_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return 0.5 * (F.cross_entropy(logits_BB, targets_B) + F.cross_entropy(logits_BB.T, targets_B))


def sigmoid_loss(image_BD: Tensor, text_BD: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """SigLIP's pairwise loss (arXiv 2303.15343, equation 1): every pair is a yes-or-no question of its own.

    Args:
        image_BD: normalised float32 rows.
        text_BD: normalised float32 rows; row i of one matches row i of the other.
        scale: a scalar, the exponential of the learned log scale.
        bias: a scalar that answers "no" before anything is learned.

    Returns:
        A scalar: the sum over all pairs, divided by B.
    """
    logits_BB = scale * image_BD @ text_BD.T + bias
    sign_BB = 2 * torch.eye(len(logits_BB), device=logits_BB.device) - 1
    return -F.logsigmoid(sign_BB * logits_BB).sum() / len(logits_BB)


def negative_cosine(prediction_BD: Tensor, target_BD: Tensor) -> Tensor:
    """SimSiam's term: minus the mean cosine to a target that takes no gradient, in [-1, 1]."""
    return -F.cosine_similarity(prediction_BD, target_BD.detach(), dim=-1).mean()


def masked_token_loss(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    """Cross-entropy at the chosen positions; 0 where a batch has none.

    Args:
        logits_BLV: floating point.
        targets_BL: int64 token ids, -100 where no prediction is asked.

    Returns:
        A scalar whose mean over ranks is the mean over the chosen positions of all ranks.
    """
    sums = F.cross_entropy(logits_BLV.flatten(0, 1).float(), targets_BL.flatten(), ignore_index=-100, reduction="sum")
    return sums / mean_over_ranks((targets_BL >= 0).sum().float()).clamp(min=1e-6)


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
