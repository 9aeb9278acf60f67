"""The tiny VLM under faults: NaN in its logits, images that hang, images that are gone. No wrong answer results."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from icdsel.data import world
from icdsel.errors import CallsError
from icdsel.records import Answer, Example
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Request
from icdsel.vlm.engines import open_engine
from icdsel.vlm.local.loading import load_local
from icdsel.vlm.local.model import NOT_FINITE, LocalModel
from icdsel.vlm.supervision import SupervisedEngine

MAX_IMAGE_PIXELS = 1_000_000
COUNT = 40
BAD = 7  # the request whose image is bad
QUICK = {"device": "cpu", "call_timeout": 0.5, "batch_tokens": 400}


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> list[Request]:
    folder, rng = tmp_path_factory.mktemp("images"), random.Random(3)
    examples = []
    for i, scene in enumerate(rng.sample(world.all_scenes(), COUNT)):
        world.draw(scene, rng).save(folder / f"{i}.png")
        examples.append(Example(i, i, folder / f"{i}.png", "What is the code of this shape?", "doni", ("doni",)))
    return [Request((examples[i - 1],), example, ("doni",)) for i, example in enumerate(examples)]


@pytest.fixture(scope="module")
def expected(requests: list[Request]) -> list[Answer]:
    return open_engine(VlmSettings(device="cpu"), MAX_IMAGE_PIXELS).answer(requests)


@pytest.fixture
def engine() -> SupervisedEngine:
    return open_engine(VlmSettings(**QUICK), MAX_IMAGE_PIXELS)


def model_of(engine: SupervisedEngine) -> Any:
    assert isinstance(engine.engine, LocalModel)
    return engine.engine.model


@contextmanager
def hooked(hook: Any) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()


def same_texts(answers: list[Answer], expected: list[Answer]) -> bool:
    return all(ours.text == theirs.text for ours, theirs in zip(answers, expected, strict=True) if not ours.error)


@pytest.mark.parametrize("call", [1, 2, 3], ids=["first token", "references", "second token"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_anywhere_are_a_failure(requests: list[Request], call: int, value: float):
    """Spoils one row of the logits of one call; the answers of other rows stay as they are."""
    vlm = load_local(VlmSettings(device="cpu"), MAX_IMAGE_PIXELS)
    expected = vlm.answer(requests[:3])
    calls = 0

    def spoil(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            logits[0, 5] = value
        return logits

    with hooked(vlm.model.lm_head.register_forward_hook(spoil)):
        answers = vlm.answer(requests[:3])
    assert calls >= call
    assert [answer.error for answer in answers] == [NOT_FINITE, None, None]
    assert answers[1:] == expected[1:]


def hangs_for(vlm: LocalModel, path: Path) -> Callable[..., None]:
    """A hook that hangs if the vision encoder gets the pixels of an image.

    The time limit of that call then expires at once. So it can be long enough for calls that do not hang.
    """
    from PIL import Image

    pixels = vlm.processor.image_processor(images=[Image.open(path)], return_tensors="pt")["pixel_values"]

    def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if (inputs[0].unfold(0, len(pixels), 1) == pixels.T).all(2).all(1).any():
            left, _ = signal.setitimer(signal.ITIMER_REAL, 0.01)
            assert left > 0  # a limit is set
            time.sleep(60)

    return hook


def test_an_image_that_hangs_in_the_vision_encoder_fails_alone(requests: list[Request], expected: list[Answer]):
    engine = open_engine(VlmSettings(**QUICK | {"call_timeout": 50}), MAX_IMAGE_PIXELS)
    hook = hangs_for(engine.engine, requests[BAD].query.image)
    with hooked(model_of(engine).model.visual.register_forward_pre_hook(hook)):
        answers = engine.answer(requests)
    assert [i for i, answer in enumerate(answers) if answer.error] == [BAD, BAD + 1]  # as the query, and as an ICD
    assert str(requests[BAD].query.image) in answers[BAD].error and "after 50 seconds" in answers[BAD].error
    assert same_texts(answers, expected)


def test_a_vision_encoder_that_always_hangs_stops_the_run_soon(engine: SupervisedEngine, requests: list[Request]):
    started = time.monotonic()
    with hooked(model_of(engine).model.visual.register_forward_pre_hook(lambda *_: time.sleep(60))):
        with pytest.raises(CallsError, match=r"0.png: .* after 0.5 seconds. Completed work is kept"):
            engine.embed_images([requests[0].query.image])
        with pytest.raises(CallsError, match=r"after 0.5 seconds, 3 times in a row.*--call-timeout"):
            engine.answer(requests)
    assert time.monotonic() - started < 20


def test_a_language_model_that_hangs_stops_the_run_soon(engine: SupervisedEngine, requests: list[Request]):
    started = time.monotonic()
    with (
        hooked(model_of(engine).model.language_model.register_forward_pre_hook(lambda *_: time.sleep(60))),
        pytest.raises(CallsError, match=r"no answer from the VLM after 0.5 seconds, 3 times in a row.*--call-timeout"),
    ):
        engine.answer(requests)
    assert time.monotonic() - started < 20


def test_a_dataset_that_vanishes_stops_the_run(engine: SupervisedEngine, requests: list[Request], tmp_path: Path):
    gone = [
        Request(request.icds, Example(i, i, tmp_path / f"{i}.png", "?", "a", ("a",)), ())
        for i, request in enumerate(requests)
    ]
    with pytest.raises(CallsError, match=r"40 of 40 VLM calls failed.*--max-failed.*is missing"):
        engine.answer(gone)
