"""Up-A-L (Amateur, local): the amateur's feature maps made fit for dense tasks, its image-text ability kept."""

import json
import shutil
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from intern_vision import config as base
from intern_vision.data.settings import AugmentConfig
from intern_vision.errors import ConfigError
from intern_vision.heads import HeadConfig
from intern_vision.ref import Ref
from intern_vision.stages.base import Inputs, StageContext
from intern_vision.stages.prepare import TOKENIZER_FILE
from intern_vision.train.launch import HISTORY_FILE, run_ranks
from intern_vision.train.settings import LocalConfig, TrainerConfig, count_image_passes

if TYPE_CHECKING:
    from intern_vision.train.trainer import TrainJob
    from intern_vision.train.workspace import Workspace

ACCEPTANCE_FILE = "acceptance.json"
_NUM_VIEWS = {"pixpro": 2, "masked": 1}


class Config(base.Config):
    """How Up-A-L continues an amateur, and when its result is taken.

    Attributes:
        name: what the result is called.
        mode: ``pixpro`` (pixels of two views), ``masked`` (hidden patches) or ``none``, which hands the
            amateur's weights on at once.
        local: sizes and weights of either loss.
        trainer: the loop's settings.
        augment: how views are made: 2 for ``pixpro``, 1 for ``masked``.
        sync_batch_norm: whether BatchNorms see the images of all ranks.
        acceptance: ``probes`` takes the new weights only where probes on the dataset's validation images
            say so, ``always`` takes them unseen.
        max_classification_drop: largest loss of the classification probe, as a share of 1.
        num_probe_images: training images the probes are fitted on.
        probe: training of the probes' heads on frozen features.
        head: sizes of the probes' heads.
    """

    name: str = "amateur-local"
    mode: Literal["none", "pixpro", "masked"] = "pixpro"
    local: LocalConfig = LocalConfig()
    trainer: TrainerConfig
    augment: AugmentConfig
    sync_batch_norm: bool = True
    acceptance: Literal["probes", "always"] = "probes"
    max_classification_drop: float = Field(default=0.005, ge=0)
    num_probe_images: int = Field(default=1_000, ge=1)
    probe: TrainerConfig = TrainerConfig(num_steps=300, batch_size=32, learning_rate=3e-3, checkpoint_every=0)
    head: HeadConfig = HeadConfig()

    def faults(self) -> list[str]:
        """Views and mode must agree, and every rank must hold the whole weights."""
        faults = []
        if self.mode != "none" and self.augment.num_views != _NUM_VIEWS[self.mode]:
            faults.append(
                f"augment.num_views must be {_NUM_VIEWS[self.mode]} for mode {self.mode}, got {self.augment.num_views}"
            )
        if self.trainer.zero_stage == 3:
            faults.append("trainer.zero_stage must be at most 2: the momentum teacher follows whole weights")
        return faults

    @property
    def passes_per_sample(self) -> tuple[int, int]:
        """Passes of an image: its views through the student; forward alone through teacher and amateur."""
        num_views = _NUM_VIEWS.get(self.mode, 0)
        return num_views, num_views + bool(num_views and self.local.embedding_weight)

    @property
    def image_passes(self) -> int:
        """Image passes of the training, see ``count_image_passes``."""
        return count_image_passes(self.trainer.num_samples, *self.passes_per_sample)


def run(config: Config, inputs: Inputs, context: StageContext) -> Ref:
    """Continues the input ``amateur`` on the images of the input ``data``.

    The output holds an amateur's files, so it serves wherever an amateur does. Where the new weights were
    not accepted they are the amateur's own, and the fact ``accepted`` is 0. With mode ``none`` any weights pass
    through, such as imported ones.

    Raises:
        ConfigError: the input is no amateur, or its backbone has too few maps.
        DataError: no dataset has what the probes need.
    """
    amateur_dir = context.fetch(inputs.one("amateur"))
    if config.mode != "none" and not (amateur_dir / TOKENIZER_FILE).exists():
        raise ConfigError(
            f"inputs.amateur: {inputs.one('amateur').uri} has no {TOKENIZER_FILE}; give an amateur's output"
        )
    context.facts["mode"] = config.mode
    if config.mode != "none":
        from intern_vision.bench.dense_probe import compare_probes, probe_data

        # Before the training, so that a dataset that cannot decide is refused at once.
        data_uri = probe_data(context, inputs.many("data")) if config.acceptance == "probes" else ""
        run_ranks("amateur_local", config, context)
        accepted = True
        if data_uri:
            verdict = compare_probes(config, context, data_uri, before=amateur_dir, after=context.output_dir)
            (context.output_dir / ACCEPTANCE_FILE).write_text(json.dumps(verdict, indent=1))
            accepted = verdict["accepted"]
            context.facts |= {f"probe/{name}": value for name, value in verdict.items() if name != "accepted"}
        context.facts["accepted"] = int(accepted)
        context.progress.say(f"the new weights were {'accepted' if accepted else 'not accepted: the amateur stays'}")
    if config.mode == "none" or not accepted:
        others = shutil.ignore_patterns(HISTORY_FILE, ACCEPTANCE_FILE)
        shutil.copytree(amateur_dir, context.output_dir, dirs_exist_ok=True, ignore=others)
    else:
        shutil.copy(amateur_dir / TOKENIZER_FILE, context.output_dir)
    return context.commit("weights", config.name)


def build(config: Config, workspace: "Workspace") -> "TrainJob":
    """The training itself, in a rank."""
    from intern_vision.models.vision import VisionModel, read_spec, read_tensors
    from intern_vision.train.batch_norm import synchronise_batch_norms
    from intern_vision.train.dense_objective import PatchObjective, PixelObjective
    from intern_vision.train.trainer import TrainJob
    from intern_vision.train.upstream import upstream_augment, upstream_infos, upstream_source

    folder = workspace.fetch(workspace.inputs.one("amateur"))
    spec = read_spec(folder).model_copy(update={"image_size_px": config.augment.image_size_px})
    if spec.text is None:
        raise ConfigError(f"{folder}: weights without a text tower; give an amateur's output")
    model = VisionModel(spec)
    model.load_tensors(read_tensors(folder), source=str(folder))
    if config.sync_batch_norm:
        synchronise_batch_norms(model)
    objectives = {"pixpro": PixelObjective, "masked": PatchObjective}
    num_updates = config.trainer.num_steps * config.trainer.num_accumulation
    return TrainJob(
        objective=objectives[config.mode](model, VisionModel.load(folder), config.local, num_updates),
        source=upstream_source(workspace, ()),
        transform=upstream_augment(upstream_infos(workspace, ()), config.augment),
        config=config.trainer,
        identity=config.to_dict(),
    )
