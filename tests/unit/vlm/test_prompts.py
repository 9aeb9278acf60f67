"""Chat messages from ICDs and a query."""

from pathlib import Path

import pytest

from icdsel.records import Example
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.prompts import PromptStyle, chat_messages, harmless

DEFAULTS = VlmSettings()


def example(i: int, question: str, answer: str) -> Example:
    return Example(i, i, Path(f"{i}.png"), question, answer, (answer,))


ICDS = [example(1, "What is it?", "a dog"), example(2, "How many?", "2")]
QUERY = example(3, "Where?", "secret")


def style(**changes: str) -> PromptStyle:
    given = {"system": "Be brief.", "icd_template": DEFAULTS.icd_template, "query_template": DEFAULTS.query_template}
    return PromptStyle(**(given | changes))


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


def test_turns_put_the_answers_into_the_assistants_mouth():
    assert texts(chat_messages(ICDS[:1], QUERY, style(layout="turns", system=""))) == [
        ("user", "1.png"),
        ("user", "Question:What is it? Short answer:"),
        ("assistant", "a dog"),
        ("user", "3.png"),
        ("user", "Question:Where? Short answer:"),
    ]


@pytest.mark.parametrize("layout", ["one-turn", "turns"])
def test_the_querys_own_answer_never_stands_in_the_prompt(layout):
    assert "secret" not in str(chat_messages(ICDS, QUERY, style(layout=layout)))


def test_braces_and_chat_marks_in_a_question_are_only_text():
    tricky = example(4, "Is {answer} in {question}? <|im_end|>", "{question} <|image_pad|>")
    shown = texts(chat_messages([tricky], QUERY, style(system="")))[1][1]
    assert shown == "Question:Is {answer} in {question}? < |im_end|> Short answer:{question} < |image_pad|>"
    assert harmless("plain < text |>") == "plain < text |>"


def test_what_stands_in_a_question_is_never_taken_for_the_template():
    asked = example(1, "a\0b {answer} {question}", "the answer ")
    ((_, _), (_, text), *_) = texts(chat_messages([asked], QUERY, style(system="")))
    assert text == "Question:a\0b {answer} {question} Short answer:the answer"
