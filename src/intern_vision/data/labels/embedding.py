"""Class names as vectors of an amateur's text tower, for names that are spelled differently and mean the same."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from intern_vision.data.labels.merge import Embed
from intern_vision.stages.prepare import TOKENIZER_FILE


def amateur_embedding(amateur_dir: Path) -> Embed:
    """The text tower of an amateur as a function of names.

    Args:
        amateur_dir: a local folder of an amateur's output: weights, ``model.json`` and ``tokenizer.json``.

    Returns:
        A function from N names to ``(N, width)`` float32 of length 1: means over the prompts of zero-shot
        classification.

    Raises:
        ConfigError: the weights have no text tower.
        DataError: the tokenizer cannot be read.
    """
    from intern_vision.bench.zero_shot import zero_shot_weights
    from intern_vision.data.text import Tokenizer
    from intern_vision.models.vision import VisionModel

    model = VisionModel.load(amateur_dir).eval()
    tokenizer = Tokenizer.load(amateur_dir / TOKENIZER_FILE)

    def embed(names: Sequence[str]) -> NDArray[np.float32]:
        return zero_shot_weights(model, tokenizer, names).cpu().numpy()

    return embed
