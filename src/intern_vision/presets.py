"""Presets: complete runs as named Python functions; a variation calls another and overrides fields."""

from collections.abc import Callable
from typing import Any

from intern_vision.config import Config, parse_json_object
from intern_vision.data.settings import AugmentConfig
from intern_vision.errors import ConfigError
from intern_vision.heads import HeadConfig
from intern_vision.stages import adapt, amateur, evaluate, expert, export, generalist, prepare, report, search
from intern_vision.task import Family
from intern_vision.train.settings import DenseConfig, FineTuneConfig, SignalWeights, TrainerConfig

DOWNSTREAM_SETS = (
    "flower",
    "texture",
    "count",
    "relation",
    "sketch",
    "digits",
    "det_novel",
    "det_thermal",
    "seg_night",
    "seg_mosaic",
    "depth_room",
)
BASELINE = "clip"
CANDIDATE = "intern"


class RunConfig(Config):
    """Everything a run of the ``intern`` pipeline needs; a stage finds its own settings here.

    Attributes:
        preset: name of the function this came from.
        downstream_sets: downstream sets of the made world.
        upstream: the upstream dataset.
        downstream: every downstream dataset; the name is filled in.
        search: the architecture search.
        clip: the baseline, an amateur of the image-text signal alone.
        amateur: Up-A.
        experts: Up-E by family.
        generalist: Up-G.
        adapt: Down-A; the name is filled in.
        evaluate: scoring; the arm's name is filled in.
        export: registration.
        report: the report.
    """

    preset: str
    downstream_sets: tuple[str, ...] = DOWNSTREAM_SETS
    upstream: prepare.Config
    downstream: prepare.Config
    search: search.Config
    clip: amateur.Config
    amateur: amateur.Config
    experts: dict[Family, expert.Config]
    generalist: generalist.Config
    adapt: adapt.Config
    evaluate: evaluate.Config
    export: export.Config
    report: report.Config

    def image_passes(self) -> dict[str, int]:
        """Image passes through trained backbones, for each of the two arms."""

        def passes(trainer: TrainerConfig, per_sample: int) -> int:
            return trainer.num_steps * trainer.batch_size * per_sample

        ours = passes(self.amateur.trainer, self.amateur.signals.num_views)
        ours += sum(passes(config.trainer, 1) for config in self.experts.values())
        per_sample = 1 + len(self.experts) if self.generalist.mode == "squeeze" else 1
        ours += passes(self.generalist.trainer, per_sample)
        return {BASELINE: passes(self.clip.trainer, self.clip.signals.num_views), CANDIDATE: ours}

    def faults(self) -> list[str]:
        """Downstream sets must be known, and the baseline must get at least as many image passes as INTERN gets."""
        unknown = [name for name in self.downstream_sets if name not in DOWNSTREAM_SETS]
        if unknown or not self.downstream_sets or len(set(self.downstream_sets)) < len(self.downstream_sets):
            known = ", ".join(DOWNSTREAM_SETS)
            return [f"downstream_sets: expected one or more of {known}, each once, got {list(self.downstream_sets)}"]
        passes = self.image_passes()
        if passes[BASELINE] < passes[CANDIDATE]:
            return [
                f"clip.trainer.num_steps: the baseline gets {passes[BASELINE]} image passes and INTERN "
                f"{passes[CANDIDATE]}, so give the baseline as many"
            ]
        return []


def smoke() -> RunConfig:
    """The whole graph in about a minute, for tests; its scores mean nothing."""
    return _world_run(
        "smoke",
        num_train=600,
        num_downstream=(80, 40),
        num_trials=1,
        num_steps={"search": 2, "amateur": 4, "expert": 2, "generalist": 4, "dense": 6},
        log_every=2,
        checkpoint_every=2,
        batch_size=16,
        downstream_sets=("flower", "det_novel", "seg_night", "depth_room"),
        shares=(0.5, 1.0),
    )


def nano() -> RunConfig:
    """The default: trains on two cores in minutes and shows what the stages do (about 73,000 image passes an arm)."""
    return _world_run(
        "nano",
        num_train=30_000,
        num_downstream=(2_000, 1_000),
        num_trials=3,
        num_steps={"search": 30, "amateur": 156, "expert": 32, "generalist": 700, "dense": 200},
        log_every=20,
        checkpoint_every=100,
        batch_size=64,
        downstream_sets=DOWNSTREAM_SETS,
        shares=(0.1, 1.0),
    )


def small() -> RunConfig:
    """Five times nano's training, with fine-tuned adaptation; for a workstation with a GPU."""
    return _world_run(
        "small",
        num_train=100_000,
        num_downstream=(2_000, 1_000),
        num_trials=16,
        num_steps={"search": 100, "amateur": 750, "expert": 188, "generalist": 3_750, "dense": 500},
        log_every=20,
        checkpoint_every=200,
        batch_size=64,
        downstream_sets=DOWNSTREAM_SETS,
        shares=(0.1, 1.0),
    ).with_overrides({"adapt": {"method": "lp_ft"}})


PRESETS: dict[str, Callable[[], RunConfig]] = {"smoke": smoke, "nano": nano, "small": small}


def resolve(preset: str, overrides: str = "") -> RunConfig:
    """The run that a preset's name and a JSON object of overrides stand for.

    Raises:
        ConfigError: unknown preset, text that is not a JSON object, or faults in the result, one a line.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    config = PRESETS[preset]()
    if not overrides.strip():
        return config
    return config.with_overrides(parse_json_object(overrides, "overrides"))


def stage_config(run: RunConfig, stage: str, item: str = "", model: str = "") -> Config:
    """The config of one use of a stage inside a run.

    Args:
        run: the whole run.
        stage: a stage's name, or ``clip`` for the baseline's amateur stage.
        item: the expert's family or the downstream dataset.
        model: the arm, ``clip`` or ``intern``, for adapt and evaluate.
    """
    if stage == "prepare":
        return run.upstream if item == prepare.UPSTREAM else run.downstream.with_overrides({"dataset": item})
    if stage == "expert":
        if item not in run.experts:
            raise ConfigError(f"experts: expected one of {', '.join(run.experts)}, got {item!r}")
        return run.experts[item]
    if stage == "adapt":
        return run.adapt.with_overrides({"name": f"{model}-{item}"})
    if stage == "evaluate":
        return run.evaluate.with_overrides({"model_name": model})
    return getattr(run, stage)


def _world_run(
    preset: str,
    *,
    num_train: int,
    num_downstream: tuple[int, int],
    num_trials: int,
    num_steps: dict[str, int],
    log_every: int,
    checkpoint_every: int,
    batch_size: int,
    downstream_sets: tuple[str, ...],
    shares: tuple[float, ...],
) -> RunConfig:
    """A run on the made world at 64 px with the settings that were found to train on a CPU."""

    def trainer(steps: int, learning_rate: float, **changes: Any) -> TrainerConfig:
        return TrainerConfig(
            num_steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            log_every=log_every,
            checkpoint_every=checkpoint_every,
            **changes,
        )

    # Captions tell left from right, so images are not mirrored.
    one_view = AugmentConfig(
        image_size_px=64,
        scale_min=0.6,
        hflip_probability=0.0,
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
        hue=0.0,
        colour_probability=0.5,
        grey_probability=0.0,
    )
    two_views = one_view.with_overrides({"num_views": 2})
    text = amateur.TextConfig(
        context_length=24, width=128, num_blocks=0, num_heads=4, pooling="mean", embedding_width=128
    )
    head = HeadConfig(background_classes=("ground", "background"))
    families: tuple[Family, ...] = ("multilabel", "detect", "segment", "depth")
    steps = num_steps
    intern_samples = steps["amateur"] * 2 + steps["expert"] * len(families) + steps["generalist"]
    return RunConfig(
        preset=preset,
        downstream_sets=downstream_sets,
        upstream=prepare.Config(
            dataset=prepare.UPSTREAM, num_train=num_train, num_val=max(100, min(1_000, num_train // 10))
        ),
        downstream=prepare.Config(dataset="", num_train=num_downstream[0], num_test=num_downstream[1]),
        search=search.Config(
            num_trials=num_trials,
            trainer=trainer(steps["search"], 2e-3).with_overrides({"checkpoint_every": 0}),
            augment=one_view,
        ),
        clip=amateur.Config(
            name=BASELINE,
            trainer=trainer(intern_samples, 1e-3),
            signals=SignalWeights(image_text=1.0, multi_view=0.0, image_self=0.0, text_self=0.0, neighbour=0.0),
            text=text,
            augment=one_view,
        ),
        amateur=amateur.Config(
            trainer=trainer(steps["amateur"], 1.5e-3), text=text, augment=two_views, queue_rows=4_096
        ),
        experts={
            family: expert.Config(family=family, trainer=trainer(steps["expert"], 2e-3), head=head, augment=one_view)
            for family in families
        },
        generalist=generalist.Config(
            families=families, trainer=trainer(steps["generalist"], 2e-3), head=head, augment=one_view
        ),
        adapt=adapt.Config(
            name="",
            shares=shares,
            augment=one_view,
            dense=DenseConfig(num_steps_small=steps["dense"], num_steps_large=steps["dense"] * 5 // 3),
            fine_tune=FineTuneConfig(),
        ),
        evaluate=evaluate.Config(model_name=""),
        export=export.Config(),
        report=report.Config(title=f"INTERN {preset}"),
    )
