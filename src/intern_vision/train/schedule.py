"""Learning-rate curve and parameter groups."""

import math
import re
from collections.abc import Iterable, Mapping

from torch import nn

from intern_vision.train.objective import check_head_names

UNDECAYED = re.compile(r"(temperature|position)(\.weight)?$")


def warmup_cosine(step: int, num_steps: int, num_warmup_steps: int) -> float:
    """Learning-rate factor in [0, 1]: linear warm-up, then a half cosine to 0 at ``num_steps``."""
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    progress = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def head_rate_scales(scales: Mapping[str, float], heads: Iterable[str]) -> dict[str, float]:
    """Factors on the learning rate by head name as factors by parameter-name prefix of an objective.

    Raises:
        ConfigError: a name is no head's.
    """
    check_head_names("head_learning_rate_scales", scales, heads)
    # The dot keeps a head's name from matching the longer names that begin with it.
    return {f"model.heads.{name}.": scale for name, scale in scales.items()}


def parameter_groups(
    module: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    learning_rate_scales: dict[str, float],
) -> list[dict]:
    """Parameter groups for AdamW: no decay on vectors and scalars, scaled rates by name prefix.

    Args:
        module: its trainable parameters are grouped.
        learning_rate: rate where no prefix matches.
        weight_decay: decay for matrices and convolutions; norms, biases, LayerScale vectors,
            temperatures and position embeddings take none (gv-benchmark ``metanet.py``).
        learning_rate_scales: factor by parameter-name prefix; the longest matching prefix counts.
    """
    groups: dict[tuple[float, float], dict] = {}
    prefixes = sorted(learning_rate_scales, key=len, reverse=True)
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = next((learning_rate_scales[prefix] for prefix in prefixes if name.startswith(prefix)), 1.0)
        decays = parameter.ndim > 1 and not UNDECAYED.search(name)
        decay = weight_decay if decays else 0.0
        group = groups.setdefault((scale, decay), {"params": [], "lr": learning_rate * scale, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())
