"""BatchNorm over the samples of all ranks, on any backend. B batch, C channels, R ranks."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from intern_vision.train.losses import gather_rows, num_ranks


class GlobalBatchNorm(_BatchNorm):
    """Batch normalisation of ``(B, C)`` or ``(B, C, H, W)`` with the statistics of every rank's samples.

    Value and gradient equal those of one process with the joint batch, when each rank holds equally
    many samples. torch's own synchronised kind needs CUDA; this one takes whatever the process group
    runs on. On one rank it is the ordinary BatchNorm. Names and shapes of its tensors are the
    ordinary ones too, so weights move between the two.
    """

    @classmethod
    def like(cls, norm: _BatchNorm) -> "GlobalBatchNorm":
        """The same normalisation, sharing parameters and running statistics with ``norm``."""
        found = cls(norm.num_features, norm.eps, norm.momentum, device=norm.weight.device)
        found._parameters, found._buffers = norm._parameters, norm._buffers
        return found.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``x`` in float32; dtype and shape are kept."""
        if not self.training or num_ranks() == 1:
            return super().forward(x)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        var_C, mean_C = torch.var_mean(x.float(), axes, correction=0)
        mean_RC, var_RC = gather_rows(torch.cat([mean_C, var_C])[None]).chunk(2, dim=1)
        # Variance of a mixture of equal parts: the mean of the variances plus the variance of the means.
        mean_C, var_C = mean_RC.mean(0), var_RC.mean(0) + mean_RC.var(0, correction=0)
        num_values = x.numel() // x.shape[1] * len(mean_RC)
        self._keep(mean_C.detach(), var_C.detach() * (num_values / (num_values - 1)))
        shape = (1, -1) + (1,) * (x.dim() - 2)
        scale_C = self.weight * torch.rsqrt(var_C + self.eps)
        return ((x.float() - mean_C.view(shape)) * scale_C.view(shape) + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _keep(self, mean_C: Tensor, var_C: Tensor) -> None:
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(var_C, self.momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes will do."""


def synchronise_batch_norms(module: nn.Module) -> None:
    """Makes every BatchNorm inside ``module`` a ``GlobalBatchNorm``."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
                setattr(parent, name, GlobalBatchNorm.like(child))
