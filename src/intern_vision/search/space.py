"""The search space: a template genotype and the choices around it, with genotypes as lists of choice indices.

The decisions are UniNet's (arXiv 2110.04035 and the unified space of arXiv 2207.05420): operator, expansion,
channel multiplier, repeat offset and down-sampling kind of every stage. Strides are the template's, so the map sizes
are known beforehand and every list of choices stands for a network that can be built.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import Field

from intern_vision.config import Config
from intern_vision.errors import ConfigError
from intern_vision.models.cost import STEM_STRIDE
from intern_vision.models.genotype import (
    ATTENTION_DOWNSAMPLINGS,
    ATTENTION_OPERATORS,
    Downsampling,
    Genotype,
    Operator,
    StageGene,
)

Choices = tuple[int, ...]
"""Index into each decision's options, in the order of ``Space.decisions``."""

WIDTH_UNIT = 8
"""Channels that widths are multiples of where no heads ask for more."""
_ORDERED = ("expansion", "width_factor", "block_offset")


class SpaceConfig(Config):
    """The choices; the template's own values always belong to them.

    Attributes:
        operators: choices of a stage's operator; those that a stage cannot hold are left out there.
        searched_operators: the stages whose operator is searched; ``last`` is the coarsest alone.
        expansions: choices of every stage's expansion.
        width_factors: choices of the factor on every stage's width.
        block_offsets: choices of what is added to every stage's number of blocks.
        downsamplings: choices of how a stage with stride 2 halves its map.
        max_mixer_tokens: largest number of tokens that a mixer may see: its token weights grow with the square.
    """

    operators: tuple[Operator, ...] = Field(default=get_args(Operator), min_length=1)
    searched_operators: Literal["all", "last", "none"] = "all"
    expansions: tuple[float, ...] = Field(default=(2, 3, 4, 5, 6), min_length=1)
    width_factors: tuple[float, ...] = Field(default=(0.5, 0.75, 1, 1.25, 1.5), min_length=1)
    block_offsets: tuple[int, ...] = Field(default=(-2, -1, 0, 1, 2), min_length=1)
    downsamplings: tuple[Downsampling, ...] = Field(default=get_args(Downsampling), min_length=1)
    max_mixer_tokens: int = Field(default=256, ge=0)

    def faults(self) -> list[str]:
        """Expansions of at least 1 and positive factors."""
        faults = [] if min(self.expansions) >= 1 else ["expansions: expected numbers of at least 1"]
        return faults + ([] if min(self.width_factors) > 0 else ["width_factors: expected numbers above 0"])


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing to decide.

    Attributes:
        name: field and stage, for example ``expansion_2``.
        options: at least two values.
        ordered: whether neighbouring options are alike.
    """

    name: str
    options: tuple[Any, ...]
    ordered: bool


class Space:
    """The genotypes around a template.

    Args:
        template: where the space lies.
        config: the choices.
        image_size_px: height and width of the images that the genotypes are built for.

    Attributes:
        template: the template, built for ``image_size_px``.
        decisions: what is to be decided, fine stages first; a stage's only option is no decision.
    """

    def __init__(self, template: Genotype, config: SpaceConfig, image_size_px: int) -> None:
        """Lists the decisions."""
        self.template = Genotype.from_dict(template.to_dict() | {"image_size_px": image_size_px})
        self._config = config
        sizes_px = _in_sizes_px(self.template)
        decisions = [
            Decision(f"{field}_{index}", options, field in _ORDERED)
            for index in range(len(template.stages))
            for field, options in self._options(index, sizes_px[index]).items()
        ]
        self.decisions = tuple(decision for decision in decisions if len(decision.options) > 1)
        self._index = {decision.name: number for number, decision in enumerate(self.decisions)}

    @property
    def size(self) -> int:
        """Number of lists of choices."""
        return math.prod(len(decision.options) for decision in self.decisions)

    def options(self, field: str, stage: int) -> tuple[Any, ...]:
        """Every value that a field of a stage can take; the template's alone where nothing is decided."""
        number = self._index.get(f"{field}_{stage}")
        return (self._template_values(stage)[field],) if number is None else self.decisions[number].options

    def decode(self, choices: Sequence[int]) -> Genotype:
        """The genotype that a list of choices stands for; several lists may stand for one.

        Widths are rounded to whole heads where this stage or the next one splits them, else to ``WIDTH_UNIT``.
        """
        genes = self.template.stages
        chosen = [{name: self._value(name, stage, choices) for name in _FIELDS} for stage in range(len(genes))]
        stages = tuple(
            StageGene(
                operator=values["operator"],
                expansion=values["expansion"],
                width=self._width(gene.width, values["width_factor"], chosen[stage : stage + 2]),
                num_blocks=gene.num_blocks + values["block_offset"],
                stride=gene.stride,
                downsampling=values["downsampling"],
            )
            for stage, (gene, values) in enumerate(zip(genes, chosen, strict=True))
        )
        # The choices leave nothing to check, and a controller decodes thousands of candidates.
        return self.template.model_copy(update={"stages": stages})

    def encode(self, genotype: Genotype) -> Choices:
        """The choices that stand for a genotype, the factor nearest 1 where several do.

        Raises:
            ConfigError: the genotype lies outside the space.
        """
        if len(genotype.stages) != len(self.template.stages):
            raise ConfigError(
                f"genotype.stages: the space has {len(self.template.stages)} stages, got {len(genotype.stages)}"
            )
        genes = [{name: getattr(gene, name, None) for name in _FIELDS} for gene in genotype.stages]
        choices = []
        for decision in self.decisions:
            field, _, number = decision.name.rpartition("_")
            stage = int(number)
            gene, template = genotype.stages[stage], self.template.stages[stage]
            if field == "width_factor":
                fitting = [
                    factor
                    for factor in decision.options
                    if self._width(template.width, factor, genes[stage : stage + 2]) == gene.width
                ]
                value = min(fitting, key=lambda factor: abs(factor - 1), default=None)
            elif field == "block_offset":
                value = gene.num_blocks - template.num_blocks
            else:
                value = getattr(gene, field)
            if value not in decision.options:
                raise ConfigError(f"genotype.stages.{stage}: lies outside the search space in {field}")
            choices.append(decision.options.index(value))
        if self.decode(choices).stages != genotype.stages:
            raise ConfigError("genotype: lies outside the search space in a value that the space does not vary")
        return tuple(choices)

    def named(self, choices: Sequence[int]) -> dict[str, Any]:
        """The chosen values by the decisions' names."""
        return {d.name: d.options[index] for d, index in zip(self.decisions, choices, strict=True)}

    def indices(self, named: dict[str, Any]) -> Choices:
        """The inverse of ``named``; ConfigError where a name or value is not this space's."""
        wrong = [d.name for d in self.decisions if named.get(d.name) not in d.options]
        wrong += [name for name in named if name not in self._index]
        if wrong:
            raise ConfigError(f"choices: not of this search space: {', '.join(wrong)}")
        return tuple(decision.options.index(named[decision.name]) for decision in self.decisions)

    def _value(self, field: str, stage: int, choices: Sequence[int]) -> Any:
        number = self._index.get(f"{field}_{stage}")
        return (
            self._template_values(stage)[field] if number is None else self.decisions[number].options[choices[number]]
        )

    def _width(self, width: int, factor: float, genes: Sequence[dict[str, Any]]) -> int:
        """``genes``: the fields of the stage and, where there is one, of the next."""
        own, following = genes[0], genes[1:]
        has_heads = own["operator"] in ATTENTION_OPERATORS or own["downsampling"] in ATTENTION_DOWNSAMPLINGS
        # A first block with heads splits the width it gets, too; a down-sampling module takes any.
        has_heads |= any(g["operator"] in ATTENTION_OPERATORS and g["downsampling"] == "block" for g in following)
        if factor == 1 and not has_heads:
            return width
        unit = self.template.head_size if has_heads else WIDTH_UNIT
        return max(unit, math.floor(width * factor / unit + 0.5) * unit)

    def _template_values(self, stage: int) -> dict[str, Any]:
        gene = self.template.stages[stage]
        kept = {name: getattr(gene, name) for name in ("operator", "expansion", "downsampling")}
        return kept | {"width_factor": 1.0, "block_offset": 0}

    def _options(self, stage: int, in_size_px: int) -> dict[str, tuple[Any, ...]]:
        config, gene, own = self._config, self.template.stages[stage], self._template_values(stage)
        no_heads = stage == 0 and self.template.stem_width % self.template.head_size != 0
        operators = config.operators
        if config.searched_operators == "none" or (
            config.searched_operators == "last" and stage < len(self.template.stages) - 1
        ):
            operators = ()
        operators = tuple(
            operator
            for operator in operators
            if not (operator in ATTENTION_OPERATORS and no_heads)
            and not (operator == "mixer" and in_size_px**2 > config.max_mixer_tokens)
        )
        downsamplings = config.downsamplings if gene.stride == 2 else ()
        offsets = tuple(offset for offset in config.block_offsets if gene.num_blocks + offset >= 1)
        return {
            "operator": _with(operators, own["operator"]),
            "expansion": _with(config.expansions, own["expansion"]),
            "width_factor": _with(config.width_factors, own["width_factor"]),
            "block_offset": _with(offsets, own["block_offset"]),
            "downsampling": _with(downsamplings, own["downsampling"]),
        }


_FIELDS = ("operator", "expansion", "width_factor", "block_offset", "downsampling")


def _with(options: tuple[Any, ...], own: Any) -> tuple[Any, ...]:
    """The options without repetition, the template's own among them; numbers in ascending order."""
    found = list(dict.fromkeys((*options, own)))
    return tuple(found if isinstance(found[0], str) else sorted(found))


def _in_sizes_px(template: Genotype) -> list[int]:
    """Height and width of the map that each stage gets."""
    sizes_px = [-(-template.image_size_px // STEM_STRIDE)]
    for gene in template.stages:
        sizes_px.append(-(-sizes_px[-1] // gene.stride))
    return sizes_px[:-1]
