"""Presets at the paper's scale: MN-B4 and MN-B15, for a team that brings its own data.

What is known of the recipes comes from DeCLIP's code (arXiv 2110.05208, Sense-GVT/DeCLIP), the
gv-benchmark configs and INTERN's documentation; what the readable sources do not say is marked
``uncertain`` where it is set. The data are the team's: about 15 million captioned images for MN-B4
(YFCC's size in DeCLIP) or 88 million and more for MN-B15 (INTERN: 10 billion), 36 million
classified, 3 million boxed and 143 thousand segmented ones (INTERN's GV-D). ``intern plan`` says
what a run costs.
"""

from typing import Any

from intern_vision.data.settings import CLIP_CROP, MOCO_V2, AugmentConfig
from intern_vision.heads import HeadConfig
from intern_vision.run_config import ARMS, BASELINE, RunConfig
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
from intern_vision.task import Family
from intern_vision.train.settings import CLIP_SIGNALS, DECLIP_88M_SIGNALS, SignalWeights, TrainerConfig

FAMILIES: tuple[Family, ...] = ("classify", "detect", "segment")
JOINED: tuple[Family, ...] = ("classify", "detect")
NUM_WARMUP_STEPS = 2_500
HEAD = HeadConfig(neck_width=256, label_smoothing=0.1, detector="faster_rcnn", segmenter="upernet", pooling="vector")


def mn_b4() -> RunConfig:
    """MN-B4 (32 million parameters) on 32 GPUs: DeCLIP's YFCC schedule, then experts and the joined generalist."""
    return _paper_run(
        "mn_b4",
        embedding_width=1024,
        signals=SignalWeights(),
        batch_size=4_096,
        num_steps=128_000,  # 34 epochs of 15.4 million pairs
        log_scale_range=(3.0, 6.0),
        memory={},
    )


def mn_b15() -> RunConfig:
    """MN-B15 (1 billion parameters) on 256 GPUs of 80 GB: ZeRO stage 2 and activation checkpointing.

    ZeRO stage 3 would save less than it costs: autocast keeps a bfloat16 copy of every weight on
    every GPU at any stage, and with 256 ranks stage 2 leaves hardly more than the weights.
    """
    return _paper_run(
        "mn_b15",
        embedding_width=1280,
        signals=DECLIP_88M_SIGNALS,
        batch_size=10_240,  # DeCLIP's 88-million-pair runs
        num_steps=300_000,  # uncertain: DeCLIP's released number for ViT-B/32; INTERN's own is not known
        log_scale_range=(3.0, 10.0),
        memory={"zero_stage": 2, "checkpoint_activations": True},
    )


def _paper_run(
    preset: str,
    *,
    embedding_width: int,
    signals: SignalWeights,
    batch_size: int,
    num_steps: int,
    log_scale_range: tuple[float, float],
    memory: dict[str, Any],
) -> RunConfig:
    def trainer(num_steps: int, batch_size: int, learning_rate: float, **changes: Any) -> TrainerConfig:
        return TrainerConfig(
            num_steps=num_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=0.1,
            warmup_share=min(0.08, NUM_WARMUP_STEPS / num_steps),
            gradient_clip=1.0,  # uncertain
            log_every=50,
            checkpoint_every=500,
            num_loader_threads=8,
            divergence_margin=10.0,
            **memory | changes,
        )

    def view(size_px: int) -> AugmentConfig:
        return AugmentConfig(image_size_px=size_px)

    text = amateur.TextConfig(embedding_width=embedding_width)  # 12 blocks of width 512
    shared = {"text": text, "log_scale_range": log_scale_range}
    # Experts: epochs are uncertain; about 10 of 36 million images, 12 of 3 million, 45 of 143 thousand.
    experts = {
        "classify": expert.Config(
            family="classify", trainer=trainer(90_000, 4_096, 5e-4), head=HEAD, augment=view(224)
        ),
        "detect": expert.Config(family="detect", trainer=trainer(140_000, 256, 2e-4), head=HEAD, augment=view(640)),
        "segment": expert.Config(family="segment", trainer=trainer(25_000, 256, 2e-4), head=HEAD, augment=view(512)),
    }
    # Uncertain: the readable sources give no length. Transfers learn at ten times the backbones' rate.
    generalists = {
        "central": generalist.Config(
            mode="central",
            name="central",
            families=FAMILIES,
            experts=JOINED,
            main="classify",
            trainer=trainer(50_000, 512, 2e-4, ema_decay=0.9998),
            head=HEAD,
            augment=view(512),
        ),
        "average": generalist.Config(
            mode="average",
            name="average",
            families=FAMILIES,
            trainer=trainer(1, 512, 2e-4),
            head=HEAD,
            augment=view(512),
        ),
    }
    main = amateur.Config(trainer=trainer(num_steps, batch_size, 1e-3), signals=signals, augment=MOCO_V2, **shared)
    local = amateur_local.Config(  # uncertain: what Up-A-L is made of is not readable
        mode="pixpro", trainer=trainer(20_000, 1_024, 1e-4), augment=MOCO_V2
    )
    num_passes = main.image_passes + local.image_passes + sum(config.image_passes for config in experts.values())
    num_passes += max(config.image_passes for config in generalists.values())
    clip = amateur.Config(
        name=BASELINE,
        trainer=trainer(-(-num_passes // batch_size), batch_size, 1e-3),
        signals=CLIP_SIGNALS,
        augment=CLIP_CROP,
        **shared,
    )
    return RunConfig(
        preset=preset,
        upstream=prepare.Config(dataset=prepare.UPSTREAM, image_size_px=224),
        downstream=prepare.Config(dataset="", image_size_px=224),
        search=search.Config(template=preset, num_trials=1, trainer=trainer(2_000, 1_024, 1e-3), augment=view(224)),
        amateur=main,
        amateur_local=local,
        experts=experts,
        generalists=generalists,
        select=select.Config(),
        baselines={BASELINE: clip},
        arms=(*ARMS, "amateur", "expert"),
        adapt=adapt.Config(name="", augment=view(224), head=HeadConfig(neck_width=256)),
        evaluate=evaluate.Config(model_name=""),
        export=export.Config(),
        report=report.Config(title=f"INTERN {preset}"),
    )
