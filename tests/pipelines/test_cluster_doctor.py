import pytest
from cluster_servers import KubeflowServer, KubernetesServer, serving

from intern_pipelines import cluster_doctor
from intern_pipelines.cluster_doctor import STEP_RIGHTS, Wanted, checks

ALL_RIGHTS = {(verb, resource, sub) for _, resource, sub, verbs in STEP_RIGHTS for verb in verbs}
NOTHING = {"s3": False, "mlflow": False}


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """A Kubernetes API in which this process is a pod."""
    server = KubernetesServer()
    monkeypatch.setattr(cluster_doctor, "ACCOUNT_FOLDER", tmp_path)
    (tmp_path / "token").write_text("of the service account\n")
    with serving(server) as url:
        monkeypatch.setattr(cluster_doctor, "_kubernetes_url", lambda: url)
        yield server


def look(**wanted):
    (check,) = checks(Wanted(**NOTHING | wanted))
    return check


def test_everything_is_there(services, cluster):
    cluster.allowed = ALL_RIGHTS
    with serving(KubeflowServer()) as url:
        found = checks(
            Wanted(
                create_bucket=True,
                kfp_url=url,
                trainer=True,
                runtime="intern-torch",
                namespace="team",
                step_accounts=("pipeline-runner",),
            )
        )
    names = ["s3", "mlflow", "kubeflow pipelines", "trainer", "training runtime", "rights of pipeline-runner"]
    assert [check.name for check in found] == names
    assert all(check.ok and not check.fix for check in found), found
    users = {review["spec"]["user"] for review in cluster.reviews}
    assert users == {"system:serviceaccount:team:pipeline-runner"} and len(cluster.reviews) == len(ALL_RIGHTS)


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


def test_refusals_are_told(cluster):
    cluster.refused = 403
    assert "refuses this service account (403" in look(trainer=True).detail
    cluster.refused = 503
    assert "answers 503" in look(trainer=True).detail
    cluster.refused, cluster.token = 0, "another"
    assert "refuses this service account (401" in look(trainer=True).detail


def test_outside_a_pod_the_cluster_cannot_be_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster_doctor, "ACCOUNT_FOLDER", tmp_path)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert look(trainer=True).detail.startswith("no cluster: this check runs in a pod")
    (tmp_path / "token").write_text("token")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    assert cluster_doctor._kubernetes_url() == "https://[fd00::1]:443"


def test_kubeflow_that_wants_a_namespace_is_told():
    server = KubeflowServer()
    server.multi_user = True
    with serving(server) as url:
        check = look(kfp_url=url)
        assert not check.ok and "set kfp.multiUser to true" in check.detail
        assert look(kfp_url=url, kfp_namespace="team").ok
    assert "no answer from" in look(kfp_url=url).detail


def test_store_and_tracker_that_are_wrong_are_told(services, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("INTERN_STORE", "s3://no-such-bucket/store")
    store, mlflow = checks(Wanted())
    assert not store.ok and "has no bucket 'no-such-bucket'" in store.detail and "objectStore" in store.fix
    assert not mlflow.ok and "MLflow at http://127.0.0.1:9 is away" in mlflow.detail
    monkeypatch.setenv("INTERN_STORE", "file:///tmp")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    store, mlflow = checks(Wanted())
    assert "INTERN_STORE: expected s3://" in store.detail and "MLFLOW_TRACKING_URI: expected" in mlflow.detail
