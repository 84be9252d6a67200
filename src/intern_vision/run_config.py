"""RunConfig: the settings of every stage of a run, and which of them a step uses."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from intern_vision.config import Config
from intern_vision.errors import ConfigError
from intern_vision.stages import (
    adapt,
    amateur,
    amateur_local,
    evaluate,
    expert,
    export,
    generalist,
    import_weights,
    prepare,
    report,
    represent,
    search,
    search_round,
    select,
)
from intern_vision.steps import ARM_OF_EXPERTS, OTHER
from intern_vision.task import Family

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
"""GV-B's stand-ins: what the table's family means are over."""
MORE_SETS = ("species",)
"""Further downstream sets of the made world, for questions of their own."""
BASELINE = "clip"
CANDIDATE = "intern"
CODEBOOK = "codebook"
"""The model that draws images anew for multi-stage fine-tuning."""
ARMS = (CANDIDATE, BASELINE)
STARTS_FROM_GLOBAL = ("classify", "multilabel")
"""Experts that start from Up-A-G; the dense ones and the generalists start from Up-A-L."""


class RunConfig(Config):
    """Everything a run of the ``intern`` pipeline needs; a stage finds its own settings here.

    Attributes:
        preset: name of the function this came from.
        seed: added to the seed of every training and of the search; the images stay the same.
        downstream_sets: downstream sets of the made world.
        upstream: the upstream dataset.
        downstream: every downstream dataset; the name is filled in.
        search: the architecture search.
        amateur: Up-A-G.
        weights: public weights that stand in for Up-A-G, which is then not trained; without their ``vocabulary``
            Up-A-L's mode must be ``none``.
        amateur_local: Up-A-L.
        experts: Up-E by family.
        generalists: the candidates of Up-G by name; one of them is chosen on validation images.
        select: that choice.
        baselines: amateurs that INTERN is compared with, by name; ``clip`` has the image-text signal alone.
        controls: generalists that start from random weights, by name; they are compared but cannot be chosen.
        codebook: learned where a recipe of ``adapt`` is ``multi_stage``.
        arms: models adapted to every downstream set: ``intern`` (the chosen generalist), ``clip``, ``amateur``,
            ``amateur-local``, ``expert`` (the expert of the set's family), ``expert-<family>``, or a name among
            the generalists, baselines and controls. Where ``intern`` is left out it has the scores of the
            generalist that was chosen, if that one is there.
        fine_tuned_arms: those that are also fine-tuned.
        adapt: Down-A; the name is filled in.
        evaluate: scoring; the arm's name is filled in.
        export: registration.
        report: the report.
    """

    preset: str
    seed: int = Field(default=0, ge=0)
    downstream_sets: tuple[str, ...] = DOWNSTREAM_SETS
    upstream: prepare.Config
    downstream: prepare.Config
    search: search.Config
    amateur: amateur.Config
    weights: import_weights.Config | None = None
    amateur_local: amateur_local.Config
    experts: dict[Family, expert.Config] = Field(min_length=1)
    generalists: dict[str, generalist.Config] = Field(min_length=1)
    select: select.Config
    baselines: dict[str, amateur.Config]
    controls: dict[str, generalist.Config] = {}
    codebook: represent.Config | None = None
    arms: tuple[str, ...] = ARMS
    fine_tuned_arms: tuple[str, ...] = ()
    adapt: adapt.Config
    evaluate: evaluate.Config
    export: export.Config
    report: report.Config

    def image_passes(self) -> dict[str, int]:
        """Image passes of each baseline, and of each generalist with all that it is made from, by name."""
        ours = generalist_passes(self.amateur, self.amateur_local, self.experts, self.generalists)
        return {name: config.image_passes for name, config in self.baselines.items()} | ours

    def choices(self, what: str) -> list[str]:
        """A list that a pipeline loops over.

        Args:
            what: ``downstream_sets``, ``experts``, ``generalists``, ``others`` (baselines, controls, codebook) or
                ``cases`` (every dataset with every arm, as ``DATASET/ARM``).
        """
        lists = {
            "downstream_sets": self.downstream_sets,
            "experts": self.experts,
            "generalists": self.generalists,
            "others": (*self.baselines, *self.controls, *([CODEBOOK] if self.codebook else [])),
            "cases": [f"{dataset}/{arm}" for dataset in self.downstream_sets for arm in self.arms],
        }
        if what not in lists:
            raise ConfigError(f"what: expected one of {', '.join(lists)}, got {what!r}")
        return list(lists[what])

    def faults(self) -> list[str]:
        """Names must be known and unique, and the baseline must get at least as many image passes as INTERN gets."""
        faults = []
        known_sets = (*DOWNSTREAM_SETS, *MORE_SETS)
        unknown = [name for name in self.downstream_sets if name not in known_sets]
        if unknown or not self.downstream_sets or len(set(self.downstream_sets)) < len(self.downstream_sets):
            known = ", ".join(known_sets)
            faults.append(
                f"downstream_sets: expected one or more of {known}, each once, got {list(self.downstream_sets)}"
            )
        if BASELINE not in self.baselines:
            return [*faults, f"baselines: expected {BASELINE!r} among them, got {', '.join(self.baselines) or 'none'}"]
        trained = [*self.generalists, *self.baselines, *self.controls]
        models = [CANDIDATE, *trained, "amateur", "amateur-local", ARM_OF_EXPERTS]
        models += [f"expert-{family}" for family in self.experts]
        if len(set(models)) < len(models):
            twice = sorted({name for name in models if models.count(name) > 1})
            faults.append(f"generalists, baselines, controls: {twice[0]!r} names two models; rename one")
        for field, names in (("arms", self.arms), ("fine_tuned_arms", self.fine_tuned_arms)):
            known = models if field == "arms" else self.arms
            faults += [f"{field}: expected names among {', '.join(known)}, got {n!r}" for n in names if n not in known]
        if self.weights is not None and not self.weights.vocabulary and self.amateur_local.mode != "none":
            mode = self.amateur_local.mode
            faults.append(f"amateur_local.mode: expected none with public weights without a vocabulary, got {mode!r}")
        if "multi_stage" in self.adapt.recipes and "represented" in self.adapt.multi_stage.stages and not self.codebook:
            faults.append("codebook: expected its settings, {} for the usual ones, as the recipe multi_stage needs it")
        passes = self.image_passes()
        dearest = max(self.generalists, key=lambda name: passes[name])
        if passes[BASELINE] < passes[dearest]:
            faults.append(
                f"baselines.{BASELINE}.trainer.num_steps: the baseline gets {passes[BASELINE]} image passes and the "
                f"generalist {dearest} {passes[dearest]}, so give the baseline as many"
            )
        return faults


def generalist_passes(
    amateur: amateur.Config,
    amateur_local: amateur_local.Config,
    experts: Mapping[Family, expert.Config],
    generalists: Mapping[str, generalist.Config],
) -> dict[str, int]:
    """Image passes of each generalist and of all that it is made from, by name."""
    shared = amateur.image_passes + amateur_local.image_passes
    of_experts = sum(config.image_passes for config in experts.values())
    return {
        name: shared + config.image_passes + (of_experts if config.needs_experts else 0)
        for name, config in generalists.items()
    }


def stage_config(run: RunConfig, use: str, item: str = "", model: str = "") -> tuple[str, Config]:
    """The stage that one step of a run uses, and its config.

    Args:
        run: the whole run.
        use: a stage's name, ``other`` for a baseline or control, or ``search_end``, which concludes rounds.
        item: the expert's family, the downstream dataset, the name of a generalist, baseline or control, or the
            number of a search round's candidate.
        model: the arm, for adapt, evaluate and export.

    Raises:
        ConfigError: the run has no such item.
    """
    if use.startswith("search_"):
        return search_round.step_config(_with_seed(run.search, run.seed), use, item)
    stage, config = _unseeded(run, use, item, model)
    return stage, config if stage == "prepare" else _with_seed(config, run.seed)


def _unseeded(run: RunConfig, use: str, item: str, model: str) -> tuple[str, Config]:
    if use == "prepare":
        upstream = item == prepare.UPSTREAM
        return use, run.upstream if upstream else run.downstream.with_overrides({"dataset": item})
    if use == "amateur" and run.weights is not None:
        return "import_weights", run.weights
    if use == OTHER and item in run.baselines:
        return "amateur", run.baselines[item]
    if use == OTHER and item == CODEBOOK and run.codebook is not None:
        return "represent", run.codebook
    known: dict[str, Mapping[str, Config]] = {
        "expert": run.experts,
        "generalist": run.generalists,
        OTHER: run.controls,
    }
    if use in known:
        if item not in known[use]:
            raise ConfigError(f"{use}: expected one of {', '.join(known[use]) or 'none'}, got {item!r}")
        return ("generalist" if use == OTHER else use), known[use][item]
    if use == "adapt":
        recipes = ["frozen", "fine_tuned"] if model in run.fine_tuned_arms else list(run.adapt.recipes)
        return use, run.adapt.with_overrides({"name": f"{model}-{item}", "recipes": recipes})
    if use == "evaluate":
        return use, run.evaluate.with_overrides({"model_name": model})
    if use == "export":
        return use, run.export.with_overrides({"arm": model})
    return use, getattr(run, use)


def _with_seed(config: Config, seed: int) -> Config:
    """The config with ``seed`` added to its own seed and to those of its trainings."""
    values = config.to_dict()
    changes: dict[str, Any] = {"seed": values["seed"] + seed} if "seed" in values else {}
    for name, value in values.items():
        if isinstance(value, dict) and "num_steps" in value and "seed" in value:
            changes[name] = {"seed": value["seed"] + seed}
    return config.with_overrides(changes)
