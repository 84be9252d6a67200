"""values.yaml, its schema and the README agree; a wrong value is refused in plain words."""

import json
import re

import pytest
import yaml
from helm_chart import CHART, load_script, run_helm

from intern_pipelines.platform import Platform, Toleration
from intern_vision.errors import ConfigError

TABLE = load_script("values_table")
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
REFUSED = {
    "objectStore.mode=extern": 'objectStore.mode must be one of the following: "embedded", "external"',
    "objectStore.mode=external": "objectStore.endpoint: mode external needs the S3 server's address",
    "objectStore.mode=external,objectStore.endpoint=aws": "objectStore.existingSecret: mode external needs the name",
    "objectStore.endpoint=s3.example.org": "objectStore.endpoint: Does not match pattern '^(|aws|https?://",
    "objectStore.endpoint=https://s3.example.org": "objectStore.endpoint: mode embedded has its own store",
    "objectStore.bucket=ab": "objectStore.bucket: Does not match pattern",
    "objectStore.workloadIdentity=true": "objectStore.workloadIdentity: the embedded store knows keys only",
    "mlflow.replicas=2": "mlflow.replicas: one SQLite file takes one pod",
    "mlflow.replicas=two": "mlflow.replicas: Invalid type. Expected: integer, given: string",
    "mlflow.replica=2": "mlflow: Additional property replica is not allowed",
    "mlflow.mode=external": "mlflow.externalUri: mode external needs the server's address",
    "mlflow.database.type=postgres": "mlflow.database.existingSecret: type postgres needs the name of a Secret",
    "mlflow.database.type=mysql": 'mlflow.database.type must be one of the following: "sqlite", "postgres"',
    "mlflow.database.type=postgres,mlflow.database.existingSecret=a,mlflow.database.authUriKey=uri": (
        "mlflow.database.authUriKey: the login database must be another"
    ),
    "mlflow.ingress.enabled=true": "mlflow.ingress.host: an Ingress needs its host name",
    "registration.mode=cr": "registration.mode: cr needs pipelines.kubeflow.org/v2beta1, which this cluster has not",
    "registration.mode=none,registration.platform.gpus=8": "registration.platform: mode none does not put it into the",
    "registration.platform.gpu=8": "registration.platform: Additional property gpu is not allowed",
    "registration.platform.memory=4 GB": "registration.platform.memory: Does not match pattern",
    "security.runAsUser=0": "security.runAsUser: Must be greater than or equal to 1",
    "image.digest=sha256:12": "image.digest: Does not match pattern '^(sha256:[0-9a-f]{64})?$'",
    "kfp.apiUrl=ml-pipeline:8888": "kfp.apiUrl: Does not match pattern '^https?://",
    "trainingRuntime.enabled=true": "trainingRuntime.enabled: Invalid type. Expected: string, given: boolean",
}


@pytest.mark.parametrize("change", REFUSED)
def test_a_wrong_value_is_refused_in_plain_words(change):
    done = run_helm("template", "r", CHART, "--kube-version", "1.34", "--set", change)
    assert done.returncode == 1 and REFUSED[change] in done.stderr, done.stderr


def test_all_faults_are_told_at_once():
    change = "objectStore.mode=external,mlflow.replicas=3"
    done = run_helm("template", "r", CHART, "--kube-version", "1.34", "--set", change)
    lines = [line.strip() for line in done.stderr.splitlines() if line.startswith("  ")]
    assert [line.split(":")[0] for line in lines] == [
        "objectStore.endpoint",
        "objectStore.existingSecret",
        "mlflow.replicas",
    ]


def resolved(schema):
    if "$ref" in schema:
        return SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    return schema


def differences(values, schema, path=""):
    """Paths that only the values, or only the schema, know."""
    schema = resolved(schema)
    if not isinstance(values, dict) or not values or "properties" not in schema:
        return []
    found = [f"{path}{name}: not in the schema" for name in values.keys() - schema["properties"].keys()]
    missing = schema["properties"].keys() - values.keys() - {"global", "claims"}
    found += [f"{path}{name}: not in values.yaml" for name in missing]
    for name in values.keys() & schema["properties"].keys():
        found += differences(values[name], schema["properties"][name], f"{path}{name}.")
    return found


def test_schema_and_values_know_the_same_names():
    assert differences(VALUES, SCHEMA) == []
    assert SCHEMA["$schema"] == "http://json-schema.org/draft-07/schema#"


def test_schema_knows_the_settings_of_a_platform_file():
    schema = SCHEMA["properties"]["registration"]["properties"]["platform"]["properties"]
    assert schema.keys() == Platform.model_fields.keys()
    assert schema["tolerations"]["items"]["properties"].keys() == Toleration.model_fields.keys()
    with pytest.raises(ConfigError, match="registration.platform: memory: expected a Kubernetes quantity"):
        Platform.from_dict({"memory": "4 GB"}, at="registration.platform")
    assert not re.fullmatch(schema["memory"]["pattern"], "4 GB") and re.fullmatch(schema["memory"]["pattern"], "1.5Gi")


def test_schema_is_a_draft_7_schema_and_takes_the_defaults():
    jsonschema = pytest.importorskip("jsonschema", reason="pip install 'intern-vision[helm]'")

    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.Draft7Validator(SCHEMA).validate(VALUES)


def test_readme_table_is_current_and_every_value_is_told():
    text, readme = (CHART / "values.yaml").read_text(), (CHART / "README.md").read_text()
    assert TABLE.readme_with_table(readme, text) == readme, "python helm/values_table.py"
    paths = {path for path, _, _ in TABLE.rows(text)}
    assert "objectStore.embedded.resources" in paths and "mlflow.auth.enabled" in paths
    assert all(comment.endswith((".", "`")) for _, _, comment in TABLE.rows(text))


def test_a_value_without_a_comment_is_found():
    with pytest.raises(ValueError, match=r"values.yaml:4: a.c has no comment"):
        TABLE.rows("a:\n  # Said.\n  b: 1\n  c: 1\n")


def test_notes_say_what_to_do_next():
    # As text: `template` leaves the notes out, and a dry run of an install needs a cluster.
    notes = (CHART / "templates/NOTES.txt").read_text()
    assert "helm test {{ .Release.Name }}" in notes and "base64 -d" in notes and "Kept on uninstall" in notes


def test_yaml_of_the_chart_is_in_style():
    config = {
        "extends": "default",
        "rules": {
            "line-length": {"max": 120},
            "document-start": "disable",
            "comments": "disable",
            "comments-indentation": "disable",
        },
    }
    linter = pytest.importorskip("yamllint.linter", reason="pip install 'intern-vision[helm]'")
    from yamllint.config import YamlLintConfig

    paths = [CHART / "Chart.yaml", CHART / "values.yaml", *sorted((CHART / "examples").glob("*.yaml"))]
    rules = YamlLintConfig(yaml.safe_dump(config))
    found = [f"{path.name}: {fault}" for path in paths for fault in linter.run(path.read_text(), rules)]
    assert found == []
