"""Chat messages from ICDs and a query."""

from dataclasses import replace
from pathlib import Path

import pytest

from icdsel.records import Example
from icdsel.records.examples import PLACE
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.prompts import LAYOUTS, Layout, PromptStyle, chat_messages, harmless, parts, text, turn


def example(i: int, question: str, answer: str) -> Example:
    return Example(i, i, Path(f"{i}.png"), question, answer, (answer,))


ICDS = [example(1, "What is it?", "a dog"), example(2, "How many?", "2")]
QUERY = example(3, "Where?", "secret")


def style(**changes: str) -> PromptStyle:
    return PromptStyle.of(VlmSettings(**({"system_prompt": "Be brief."} | changes)))


def texts(messages: list) -> list[tuple[str, str]]:
    return [(m["role"], p.get("text", str(p.get("image")))) for m in messages for p in m["content"]]


def test_one_turn_holds_images_and_texts_in_order():
    assert texts(chat_messages(ICDS, QUERY, style())) == [
        ("system", "Be brief."),
        ("user", "1.png"),
        ("user", "Question:What is it? Short answer:a dog"),
        ("user", "2.png"),
        ("user", "Question:How many? Short answer:2"),
        ("user", "3.png"),
        ("user", "Question:Where? Short answer:"),
    ]


def test_in_turns_the_assistant_gives_the_answers():
    assert texts(chat_messages(ICDS[:1], QUERY, style(layout="turns", system_prompt=""))) == [
        ("user", "1.png"),
        ("user", "Question:What is it? Short answer:"),
        ("assistant", "a dog"),
        ("user", "3.png"),
        ("user", "Question:Where? Short answer:"),
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_querys_own_answer_is_never_in_the_prompt(layout):
    assert "secret" not in str(chat_messages(ICDS, QUERY, style(layout=layout)))


def test_braces_and_chat_markup_in_a_question_are_only_text():
    tricky = example(4, "Is {answer} in {question}? <|im_end|>", "{question} <|image_pad|>")
    shown = texts(chat_messages([tricky], QUERY, style(system_prompt="")))[1][1]
    assert shown == "Question:Is {answer} in {question}? < |im_end|> Short answer:{question} < |image_pad|>"
    assert harmless("plain < text |>") == "plain < text |>"


def test_a_question_is_never_taken_for_the_template():
    tricky = example(1, "a\0b {answer} {question}", "the answer ")
    ((_, _), (_, text), *_) = texts(chat_messages([tricky], QUERY, style(system_prompt="")))
    assert text == "Question:a\0b {answer} {question} Short answer:the answer"


def test_several_images_stand_in_front_of_the_question_or_where_it_says():
    one = replace(example(1, "What differs?", "colour"), more_images=(Path("1b.png"),))
    placed = replace(example(2, f"{PLACE} and {PLACE}: the same?", "no"), more_images=(Path("2b.png"),))
    own = PromptStyle("", "Q:{question} A:{answer}", "Q:{question} A:", LAYOUTS.named("one-turn"))
    shown = [("user", f"{n}.png") for n in ("1", "1b")] + [("user", "Q:What differs? A:colour"), ("user", "Q:")]
    shown += [("user", "2.png"), ("user", " and "), ("user", "2b.png"), ("user", ": the same? A:")]
    assert texts(chat_messages([one], placed, own)) == shown
    dialogue = replace(own, layout=LAYOUTS.named("turns"))
    assert texts(chat_messages([placed], one, dialogue))[:6] == [*shown[3:], ("assistant", "no")]


def test_a_place_too_many_is_no_image():
    odd = example(1, f"{PLACE}Which {PLACE} one?", "this")
    assert texts(chat_messages([], odd, style(system_prompt=""))) == [
        ("user", "1.png"),
        ("user", "Question:Which  one? Short answer:"),
    ]


def test_a_layout_is_added_as_a_function(monkeypatch: pytest.MonkeyPatch):
    def texts_only(icds, query, style):
        return [turn("user", *(text(style.icd_text(icd)) for icd in icds), *parts(query, query.question))]

    monkeypatch.setitem(LAYOUTS, "texts-only", Layout("texts-only", texts_only))
    own = PromptStyle("", "{answer}!", "", LAYOUTS.named("texts-only"))
    assert texts(chat_messages(ICDS, QUERY, own)) == [
        ("user", "a dog!"),
        ("user", "2!"),
        ("user", "3.png"),
        ("user", "Where?"),
    ]
