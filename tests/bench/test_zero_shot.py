import helpers
import numpy as np
import pytest
import torch
from helpers import train_here, trainer_config

from intern_vision.bench.metrics import ClassificationMetric
from intern_vision.bench.zero_shot import TEMPLATES, zero_shot_model, zero_shot_weights
from intern_vision.data import world
from intern_vision.data.augment import Augment, Resize
from intern_vision.data.batch import collate
from intern_vision.data.settings import AugmentConfig
from intern_vision.data.text import Tokenizer
from intern_vision.data.world_names import COLOURS, CONCEPTS
from intern_vision.errors import ConfigError
from intern_vision.models.vision import ModelSpec, TextSpec, VisionModel
from intern_vision.task import Task
from intern_vision.train.image_text import ImageTextObjective
from intern_vision.train.settings import CLIP_SIGNALS
from intern_vision.train.trainer import TrainJob

TASK = Task(family="classify", class_names=COLOURS)
NUM_CONCEPTS = len(CONCEPTS)
AUGMENT = AugmentConfig(
    image_size_px=helpers.SIZE_PX, scale_min=0.6, hflip_probability=0.0, colour_probability=0.0, grey_probability=0.0
)


@pytest.fixture(scope="module")
def amateur(tmp_path_factory):
    """A CLIP of a few thousand parameters trained on captioned scenes for seconds, and its tokenizer."""
    folder = tmp_path_factory.mktemp("amateur")
    scenes = world.render(world.UPSTREAM, 0, "train", range(600), helpers.SIZE_PX)
    tokenizer = Tokenizer.train([scene.caption for scene in scenes], 400)
    text = helpers.TEXT.with_overrides({"num_blocks": 0, "pooling": "mean", "context_length": 24}).to_dict()
    torch.manual_seed(0)
    spec = ModelSpec(
        genotype=helpers.GENOTYPE,
        image_size_px=helpers.SIZE_PX,
        text=TextSpec(vocab_size=tokenizer.vocab_size, **text),
    )
    objective = ImageTextObjective(VisionModel(spec), CLIP_SIGNALS, queue_rows=8)
    transform = Augment(AUGMENT, tokenizer=tokenizer, context_length=24, num_concepts=NUM_CONCEPTS)
    config = trainer_config(num_steps=300, batch_size=32, learning_rate=5e-3, log_every=300)
    train_here(TrainJob(objective=objective, source=scenes, transform=transform, config=config))
    objective.save(folder)
    tokenizer.save(folder / "tokenizer.json")
    return folder


def unseen():
    """Scenes of one colour, labelled with it."""
    resize, first = Resize(AUGMENT, num_concepts=NUM_CONCEPTS), CONCEPTS.index(COLOURS[0])
    assert CONCEPTS[first : first + len(COLOURS)] == COLOURS
    examples = []
    for scene in world.render(world.UPSTREAM, 0, "val", range(200), helpers.SIZE_PX):
        shown = [concept - first for concept in scene.concepts if first <= concept < first + len(COLOURS)]
        if len(shown) == 1:
            scene.label = shown[0]
            examples.append(resize(scene))
    return collate(examples)


def test_class_embeddings_are_the_mean_of_normalised_prompts(amateur):
    model, tokenizer = VisionModel.load(amateur), Tokenizer.load(amateur / "tokenizer.json")
    templates = ("{}", "a photo of a {}")
    found = zero_shot_weights(model, tokenizer, ("red", "dark_blue"), templates)
    for row, name in zip(found, ("red", "dark blue"), strict=True):
        total = np.zeros(16)
        for template in templates:
            ids = torch.from_numpy(tokenizer.encode(template.format(name), 24))[None]
            with torch.no_grad():
                embedding = model.text.encoder(ids)[0][0].double().numpy()
            total += embedding / np.linalg.norm(embedding)
        np.testing.assert_allclose(row.numpy(), total / np.linalg.norm(total), atol=1e-5)
    assert not found.requires_grad


def test_unseen_images_are_named_far_above_chance(amateur, tmp_path):
    model = zero_shot_model(amateur, amateur / "tokenizer.json", TASK)
    batch = unseen()
    with torch.no_grad():
        predictions = model.heads["classify"].predict(
            model.heads["classify"](model(batch["image_BCHW"])), (helpers.SIZE_PX, helpers.SIZE_PX)
        )
    metric = ClassificationMetric(len(COLOURS))
    metric.update(predictions, batch)
    # Chance is 0.1, and always naming the most frequent colour 0.14.
    assert len(predictions) > 60 and metric.compute()["top1"] > 0.25
    # The same answers and probabilities as CLIP itself gives.
    whole = VisionModel.load(amateur)
    weights_KD = zero_shot_weights(whole, Tokenizer.load(amateur / "tokenizer.json"), COLOURS)
    with torch.no_grad():
        embedding_BD = whole.text.projection(whole(batch["image_BCHW"]).vector_BD)
        cosine_BK = torch.nn.functional.normalize(embedding_BD, dim=-1) @ weights_KD.T
        expected = (whole.text.scale() * cosine_BK).softmax(1)
    assert [prediction.label for prediction in predictions] == cosine_BK.argmax(1).tolist()
    np.testing.assert_allclose(np.stack([p.scores for p in predictions]), expected.numpy(), atol=1e-5)
    model.save(tmp_path)
    again = VisionModel.load(tmp_path)
    assert list(again.heads) == ["classify"] and again.text is None
    images = [np.asarray(batch["image_BCHW"][0].permute(1, 2, 0))]
    assert again.predict(images)["classify"][0].label == predictions[0].label


def test_faults_are_named(amateur, tmp_path):
    model, tokenizer = VisionModel.load(amateur), Tokenizer.load(amateur / "tokenizer.json")
    with pytest.raises(ConfigError, match="expected a task of family classify, got depth"):
        zero_shot_model(amateur, amateur / "tokenizer.json", Task(family="depth", max_depth_m=5.0))
    with pytest.raises(ConfigError, match=r'templates: expected one or more, each with one "{}", got \[.a photo.\]'):
        zero_shot_weights(model, tokenizer, COLOURS, ("a photo",))
    with pytest.raises(ConfigError, match="use the tokenizer that lies beside the weights"):
        zero_shot_weights(model, Tokenizer.train(["something else"], 265), COLOURS, TEMPLATES)
    plain = VisionModel(model.spec.model_copy(update={"text": None}))
    with pytest.raises(ConfigError, match="the model has no text tower; use the weights of an amateur stage"):
        zero_shot_weights(plain, tokenizer, COLOURS, TEMPLATES)
    assert all(template.count("{}") == 1 for template in TEMPLATES)
