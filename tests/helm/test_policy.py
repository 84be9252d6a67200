"""Pod Security "restricted", least rights, no secret in the open: checked on every object of every value set."""

import re

import pytest
from helm_chart import VALUE_SETS, containers, flat, one, pod_specs, render

from intern_pipelines.cluster_doctor import STEP_RIGHTS

ALLOWED_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
HOST_FIELDS = ("hostNetwork", "hostPID", "hostIPC")
# (API groups, resources) -> verbs: all that the chart may ever ask for.
ALLOWED_RULES = {
    ("trainer.kubeflow.org", "trainjobs"): {"create", "get", "list", "watch", "delete"},
    ("trainer.kubeflow.org", "trainingruntimes"): {"get"},
    ("trainer.kubeflow.org", "clustertrainingruntimes"): {"get"},
    ("", "pods"): {"get", "list", "watch"},
    ("", "pods/log"): {"get"},
    ("authorization.k8s.io", "localsubjectaccessreviews"): {"create"},
}
SECRET_VARIABLES = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|TOKEN(?!_PATH)|_URI$")
ADDRESSES = re.compile(r"^(https?://[^@]+|sqlite:////data/\w+\.db)$")


def restricted_faults(pod):
    """What of a pod spec the Pod Security Standard `restricted` (kubernetes.io) refuses, and a little more."""
    context = pod.get("securityContext", {})
    if any(pod.get(field) for field in HOST_FIELDS):
        yield "shares a namespace of the host"
    if not context.get("runAsUser") or context.get("runAsNonRoot") is not True:
        yield "does not fix a user other than root"
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "has no seccomp profile"
    for volume in pod.get("volumes", ()):
        if set(volume) - {"name"} - ALLOWED_VOLUMES:
            yield f"volume {volume['name']} is of a kind that is not allowed"
    for container in containers(pod):
        own, name = container.get("securityContext", {}), container["name"]
        if own.get("privileged") or own.get("allowPrivilegeEscalation") is not False:
            yield f"{name} may gain privileges"
        if own.get("capabilities", {}).get("drop") != ["ALL"] or own.get("capabilities", {}).get("add"):
            yield f"{name} keeps capabilities"
        if own.get("readOnlyRootFilesystem") is not True:
            yield f"{name} may write to its root"
        if own.get("runAsUser") == 0 or own.get("runAsNonRoot") is False:
            yield f"{name} runs as root"
        if any("hostPort" in port for port in container.get("ports", ())):
            yield f"{name} takes a port of the host"
        if not container.get("resources", {}).get("limits", {}).get("memory"):
            yield f"{name} has no memory limit"


@pytest.mark.parametrize("values", VALUE_SETS)
def test_pods_are_restricted(values):
    pods = list(pod_specs(render(values)))
    assert len(pods) >= 2
    assert [f"{where}: {fault}" for where, pod in pods for fault in restricted_faults(pod)] == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"hostNetwork": True}, "shares a namespace of the host"),
        ({"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}, "volume x is of a kind that is not allowed"),
        ({"securityContext": {"runAsNonRoot": True}}, "does not fix a user other than root"),
        ({"containers": [{"name": "c", "securityContext": {"privileged": True}}]}, "c may gain privileges"),
    ],
)
def test_the_checker_sees_what_is_not_restricted(change, fault):
    (_, pod), *_ = pod_specs(render())
    assert fault in list(restricted_faults(pod | change))


@pytest.mark.parametrize("values", VALUE_SETS)
def test_rights_are_the_least(values):
    manifests = render(values)
    for manifest in manifests:
        if manifest["kind"] not in ("Role", "ClusterRole"):
            continue
        for rule in manifest["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    assert set(rule["verbs"]) <= ALLOWED_RULES[group, resource], manifest["metadata"]["name"]
            if manifest["kind"] == "ClusterRole":
                assert rule["resourceNames"] == ["intern-torch"], "cluster-wide, one object only"
    bound = {m["roleRef"]["name"] for m in manifests if m["kind"].endswith("RoleBinding")}
    assert bound == {m["metadata"]["name"] for m in manifests if m["kind"] in ("Role", "ClusterRole")}


def test_steps_may_do_what_the_launcher_and_the_doctor_ask_for_and_no_more():
    rules = one(render(), "Role", "-steps")["rules"]
    given = {(r["apiGroups"][0], *r["resources"][0].partition("/")[::2], tuple(r["verbs"])) for r in rules}
    assert given == set(STEP_RIGHTS)


def test_the_training_runtime_suits_every_version_of_trainer_and_leaves_failed_pods():
    (runtime,) = [m for m in render("gpu") if m["kind"] == "ClusterTrainingRuntime"]
    assert runtime["spec"]["mlPolicy"] == {"numNodes": 1, "torch": {}}
    job = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]
    pod = job["template"]["spec"]["template"]["spec"]
    assert (job["name"], pod["restartPolicy"]) == ("node", "Never")
    (container,) = pod["containers"]
    assert container["name"] == "node" and container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    settings = one(render(), "ConfigMap", "intern-settings")["data"]
    assert settings["training-runtime"] == "ClusterTrainingRuntime/intern-torch"
    own = one(render("kubeflow-profile"), "ConfigMap", "intern-settings")["data"]
    assert own["training-runtime"] == "TrainingRuntime/intern-torch"


@pytest.mark.parametrize("number", ["8", "gpu"])
def test_ranks_of_a_node_are_a_variable_of_the_runtime(number):
    def variables(*changes):
        (runtime,) = [m for m in render("default", "1.34", *changes) if m["kind"] == "ClusterTrainingRuntime"]
        (_, pod), *_ = pod_specs([runtime])
        return {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}

    assert "INTERN_NUM_RANKS" not in variables()
    assert variables(f"trainingRuntime.numProcPerNode={number}")["INTERN_NUM_RANKS"] == number


@pytest.mark.parametrize("values", VALUE_SETS)
def test_only_the_doctor_holds_a_token_of_the_cluster_and_only_to_look_at_trainer(values):
    manifests = render(values)
    trains = any(manifest["kind"].endswith("TrainingRuntime") for manifest in manifests)
    for where, pod in pod_specs(manifests):
        doctor = where.endswith(("-doctor", "-before"))
        assert pod["automountServiceAccountToken"] is (doctor and trains), where
    for manifest in manifests:
        if manifest["kind"] == "ServiceAccount":
            assert manifest["automountServiceAccountToken"] is False


@pytest.mark.parametrize("values", VALUE_SETS)
def test_no_secret_is_in_an_argument_or_in_the_open(values):
    manifests = render(values)
    secrets = [text for m in manifests if m["kind"] == "Secret" for text in m["data"].values()]
    for where, pod in pod_specs(manifests):
        for container in containers(pod):
            for variable in container.get("env", ()):
                if SECRET_VARIABLES.search(variable["name"]) and "valueFrom" not in variable:
                    assert ADDRESSES.match(variable["value"]), f"{where}: {variable['name']}"
            words = " ".join([*container.get("command", ()), *container.get("args", ())])
            assert not re.search(r"(?i)password|secret|access.?key|//[^/\s]*@", words), f"{where}: {words}"
    for manifest in manifests:
        if manifest["kind"] != "Secret":
            for path, text in flat(manifest):
                assert not any(secret in text for secret in secrets), f"{manifest['kind']}{path}"


@pytest.mark.parametrize("values", VALUE_SETS)
def test_no_variable_is_set_twice(values):
    for where, pod in pod_specs(render(values)):
        for container in containers(pod):
            names = [variable["name"] for variable in container.get("env", ())]
            assert len(set(names)) == len(names), f"{where}: {sorted(names)}"


def test_a_variable_of_the_user_replaces_the_charts():
    deployment = one(render("open"), "Deployment", "-mlflow")
    for container in containers(deployment["spec"]["template"]["spec"]):
        env = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "true"


@pytest.mark.parametrize("values", VALUE_SETS)
def test_every_mount_has_its_volume_and_every_reference_its_object(values):
    manifests = render(values)
    names = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    for where, pod in pod_specs(manifests):
        volumes = {volume["name"] for volume in pod.get("volumes", ())}
        for manifest in manifests:
            if where == f"{manifest['kind']}/{manifest['metadata']['name']}" and manifest["kind"] == "StatefulSet":
                volumes |= {claim["metadata"]["name"] for claim in manifest["spec"].get("volumeClaimTemplates", ())}
        for container in containers(pod):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, where
        account = pod.get("serviceAccountName")
        # Kubeflow Pipelines brings pipeline-runner.
        assert account in (None, "pipeline-runner") or ("ServiceAccount", account) in names, where
        for volume in pod.get("volumes", ()):
            own = volume.get("configMap", {}).get("name", "")
            assert not own.startswith("intern-intern") or ("ConfigMap", own) in names, where


@pytest.mark.parametrize("values", VALUE_SETS)
def test_selectors_match_their_pods_and_carry_no_version(values):
    manifests = render(values)
    for manifest in manifests:
        spec = manifest.get("spec", {})
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            selector = spec["selector"]["matchLabels"]
            assert selector.items() <= spec["template"]["metadata"]["labels"].items()
            assert not {"app.kubernetes.io/version", "helm.sh/chart", "team"} & selector.keys()
        if manifest["kind"] == "Service":
            pods = [m for m in manifests if m["kind"] in ("Deployment", "StatefulSet")]
            labels = [m["spec"]["template"]["metadata"]["labels"].items() for m in pods]
            assert sum(spec["selector"].items() <= each for each in labels) == 1


def test_network_policies_cover_store_and_mlflow():
    manifests = render("aws")
    (policy,) = [m for m in manifests if m["kind"] == "NetworkPolicy"]
    (rule,) = policy["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": "http"}]
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}} in rule["from"]
    store = one(render(), "NetworkPolicy", "-store")
    assert store["spec"]["egress"] == [] and store["spec"]["policyTypes"] == ["Ingress", "Egress"]
    ports = [port["port"] for rule in store["spec"]["ingress"] for port in rule["ports"]]
    assert ports == ["s3", "metrics"], "master, filer and volume server know no credentials"
    pod = one(render(), "StatefulSet", "-store")["spec"]["template"]["spec"]["containers"][0]
    assert {"-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.ip.bind=0.0.0.0"} <= set(pod["args"])


def test_what_uninstalling_must_not_take_is_kept():
    manifests = render()
    kept = {
        (m["kind"], m["metadata"]["name"])
        for m in manifests
        if m["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"
    }
    assert kept == {
        ("Secret", "intern-s3"),
        ("Secret", "intern-mlflow"),
        ("PersistentVolumeClaim", "intern-intern-vision-mlflow"),
    }
    store = one(manifests, "StatefulSet", "-store")["spec"]
    assert store["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}


@pytest.mark.parametrize("values", VALUE_SETS)
def test_no_pod_gets_a_proxy_of_a_service_mesh(values):
    manifests = render(values)
    labelled = str(manifests).count("'sidecar.istio.io/inject': 'false'")
    jobs = sum(manifest["kind"] == "Job" for manifest in manifests)
    assert labelled == len(list(pod_specs(manifests))) + jobs, "a job's own labels are its pod's"
