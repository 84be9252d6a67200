"""The launcher with the real client against a server that behaves as the Kubernetes API does."""

import threading
import time

import pytest
from cluster_servers import serving
from trainer_server import JOBS, PODS, TrainerServer, write_kubeconfig

from intern_components.train_job import TrainJobRun, cluster, following, run
from intern_components.train_job.manifest import OUTPUT, PAYLOAD, job_name
from intern_vision.errors import AccessError, ConfigError, RetryableError, TrainingError
from intern_vision.train.several_nodes import NodesRequest, find_launcher

REQUEST = NodesRequest(
    stage="amateur",
    name="amateur-clip",
    output_uri="s3://bucket/amateur/clip-0123456789abcdef",
    payload_uri="s3://bucket/amateur/clip-0123456789abcdef/checkpoints/nodes-1/payload.json",
    num_nodes=2,
)
JOB = job_name(REQUEST)
PATH = f"{JOBS}/{JOB}"
RUNNING = {"running": {}}


def ended(code, message="", reason="Error"):
    return {
        "terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": "2026-01-01T00:00:00Z"}
    }


def never():
    return False


@pytest.fixture
def server(monkeypatch, tmp_path):
    for name, module, value in (
        ("RETRY_WAITS_S", cluster, (0.01, 0.01)),
        ("RECONNECT_S", following, 0.05),
        ("POLL_S", run, 0.02),
        ("SETTLE_S", run, 2.0),
    ):
        monkeypatch.setattr(module, name, value)
    for name in ("INTERN_NUM_RANKS", "INTERN_TRAINING_RUNTIME", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    found = TrainerServer()
    with serving(found) as url:
        monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "kubeconfig", url)))
        yield found


class Followed:
    """A job that was started, and what is said of it."""

    def __init__(self, request=REQUEST):
        self.said = []
        self.job = TrainJobRun(request, self.said.append)

    def __call__(self, is_stopping=never):
        """From start to deletion, as the library does; gives the payload's address."""
        try:
            payload_uri = self.job.start(is_stopping)
            self.job.wait(is_stopping)
        finally:
            self.job.delete()
        return payload_uri


def run_well(server, lines=("one", "two", "three")):
    """What controllers and nodes do in a training without trouble."""

    def play(job):
        name = job["metadata"]["name"]
        for node in (0, 1):
            server.set_pod(name, node, "Pending")
        pod = server.set_pod(name, 0, "Running", RUNNING)
        server.set_pod(name, 1, "Running", RUNNING)
        for line in lines:
            server.write_log(pod, line)
            time.sleep(0.05)
        for node in (0, 1):
            server.set_pod(name, node, "Succeeded", ended(0, reason="Completed"))
        server.set_condition(name, "Complete", "AllJobsCompleted")
        server.wait_until(lambda: server.is_going(name))
        server.clear(name)

    return play


def end_badly(server, *states, **pod_status):
    """A training whose nodes end like this."""

    def play(job):
        name = job["metadata"]["name"]
        for node in range(len(states)):
            pod = server.set_pod(name, node, "Running", RUNNING)
            server.write_log(pod, f"last words of {node}")
        for node, state in enumerate(states):
            server.set_pod(name, node, "Failed", state, **pod_status)
        server.set_condition(name, "Failed", "FailedJobs", "jobset failed")

    return play


def test_the_entry_point_leads_here():
    assert find_launcher() is TrainJobRun


def test_a_training_is_started_followed_said_and_deleted(server, capsys):
    server.on_create = run_well(server)
    assert Followed()() == REQUEST.payload_uri
    said = [line for line in capsys.readouterr().out.splitlines() if "node 0" in line]
    assert said == [f"[amateur-clip node 0] {line}" for line in ("one", "two", "three")]
    assert server.deleted == [PATH]
    server.wait_until(lambda: PATH not in server.objects)
    # The rights that the chart gives are all that was asked for.
    assert set(server.asked) <= {
        *((verb, "trainjobs") for verb in ("create", "get", "list", "watch", "delete")),
        *((verb, "pods") for verb in ("get", "list", "watch")),
        ("get", "pods/log"),
        ("get", "clustertrainingruntimes"),
    }


@pytest.mark.parametrize("breaks", [["gone"] * 3, ["gone at once", "cut"], ["cut"] * 4, ["away", "gone", "away"]])
def test_watches_survive_every_interruption(server, breaks):
    server.breaks = breaks
    server.on_create = run_well(server)
    Followed()()
    assert server.breaks == [] and server.deleted == [PATH]


def test_a_log_is_said_once_over_as_many_connections_as_it_takes(server, capsys):
    lines = [f"line {number}" for number in range(12)]
    server.log_breaks = [1, 3, 2]
    server.on_create = run_well(server, lines)
    Followed()()
    said = [line for line in capsys.readouterr().out.splitlines() if "node 0" in line]
    assert said == [f"[amateur-clip node 0] {line}" for line in lines]
    assert server.log_breaks == []


def test_a_pod_that_is_replaced_has_its_log_said_too(server, capsys):
    def play(job):
        name = job["metadata"]["name"]
        first = server.set_pod(name, 0, "Running", RUNNING)
        server.write_log(first, "first")
        server.wait_until(lambda: ("get", "pods/log") in server.asked)
        server.remove(f"{PODS}/{first}")
        second = server.set_pod(name, 0, "Running", RUNNING, ending="fghij")
        server.write_log(second, "second")
        server.set_pod(name, 0, "Succeeded", ended(0), ending="fghij")
        server.set_condition(name, "Complete")

    server.on_create = play
    Followed()()
    out = capsys.readouterr().out
    assert out.count("] first") == 1 and out.count("] second") == 1


@pytest.mark.parametrize(
    ("states", "error", "text"),
    [
        ((ended(75, "error: lost the other nodes"), ended(2, "error: trainer.x: bad")), ConfigError, "node 1 (pod "),
        ((ended(75, "error: stopped at step 8"), ended(75, "error: stopped at step 8")), RetryableError, "at step 8"),
        ((ended(1, "error: loss is not finite"), ended(143)), TrainingError, "loss is not finite"),
        ((ended(1, "Traceback"), ended(137, reason="OOMKilled")), RetryableError, "node 1 (pod "),
    ],
)
def test_a_failed_node_ends_the_step_with_the_nodes_line_and_class(server, capsys, states, error, text):
    server.on_create = end_badly(server, *states)
    with pytest.raises(error, match=".*") as caught:
        Followed()()
    assert type(caught.value) is error and text in str(caught.value) and "\n" not in str(caught.value)
    assert server.deleted == [PATH]
    out = capsys.readouterr().out
    assert "[amateur-clip node 0] last words of 0" in out and "[amateur-clip node 1] last words of 1" in out


def test_a_restarted_step_takes_over_the_job_that_it_started(server):
    first = Followed()
    assert first.job.start(never) == REQUEST.payload_uri
    again = NodesRequest(**{**vars(REQUEST), "payload_uri": REQUEST.payload_uri.replace("nodes-1", "nodes-2")})
    second = Followed(again)
    thread = threading.Thread(target=run_well(server), args=(server.objects[PATH],), daemon=True)
    thread.start()
    assert second() == REQUEST.payload_uri, "the nodes work on the first payload"
    assert second.said[0].startswith(f"took over TrainJob {JOB}")
    assert server.asked.count(("create", "trainjobs")) == 2 and server.deleted == [PATH]


def test_a_job_that_ended_while_nobody_looked_is_taken_over_as_well(server):
    Followed().job.start(never)
    server.set_pod(JOB, 0, "Succeeded", ended(0))
    server.set_condition(JOB, "Complete")
    assert Followed()() == REQUEST.payload_uri and server.deleted == [PATH]


@pytest.mark.parametrize("is_failed", [False, True])
def test_an_earlier_job_on_its_way_out_is_waited_for(server, is_failed):
    first = Followed()
    first.job.start(never)
    pod = server.set_pod(JOB, 0, "Running", RUNNING)
    if is_failed:
        server.set_condition(JOB, "Failed")
    else:
        first.job.delete()
    server.on_create = run_well(server)
    old_uid = server.objects[PATH]["metadata"]["uid"]
    timer = threading.Timer(0.3, server.remove, [f"{PODS}/{pod}"])
    timer.start()
    second = Followed()
    second()
    assert second.said[:2] == [
        f"waiting for the TrainJob {JOB} of an earlier try to go",
        f"started TrainJob {JOB}, 2 nodes, vision",
    ]
    assert server.deleted == [PATH, PATH] and old_uid != second.job._job["metadata"]["uid"]


def test_a_job_of_somebody_else_is_left_alone(server):
    server.put(PATH, {"metadata": {"name": JOB, "labels": {}, "annotations": {OUTPUT: "other", PAYLOAD: "x"}}})
    with pytest.raises(ConfigError, match=f"TrainJob {JOB} in namespace vision is not this step's; delete it"):
        Followed()()
    assert server.deleted == []


def test_a_request_to_stop_deletes_the_job_at_once(server):
    server.on_create = lambda job: server.set_pod(JOB, 0, "Running", RUNNING)
    asked = threading.Event()
    threading.Timer(0.3, asked.set).start()
    started = time.monotonic()
    with pytest.raises(RetryableError, match="asked to stop: the nodes save a checkpoint"):
        Followed()(asked.is_set)
    assert server.deleted == [PATH] and time.monotonic() - started < 10, "the log of a running pod is not waited for"


def test_a_job_that_somebody_deletes_ends_the_step_with_a_retry(server):
    def play(job):
        time.sleep(0.2)
        server.remove(PATH)

    server.on_create = play
    with pytest.raises(RetryableError, match="was deleted while it ran"):
        Followed()()
    assert server.deleted == []


@pytest.mark.parametrize(
    ("right", "line"),
    [
        (("create", "trainjobs"), "may not create trainjobs in namespace vision"),
        (("watch", "pods"), "may not watch pods in namespace vision"),
        (("list", "trainjobs"), "may not list|watch trainjobs in namespace vision"),
        (("get", "clustertrainingruntimes"), "may not get clustertrainingruntimes in namespace vision"),
    ],
)
def test_a_missing_right_is_named_with_the_account(server, right, line):
    server.denied = {right}
    with pytest.raises(AccessError) as caught:
        Followed()()
    wanted = f"service account pipeline-runner {line.replace('list|', '')}"
    assert wanted in str(caught.value) and "rbac.pipelineServiceAccounts" in str(caught.value)


def test_without_the_right_to_logs_the_training_goes_on_and_says_so(server, capsys):
    server.denied = {("get", "pods/log")}
    server.on_create = run_well(server)
    Followed()()
    assert "no log: service account pipeline-runner may not get pods/log" in capsys.readouterr().out


def test_what_is_missing_is_told_in_a_line(server, monkeypatch):
    server.quota = 'trainjobs "x" is forbidden: exceeded quota: team, requested: count/trainjobs=1'
    with pytest.raises(RetryableError, match="exceeded quota: team.*free some of it or raise it"):
        Followed()()
    server.objects.pop("/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/intern-torch")
    with pytest.raises(ConfigError, match="there is no ClusterTrainingRuntime intern-torch; upgrade the release"):
        Followed()()
    server.patch_field = ""
    with pytest.raises(ConfigError, match="Kubeflow Trainer is not in this cluster"):
        Followed()()
    monkeypatch.delenv("KUBECONFIG")
    with pytest.raises(ConfigError, match="trainer.num_nodes: more than one node needs a cluster"):
        Followed()


@pytest.mark.parametrize("field", ["runtimePatches", "podTemplateOverrides"])
def test_the_version_of_trainer_is_found_by_its_schema(server, field):
    server.patch_field = field
    assert cluster.Cluster().patch_field() == field


def test_an_image_that_cannot_be_pulled_ends_the_step_after_some_patience(server, monkeypatch):
    monkeypatch.setattr(run, "START_PATIENCE_S", 0.3)
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image x"}}
    server.on_create = lambda job: server.set_pod(JOB, 1, "Pending", waiting)
    followed = Followed()
    with pytest.raises(ConfigError, match="node 1 .*cannot start: ImagePullBackOff: Back-off pulling image x"):
        followed()
    assert followed.said[1].endswith("does not start: ImagePullBackOff") and server.deleted == [PATH]


def test_what_a_job_waits_for_is_said_once(server, monkeypatch):
    monkeypatch.setattr(run, "QUIET_START_S", 0.1)
    unscheduled = [{"type": "PodScheduled", "status": "False", "message": "0/5 nodes: insufficient nvidia.com/gpu"}]

    def play(job):
        time.sleep(0.4)
        for _ in range(3):
            server.set_pod(JOB, 0, "Pending", conditions=unscheduled)
            time.sleep(0.05)
        run_well(server, [])(job)

    server.on_create = play
    followed = Followed()
    followed()
    assert [line.partition(";")[0] for line in followed.said[1:]] == [
        "no node has a pod yet",
        "node 0 waits for a machine: 0/5 nodes: insufficient nvidia.com/gpu",
    ]


def test_an_api_that_stays_away_ends_the_step_with_a_retry(server, monkeypatch):
    monkeypatch.setattr(following, "PATIENCE_S", 0.2)
    server.breaks = ["away"] * 1000
    server.on_create = lambda job: None
    with pytest.raises(RetryableError, match="no answer from the Kubernetes API"):
        Followed()()
    assert server.deleted == [PATH]
