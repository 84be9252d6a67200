import hashlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from intern_vision.config import PACE, Config, canonical_json, changed_fields, parse_json_object, text_digest
from intern_vision.errors import ConfigError
from intern_vision.ref import Kind, Ref
from intern_vision.task import Family, Task


class Optimizer(Config):
    learning_rate: float = Field(default=1e-3, gt=0)
    num_warmup_steps: int = Field(default=0, ge=0)


class Recipe(Config):
    name: str
    num_steps: int = Field(default=10, ge=1)
    share: float = 1.0
    frozen: bool = False
    label: str | None = None
    optimizer: Optimizer = Optimizer()
    sizes_px: tuple[int, ...] = ()

    def faults(self) -> list[str]:
        faults = []
        if self.optimizer.num_warmup_steps > self.num_steps:
            faults.append(f"optimizer.num_warmup_steps must be <= num_steps {self.num_steps}")
        if self.share > 1 and self.frozen:
            faults.append("share must be <= 1 when frozen")
        return faults


def fault_lines(values: dict, at: str = "") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Recipe.from_dict(values, at=at)
    assert caught.value.exit_code == 2
    return str(caught.value).split("\n")


floats = st.floats(allow_nan=False)
names = st.text(max_size=4)
optimizers = st.builds(
    Optimizer,
    learning_rate=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    num_warmup_steps=st.just(0),
)
recipes = st.builds(
    Recipe,
    name=st.text(),
    num_steps=st.integers(min_value=1, max_value=2**62),
    share=st.floats(max_value=1, allow_nan=False),
    frozen=st.booleans(),
    label=st.none() | st.text(),
    optimizer=optimizers,
    sizes_px=st.lists(st.integers(min_value=-(2**53), max_value=2**53)).map(tuple),
)


@given(recipes)
def test_json_round_trip_keeps_every_value_and_the_text(recipe):
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert again.to_json() == recipe.to_json()
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@given(recipes)
def test_integers_that_became_floats_give_the_same_config(recipe):
    def as_kfp_passes_it(value):
        if isinstance(value, dict):
            return {name: as_kfp_passes_it(item) for name, item in value.items()}
        if isinstance(value, list):
            return [as_kfp_passes_it(item) for item in value]
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
            return float(value)
        return value

    again = Recipe.from_dict(as_kfp_passes_it(recipe.to_dict()))
    assert again.to_json() == recipe.to_json()
    assert type(again.num_steps) is int


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"num_steps": 2.5}, "num_steps: expected a valid integer, got 2.5"),
        ({"num_steps": "2"}, 'num_steps: expected a valid integer, got "2"'),
        ({"num_steps": True}, "num_steps: expected a valid integer, got true"),
        ({"num_steps": None}, "num_steps: expected a valid integer, got null"),
        ({"num_steps": 0}, "num_steps: expected greater than or equal to 1, got 0"),
        ({"share": "1"}, 'share: expected a valid number, got "1"'),
        ({"frozen": 1}, "frozen: expected a valid boolean, got 1"),
        ({"label": 3}, "label: expected a valid string, got 3"),
        ({"sizes_px": [32, "64"]}, 'sizes_px.1: expected a valid integer, got "64"'),
        ({"optimizer": 3}, "optimizer: expected an object, got 3"),
        ({"optimizer": {"learning_rate": 0.0}}, "optimizer.learning_rate: expected greater than 0, got 0"),
        (
            {"optimizer": {"lr": 1}},
            "optimizer.lr: unknown key; known keys here: learning_rate, num_warmup_steps",
        ),
        (
            {"num_step": 3},
            "num_step: unknown key; known keys here: frozen, label, name, num_steps, optimizer, share, sizes_px",
        ),
    ],
)
def test_wrong_value_is_one_line_that_names_the_field(values, line):
    assert fault_lines({"name": "a"} | values) == [line]


def test_every_fault_has_its_line_below_the_prefix():
    lines = fault_lines({"num_steps": 0, "optimizer": {"learning_rate": -1}, "typo": 1}, at="expert")
    assert lines[0] == "expert.name: expected a value, got none"
    assert sorted(line.split(": ")[0] for line in lines) == [
        "expert.name",
        "expert.num_steps",
        "expert.optimizer.learning_rate",
        "expert.typo",
    ]


def test_long_wrong_value_is_cut():
    (line,) = fault_lines({"name": "a", "num_steps": "9" * 500})
    assert len(line) < 140 and line.endswith("...")


def test_faults_across_fields_have_a_line_each():
    values = {"name": "a", "num_steps": 2, "share": 1.5, "frozen": True, "optimizer": {"num_warmup_steps": 3}}
    assert fault_lines(values, at="adapt") == [
        "adapt: optimizer.num_warmup_steps must be <= num_steps 2",
        "adapt: share must be <= 1 when frozen",
    ]


def test_config_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Recipe(name="a").num_steps = 3


def test_override_changes_nested_values_and_leaves_the_rest():
    recipe = Recipe(name="a", optimizer=Optimizer(learning_rate=0.5, num_warmup_steps=2))
    changed = recipe.with_overrides({"num_steps": 20.0, "optimizer": {"learning_rate": 0.25}})
    assert changed.optimizer == Optimizer(learning_rate=0.25, num_warmup_steps=2)
    assert (changed.name, changed.num_steps) == ("a", 20)
    assert recipe.optimizer.learning_rate == 0.5, "the original stays as it was"
    assert recipe.with_overrides({}) == recipe


def test_override_of_an_unknown_key_is_refused():
    with pytest.raises(ConfigError) as caught:
        Recipe(name="a").with_overrides({"optimizer": {"momentum": 0.9}}, at="amateur")
    assert str(caught.value).startswith("amateur.optimizer.momentum: unknown key")


def test_override_is_checked_across_fields():
    with pytest.raises(ConfigError, match="num_warmup_steps must be <= num_steps 10"):
        Recipe(name="a").with_overrides({"optimizer": {"num_warmup_steps": 11}})


@pytest.mark.parametrize("text", ["", "{", '{"a": 1,}', "[1]", "3", "null"])
def test_text_that_is_no_object_is_refused_by_name(text):
    with pytest.raises(ConfigError) as caught:
        parse_json_object(text, "--override")
    assert str(caught.value).startswith("--override: expected a JSON object, got ")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="^amateur: expected a JSON object"):
        Recipe.from_json(text, at="amateur")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | names,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(names, children, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(names, json_values, max_size=4))
def test_canonical_json_ignores_the_order_of_keys(values):
    backwards = dict(reversed(values.items()))
    assert canonical_json(values) == canonical_json(backwards)
    assert json.loads(canonical_json(values)) == values


def test_text_digest_is_sha256_of_utf8():
    assert text_digest("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert text_digest("ü") == hashlib.sha256(b"\xc3\xbc").hexdigest()
    assert canonical_json({"b": "ü", "a": [1.5, None]}) == '{"a":[1.5,null],"b":"ü"}'


def test_infinite_values_survive():
    assert math.isinf(Recipe.from_json(Recipe(name="a", share=-math.inf).to_json()).share)


@given(st.dictionaries(names, json_values, max_size=4))
def test_equal_configs_have_no_changed_fields(values):
    assert changed_fields(values, json.loads(json.dumps(values))) == []


def test_changed_fields_names_the_values_that_differ():
    old = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "e": {"f": 1}}
    new = {"a": 1.0, "b": {"c": [1, 3], "d": "x"}, "e": 5, "g": True}
    assert changed_fields(old, new) == ["b.c: [1, 2] -> [1, 3]", 'e: {"f": 1} -> 5', "g: null -> true"]
    assert changed_fields(new["b"], old["b"], at="stage.") == ["stage.c: [1, 3] -> [1, 2]"]


@given(
    st.builds(
        Ref,
        kind=st.sampled_from(Kind.__args__),
        name=st.text(),
        uri=st.text(),
        digest=st.text("0123456789abcdef", min_size=64, max_size=64),
        num_bytes=st.integers(min_value=0, max_value=2**60),
        parents=st.lists(st.text()).map(tuple),
    )
)
def test_ref_round_trip(ref):
    assert Ref.from_json(ref.to_json()) == ref


def test_ref_needs_parents_and_a_whole_digest():
    values = {"kind": "weights", "name": "a", "uri": "file:///a", "digest": "0" * 64, "num_bytes": 1, "parents": []}
    assert Ref.from_dict(values).parents == ()
    for change, field in (({"digest": "abc"}, "digest"), ({"kind": "log"}, "kind"), ({"num_bytes": -1}, "num_bytes")):
        with pytest.raises(ConfigError, match=f"^{field}: expected"):
            Ref.from_dict(values | change)
    del values["parents"]
    with pytest.raises(ConfigError, match="^parents: expected a value, got none$"):
        Ref.from_dict(values)


@given(st.sampled_from(Family.__args__), st.lists(st.text(), min_size=1).map(tuple))
def test_task_needs_what_its_family_is_measured_with(family, class_names):
    task = Task(family=family, class_names=class_names, max_depth_m=10.0)
    assert Task.from_json(task.to_json()) == task
    assert task.num_classes == len(class_names)
    needed = "max_depth_m must be > 0" if family == "depth" else f"class_names must not be empty for family {family}"
    with pytest.raises(ConfigError, match=needed):
        Task.from_dict({"family": family})


class Paced(Config):
    num_steps: int = 1
    num_nodes: int = Field(default=1, json_schema_extra=PACE)


class Stage(Config):
    trainer: Paced = Paced()
    name: str = "a"
    num_threads: int = Field(default=1, json_schema_extra=PACE)


def test_what_only_decides_the_pace_is_in_no_key_at_any_depth_and_stays_in_the_config():
    slow, fast = Stage(), Stage(trainer=Paced(num_nodes=4), num_threads=8)
    assert slow.deciding() == fast.deciding() == {"trainer": {"num_steps": 1}, "name": "a"}
    assert Stage(trainer=Paced(num_steps=2)).deciding() != slow.deciding()
    assert Stage.from_dict(fast.deciding()) == slow and fast.with_overrides({"name": "b"}).trainer.num_nodes == 4
    assert Recipe(name="x").deciding() == Recipe(name="x").to_dict()
