"""An upgrade from every released version changes nothing that Kubernetes refuses to change."""

import json

import pytest
import yaml
from helm_chart import BASELINES, CHART, VALUE_SETS, fixed_fields

RELEASED = sorted(path.stem for path in BASELINES.glob("*.json"))


def broken(old, new):
    """What of a baseline is changed or gone; what is new does no harm."""
    return [f"{name}: {old[name]} became {new.get(name)}" for name in old if new.get(name) != old[name]]


@pytest.mark.parametrize("version", RELEASED)
@pytest.mark.parametrize("values", VALUE_SETS)
def test_fixed_fields_and_names_are_those_of_a_released_version(version, values):
    baseline = json.loads((BASELINES / f"{version}.json").read_text())
    assert broken(baseline.get(values, {}), fixed_fields(values)) == []


def test_this_version_has_a_baseline_that_holds_something():
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    assert version in RELEASED, "python tests/helm_chart.py writes it"
    baseline = json.loads((BASELINES / f"{version}.json").read_text())
    assert set(baseline) == set(VALUE_SETS)
    store = baseline["default"]["StatefulSet/intern-intern-vision-store"]
    assert store["selector"] and store["volumeClaimTemplates"]


def test_a_changed_selector_is_seen():
    old = fixed_fields("default")
    new = json.loads(json.dumps(old))
    new["Deployment/intern-intern-vision-mlflow"]["selector"]["matchLabels"]["version"] = "2"
    del new["Secret/intern-s3"]
    assert [line.split(":")[0] for line in broken(old, new)] == [
        name for name in old if name in ("Deployment/intern-intern-vision-mlflow", "Secret/intern-s3")
    ]


@pytest.mark.parametrize("values", VALUE_SETS)
def test_jobs_are_hooks(values):
    assert not [name for name in fixed_fields(values) if name.startswith("Job/")]
