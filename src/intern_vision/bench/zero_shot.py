"""Zero-shot classification: an amateur's text tower names the classes, no label is seen.

D width of the space shared by images and texts, K classes, L tokens, T templates.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from intern_vision.data.text import Tokenizer
from intern_vision.errors import ConfigError
from intern_vision.heads import HeadConfig
from intern_vision.models.vision import HeadSpec, ModelSpec, VisionModel
from intern_vision.task import Task

TEMPLATES = (
    "{}",
    "a photo of a {}",
    "a photo of the {}",
    "a picture of one {}",
    "a small {}",
    "a large {}",
    "a dark photo of a {}",
    "a drawing of a {}",
    "there is a {} in the scene",
)
"""What a class name is put into; of the kind that CLIP's image prompts made known (arXiv 2103.00020, section 3.1.4)."""


@torch.no_grad()
def zero_shot_weights(
    model: VisionModel, tokenizer: Tokenizer, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Tensor:
    """One embedding a class: the mean of its prompts' normalised embeddings, normalised again.

    Args:
        model: with a text tower.
        tokenizer: the one its captions were encoded with.
        class_names: names in index order; an underscore reads as a space.
        templates: each with one ``{}``, where the name goes.

    Returns:
        ``(K, D)`` float32 on the model's device.

    Raises:
        ConfigError: the model has no text tower, the tokenizer is another one, or a template has no place for a name.
    """
    text = model.spec.text
    if text is None:
        raise ConfigError("zero-shot: the model has no text tower; use the weights of an amateur stage")
    if tokenizer.vocab_size != text.vocab_size:
        raise ConfigError(
            f"zero-shot: the tokenizer has {tokenizer.vocab_size} ids and the text tower {text.vocab_size}; "
            "use the tokenizer that lies beside the weights"
        )
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise ConfigError(f'templates: expected one or more, each with one "{{}}", got {wrong or "none"}')
    prompts = [
        tokenizer.encode(template.replace("{}", name.replace("_", " ")), text.context_length)
        for name in class_names
        for template in templates
    ]
    device = next(model.parameters()).device
    # A class a pass: memory does not grow with the number of classes.
    tokens_KTL = torch.from_numpy(np.stack(prompts)).view(len(class_names), len(templates), -1)
    means = [
        F.normalize(model.text.encoder(tokens_TL.to(device))[0].float(), dim=-1).mean(0) for tokens_TL in tokens_KTL
    ]
    return F.normalize(torch.stack(means), dim=-1)


def zero_shot_model(
    amateur_dir: Path, tokenizer_path: Path, task: Task, templates: Sequence[str] = TEMPLATES
) -> VisionModel:
    """An amateur as a model of one classification task that it was never trained for.

    Its head compares the projected image vector with the class embeddings; scores are the softmax at the
    amateur's own temperature. The text tower is left out: the embeddings say all that is asked of it.

    Args:
        amateur_dir: folder of an amateur's weights.
        tokenizer_path: the ``tokenizer.json`` beside them.
        task: of family ``classify``.
        templates: as for ``zero_shot_weights``.

    Returns:
        A model in eval mode with the one head ``classify``, for the path that scores any adapted model.

    Raises:
        ConfigError: another family, or as for ``zero_shot_weights``.
        DataError: the tokenizer cannot be read.
    """
    if task.family != "classify":
        raise ConfigError(f"zero-shot: expected a task of family classify, got {task.family}")
    amateur = VisionModel.load(amateur_dir)
    weights_KD = zero_shot_weights(amateur, Tokenizer.load(tokenizer_path), task.class_names, templates)
    head = HeadSpec(task=task, config=HeadConfig(embedding_width=weights_KD.shape[1]))
    model = VisionModel(
        ModelSpec.from_dict(amateur.spec.to_dict() | {"heads": {"classify": head.to_dict()}, "text": None})
    )
    model.backbone.load_state_dict(amateur.backbone.state_dict())
    classify = model.heads["classify"]
    with torch.no_grad():
        classify.projection.weight.copy_(amateur.text.projection.weight)
        classify.linear.weight.copy_(weights_KD)
        classify.log_scale.copy_(amateur.text.log_scale)
    return model.eval()
