"""What chat templates do with prompts: order, turns, thoughts and dates. The templates have the forms of real ones."""

import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import Idefics3ImageProcessor, Idefics3Processor
from vlm_parts import byte_tokenizer

from icdsel.errors import VlmError
from icdsel.records import Example
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.local.chat_template import ChatTemplate, thinks
from icdsel.vlm.prompts import PromptStyle, chat_messages

CHATML = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{% for part in turn.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IMAGES_FIRST = (
    "{% for turn in messages %}{{ turn.role | upper }}: "
    "{% for part in turn.content if part.type == 'image' %}<image>\n{% endfor %}"
    "{% for part in turn.content if part.type == 'text' %}{{ part.text }}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
LAST_TURN = CHATML.replace(
    "in messages %}", "in messages | selectattr('role', 'eq', 'system') | list + messages[-1:] %}"
)
SWAPPED = CHATML.replace("{{ turn.role }}", "{{ {'user': 'assistant', 'assistant': 'user'}.get(turn.role, 'system') }}")


def example(i: int) -> Example:
    return Example(i, i, Path(f"{i}.png"), f"Which {i}?", f"answer {i}", ("x",))


@pytest.fixture(scope="module")
def processor() -> Any:
    marks = [
        "<image>",
        "<fake_token_around_image>",
        "<global-img>",
        "<|im_start|>",
        "<|im_end|>",
        "<think>",
        "</think>",
    ]
    tokenizer = byte_tokenizer(marks, eos_token="<|im_end|>", pad_token="<pad>")
    return Idefics3Processor(Idefics3ImageProcessor(), tokenizer, image_seq_len=4)


def chat(processor: Any, template: str, **settings: Any) -> ChatTemplate:
    processor.chat_template = template
    return ChatTemplate(processor, "some-model", PromptStyle.of(VlmSettings(**settings)))


def prompt(made: ChatTemplate, **settings: Any) -> str:
    messages = chat_messages([example(1), example(2)], example(3), PromptStyle.of(VlmSettings(**settings)))
    return made.prompt(messages)


# ---- order, turns and roles ----


@pytest.mark.parametrize(
    "template",
    [
        IMAGES_FIRST,
        CHATML.replace("in turn.content", "in turn.content | sort(attribute='type')"),
        CHATML.replace("in turn.content", "in turn.content | reverse"),
        CHATML.replace("'<image>' if", "('<image>' if loop.first else '') if"),
        CHATML.replace("else part.text", "else (part.text if loop.index < 3 else '')"),
    ],
    ids=["images first", "sorted", "reversed", "one image", "one text"],
)
def test_demonstrations_that_would_not_stand_by_their_images_are_rejected_with_the_layout_to_use(processor, template):
    with pytest.raises(
        VlmError, match=r"some-model does not fit the layout one-turn: .*; (use --layout turns|no layout)"
    ):
        chat(processor, template, system_prompt="")


def test_in_turns_a_template_that_puts_images_first_shows_each_by_its_question(processor):
    made = chat(processor, IMAGES_FIRST, layout="turns")
    assert prompt(made, layout="turns", system_prompt="Brief.") == (
        "SYSTEM: Brief. USER: <image>\nQuestion:Which 1? Short answer: ASSISTANT: answer 1 "
        "USER: <image>\nQuestion:Which 2? Short answer: ASSISTANT: answer 2 "
        "USER: <image>\nQuestion:Which 3? Short answer: ASSISTANT:"
    )


def test_numbered_images_are_in_order(processor):
    count = "{% if part.type == 'image' %}{% set ns.n = ns.n + 1 %}{% endif %}"
    shown = "{{ '<image>' if part.type == 'image' else part.text }}"
    numbered = "{% set ns = namespace(n=0) %}" + CHATML.replace(
        shown, count + shown.replace("'<image>'", "'<|image_' ~ ns.n ~ '|>'")
    )
    assert "<|image_2|>Question:Which 2?" in prompt(chat(processor, numbered))


def test_a_template_that_shows_the_last_turn_alone_takes_all_in_one_turn(processor):
    assert "Which 1?" in prompt(chat(processor, LAST_TURN))
    with pytest.raises(VlmError, match=r"layout turns: it leaves out or moves the text .*; use --layout one-turn"):
        chat(processor, LAST_TURN, layout="turns")


def test_a_template_that_rejects_a_conversation_takes_all_in_one_turn(processor):
    single = "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}" + CHATML
    assert "Which 1?" in prompt(chat(processor, single))
    with pytest.raises(VlmError, match=r"rejects demonstrations \(one turn only\); use --layout one-turn"):
        chat(processor, single, layout="turns")


@pytest.mark.parametrize("template", [SWAPPED, CHATML.replace("{{ turn.role }}", "user")])
def test_answers_that_are_not_shown_as_the_models_own_are_rejected_in_turns(processor, template):
    with pytest.raises(VlmError, match=r"layout turns: it shows the answers .* another form than it asks for"):
        chat(processor, template, layout="turns")


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("in messages %}", "in messages if turn.role != 'system' %}"),
        CHATML.replace("in messages %}", "in messages[-1:] %}"),
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML,
    ],
)
def test_a_system_message_that_is_lost_or_refused_is_left_out_by_name(processor, template):
    with pytest.raises(VlmError, match=r'does not accept a system turn .*--system-prompt ""'):
        chat(processor, template)
    assert chat(processor, template, system_prompt="")


def test_a_system_message_may_stand_elsewhere(processor):
    last = (
        "{% for turn in messages if turn.role != 'system' %}<|im_start|>{{ turn.role }}\n"
        "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content[0].text }}\n\n{% endif %}"
        "{% for part in turn.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    shown = prompt(chat(processor, last, layout="turns"), layout="turns", system_prompt="Brief.")
    assert "Brief.\n\n<image>Question:Which 3?" in shown


# ---- thoughts ----

HISTORY = (  # answers of earlier turns lose their thoughts, as in Qwen3's template
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{% for part in turn.content %}"
    "{{ '<image>' if part.type == 'image' else part.text.split('</think>')[-1] }}{% endfor %}<|im_end|>\n{% endfor %}"
)
START = "{% if add_generation_prompt %}<|im_start|>assistant\n"
THINKERS = {
    "always": (HISTORY + START + "<think>\n{% endif %}", "<think>\n\n</think>\n\n"),
    "always, without a break": (HISTORY + START + "<think>{% endif %}", "<think></think>"),
    "unless it is told not to": (
        HISTORY + START + "{% if enable_thinking is defined and enable_thinking is false %}"
        "{{ '<think>\\n\\n</think>\\n\\n' }}{% else %}{{ '<think>\\n' }}{% endif %}{% endif %}",
        "<think>\n\n</think>\n\n",
    ),
    "if it is told to": (
        HISTORY + START + "{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}",
        "</think>",
    ),
    "by a word of its own": (
        (HISTORY + START + "◁think▷\n{% endif %}").replace("</think>", "◁/think▷"),
        "◁think▷\n\n◁/think▷\n\n",
    ),
    "between two names": (
        (HISTORY + START + "<|begin_of_thought|>{% endif %}").replace("</think>", "<|end_of_thought|>"),
        "<|begin_of_thought|><|end_of_thought|>",
    ),
    "as all answers show": (
        CHATML.replace(
            "{{ turn.role }}\n", "{{ turn.role }}\n{% if turn.role == 'assistant' %}<think></think>{% endif %}"
        ),
        "<think></think>",
    ),
    "as its answers show": (
        CHATML.replace(
            "{{ turn.role }}\n",
            "{{ turn.role }}\n{% if turn.role == 'assistant' and loop.last %}<think>none</think> {% endif %}",
        ),
        "<think>none</think> ",
    ),
}


@pytest.mark.parametrize(("template", "thought"), THINKERS.values(), ids=THINKERS)
@pytest.mark.parametrize("layout", ["one-turn", "turns"])
def test_answers_stand_behind_a_thought_that_is_closed(processor, template, thought, layout):
    made = chat(processor, template, layout=layout)
    assert prompt(made, layout=layout).endswith(f"<|im_start|>assistant\n{thought}")
    assert made.before_answer == ""


def test_a_thought_that_cannot_be_closed_is_rejected(processor):
    with pytest.raises(VlmError, match=r"think before it answers \(<deep_thought>\).*-Instruct"):
        chat(processor, CHATML.replace("assistant\n{% endif %}", "assistant\n<deep_thought>{% endif %}"))


def test_a_template_that_only_mentions_thoughts_is_left_as_it_is(processor):
    plain = chat(processor, HISTORY + START + "{% endif %}")
    assert prompt(plain).endswith("<|im_start|>assistant\n")


def test_an_answer_that_begins_with_a_thought_is_recognised():
    thoughts = ["<think>\nThe image", " ◁think▷", "[THINK]So", "<|begin_of_thought|>", "<thinking>", "<seed:think>"]
    assert all(map(thinks, [*thoughts, "<|START_THINKING|>"]))
    assert not any(map(thinks, ["think", "<red>", "a <think>", "", "[2]", "[thoughtful]", "[unreasonable]"]))


# ---- dates ----


@pytest.mark.parametrize(
    ("form", "written"),
    [
        ("strftime_now('%d %b %Y')", "26 Jul 2024"),
        ('strftime_now("%B %-d, %Y")', "July 26, 2024"),
        ("strftime_now('%Y-%m-%d %H:%M:%S %A')", "2024-07-26 00:00:00 Friday"),
        ("(strftime_now('%F') if strftime_now is defined else '')", "2024-07-26"),
    ],
)
def test_the_date_in_a_prompt_is_the_same_every_day(processor, monkeypatch, form, written):
    template = "{% macro today() %}{{ " + form + " }}{% endmacro %}Today: {{ today() }}\n" + CHATML
    prompts = set()
    for day in (1, 2):

        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz=None, day=day):
                return cls(2031, 5, day)

        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
        prompts.add(prompt(chat(processor, template)))
    (only,) = prompts
    assert only.startswith(f"Today: {written}\n<|im_start|>system\n")


def test_a_template_that_draws_at_random_is_rejected(processor):
    with pytest.raises(VlmError, match="renders the same messages differently each time"):
        chat(processor, "{{ range(1000) | random }}" + CHATML)
