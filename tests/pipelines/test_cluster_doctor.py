import hashlib
import json
import socket
import threading
import time

import pytest
from cluster_servers import KubeflowServer, KubernetesServer, OtherRegionServer, RegistryServer, serving

from intern_pipelines.cluster_doctor import INSTALL_RIGHTS, STEP_RIGHTS, Wanted, checks

ALL_RIGHTS = {(verb, resource, sub) for _, resource, sub, verbs in (*STEP_RIGHTS, *INSTALL_RIGHTS) for verb in verbs}
STORE = ("s3", "s3 region", "s3 multipart", "s3 checksums", "s3 conditional writes", "s3 credentials")
NOTHING = {"s3": False, "mlflow": False}
GPU = "nvidia.com/gpu"


def kubeconfig(folder, url, token):
    """A file as kubectl's, that names a server and a token."""
    path = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here"}}],
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "here", "user": {"token": token}}],
    }
    path.write_text(json.dumps(config))
    return path


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """A Kubernetes API that ``KUBECONFIG`` names."""
    server = KubernetesServer()
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with serving(server) as url:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, url, server.token)))
        yield server


def look(**wanted):
    (check,) = checks(Wanted(**NOTHING | wanted))
    return check


def test_everything_is_there(services, cluster):
    cluster.allowed = ALL_RIGHTS
    cluster.nodes = [node("a", 8)]
    with serving(KubeflowServer()) as url:
        found = checks(
            Wanted(
                create_bucket=True,
                kfp_url=url,
                trainer=True,
                runtime="intern-torch",
                namespace="team",
                step_accounts=("pipeline-runner",),
                my_rights=True,
                gpus=8,
                pods=True,
            )
        )
    names = [*STORE, "mlflow", "kubeflow pipelines", "trainer", "training runtime", "rights of pipeline-runner"]
    assert [check.name for check in found] == [*names, "your rights", "gpus", "quota", "pods"]
    assert all(check.ok and not check.fix for check in found), found
    assert "2.17.0, single-user" in found[names.index("kubeflow pipelines")].detail
    steps = [review for review in cluster.reviews if review["kind"] == "LocalSubjectAccessReview"]
    assert {review["spec"]["user"] for review in steps} == {"system:serviceaccount:team:pipeline-runner"}
    assert len(steps) == sum(len(verbs) for *_, verbs in STEP_RIGHTS)
    own = [review["spec"] for review in cluster.reviews if review["kind"] == "SelfSubjectAccessReview"]
    assert len(own) == sum(len(verbs) for *_, verbs in INSTALL_RIGHTS) and not any("user" in spec for spec in own)


def test_a_missing_right_is_named(cluster):
    cluster.allowed = ALL_RIGHTS - {("delete", "trainjobs", ""), ("get", "pods", "log")}
    check = look(step_accounts=("runner",))
    assert not check.ok and check.detail == "service account runner in default may not: delete trainjobs, get pods/log"
    assert "rbac.create" in check.fix


def test_missing_apis_and_runtimes_are_told(cluster):
    cluster.trainer, cluster.runtimes = [], []
    check = look(trainer=True)
    assert not check.ok and "404" in check.detail and "install Kubeflow Trainer" in check.fix
    for scope in ("cluster", "namespace"):
        check = look(runtime="intern-torch", runtime_scope=scope)
        assert not check.ok and "trainingRuntime.enabled" in check.fix
    cluster.trainer = ["mpijobs"]
    assert "has no trainjobs, only mpijobs" in look(trainer=True).detail


def test_missing_rights_of_your_own_are_named(cluster):
    cluster.allowed = ALL_RIGHTS - {("create", "secrets", ""), ("create", "roles", "")}
    check = look(my_rights=True, namespace="team")
    assert check.detail == "you may not in team: create secrets, create roles" and "administrator" in check.fix


def test_refusals_are_told(cluster, monkeypatch, tmp_path):
    cluster.refused = 403
    assert "refuses this account (403" in look(trainer=True).detail
    cluster.refused = 503
    assert "answers 503" in look(trainer=True).detail
    cluster.refused, cluster.token = 0, "another"
    assert "refuses this account (401" in look(trainer=True).detail
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, "http://127.0.0.1:9", "")))
    assert "no answer from the Kubernetes API" in look(trainer=True).detail


def test_where_no_cluster_is_named_the_check_says_so(monkeypatch):
    for name in ("KUBERNETES_SERVICE_HOST", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    assert look(trainer=True).detail.startswith(
        "no cluster: run this in a pod with a service account, or set KUBECONFIG"
    )


def node(name, gpus, **spec):
    return {"metadata": {"name": name}, "spec": spec, "status": {"allocatable": {GPU: str(gpus)} if gpus else {}}}


def gpu_checks(**wanted):
    return checks(Wanted(**NOTHING, gpus=4, **wanted))


def test_gpus_are_counted_on_nodes_that_take_pods(cluster):
    cluster.nodes = [node("a", 2), node("b", 0), node("c", 8, unschedulable=True)]
    gpus, quota = gpu_checks()
    assert gpus.detail == f"no node has 4 {GPU}: of 2 open nodes the best has 2 (on a), all together 2"
    assert "GPU operator" in gpus.fix and quota.ok
    cluster.nodes.append(node("d", 4))
    assert gpu_checks()[0].detail == f"1 nodes have 4 {GPU} or more, all together 6"
    cluster.nodes.clear()
    assert "of 0 open nodes the best has 0" in gpu_checks()[0].detail


def quota(hard, used):
    return {"metadata": {"name": "team"}, "status": {"hard": hard, "used": used}}


def test_a_quota_that_would_deny_a_step_is_told(cluster):
    cluster.quotas.append(quota({f"requests.{GPU}": "8", "pods": "10"}, {f"requests.{GPU}": "5", "pods": "10"}))
    detail = gpu_checks(namespace="team")[1].detail
    assert detail == (
        f"quota in team: team has requests.{GPU} 5 of 8 in use, team has pods 10 of 10 in use, "
        f"and a training step wants 4 {GPU}"
    )
    cluster.quotas[0] = quota({"requests.memory": "64Gi", "secrets": "5"}, {"requests.memory": "63Gi", "secrets": "5"})
    assert gpu_checks()[1].detail == "1 in default, room in all"
    cluster.quotas[0] = quota({"requests.memory": "64Gi"}, {"requests.memory": "65536Mi"})
    assert "requests.memory 65536Mi of 64Gi in use" in gpu_checks()[1].detail


def waiting(name, reason, message="m", kind="containerStatuses"):
    status = {kind: [{"state": {"waiting": {"reason": reason, "message": message}}}]}
    return {"metadata": {"name": name}, "status": status}


def test_pods_that_wait_for_ever_are_told(cluster):
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    cluster.pods[:] = [
        waiting("x-register", "ImagePullBackOff", 'Back-off pulling\nimage "intern-vision:0.1.0"'),
        waiting("x-init", "CreateContainerConfigError", kind="initContainerStatuses"),
        {"metadata": {"name": "x-gpu"}, "status": {"conditions": [unschedulable]}},
        waiting("x-fine", "ContainerCreating"),
    ]
    check = look(pods=True)
    assert check.detail == (
        'pod x-register: ImagePullBackOff: Back-off pulling image "intern-vision:0.1.0", '
        "pod x-init: CreateContainerConfigError: m, pod x-gpu: Unschedulable: 0/3 nodes"
    )
    cluster.pods[:] = cluster.pods[3:]
    assert look(pods=True).detail == "1 in default, none is stuck"


def watched(resolve, hosts):
    """``getaddrinfo`` that keeps the hosts it was asked for."""

    def resolving(host, *rest, **options):
        hosts.append(host)
        return resolve(host, *rest, **options)

    return resolving


@pytest.fixture
def registry(monkeypatch, tmp_path):
    server = RegistryServer()
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with serving(server) as address:
        server.host, server.realm = address.removeprefix("http://"), f"{address}/token"
        yield server


def test_an_image_is_asked_of_its_registry(registry, tmp_path):
    registry.manifests["team/intern:0.1.0"] = b"{}"
    digest = f"sha256:{hashlib.sha256(b'{}').hexdigest()}"
    registry.manifests[f"team/intern:{digest}"] = b"{}"
    name = f"{registry.host}/team/intern"
    check = look(image=f"{name}:0.1.0")
    assert check.ok and check.detail == f"{name}:0.1.0 can be pulled; to pin it: {name}@{digest}"
    assert look(image=f"{name}@{digest}").detail == f"{name}@{digest} can be pulled"
    registry.login = "robot:secret"
    check = look(image=f"{name}:0.1.0")
    assert "refuses the login of this machine (401)" in check.detail and "docker login" in check.fix
    login = {"auths": {registry.host: {"auth": "cm9ib3Q6c2VjcmV0"}}}
    (tmp_path / "config.json").write_text(json.dumps(login))
    check = look(image=f"{name}:0.1.0")
    assert check.ok and "secret" not in repr(check)


@pytest.mark.parametrize("host", ["registry.example.org", "127.0.0.1.example.org", "localhost@example.org"])
def test_a_login_is_sent_encrypted_or_on_this_machine_alone(registry, tmp_path, monkeypatch, host):
    login = {"auths": {registry.host: {"auth": "cm9ib3Q6c2VjcmV0"}}}
    (tmp_path / "config.json").write_text(json.dumps(login))
    registry.login, registry.realm = "robot:secret", f"http://{host}/token"
    reached = []
    monkeypatch.setattr("socket.getaddrinfo", watched(socket.getaddrinfo, reached))
    assert "refuses the login of this machine (401)" in look(image=f"{registry.host}/team/intern:1").detail
    assert set(reached) == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("{host}/team/intern:9", "its registry {host} does not have it"),
        ("127.0.0.1:9/team/intern:1", "no answer from its registry 127.0.0.1:9 (ConnectionError)"),
        ("intern-vision:0.1.0", "names no registry, so nodes would ask docker.io for it"),
        ("http://host/a", "expected REGISTRY/NAME:TAG"),
        ("host.example/A B", "expected REGISTRY/NAME:TAG"),
    ],
)
def test_an_image_that_cannot_be_pulled(registry, image, expected):
    check = look(image=image.format(host=registry.host))
    assert not check.ok and expected.format(host=registry.host) in check.detail and check.fix


def test_kubeflow_that_wants_a_namespace_is_told():
    server = KubeflowServer()
    server.multi_user = True
    with serving(server) as url:
        check = look(kfp_url=url)
        assert not check.ok and "set kfp.multiUser to true" in check.detail
        assert look(kfp_url=url, kfp_namespace="team").ok
    assert "no answer from" in look(kfp_url=url).detail


def test_an_older_kubeflow_is_told():
    server = KubeflowServer()
    server.version = "2.5.0"
    with serving(server) as url:
        check = look(kfp_url=url)
    assert (
        not check.ok and check.detail == f"Kubeflow Pipelines at {url} is 2.5.0; 2.17 or newer is needed, so upgrade it"
    )


def test_store_and_tracker_that_are_wrong_are_told(services, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("INTERN_STORE", "s3://no-such-bucket/store")
    store, mlflow = checks(Wanted())  # the first check of the store fails, so there is no other
    assert not store.ok and "has no bucket 'no-such-bucket'" in store.detail and "objectStore" in store.fix
    assert not mlflow.ok and "MLflow at http://127.0.0.1:9 is away" in mlflow.detail
    monkeypatch.setenv("INTERN_STORE", "file:///tmp")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    store, mlflow = checks(Wanted())
    assert "INTERN_STORE: expected s3://" in store.detail and "MLFLOW_TRACKING_URI: expected" in mlflow.detail


def store_check(monkeypatch, uri="s3://intern/store", **environment):
    monkeypatch.setenv("INTERN_STORE", uri)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (found,) = checks(Wanted(mlflow=False))
    return found


def test_keys_of_a_secret_under_another_name_are_told(services, monkeypatch, tmp_path):
    """A step's or job's references are optional, so a wrong key name gives a pod without the variables."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    check = store_check(monkeypatch, services.store_uri)
    assert not check.ok and "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in check.detail
    assert "existingSecret and its key names" in check.fix


@pytest.mark.parametrize("create_bucket", [False, True])
def test_a_bucket_of_another_region_is_told(monkeypatch, create_bucket):
    with serving(OtherRegionServer()) as url:
        monkeypatch.setenv("INTERN_STORE", "s3://intern/store")
        settings = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in (settings | {"INTERN_S3_ENDPOINT": url}).items():
            monkeypatch.setenv(name, value)
        found = checks(Wanted(mlflow=False, create_bucket=create_bucket))
    (fault,) = [check for check in found if not check.ok]
    assert "region" in fault.detail and "us-east-1" in fault.detail, found
    assert "objectStore" in fault.fix


def test_a_store_that_is_too_slow_is_told(services, monkeypatch):
    from intern_vision import s3_contract
    from intern_vision.s3 import S3Store

    stop = threading.Event()
    monkeypatch.setattr(s3_contract._Looker, "multipart", lambda self: str(stop.wait(30.0)))
    begun = time.monotonic()
    found = s3_contract.contract(S3Store(services.store_uri), f"{services.store_uri}/slow", "mend it", limit_s=2.0)
    stop.set()
    assert time.monotonic() - begun < 10.0
    assert [check.name for check in found] == ["s3", "s3 region", "s3 speed"] and not found[-1].ok
    assert "took longer than 2 s" in found[-1].detail
