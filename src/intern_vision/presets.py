"""Presets: complete runs as named Python functions; a variation calls another and overrides fields."""

from collections.abc import Callable
from typing import Any

from intern_vision.config import parse_json_object
from intern_vision.data.settings import AugmentConfig
from intern_vision.errors import ConfigError
from intern_vision.heads import HeadConfig
from intern_vision.paper_presets import mn_b4, mn_b15
from intern_vision.run_config import ARMS, BASELINE, DOWNSTREAM_SETS, RunConfig, generalist_passes
from intern_vision.stages import (
    adapt,
    amateur,
    amateur_local,
    evaluate,
    expert,
    export,
    generalist,
    prepare,
    report,
    search,
    select,
)
from intern_vision.steps import ARM_OF_EXPERTS
from intern_vision.task import Family
from intern_vision.train.settings import CLIP_SIGNALS, DenseConfig, FineTuneConfig, LocalConfig, TrainerConfig

SMOKE_SETS = ("flower", "det_novel", "seg_night", "depth_room")
MODES: dict[str, dict[str, Any]] = {
    "joint": {"mode": "joint", "heads_from_experts": False},
    "central": {"mode": "central"},
    "squeeze": {"mode": "squeeze"},
    "average": {"mode": "average"},
    "task-arithmetic": {"mode": "task_arithmetic"},
    "joint-scratch": {"mode": "joint", "init": "random", "heads_from_experts": False},
    "scratch": {"mode": "random"},
}
"""What the generalists and controls of the made world's runs are, by name."""
UNTRAINED = ("average", "task-arithmetic")
"""Generalists merged without training: what the others must beat, scored with frozen backbones alone."""
STRONG_FINE_TUNING = FineTuneConfig(num_steps_small=300, num_steps_large=525, learning_rate=2e-3, layer_decay=1.0)
"""The recipe that errs least for both arms at this scale (decision 25)."""
CPU_RATIO = 1.8
"""CPU-seconds of a joint generalist's image pass, with those of the stages before it, over one of the baseline's."""


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
        downstream_sets=SMOKE_SETS,
        shares=(0.5, 1.0),
        generalists=("joint", "average"),
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
        generalists=("joint", "average", "task-arithmetic"),
    )


def small() -> RunConfig:
    """Every candidate and control under both recipes (about 192,000 image passes a model): the claim, measured."""
    return _world_run(
        "small",
        num_train=30_000,
        num_downstream=(2_000, 1_000),
        num_trials=1,
        num_steps={"search": 30, "amateur": 188, "local": 100, "expert": 300, "generalist": 1_270, "dense": 300},
        log_every=20,
        checkpoint_every=200,
        batch_size=64,
        downstream_sets=DOWNSTREAM_SETS,
        shares=(0.1, 1.0),
        generalists=("joint", "central", "squeeze", "average", "task-arithmetic"),
        controls=("joint-scratch", "scratch"),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "smoke": smoke,
    "nano": nano,
    "small": small,
    "mn_b4": mn_b4,
    "mn_b15": mn_b15,
}


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
    generalists: tuple[str, ...],
    controls: tuple[str, ...] = (),
) -> RunConfig:
    """A run on the made world at 64 px with the settings that were found to train on a CPU.

    ``num_steps["generalist"]`` are those of a generalist that is made from the experts and sees an image once; one that
    takes no expert gets more and one with dearer steps fewer, so that all, with what they are made from, take as many
    image passes. With controls, all models are adapted, by both recipes, and the baseline is also trained for as many
    CPU-seconds as INTERN.
    """

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

    def generalist_of(name: str, num_passes: int) -> generalist.Config:
        config = generalist.Config(
            name=name, families=families, trainer=trainer(1, 2e-3), head=head, augment=one_view, **MODES[name]
        )
        if config.merges or not config.image_passes:
            return config
        return config.with_overrides({"trainer": {"num_steps": max(1, num_passes // config.image_passes)}})

    def clip(name: str, num_passes: int) -> amateur.Config:
        return amateur.Config(
            name=name,
            trainer=trainer(-(-num_passes // batch_size), 1e-3),
            signals=CLIP_SIGNALS,
            text=text,
            augment=one_view,
            sync_batch_norm=False,
        )

    global_amateur = amateur.Config(
        trainer=trainer(steps["amateur"], 1.5e-3),
        text=text,
        augment=two_views,
        queue_rows=4_096,
        sync_batch_norm=False,
    )
    local_amateur = amateur_local.Config(
        mode="masked" if "local" in steps else "none",
        local=LocalConfig(hidden_width=256, projection_width=128, num_prototypes=256),
        trainer=trainer(steps.get("local", 1), 1.5e-3),
        augment=one_view,
        sync_batch_norm=False,
    )
    experts = {
        family: expert.Config(family=family, trainer=trainer(steps["expert"], 2e-3), head=head, augment=one_view)
        for family in families
    }
    made_from = (global_amateur, local_amateur, experts)
    fresh = {name: generalist_of(name, batch_size) for name in generalists}
    num_before = {
        name: passes - fresh[name].image_passes for name, passes in generalist_passes(*made_from, fresh).items()
    }
    num_passes = max(num_before.values()) + steps["generalist"] * batch_size
    candidates = {name: generalist_of(name, num_passes - num_before[name]) for name in generalists}
    num_passes = max(generalist_passes(*made_from, candidates).values())
    baselines = {BASELINE: clip(BASELINE, num_passes)}
    arms: tuple[str, ...] = ARMS
    if controls:
        baselines["clip-cpu"] = clip("clip-cpu", int(CPU_RATIO * num_passes))
        # The chosen generalist is one of these, so it is not adapted once more under its own name.
        arms = (*generalists, *baselines, "amateur", ARM_OF_EXPERTS, *controls)
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
        amateur=global_amateur,
        amateur_local=local_amateur,
        experts=experts,
        generalists=candidates,
        select=select.Config(),
        baselines=baselines,
        # All that INTERN's stages take goes into the one training of a control.
        controls={name: generalist_of(name, num_passes) for name in controls},
        arms=arms,
        fine_tuned_arms=tuple(arm for arm in arms if arm not in UNTRAINED) if controls else (),
        adapt=adapt.Config(
            name="",
            shares=shares,
            augment=one_view,
            dense=DenseConfig(num_steps_small=steps["dense"], num_steps_large=steps["dense"] * 5 // 3),
            fine_tune=STRONG_FINE_TUNING,
        ),
        evaluate=evaluate.Config(model_name=""),
        export=export.Config(),
        report=report.Config(title=f"INTERN {preset}"),
    )
