"""Config: the settings of a stage, strict and frozen; every fault reads ``field: expected X, got Y``."""

import hashlib
import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from intern_vision.errors import ConfigError

PACE = {"intern_pace": True}
"""``json_schema_extra`` of a field that decides how fast a result is made and not what it is."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no white space: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def text_digest(text: str) -> str:
    """SHA-256 of UTF-8 text, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


class Config(BaseModel):
    """Base of every settings class: frozen, strict, unknown keys refused.

    Kubeflow Pipelines turns the integers inside a dict parameter into floats, so an
    integral float is taken for an int field when the config is read from JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, ser_json_inf_nan="strings")

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, at: str = "") -> Self:
        """Builds the config from plain JSON values.

        Args:
            values: what ``json.loads`` gives; missing fields take their defaults.
            at: dotted prefix for the field names in the error, for example a stage's name.

        Raises:
            ConfigError: one line per fault.
        """
        try:
            return cls.model_validate_json(json.dumps(_integral_floats_to_ints(values)))
        except ValidationError as error:
            raise ConfigError(_faults(error, at, cls)) from None

    @classmethod
    def from_json(cls, text: str, *, at: str = "") -> Self:
        """Builds the config from JSON text; raises ConfigError where it is not a JSON object."""
        return cls.from_dict(parse_json_object(text, at or "config"), at=at)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values that ``from_dict`` takes back."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """Canonical JSON text."""
        return canonical_json(self.to_dict())

    def deciding(self) -> dict[str, Any]:
        """``to_dict`` without the fields marked ``PACE``, at any depth: what a result's key depends on."""
        values = self.to_dict()
        for name, field in type(self).model_fields.items():
            if field.json_schema_extra == PACE:
                del values[name]
            elif isinstance(part := getattr(self, name), Config):
                values[name] = part.deciding()
        return values

    def with_overrides(self, overrides: dict[str, Any], *, at: str = "") -> Self:
        """A copy with nested values replaced; unknown keys raise ConfigError."""
        return type(self).from_dict(_merge(self.to_dict(), overrides), at=at)

    @model_validator(mode="after")
    def _check(self) -> Self:
        faults = self.faults()
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def faults(self) -> list[str]:
        """Faults across fields, each saying what to change; overridden where there are such rules."""
        return []


def parse_json_object(text: str, what: str) -> dict[str, Any]:
    """The object that JSON text holds; ConfigError names ``what`` and the place of the fault."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{what}: expected a JSON object, got {text[:60]!r} "
            f"({error.msg} at line {error.lineno} column {error.colno})"
        ) from None
    if not isinstance(value, dict):
        raise ConfigError(f"{what}: expected a JSON object, got {type(value).__name__}")
    return value


def changed_fields(old: dict[str, Any], new: dict[str, Any], at: str = "") -> list[str]:
    """Dotted names of the values that differ between two plain configs, as ``name: old -> new``."""
    lines: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += changed_fields(before, after, f"{at}{name}.")
        elif before != after:
            lines.append(f"{at}{name}: {json.dumps(before)} -> {json.dumps(after)}")
    return lines


def _integral_floats_to_ints(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _integral_floats_to_ints(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_integral_floats_to_ints(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def _merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in overrides.items():
        if isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merge(merged[name], value)
        else:
            merged[name] = value
    return merged


def _faults(error: ValidationError, at: str, cls: type[BaseModel]) -> str:
    lines = []
    for fault in error.errors():
        path = ".".join(str(part) for part in ((at,) if at else ()) + fault["loc"]) or cls.__name__
        got = json.dumps(fault["input"], default=str)
        got = got if len(got) <= 80 else got[:77] + "..."
        if fault["type"] == "extra_forbidden":
            known = ", ".join(_known_fields(cls, fault["loc"][:-1]))
            lines.append(f"{path}: unknown key; known keys here: {known}")
        elif fault["type"] == "missing":
            lines.append(f"{path}: expected a value, got none")
        elif fault["type"] == "value_error":
            lines += [f"{path}: {text}" for text in fault["msg"].removeprefix("Value error, ").split("; ")]
        else:
            lines.append(f"{path}: expected {fault['msg'].removeprefix('Input should be ')}, got {got}")
    return "\n".join(lines)


def _known_fields(cls: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    for part in loc:
        field = cls.model_fields.get(part) if isinstance(part, str) else None
        annotation = field.annotation if field else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            cls = annotation
    return sorted(cls.model_fields)
