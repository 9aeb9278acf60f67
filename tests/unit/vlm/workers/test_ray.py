"""Workers as actors of a real Ray on this machine, with an engine that needs no model; and what Ray's words mean."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeEngine
from programs import run_program

from icdsel.errors import DataError, VlmError
from icdsel.records import Answer, Example
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Request
from icdsel.vlm.supervision import SupervisedEngine
from icdsel.vlm.time_limit import CallTimer
from icdsel.vlm.workers import ray_cluster
from icdsel.vlm.workers.pool import EnginePool
from icdsel.vlm.workers.ray import Placed, Places, RayWorker
from icdsel.vlm.workers.ray_actor import Arrival, EngineActor, Plan, versions
from icdsel.vlm.workers.ray_cluster import Cluster, Share, connect
from icdsel.vlm.workers.worker import Reply, WorkerLostError

SHOWN = [Example(i, i, Path(f"{i}.png"), f"Question {i}?", f"answer {i}", (f"answer {i}",)) for i in range(9)]
LISTS = [[Request((SHOWN[i + 1],), SHOWN[i])] for i in range(8)]


def answer_of(request: Request) -> str:
    if request.query.question == "Sleep?":
        time.sleep(60)
    if request.query.question == "Wrong?":
        raise DataError("something that the user can change")
    return request.icds[0].answer


def open_fake() -> SupervisedEngine:
    """Called in the actor's process."""
    return SupervisedEngine(FakeEngine(answer_of=answer_of), CallTimer(60), 1.0)


def plan() -> Plan:
    return Plan.here(VlmSettings(), open_fake)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    before = signal.getsignal(signal.SIGTERM)
    found = connect(None, 2)
    for module in (__name__, FakeEngine.__module__):  # actors do not find these files
        found.ray.cloudpickle.register_pickle_by_value(sys.modules[module])
    assert signal.getsignal(signal.SIGTERM) is before
    yield found
    found.ray.shutdown()


def test_actors_answer_like_one_engine_and_a_killed_one_is_replaced(
    cluster: Cluster, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    places = Places(cluster, Share(1, 0), 2, 60)
    several = EnginePool([RayWorker(f"worker {n}", places, plan()) for n in (1, 2)], "here", 0.1, lambda: 1)
    try:
        processes = [each.process for each in several.described]
        assert len({os.getpid(), *processes}) == 3
        os.kill(processes[0], signal.SIGKILL)
        alone = FakeEngine(answer_of=answer_of)
        assert [several.answer(each) for each in LISTS] == [[alone.alone(each[0])] for each in LISTS]
        assert f"its process {processes[0]}" in caplog.text
        with pytest.raises(DataError, match="something that the user can change"):
            several.answer([Request((), Example(1, 1, Path("1.png"), "Wrong?", "", ()))])
        with pytest.raises(
            VlmError, match=r"no place within 0.2 seconds \(--ray-wait\): 3 workers .* 2 CPUs .*\(free: 0"
        ):
            RayWorker("one too many", Places(cluster, Share(1, 0), 3, 0.2), plan()).start()
        held_up = RayWorker("worker 4", places, plan())
        held_up._placed = several._workers[1]._placed
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                held_up.call("answer", 1, [Request((), Example(1, 1, Path("1.png"), "Sleep?", "", ()))])
            except WorkerLostError as error:
                errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.2)
        held_up.stop()
        thread.join(10)
        assert [str(error) for error in errors] == ["it was stopped"]
    finally:
        several.close()
    assert "raylet" not in capfd.readouterr().out


PROGRAM = """
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.workers.pool import EnginePool
from icdsel.vlm.workers.ray import Places, RayWorker
from icdsel.vlm.workers.ray_actor import Plan
from icdsel.vlm.workers.ray_cluster import Share, connect
import beside
if __name__ == "__main__":
    plan = Plan.here(VlmSettings(), beside.open_fake)
    pool = EnginePool([RayWorker("w", Places(connect(None, 1), Share(1, 0), 1, 60), plan)], "here", 0.1, lambda: 1)
    pool.close()
    print(pool.name)
"""
BESIDE = """
from fakes import FakeEngine
from icdsel.vlm.supervision import SupervisedEngine
from icdsel.vlm.time_limit import CallTimer
def open_fake():
    return SupervisedEngine(FakeEngine("mine"), CallTimer(60), 1.0)
"""


def test_actors_import_what_is_beside_the_program_and_run_no_file_of_the_working_directory(tmp_path: Path) -> None:
    program, folder = tmp_path / "programs/program.py", tmp_path / "folder"
    for path in (program.parent, folder, folder / "icdsel"):
        path.mkdir()
    program.write_text(PROGRAM)
    program.with_name("beside.py").write_text(BESIDE)
    for name in ("torch.py", "socket.py", "fakes.py", "icdsel/__init__.py", "setproctitle.py"):
        (folder / name).write_text(f"open({str(folder / 'was-run')!r}, 'a').write({name!r})\nraise SystemExit(1)\n")
    made = run_program(program, folder, 300)
    assert not (folder / "was-run").exists(), (folder / "was-run").read_text()
    assert (made.returncode, made.stdout) == (0, "mine\n"), made.stderr


# ---- without Ray ----


class Told:
    """Takes the place of an actor's method, and tells what it is given."""

    def __init__(self, value: Any) -> None:
        self._value = value  # or a future, which is told as it is

    def remote(self, *_: object) -> "Told":
        return self

    def future(self) -> "Future[Any]":
        if isinstance(self._value, Future):
            return self._value
        future: Future[Any] = Future()
        future.set_result(self._value)
        return future


def worker(value: Any = None, arrival: Arrival | None = None) -> RayWorker:
    """A worker in an actor that replies a value."""
    ray = __import__("ray")
    cluster = Cluster(SimpleNamespace(exceptions=ray.exceptions, kill=lambda actor: None), "head:6379")
    placed = Placed(SimpleNamespace(call=Told(value)), Told(arrival or Arrival("far", 1, versions())).future())
    places: Any = SimpleNamespace(cluster=cluster, place=lambda plan: placed, wait=lambda arrival, stop: None)
    return RayWorker("worker 1", places, plan())


def test_a_worker_out_of_reach_can_be_stopped_while_it_starts_and_while_it_answers() -> None:
    never: Future[Any] = Future()
    one = worker()
    one._placed = Placed(SimpleNamespace(call=Told(never)), never)
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(one.start), threads.submit(one.call, "answer", 1, [])]
        time.sleep(0.1)
        assert not any(each.done() for each in waiting)
        one.stop()
        assert [str(each.exception(10)) for each in waiting] == ["it was stopped"] * 2


def test_an_image_that_only_this_machine_sees_is_the_users_message(tmp_path: Path) -> None:
    image = tmp_path / "1.png"
    failed = Reply([Answer("", error="it is missing")])
    one = worker((failed, [image]))
    one.start()
    assert one.call("answer", 1, []) == failed  # it is missing here, too
    image.touch()
    with pytest.raises(VlmError, match=r"worker 1 on far does not see .*1.png, which this machine sees.*shared file"):
        one.call("answer", 1, [])


def test_images_of_failed_calls_that_a_machine_does_not_see_are_told(tmp_path: Path) -> None:
    here = tmp_path / "here.png"
    here.touch()
    asked = [Request((), Example(i, i, path, "?", "", ())) for i, path in enumerate([here, tmp_path / "gone.png"])]
    actor = EngineActor.__new__(EngineActor)
    actor._worker = SimpleNamespace(  # type: ignore[assignment]
        answer=lambda threads, requests: Reply([Answer("", error="broken") for _ in requests]),
        embed_images=lambda threads, paths: Reply((None, {1: "broken"})),
        describe=lambda threads: Reply("described"),
    )
    assert actor.call("answer", (1, asked))[1] == [tmp_path / "gone.png"]
    assert actor.call("embed_images", (1, [here, tmp_path / "gone.png"]))[1] == [tmp_path / "gone.png"]
    assert actor.call("describe", (1,)) == (Reply("described"), [])


def test_a_machine_with_other_versions_is_refused() -> None:
    other = Arrival("far", 1, versions() | {"torch": "1.0", "icdsel's source": "0"})
    with pytest.raises(VlmError, match=r"far has other versions.*icdsel's source 0 \(here .*torch 1.0 \(here "):
        worker(arrival=other).start()


def test_a_machine_that_does_not_see_the_working_directory_is_refused(tmp_path: Path) -> None:
    actor = EngineActor.__new__(EngineActor)
    actor._plan = Plan(open_fake, plan().kinds, tmp_path / "gone", {})
    with pytest.raises(VlmError, match=r"cannot enter the working directory .*gone .*shared file system"):
        actor.arrive()


def test_a_custom_engine_and_layout_are_there_on_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from icdsel.vlm.engines import ENGINES, EngineKind

    monkeypatch.chdir(tmp_path)
    ENGINES.add(EngineKind("of-my-own", lambda *_: FakeEngine()))
    try:
        found = Plan.here(VlmSettings(engine="of-my-own"), open_fake)
    finally:
        del ENGINES["of-my-own"]
    actor = EngineActor.__new__(EngineActor)
    actor._plan = found
    try:
        actor.arrive()
        assert ENGINES["of-my-own"].name == "of-my-own"
    finally:
        ENGINES.pop("of-my-own", None)


DIED = """The actor died unexpectedly before finishing this task.
	class_name: EngineActor
	pid: 4711
	ip: 10.0.0.2
{}"""


@pytest.mark.parametrize(
    ("text", "reason", "by_call"),
    [
        (DIED.format("The actor is dead because its worker process has died."), "its process 4711 on 10.0.0.2", True),
        (DIED.format("The actor died because its node has died."), "its machine on 10.0.0.2 is gone", False),
        (DIED.format("Worker exit type: NODE_OUT_OF_MEMORY"), "Ray ended it on 10.0.0.2 because memory ran", True),
        ("The actor 1 is unavailable: The actor is temporarily unavailable", "it is out of reach", False),
    ],
)
def test_why_an_actor_is_lost(text: str, reason: str, by_call: bool) -> None:
    errors = __import__("ray").exceptions
    one = worker()
    one.start()
    one._placed = Placed(
        SimpleNamespace(call=SimpleNamespace(remote=partial(_fail, errors.RayActorError(None, text)))), Future()
    )
    with pytest.raises(WorkerLostError, match=reason) as raised:
        one.call("answer", 1, [])
    assert raised.value.by_call == by_call
    with pytest.raises(WorkerLostError, match="it has no place"):  # until it is started again
        one.call("answer", 1, [])


def _fail(error: Exception, *_: object) -> None:
    raise error


def machines(*each: tuple[int, int]) -> Cluster:
    """A cluster of machines with so many CPUs and GPUs each."""
    nodes = [
        {"Alive": True, "NodeManagerAddress": f"10.0.0.{n}", "Resources": {"CPU": cpus, "GPU": gpus}}
        for n, (cpus, gpus) in enumerate(each)
    ]
    dead = {"Alive": False, "NodeManagerAddress": "10.0.0.99", "Resources": {}}
    return Cluster(SimpleNamespace(nodes=lambda: [*nodes, dead], available_resources=lambda: {"CPU": 3.0}), "head:6379")


def test_workers_share_a_cluster() -> None:
    cpus, gpus = machines((0, 0), (4, 0), (5, 0)), machines((16, 0), (64, 8), (64, 8), (2, 4))
    assert not cpus.has_gpus and gpus.has_gpus
    assert str(cpus.share(None, 2, on_gpu=False)) == "2 CPUs"
    assert cpus.room(Share(2, 0)) == 4  # two on each machine
    assert cpus.room(Share(8, 0)) == 0
    assert gpus.share(None, 64, on_gpu=True) == gpus.share(20, 64, on_gpu=True) == Share(1, 1)
    assert gpus.room(Share(1, 1)) == 18  # the last machine has two CPUs
    assert gpus.share(40, 64, on_gpu=True) == Share(1, 0.5)
    assert gpus.room(Share(1, 0.5)) == 34
    assert machines((4, 1)).room(Share(1, 1 / 3)) == 3
    described = gpus.described()
    assert described == (
        "2 machines with 64 CPUs and 8 GPUs, 1 machine with 16 CPUs and 0 GPUs, 1 machine with 2 CPUs and 4 GPUs "
        "(free: 3 CPUs, 0 GPUs)"
    )


@pytest.mark.parametrize("host", ["a..b", "a" * 70])
def test_a_host_that_cannot_be_one_is_the_users_mistake(host: str) -> None:
    with pytest.raises(VlmError, match=f"no Ray cluster answers at {host}:6379"):
        ray_cluster._try(f"{host}:6379", "2")


def test_a_file_of_the_folder_is_not_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray.py").write_text("open('was-run', 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray_cluster, "_TRIAL", "import ray; raise SystemExit('no cluster')")
    with pytest.raises(VlmError):
        ray_cluster._try("auto", "2")
    assert not Path("was-run").exists()


ASKED = "import os; raise SystemExit(0 if {} else 'ray.exceptions.AuthenticationError: {}')"


@pytest.fixture
def token_mode(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the variable, which is not set, and is as before after the test."""
    name = "RAY_AUTH_MODE"
    monkeypatch.setenv(name, "")
    del os.environ[name]
    return name


def test_a_cluster_that_asks_for_a_token_is_given_it(token_mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_TRIAL", "pass")
    assert not ray_cluster._try("auto", "2") and token_mode not in os.environ  # it does not ask
    monkeypatch.setattr(ray_cluster, "_TRIAL", ASKED.format(f"os.environ.get({token_mode!r}) == 'token'", "Unauth"))
    assert ray_cluster._try("auto", "2")
    assert os.environ[token_mode] == "token"


@pytest.mark.parametrize("mode", ["", "disabled"])
def test_a_token_that_is_missing_is_told(mode: str, token_mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode:
        os.environ[token_mode] = mode
    refused = "import sys, time; sys.stderr.write('Unauthenticated: InvalidAuthToken\\n'); time.sleep(600)"
    monkeypatch.setattr(ray_cluster, "_TRIAL", refused)  # Ray goes on trying
    with pytest.raises(VlmError, match=r"asks for a token: .* \(~/.ray/auth_token or RAY_AUTH_TOKEN\)") as raised:
        ray_cluster._try("auto", "2")
    assert os.environ.get(token_mode, "") == mode
    assert ("set RAY_AUTH_MODE=token (now it is disabled)" in str(raised.value)) == bool(mode)


def test_a_cluster_that_does_not_let_this_machine_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_TRIAL", "import time; time.sleep(600)")
    monkeypatch.setattr(ray_cluster, "_PATIENCE", 0.5)
    with pytest.raises(VlmError, match=r"does not let this machine in within 0.5 seconds"):
        ray_cluster._try("auto", "2")


def test_an_address_where_nobody_listens_is_told_without_numbers_of_errors() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(VlmError, match=r"no Ray cluster answers at 127.0.0.1:\d+ \(Connection refused\): give"):
            ray_cluster._try(f"127.0.0.1:{bound.getsockname()[1]}", "2")


def test_who_waits_for_places_is_told_for_how_long(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr("icdsel.vlm.workers.ray._FIRST_TELL", 0.01)
    remote = SimpleNamespace(options=lambda **_: None)
    cluster = machines((2, 0))
    cluster.ray.remote = lambda **_: lambda actor: remote
    stop: Future[Any] = Future()
    with caplog.at_level("INFO"), ThreadPoolExecutor() as threads:
        places = Places(cluster, Share(1, 0), 3, 600)
        waiting = [threads.submit(places.wait, Future(), stop) for _ in range(2)]
        while "waiting" not in caplog.text:
            time.sleep(0.01)
        stop.set_result(None)
        assert [each.result() for each in waiting] == [None, None]
    told = "waiting for places for 3 workers, up to 10 minutes (--ray-wait): 3 workers need 1 CPU each; the Ray cluster"
    assert caplog.text.count("waiting for places") == 1 and told in caplog.text
