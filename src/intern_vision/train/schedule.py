"""Learning-rate curve and parameter groups."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import nn

from intern_vision.train.objective import check_head_names

Number = TypeVar("Number", int, float)
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


def head_start_steps(names: Iterable[str], step: int) -> dict[str, int]:
    """The step that these heads' training begins with, by parameter-name prefix of an objective."""
    return {f"model.heads.{name}.": step for name in names}


def parameter_groups(
    module: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    learning_rate_scales: dict[str, float],
    start_steps: dict[str, int] | None = None,
) -> list[dict]:
    """Parameter groups for AdamW: no decay on vectors and scalars, scaled rates by name prefix.

    Args:
        module: its trainable parameters are grouped.
        learning_rate: rate where no prefix matches.
        weight_decay: decay for matrices and convolutions; norms, biases, LayerScale vectors,
            temperatures and position embeddings take none (gv-benchmark ``metanet.py``).
        learning_rate_scales: factor by parameter-name prefix; the longest matching prefix counts.
        start_steps: optimizer steps that the rate is 0 for, by parameter-name prefix in the same way; a group's
            ``start_step``.
    """
    groups: dict[tuple[float, float, int], dict] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = _longest_match(learning_rate_scales, name, 1.0)
        start_step = _longest_match(start_steps or {}, name, 0)
        decays = parameter.ndim > 1 and not UNDECAYED.search(name)
        decay = weight_decay if decays else 0.0
        fresh = {"params": [], "lr": learning_rate * scale, "weight_decay": decay, "start_step": start_step}
        groups.setdefault((scale, decay, start_step), fresh)["params"].append(parameter)
    return list(groups.values())


def _longest_match(values: Mapping[str, Number], name: str, default: Number) -> Number:
    """The value of the longest prefix of a parameter's name."""
    prefixes = [prefix for prefix in values if name.startswith(prefix)]
    return values[max(prefixes, key=len)] if prefixes else default
