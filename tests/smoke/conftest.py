import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import own_data
import pytest
from running import LongRun, answer, processes_of, read_events, seconds_until_gone
from smoke_runs import INTERRUPTED, LAYOUTS, Smoke, adapt, is_in_its_middle, resumed, together


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Iterator[tuple[LongRun, float]]:
    """The smoke run, going on."""
    run = LongRun(tmp_path_factory.mktemp("smoke") / "state", "smoke", ["run", "--preset", "smoke", "--num-ranks", "2"])
    yield run, time.monotonic()
    run.process.kill()


def has_ended_what_it_resumed(run: LongRun) -> bool:
    ended = {event["stage"] for event in run.events("done")}
    return not ended.isdisjoint(resumed(run.events("note")))


@pytest.fixture(scope="module")
def interrupted(begun, tmp_path_factory):
    """Beside it, a run that is stopped, then killed, then lets a training end and is stopped: what was seen."""
    state = tmp_path_factory.mktemp("interrupted") / "state"
    arguments = ["run", "--preset", "smoke", "--override", INTERRUPTED]
    tries = []
    for number, num_ranks, is_time in (
        (signal.SIGTERM, "2", lambda run: [event for event in run.events("step") if is_in_its_middle(event)]),
        (signal.SIGKILL, "2", lambda run: resumed(run.events("note")) and len(run.events("step")) > 3),
        (
            signal.SIGTERM,
            "1",
            # Its Ref is written a moment after the training said that it is done.
            lambda run: resumed(run.events("note")).keys() & {ref.stem for ref in (run.run_dir / "refs").glob("*")},
        ),
    ):
        run = LongRun(state, "smoke", [*arguments, "--num-ranks", num_ranks])
        try:
            run.wait_until(partial(is_time, run))
            run.process.send_signal(number)
            code = run.finish()
            gone_after_s = seconds_until_gone(state, 15)
            tries.append((code, gone_after_s, read_events(run.events_path), run.stderr()))
        finally:
            run.process.kill()
    return run, tries


@pytest.fixture(scope="module")
def smoke(begun) -> Smoke:
    run, started = begun
    code = run.finish()
    wall_s = time.monotonic() - started
    left = [process.cmdline() for process in processes_of(run.state_dir)]
    assert code == 0, run.stderr()
    return Smoke(run.state_dir, run.run_dir, run.stdout_path.read_text(), run.stderr(), wall_s, left)


@pytest.fixture(scope="module")
def served(smoke) -> Iterator[dict[str, str]]:
    """The addresses of the smoke run's servers, which run again."""
    yield answer("up", "--state-dir", smoke.state)
    assert answer("down", "--state-dir", smoke.state) == {"stopped": True}
    assert processes_of(smoke.state) == []


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A person's data in every layout."""
    root = tmp_path_factory.mktemp("own")
    own_data.image_folder(root / "shapes")
    # One image of 51 was cut short.
    (root / "shapes" / "circle" / "cut.png").write_bytes((root / "shapes" / "circle" / "0.png").read_bytes()[:900])
    own_data.labels_csv(root / "pairs")
    own_data.coco(root / "boxes")
    own_data.masks(root / "regions")
    own_data.depth(root / "rooms")
    return root


@pytest.fixture(scope="module")
def adapted(smoke, served, own):
    """Every layout adapted; the image folder alone, with its time, the others side by side."""
    started = time.monotonic()
    first = adapt(smoke, own / LAYOUTS["shapes"][0], "shapes")
    wall_s = time.monotonic() - started
    names = list(LAYOUTS)[1:]
    others = together(*(lambda name=name: adapt(smoke, own / LAYOUTS[name][0], name) for name in names))
    return dict(zip(LAYOUTS, [first, *others], strict=True)), wall_s
