"""Commands on servers: the same bytes as an engine in this process, whatever the servers do."""

import os
import random
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import icdsel
from fake_server import KEY, FakeServer, Raw, fake_server, is_probe, same_in_process
from fakes import FakeEngine
from made_up import write_dataset

from icdsel.retrieval.encoders import VlmEncoder
from icdsel.settings.kinds import API_KEY_VARIABLE
from icdsel.settings.tables import VlmSettings
from icdsel.stages import answering, session
from icdsel.vlm.engines import ENGINES, EngineIdentity
from icdsel.vlm.server import fleet
from icdsel.vlm.workers import processes

DATA = ("--dataset", "made.jsonl", "--pool-size", 12, "--encoder", "vlm")
INFER = ("infer", *DATA, "--n", 12, "--shots", "1,2", "--selector", "random,nearest-both")
_expected: dict[str, bytes] = {}


def fake_encoder(name: str, settings: VlmSettings, most_pixels: int) -> VlmEncoder:
    """In place of the bundled VLM, for speed; the engine `same` embeds alike."""
    return VlmEncoder(lambda: FakeEngine("any"), lambda: EngineIdentity("any", "float32"), settings, most_pixels)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder with a dataset, units of a few prompts, and little patience."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ENGINES, "same", same_in_process())
    monkeypatch.setattr(session, "open_encoder", fake_encoder)
    monkeypatch.setattr(answering, "UNIT", 4)
    monkeypatch.setattr(fleet, "FIRST_WAIT", 0.01)
    write_dataset(tmp_path, 12)


@pytest.fixture
def expected() -> dict[str, bytes]:
    """The predictions of the engine in this process."""
    if not _expected:  # the data are the same in every test
        icdsel(*INFER, "--engine", "same", "--model", "fake-model", "--results-dir", "expected")
        _expected.update(predictions("expected"))
    assert len(_expected) == 4
    return _expected


def predictions(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).glob("made/infer/*/*.jsonl")}


def on(*servers: FakeServer) -> tuple[str, ...]:
    return ("--vlm-url", ",".join(server.url for server in servers))


def test_bytes_are_the_same_whatever_servers_do(expected: dict[str, bytes]):
    drawn, lock, failed = random.Random(0), threading.Lock(), set[str]()

    def wild(number: int, body: dict[str, Any]) -> Any:
        """Answers in any order; half of the prompts fail when they are sent first."""
        time.sleep(drawn.random() / 50)
        prompt = str(body["messages"])
        with lock:
            if is_probe(body) or prompt in failed or drawn.random() < 0.5:
                return None
            failed.add(prompt)
        return drawn.choice([Raw.error(500, "boom"), Raw.error(429, "busy", Retry_After="0.01"), Raw(200, b"<html>")])

    with fake_server(fault=wild) as a, fake_server() as b:
        icdsel(*INFER, *on(a, b), "--results-dir", "results")
        assert a.prompts and b.prompts and failed
        assert predictions("results") == expected
        asked = len(a.prompts) + len(b.prompts)
        assert "answered already" in icdsel(*INFER, *on(b), "--results-dir", "results")
        assert len(a.prompts) + len(b.prompts) == asked


def test_every_stage_works_on_servers():
    few = ("--queries", 16, "--beam", 2, "--samples", 1, "--retrieval", 1)
    train = ("train", *DATA, *few, "--rce-epochs", 1, "--grpo-epochs", 1, "--online", "--online-samples", 2)
    with fake_server() as a, fake_server() as b:
        icdsel("gen-rl-data", *DATA, *few, *on(a, b))
        same = ("--engine", "same", "--model", "fake-model", "--results-dir", "same")
        icdsel("gen-rl-data", *DATA, *few, *same)
        data = "made/generated_data/rl_data_RandSampler_fake-model_pool-size-12.jsonl"
        assert Path("results", data).read_bytes() == Path("same", data).read_bytes()
        asked = len(a.prompts) + len(b.prompts)
        said = icdsel(*train, *on(a, b))
        assert "…" not in said and re.search(r"^ *grpo 1( +-?[\d.]+){6} +\d+ *$", said, re.MULTILINE), said
        [scored] = Path("results/made/model_cpk").glob("*/online.jsonl")
        assert len(scored.read_text().splitlines()) > 4 and len(a.prompts) + len(b.prompts) > asked
        icdsel(*INFER[:-1], "policy", *on(b))
        named = (*on(a), "--model", "fake-model")
    # Both are gone now: nothing but answers needs them.
    icdsel("train", *DATA, *few, "--rce-epochs", 1, "--run", "offline", *named)
    assert "policy" in icdsel("compare", *DATA, "--n", 12, "--shots", "1,2", *named)
    said = " ".join(
        icdsel("infer", *DATA, "--n", 12, "--shots", 1, "--selector", "nearest-both", *named, code=2).split()
    )
    assert f"{a.url} cannot be used: no connection" in said


def test_ctrl_c_leaves_what_can_be_resumed(expected: dict[str, bytes]):
    def interrupt(number: int, body: dict[str, Any]) -> None:
        if not is_probe(body) and number == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)  # nobody waits for this one

    with fake_server(fault=interrupt) as server:
        started, stop_at = time.monotonic(), 30
        said = icdsel(*INFER, *on(server), "--results-dir", "results", code=130)
        assert "interrupted; finished work is kept" in said and time.monotonic() - started < 15
        assert predictions("results") != expected
        before, stop_at = len(server.prompts), -1
        said = icdsel(*INFER, *on(server), "--results-dir", "results")
        assert any(each in said for each in ("resuming after", "answered already", "answers are reused"))
        assert 0 < len(server.prompts) - before < 12 * 5
    assert predictions("results") == expected


def test_a_failed_call_is_recorded_as_failed(expected: dict[str, bytes]):
    def poisoned(number: int, body: dict[str, Any]) -> Any:
        return Raw.error(400, "no") if number == 20 else None

    with fake_server(fault=poisoned) as server:
        assert "1 VLM calls failed" in icdsel(*INFER, *on(server), "--results-dir", "results", code=1)
    lines = b"".join(predictions("results").values()).splitlines()
    failed = [line for line in lines if b"HTTP 400" in line]
    assert len(failed) == 1 and b'"score"' not in failed[0]
    assert set(lines) - set(failed) <= {line for content in expected.values() for line in content.splitlines()}


def test_a_server_that_is_gone_ends_the_command_and_loses_nothing(
    expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fleet, "PATIENCE", 0.3)
    server = FakeServer()
    server.fault = lambda number, body: threading.Thread(target=server.stop).start() if number == 30 else None
    said = icdsel(*INFER, *on(server), "--results-dir", "results", code=1)
    assert f"no server is left: {server.url}" in said and "run the same command again" in said
    with fake_server() as other:  # elsewhere
        icdsel(*INFER, *on(other), "--results-dir", "results")
    assert predictions("results") == expected


def test_the_key_is_in_no_file_and_in_no_output(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(API_KEY_VARIABLE, KEY)

    def echoed(number: int, body: dict[str, Any]) -> Any:
        return Raw.error(400, f"your key is {KEY}") if number == 20 else None

    with fake_server(key=KEY, fault=echoed) as server:
        said = icdsel(*INFER, *on(server), "--max-failed", 1, code=1)
    monkeypatch.setenv(API_KEY_VARIABLE, "another-key-0123456789")
    with fake_server(key=KEY) as server:
        said += icdsel(*INFER, *on(server), "--results-dir", "other", code=2)
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert len(files) > 10 and "[key]" in said + "".join(path.read_text(errors="replace") for path in files)
    for key in (KEY, "another-key-0123456789"):
        assert key not in said and not [path for path in files if key.encode() in path.read_bytes()]


def test_another_model_under_the_same_name_is_not_mixed_in():
    with fake_server() as server:
        icdsel(*INFER, *on(server))
    with fake_server(salt="other weights") as other:
        more = ("infer", *DATA, "--n", 12, "--shots", 3, "--selector", "random")
        said = " ".join(icdsel(*more, *on(other), code=2).split())
        assert "serves another model under the name fake-model than to earlier commands" in said
        said = " ".join(icdsel(*more, *on(other), code=2).split())
        assert "--overwrite" in said and "model (the model of the servers, by its answers)" in said
        assert not other.prompts
        icdsel(*more, *on(other), "--overwrite")
        assert other.prompts


def test_results_of_servers_and_of_a_model_in_this_process_are_told_apart():
    score = ("gen-rl-data", *DATA, "--queries", 8)
    here = ("--engine", "same", "--model", "fake-model")
    with fake_server() as server:
        named = (*on(server), "--model", "fake-model")
        icdsel(*score, *named)
        said = " ".join(icdsel(*score, *here, code=2).split())
        assert "answered by servers then (--vlm-url), by the model in this process now: give --vlm-url again" in said
        assert "VLM's files" not in said and "dtype" not in said
        icdsel(*score, *here, "--results-dir", "mine")
        said = " ".join(icdsel(*score, *named, "--results-dir", "mine", code=2).split())
        assert "by servers now (--vlm-url): leave --vlm-url out" in said and "dtype" not in said
    said = " ".join(icdsel("compare", *DATA, *named, code=2).split())
    assert "model fake-model, with --encoder and --pool-size as given. " in said


def test_rows_of_servers_and_of_a_model_in_this_process_are_compared_apart(monkeypatch: pytest.MonkeyPatch):
    few, here = (*INFER[:-1], "random"), ("--model", "fake-model")
    with fake_server() as server:
        named = (*on(server), *here)
        icdsel(*few, *named)
    with monkeypatch.context() as patched:
        patched.setitem(ENGINES, "auto", same_in_process(name="auto"))
        icdsel(*few, "--n", 8, *here)
    [folder] = Path().glob("results/made/infer/*")
    said = " ".join(icdsel("compare", folder, code=2).split())
    assert re.search(r"model is fake-model \(\w+\) on a server \([^)]*\), fake-model \(\S+\) in this process \(", said)
    assert "dtype" not in said and "name no path: with --vlm-url" in said
    for flags, count, other in ((named, 12, "in this process"), (here, 8, "on servers")):
        said = " ".join(icdsel("compare", *DATA, *flags).split())
        assert f"left out: rows that were answered {other}" in said and f"n = {count}" in said


def test_a_model_that_changes_in_the_middle_ends_the_command_and_leaves_nothing_behind(expected: dict[str, bytes]):
    def change(number: int, body: dict[str, Any]) -> None:
        if number == 40:  # in the middle of a unit, without any connection that breaks
            server.salt, server.answer_of = "other weights", lambda shown: "of other weights"

    with fake_server(fault=change) as server:
        said = icdsel(*INFER, *on(server), "--results-dir", "results", code=1)
    assert "it serves another model under the name fake-model now" in " ".join(said.split())
    lines = b"".join(predictions("results").values()).splitlines()
    assert set(lines) <= {line for content in expected.values() for line in content.splitlines()}
    written = {path: path.read_bytes() for path in Path("results").rglob("*") if path.is_file()}
    assert any(path.name.startswith("answers_") and content for path, content in written.items())
    assert not [path for path, content in written.items() if b"of other weights" in content]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--engine", "qwen-vl"), "--engine qwen-vl does not ask servers"),
        (("--num-beams", 3), "--num-beams 3 means something else on servers"),
        (("--repetition-penalty", "model"), "--repetition-penalty model is not known of a server"),
        (
            ("--preset", "lever-plus"),
            "--num-beams 3 of --preset lever-plus means something else on servers; --repetition-penalty model of "
            "--preset lever-plus is not known of a server: with --vlm-url, use --num-beams 1 --repetition-penalty 1",
        ),
        (
            ("--preset", "lever-plus", "--num-beams", 1),
            "error: --repetition-penalty model of --preset lever-plus is not known of a server: with --vlm-url, use "
            "--repetition-penalty 1",
        ),
        (("--workers", 2), "error: servers (--vlm-url) run the model themselves: leave out --workers (see --conc"),
        (("--ray",), "error: servers (--vlm-url) run the model themselves: leave out --ray (see --concurrency)"),
        (("--ray-address", "head:6379", "--workers", 2), "leave out --workers and --ray-address (see --concurrency)"),
        (("--device", "cuda:0,cuda:1"), "leave out all but one --device (see --concurrency)"),
    ],
)
def test_flags_that_contradict_servers_are_refused_before_any_is_asked(flags: tuple[object, ...], said: str):
    nobody = "http://127.0.0.1:9/v1"
    assert said in " ".join(icdsel(*INFER, "--vlm-url", nobody, *flags, code=2).split())
    Path("icdsel.toml").write_text(f'[vlm]\nurl = "{nobody}"\n')
    assert said in " ".join(icdsel(*INFER, *flags, code=2).split())


def test_a_preset_with_beams_works_on_servers_with_the_flags_that_are_advised():
    with fake_server() as server:
        few = ("--n", 2, "--shots", 1, "--selector", "random")
        icdsel("infer", *DATA, *few, *on(server), "--preset", "lever-plus", "--num-beams", 1, "--repetition-penalty", 1)
        assert server.prompts


def test_servers_that_are_named_one_by_one_are_all_asked():
    with fake_server() as a, fake_server() as b:
        icdsel(*INFER, "--vlm-url", a.url, "--vlm-url", b.url)
        assert a.prompts and b.prompts


def test_without_a_server_only_commands_that_ask_none_are_advised_to_name_the_model():
    said = " ".join(icdsel(*INFER, "--vlm-url", "http://127.0.0.1:9/v1", code=2).split())
    assert "No server is needed to look at results, or for `icdsel train` on existing RL data: there, --model" in said


def test_a_small_demo_runs_on_servers_after_one_of_another_size():
    flags = ("--dataset", "world:train=60", "--threads", 1, "--concurrency", 3)
    demo = ("demo", *flags, "--queries", 8, "--n", 4)
    with fake_server() as server:
        icdsel("gen-rl-data", *flags, *on(server), "--preset", "whole-set", "--queries", 2)
        assert "--overwrite" in icdsel(*demo, *on(server), code=2)
        said = icdsel(*demo, *on(server), "--overwrite")
        ran = [line for line in said.splitlines() if line.startswith("$ icdsel ")]
        where = f"--preset whole-set --dataset world:train=60 --threads 1 --model fake-model --vlm-url {server.url}"
        assert len(ran) == 10 and all(f"{where} --concurrency 3" in line for line in ran)
        assert all("--overwrite" in line for line in ran[:-1]) and ran[-1].endswith("--n 4") and server.most <= 3
        assert "--image-dir DIR (or put" in " ".join(said.split())


def test_an_engine_of_servers_without_any_starts_no_worker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "open_processes", pytest.fail)
    said = " ".join(icdsel(*INFER, "--engine", "server", "--workers", 2, code=2).split())
    assert "--engine server asks servers: name them, as in --vlm-url" in said


def test_a_model_that_is_not_served_is_told():
    with fake_server() as server:
        said = " ".join(icdsel(*INFER, *on(server), "--model", "mine", code=2).split())
    assert "does not serve 'mine', but 'fake-model': name one with --model" in said


def test_settings_that_servers_decide_are_warned_of():
    with fake_server() as server:
        said = " ".join(icdsel(*INFER, *on(server), "--dtype", "bfloat16", "--batch-tokens", 9).split())
    assert "--dtype has no effect with --vlm-url: the server decides" in said and "--batch-tokens has no effect" in said
