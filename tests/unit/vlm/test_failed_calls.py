"""A model that raises, hangs, gives NaN or runs out of memory: retried, then recorded; other answers stay the same."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from icdsel.data import world
from icdsel.errors import CallsError, VlmError
from icdsel.records import Example
from icdsel.retrieval.encoders import VlmEncoder
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.base import NOT_FINITE, Request, Vlm
from icdsel.vlm.loading import load_vlm
from icdsel.vlm.qwen_vl import QwenVl

COUNT = 40
BAD = 7  # the number of the prompt that something is wrong with


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> list[Request]:
    folder, rng = tmp_path_factory.mktemp("images"), random.Random(3)
    examples = []
    for i, scene in enumerate(rng.sample(world.all_scenes(), COUNT)):
        world.draw(scene, rng).save(folder / f"{i}.png")
        examples.append(Example(i, i, folder / f"{i}.png", "What is the code of this shape?", "doni", ("doni",)))
    return [Request((examples[i - 1],), example, ("doni",)) for i, example in enumerate(examples)]


@pytest.fixture(scope="module")
def loaded() -> Vlm:
    return load_vlm(VlmSettings(device="cpu"), 1_000_000)


@pytest.fixture
def vlm(loaded: Vlm) -> Vlm:
    """The tiny VLM with an empty record, quick to give up."""
    settings = loaded.settings.model_copy(update={"call_timeout": 2.0, "batch_tokens": 400})
    return QwenVl(loaded.model, loaded.processor, settings, loaded.name, loaded.fingerprint, 1_000_000)


Fault = Callable[[dict[int, Any]], None]


def break_batches(vlm: Vlm, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> list[int]:
    """Lets `fault` do its work on every batch before it is answered; the sizes of the batches so far."""
    whole, sizes = vlm._answer_batch, []  # type: ignore[attr-defined]

    def answer(prompts, references):
        sizes.append(len(prompts))
        fault(prompts)
        return whole(prompts, references)

    monkeypatch.setattr(vlm, "_answer_batch", answer)
    return sizes


def raises(prompts: dict[int, Any]) -> None:
    if BAD in prompts:
        raise RuntimeError("device-side assert")


def hangs(prompts: dict[int, Any]) -> None:
    if BAD in prompts:
        time.sleep(60)


def out_of_memory(prompts: dict[int, Any]) -> None:
    if BAD in prompts:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (raises, "RuntimeError: device-side assert"),
        (hangs, "no answer of the VLM after 2 seconds"),
        (out_of_memory, "out of memory for a single prompt"),
    ],
    ids=["raises", "hangs", "out-of-memory"],
)
def test_one_bad_prompt_fails_alone_and_the_others_are_answered_as_ever(
    vlm, loaded, requests, monkeypatch, fault, reason
):
    expected = loaded.answer(requests)
    break_batches(vlm, monkeypatch, fault)
    answers = vlm.answer(requests)
    assert [i for i, answer in enumerate(answers) if answer.error] == [BAD]
    assert reason in answers[BAD].error and answers[BAD].text == "" and not answers[BAD].reference_log_probs
    for i, (ours, theirs) in enumerate(zip(answers, expected, strict=True)):
        if i != BAD:
            assert ours.text == theirs.text
            assert ours.reference_log_probs == pytest.approx(theirs.reference_log_probs, abs=1e-4)


def test_what_passes_is_no_failure(vlm, loaded, requests, monkeypatch):
    alone = 0

    def once(prompts: dict[int, Any]) -> None:
        nonlocal alone
        alone += list(prompts) == [BAD]
        if BAD in prompts and alone < 2:
            raise RuntimeError("a hiccup")

    break_batches(vlm, monkeypatch, once)
    assert [answer.text for answer in vlm.answer(requests)] == [answer.text for answer in loaded.answer(requests)]
    assert alone == 2


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_at_any_step_are_a_failure(vlm, loaded, requests, monkeypatch, steps, value):
    """NaN from the given step of decoding on, in one row: no answer is made of it."""
    from icdsel.vlm.kv_reader import KvReader

    vlm.settings = vlm.settings.model_copy(update={"max_new_tokens": 4})
    vlm._stops = {0}  # so that no answer ends early
    whole, taken = KvReader.step, []

    def step(self, tokens):
        logits = whole(self, tokens)
        taken.append(len(tokens))
        if len(taken) == steps:
            logits[0, 5] = value
        return logits

    logits_of = KvReader.logits

    def logits(self, hidden):
        made = logits_of(self, hidden)
        if steps == 0 and made.ndim == 2 and not taken:
            made[0] = value
        return made

    monkeypatch.setattr(KvReader, "step", step)
    monkeypatch.setattr(KvReader, "logits", logits)
    answers = vlm._answer_batch(*vlm_batch(vlm, requests[:3]))  # type: ignore[attr-defined]
    assert [answer.error for answer in answers.values()].count(NOT_FINITE) == 1


def vlm_batch(vlm, requests):
    """What `_answer_all` hands on of a few requests."""
    caught: list[Any] = []

    def catch(prompts, references):
        caught.append((prompts, references))
        raise InterruptedError

    answer, vlm._answer_batch = vlm._answer_batch, catch
    try:
        vlm.images.load([example.image for request in requests for example in request.shown])
        list(vlm._answer_all(dict(enumerate(requests))))
    finally:
        vlm._answer_batch = answer
    return caught[0]


def test_a_query_all_of_whose_prompts_hang_stops_no_run(vlm, loaded, requests, monkeypatch, caplog):
    vlm.settings = vlm.settings.model_copy(update={"call_timeout": 0.5, "max_failed": 0.5})
    of_one_query = [Request(request.icds, requests[BAD].query, ("doni",)) for request in requests[10:14]]
    asked = [*requests[:6], *of_one_query, *requests[20:30]]
    break_batches(vlm, monkeypatch, lambda prompts: time.sleep(60) if prompts.keys() & {6, 7, 8, 9} else None)
    answers = vlm.answer(asked)
    first = caplog.messages[0]
    assert "after 0.5 seconds for" in first and "prompts together: each is asked alone" in first
    assert [i for i, answer in enumerate(answers) if answer.error] == [6, 7, 8, 9]
    expected = loaded.answer(asked)
    assert all(ours.text == theirs.text for ours, theirs in zip(answers, expected, strict=True) if not ours.error)


def test_a_device_that_is_gone_stops_the_run_soon(vlm, requests, monkeypatch):
    vlm.settings = vlm.settings.model_copy(update={"call_timeout": 0.3})
    sizes = break_batches(vlm, monkeypatch, lambda _: time.sleep(60))
    started = time.monotonic()
    with pytest.raises(VlmError, match=r"no answer of the VLM after 0.3 seconds, 3 times in a row.*--call-timeout"):
        vlm.answer(requests)
    assert len(sizes) == 3 and time.monotonic() - started < 10


def test_an_image_that_hangs_in_the_vision_tower_fails_alone(vlm, loaded, requests, monkeypatch):
    vlm.settings = vlm.settings.model_copy(update={"call_timeout": 0.5})
    whole, bad = vlm._encode_images, vlm._prepare_images([requests[BAD].query.image])[0][0]

    def encode(prepared):
        if any(torch.equal(patches, bad) for patches, _ in prepared):
            time.sleep(60)
        return whole(prepared)

    monkeypatch.setattr(vlm, "_encode_images", encode)
    answers = vlm.answer(requests)
    assert [i for i, answer in enumerate(answers) if answer.error] == [BAD, BAD + 1]  # its query, and as an ICD
    assert str(requests[BAD].query.image) in answers[BAD].error and "after 0.5 seconds" in answers[BAD].error
    expected = loaded.answer(requests)
    assert all(ours.text == theirs.text for ours, theirs in zip(answers, expected, strict=True) if not ours.error)


def test_a_vision_tower_that_is_gone_stops_the_run_soon(vlm, requests, monkeypatch):
    vlm.settings = vlm.settings.model_copy(update={"call_timeout": 0.3})
    monkeypatch.setattr(vlm, "_encode_images", lambda _: time.sleep(60))
    with pytest.raises(CallsError, match=r"0.png: .* after 0.3 seconds. What was finished is kept"):
        VlmEncoder(lambda: vlm).embed_images([requests[0].query.image])
    started = time.monotonic()
    with pytest.raises(CallsError, match=r"no answer of the VLM after 0.3 seconds, 3 times in a row.*--call-timeout"):
        vlm.answer(requests)
    assert time.monotonic() - started < 10


def test_a_dataset_that_vanishes_stops_the_run(vlm, requests, tmp_path):
    gone = [
        Request(request.icds, Example(i, i, tmp_path / f"{i}.png", "?", "a", ("a",)), ())
        for i, request in enumerate(requests)
    ]
    with pytest.raises(VlmError, match=r"40 of 40 VLM calls failed.*--max-failed.*is missing"):
        vlm.answer(gone)


def test_a_call_that_cannot_be_interrupted_ends_the_process(tmp_path: Path):
    """A hang in C, where no Python runs: reading from a pipe that nobody writes to, again and again."""
    program = (
        "import signal, icdsel.vlm.time_limit as limit\n"
        "limit.GRACE = 0.5\n"
        "with limit.time_limit(0.3):\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})\n"
        "    signal.sigwait({signal.SIGUSR1})\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    with Path("/dev/full").open("w") as full:  # nothing can be said
        assert subprocess.run([sys.executable, "-c", program], stderr=full, timeout=60, check=False).returncode == 1
    assert "cannot be interrupted: the process ends. What was finished is kept" in ended.stderr
