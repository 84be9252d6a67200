import copy

import pytest

from intern_components.train_job.manifest import job_name, runtime_of, train_job
from intern_vision.errors import ConfigError
from intern_vision.train.several_nodes import NodesRequest

REQUEST = NodesRequest(
    stage="amateur_local",
    name="amateur_local-clip",
    output_uri="s3://bucket/amateur_local/clip-0123456789abcdef",
    payload_uri="s3://bucket/amateur_local/clip-0123456789abcdef/checkpoints/nodes-12/payload.json",
    num_nodes=4,
)
RUNTIME = ("ClusterTrainingRuntime", "intern-torch")
GPUS = {"limits": {"nvidia.com/gpu": "8"}, "requests": {"cpu": "16", "memory": "64Gi"}}
OWN = {"key": "nvidia.com/gpu", "operator": "Exists"}
POD = {
    "metadata": {
        "name": "intern-abc-system-container-impl-1",
        "uid": "pod-uid",
        "labels": {"pipeline/runid": "run-1", "team": "vision"},
        "ownerReferences": [
            {
                "apiVersion": "argoproj.io/v1alpha1",
                "kind": "Workflow",
                "name": "wf",
                "uid": "wf-uid",
                "controller": True,
            }
        ],
    },
    "spec": {
        "containers": [
            {"name": "wait", "image": "argoexec"},
            {"name": "main", "image": "registry/intern@sha256:12", "resources": GPUS},
        ],
        "nodeSelector": {"pool": "gpu"},
        "imagePullSecrets": [{"name": "pull"}],
        "tolerations": [OWN, {"key": "node.kubernetes.io/not-ready", "operator": "Exists"}],
    },
}


def made(pod=POD, field="runtimePatches"):
    return train_job(REQUEST, "vision", RUNTIME, field, pod, "intern:1")


def test_nodes_share_the_steps_image_resources_and_owner(monkeypatch):
    monkeypatch.setenv("INTERN_NUM_RANKS", "8")
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the step")
    job = made()
    assert job["spec"]["trainer"] == {
        "image": "registry/intern@sha256:12",
        "command": ["python", "-m", "intern_vision.train.node"],
        "args": [REQUEST.payload_uri],
        "numNodes": 4,
        "numProcPerNode": 8,
        "resourcesPerNode": GPUS,
        "env": [{"name": "INTERN_NUM_RANKS", "value": "8"}, {"name": "NCCL_DEBUG", "value": "WARN"}],
    }
    assert "of the step" not in str(job)
    assert job["spec"]["runtimeRef"] == {"apiGroup": "trainer.kubeflow.org", "kind": RUNTIME[0], "name": RUNTIME[1]}
    metadata = job["metadata"]
    assert metadata["labels"]["pipeline/runid"] == "run-1" and "team" not in metadata["labels"]
    (owner,) = metadata["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["blockOwnerDeletion"]) == ("Workflow", "wf-uid", False)


def test_the_pod_owns_the_job_where_nothing_owns_the_pod():
    pod = copy.deepcopy(POD)
    del pod["metadata"]["ownerReferences"]
    (owner,) = made(pod)["metadata"]["ownerReferences"]
    assert (owner["apiVersion"], owner["kind"], owner["uid"]) == ("v1", "Pod", "pod-uid")


PLACEMENT = {"nodeSelector": {"pool": "gpu"}, "imagePullSecrets": [{"name": "pull"}], "tolerations": [OWN]}


def test_each_version_of_trainer_has_its_form_of_a_patch():
    (patch,) = made()["spec"]["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert patch["manager"] and job == {"name": "node", "template": {"spec": {"template": {"spec": PLACEMENT}}}}
    (patch,) = made(field="podTemplateOverrides")["spec"]["podTemplateOverrides"]
    assert patch == {"targetJobs": [{"name": "node"}], "spec": PLACEMENT}
    (patch,) = made(field="podSpecOverrides")["spec"]["podSpecOverrides"]
    assert patch == {"targetJobs": [{"name": "node"}]} | PLACEMENT


def test_a_namespaces_default_resources_are_not_those_of_a_node():
    pod = copy.deepcopy(POD)
    pod["metadata"]["annotations"] = {"kubernetes.io/limit-ranger": "LimitRanger plugin set: cpu request for main"}
    assert "resourcesPerNode" not in made(pod)["spec"]["trainer"]


def test_outside_a_cluster_the_runtime_decides(monkeypatch):
    monkeypatch.delenv("INTERN_NUM_RANKS", raising=False)
    job = made(pod=None)
    assert set(job["spec"]) == {"runtimeRef", "trainer"} and job["metadata"]["ownerReferences"] == []
    assert job["spec"]["trainer"]["image"] == "intern:1"
    assert not {"numProcPerNode", "resourcesPerNode"} & set(job["spec"]["trainer"])


def test_the_name_is_that_of_the_output_and_short_enough_for_the_pods_of_a_job_set():
    assert job_name(REQUEST) == made()["metadata"]["name"] == "intern-amateur-local-" + job_name(REQUEST)[-16:]
    other = NodesRequest(**{**vars(REQUEST), "payload_uri": "s3://bucket/other", "num_nodes": 2, "name": "else"})
    assert job_name(other) == job_name(REQUEST), "another try of the same work"
    another = NodesRequest(**{**vars(REQUEST), "output_uri": "s3://bucket/amateur_local/clip-1123456789abcdef"})
    assert job_name(another) != job_name(REQUEST)
    assert len(f"{job_name(REQUEST)}-node-0-100") <= 63


def test_the_runtime_is_named_by_kind_and_name():
    assert runtime_of({}) == RUNTIME
    assert runtime_of({"INTERN_TRAINING_RUNTIME": "TrainingRuntime/mine"}) == ("TrainingRuntime", "mine")
    for text in ("mine", "Deployment/mine", "TrainingRuntime/"):
        with pytest.raises(ConfigError, match="INTERN_TRAINING_RUNTIME: expected ClusterTrainingRuntime/intern-torch"):
            runtime_of({"INTERN_TRAINING_RUNTIME": text})
