"""The cache of answers: what counts as the same prompt, and what is never cached."""

import json
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FAKE_TOKENS, FakeEngine

from icdsel.records import Answer, Example
from icdsel.stages.answer_cache import AnswerCache, ask
from icdsel.vlm.engine import Request
from icdsel.vlm.supervision import SupervisedEngine
from icdsel.vlm.time_limit import CallTimer

INPUTS = {"model": "abc", "vlm.max_new_tokens": 5}


@pytest.fixture
def examples(tmp_path: Path) -> list[Example]:
    made = []
    for number in range(6):
        image = tmp_path / f"{number}.png"
        image.write_bytes(bytes([number]) * 9)
        made.append(Example(number, number, image, f"Which {number % 2}?", f"a{number}", (f"a{number}",)))
    return made


def request(examples: list[Example], *rows: int, references: tuple[str, ...] = ()) -> Request:
    """A prompt with these examples, the last one as the query."""
    return Request(tuple(examples[row] for row in rows[:-1]), examples[rows[-1]], references)


def session(cache: AnswerCache | None, engine: FakeEngine) -> Any:
    return SimpleNamespace(answers=cache, vlm=SupervisedEngine(engine, CallTimer(60), 1.0), lock=Lock())


def answered(session: Any, requests: list[Request]) -> tuple[list[Answer], list[int]]:
    found: dict[int, Answer] = {}
    asked = ask(session, requests, found.update)
    return [found[i] for i in range(len(requests))], asked


def test_a_prompt_is_answered_once(examples: list[Example], tmp_path: Path) -> None:
    first = FakeEngine()
    prompts = [request(examples, 0, 1, 5), request(examples, 1, 0, 5), request(examples, 5)]
    answers, asked = answered(session(AnswerCache(tmp_path, INPUTS), first), prompts)
    assert asked == [0, 1, 2]
    again = FakeEngine(answer_of=lambda _: "changed")
    known = AnswerCache(tmp_path, INPUTS)
    both, asked = answered(session(known, again), [prompts[1], request(examples, 2, 5), prompts[0]])
    assert [answer.text for answer in both] == [answers[1].text, "changed", answers[0].text]
    assert asked == [1] and again.calls == [[request(examples, 2, 5)]]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda e: request(e, 1, 0, 5), id="order"),
        pytest.param(lambda e: request(e, 0, 5), id="shots"),
        pytest.param(lambda e: Request((replace(e[0], answer="b"), e[1]), e[5]), id="shown answer"),
        pytest.param(lambda e: Request((replace(e[0], question="Why?"), e[1]), e[5]), id="question"),
        pytest.param(lambda e: Request((replace(e[0], image=e[4].image), e[1]), e[5]), id="image"),
        pytest.param(lambda e: Request((e[0], e[1]), replace(e[5], question="Why?")), id="query"),
        pytest.param(lambda e: Request((e[0], e[1]), replace(e[5], image=e[4].image)), id="query's image"),
    ],
)
def test_what_the_vlm_sees_decides_whether_a_prompt_is_another_one(
    other: Any, examples: list[Example], tmp_path: Path
) -> None:
    cache = AnswerCache(tmp_path, INPUTS)
    cache.keep([request(examples, 0, 1, 5)], [Answer("yes")])
    assert cache.find([other(examples), request(examples, 0, 1, 5)]) == {1: Answer("yes")}


def test_what_it_does_not_see_does_not(examples: list[Example], tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, INPUTS)
    cache.keep([request(examples, 0, 5)], [Answer("yes")])
    copy = tmp_path / "elsewhere.png"
    copy.write_bytes(examples[0].image.read_bytes())
    other = Request((replace(examples[0], question_id=77, image=copy),), replace(examples[5], answers=("b",)))
    assert cache.find([other]) == {0: Answer("yes")}


def test_a_replaced_image_of_the_same_size_is_another_one(examples: list[Example], tmp_path: Path) -> None:
    AnswerCache(tmp_path, INPUTS).keep([request(examples, 0, 5)], [Answer("yes")])
    examples[0].image.write_bytes(b"x" * 9)
    assert AnswerCache(tmp_path, INPUTS).find([request(examples, 0, 5)]) == {}


def test_another_model_or_decoding_has_a_cache_of_its_own(examples: list[Example], tmp_path: Path) -> None:
    AnswerCache(tmp_path, INPUTS).keep([request(examples, 0, 5)], [Answer("yes")])
    assert AnswerCache(tmp_path, dict(reversed(INPUTS.items()))).find([request(examples, 0, 5)])
    for other in ({"model": "abd"}, {"vlm.max_new_tokens": 6}, {"vlm.num_beams": 1}):
        assert AnswerCache(tmp_path, INPUTS | other).find([request(examples, 0, 5)]) == {}


def test_requests_with_references_are_always_asked_but_their_text_is_kept(
    examples: list[Example], tmp_path: Path
) -> None:
    engine, cache = FakeEngine(), AnswerCache(tmp_path, INPUTS)
    scored = request(examples, 0, 5, references=("a0", "a1"))
    for _ in range(2):
        [answer], asked = answered(session(cache, engine), [scored])
        assert asked == [0] and len(answer.reference_log_probs) == 2
    assert cache.find([scored]) == {}
    assert cache.find([request(examples, 0, 5)]) == {0: Answer(answer.text, prompt_tokens=2 * FAKE_TOKENS)}
    assert sum(1 for _ in next(tmp_path.glob("answers_*.jsonl")).open()) == 1


def test_failed_calls_are_asked_again(examples: list[Example], tmp_path: Path) -> None:
    cache, prompts = AnswerCache(tmp_path, INPUTS), [request(examples, 0, 5), request(examples, 1, 5)]
    answers = {0: Answer("", error="no"), 1: Answer("yes")}
    failing = FakeEngine(answer_of=lambda asked: answers[asked.icds[0].question_id])
    found, _ = answered(session(cache, failing), prompts)
    assert [answer.error for answer in found] == ["no", None]
    again, asked = answered(session(AnswerCache(tmp_path, INPUTS), FakeEngine()), prompts)
    assert asked == [0] and [answer.text for answer in again] == ["a0", "yes"]


def test_an_image_that_cannot_be_read_is_not_cached(examples: list[Example], tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, INPUTS)
    gone = Request((replace(examples[0], image=tmp_path / "gone.png"),), examples[5])
    cache.keep([gone, request(examples, 1, 5)], [Answer("a"), Answer("b")])
    assert cache.find([gone, request(examples, 1, 5)]) == {1: Answer("b")}


def test_processes_share_their_answers_while_they_run(examples: list[Example], tmp_path: Path) -> None:
    one, other = AnswerCache(tmp_path, INPUTS), AnswerCache(tmp_path, INPUTS)
    assert one.find([request(examples, 0, 5)]) == {}
    other.keep([request(examples, 0, 5)], [Answer("yes")])
    assert one.find([request(examples, 0, 5)]) == {0: Answer("yes")}


def test_a_cache_that_cannot_be_written_only_causes_a_warning(
    examples: list[Example], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    cache, engine = AnswerCache(tmp_path / "file/cache", INPUTS), FakeEngine()
    for _ in range(2):
        assert answered(session(cache, engine), [request(examples, 0, 5)])[1] == [0]
    assert capfd.readouterr().err.count("answers are not cached") == 1


def test_the_length_of_a_prompt_is_cached_and_answers_from_before_are_asked_again(
    examples: list[Example], tmp_path: Path
) -> None:
    wanted, uncounted = request(examples, 0, 1, 5), request(examples, 0, 5)
    kept = [Answer("yes", prompt_tokens=215), Answer("no")]  # the engine of the latter counts no tokens
    AnswerCache(tmp_path, INPUTS).keep([wanted, uncounted], kept)
    assert AnswerCache(tmp_path, INPUTS).find([wanted, uncounted]) == dict(enumerate(kept))
    [file] = tmp_path.glob("answers_*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    del lines[0]["prompt_tokens"]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    again = AnswerCache(tmp_path, INPUTS)
    assert again.find([wanted, uncounted]) == {1: Answer("no")}
    again.keep([wanted], [Answer("yes", prompt_tokens=215)])
    assert AnswerCache(tmp_path, INPUTS).find([wanted, uncounted]) == dict(enumerate(kept))


@pytest.mark.parametrize(
    "line", ["5", '{"prompt": 5, "answer": "x"}', '{"prompt": "x"}', "[]", '{"prompt": "x", "answer": 5}']
)
def test_lines_that_are_no_answers_are_ignored(line: str, examples: list[Example], tmp_path: Path) -> None:
    AnswerCache(tmp_path, INPUTS).keep([request(examples, 0, 5)], [Answer("yes")])
    with next(tmp_path.glob("answers_*.jsonl")).open("a") as file:
        file.write(f"{line}\n")
    cache = AnswerCache(tmp_path, INPUTS)
    assert cache.find([request(examples, 0, 5), request(examples, 1, 5)]) == {0: Answer("yes")}


def test_equal_prompts_of_one_call_are_answered_once(examples: list[Example], tmp_path: Path) -> None:
    prompts = [request(examples, 0, 5), request(examples, 1, 5), request(examples, 0, 5), request(examples, 0, 5)]
    for cache in (None, AnswerCache(tmp_path, INPUTS)):
        engine = FakeEngine()
        answers, asked = answered(session(cache, engine), prompts)
        assert [answer.text for answer in answers] == ["a0", "a1", "a0", "a0"]
        assert asked == [0, 1] and sum(map(len, engine.calls)) == 2
    # Scores of references depend on the batch, which therefore stays as it is.
    scored = [request(examples, 0, 5, references=("a0",))] * 2
    assert answered(session(None, FakeEngine()), scored)[1] == [0, 1]


def test_without_a_cache_everything_is_asked(examples: list[Example]) -> None:
    engine = FakeEngine()
    for _ in range(2):
        assert answered(session(None, engine), [request(examples, 0, 5)])[1] == [0]
    assert len(engine.calls) == 2
