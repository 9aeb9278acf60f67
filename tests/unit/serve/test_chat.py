import copy

import pytest
from fake_chooser import png
from serving import chat_body, data_url

from icdsel.serve.chat import read_chat, with_prompt
from icdsel.serve.errors import ApiError
from icdsel.serve.limits import Limits

LIMITS = Limits(messages=8, parts=10, text=200)
IMAGE = {"type": "image_url", "image_url": {"url": data_url(png())}}
TEXT = {"type": "text", "text": "Which colour?"}


def read(body, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return read_chat(copy.deepcopy(body), named, LIMITS)


def user(*parts):
    return {"model": "m", "messages": [{"role": "user", "content": list(parts)}]}


def refused(body, **headers) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(body, **headers)
    assert 400 <= caught.value.status < 500
    return caught.value


def test_one_image_and_a_text_is_a_question():
    request = read(user(IMAGE, TEXT))
    assert request.question == "Which colour?" and request.skipped is None and request.system is None
    assert [image.url for image in request.images] == [IMAGE["image_url"]["url"]]


def test_texts_around_the_image_are_one_question():
    request = read(user({"type": "text", "text": "Look."}, IMAGE, TEXT))
    assert request.question == "Look.\nWhich colour?" and request.skipped is None


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_of_the_client_is_kept(role):
    system = {"role": role, "content": "Be brief."}
    request = read({"messages": [system, *user(IMAGE, TEXT)["messages"]]})
    assert request.system == system and request.skipped is None
    ours = [{"role": "system", "content": "ours"}, {"role": "user", "content": [IMAGE, TEXT]}]
    assert with_prompt(request, ours)["messages"] == [system, ours[1]]


def test_everything_else_of_the_body_goes_on():
    body = user(IMAGE, TEXT) | {"temperature": 0.5, "max_tokens": 9, "stream": True, "seed": 1, "icdsel": {"shots": 1}}
    sent = with_prompt(read(body), [{"role": "user", "content": [IMAGE]}])
    assert sent == {
        **{k: v for k, v in body.items() if k != "icdsel"},
        "messages": [{"role": "user", "content": [IMAGE]}],
    }


def test_the_detail_of_the_clients_image_goes_to_the_last_image_of_the_prompt():
    image = {"type": "image_url", "image_url": {**IMAGE["image_url"], "detail": "low"}}
    prompt = [{"role": "user", "content": [IMAGE, TEXT, IMAGE, TEXT]}]
    before = copy.deepcopy(prompt)
    sent = with_prompt(read(user(image, TEXT)), prompt)["messages"][0]["content"]
    assert [part["image_url"].get("detail") for part in sent if part["type"] == "image_url"] == [None, "low"]
    assert prompt == before


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "user", "content": "Hello"}], "no-image"),
        ([{"role": "user", "content": [IMAGE, IMAGE, TEXT]}], "several-images"),
        ([{"role": "user", "content": [IMAGE]}], "no-question"),
        ([{"role": "user", "content": [IMAGE, {"type": "text", "text": " \n"}]}], "no-question"),
        (
            [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Yes?"},
                {"role": "user", "content": [IMAGE, TEXT]},
            ],
            "earlier-turns",
        ),
        ([{"role": "user", "content": "Hi"}, {"role": "user", "content": [IMAGE, TEXT]}], "earlier-turns"),
        ([{"role": "system", "content": [IMAGE]}, {"role": "user", "content": [TEXT]}], "other-content"),
    ],
)
def test_what_asks_no_single_question_about_an_image_goes_through_unchanged(messages, reason):
    request = read({"messages": messages})
    assert request.skipped == reason and not request.is_plain
    assert request.body["messages"] == messages


@pytest.mark.parametrize(
    ("field", "headers", "skipped"),
    [
        ({"enabled": False}, {}, "off"),
        ({}, {"x_icdsel": "off"}, "off"),
        ({}, {"x_icdsel": "Off "}, "off"),
        ({"enabled": True}, {"x_icdsel": "off"}, None),
        ({}, {"x_icdsel": "on"}, None),
    ],
)
def test_field_and_header_turn_it_off_and_the_field_wins(field, headers, skipped):
    assert read({**user(IMAGE, TEXT), "icdsel": field}, **headers).skipped == skipped


@pytest.mark.parametrize(
    ("field", "headers", "expected"),
    [
        ({"shots": 1}, {}, (1, None)),
        ({"shots": "auto+1.50"}, {}, ("auto+1.5", None)),
        ({}, {"x_icdsel_shots": "3", "x_icdsel_selector": "random"}, (3, "random")),
        ({"selector": "zero-shot"}, {"x_icdsel_shots": "auto", "x_icdsel_selector": "random"}, ("auto", "zero-shot")),
    ],
)
def test_shots_and_selector_come_from_field_and_headers(field, headers, expected):
    options = read({**user(IMAGE, TEXT), "icdsel": field}, **headers).options
    assert (options.shots, options.selector) == expected


@pytest.mark.parametrize(
    "field",
    [
        {"shots": -1},
        {"shots": True},
        {"shots": 1.5},
        {"shots": "many"},
        {"selector": 3},
        {"other": 1},
        [],
        "x",
        {"return": 1},
    ],
)
def test_wrong_options_are_refused(field):
    assert refused({**user(IMAGE, TEXT), "icdsel": field}).param.startswith("icdsel")


@pytest.mark.parametrize("headers", [{"x_icdsel": "maybe"}, {"x_icdsel_shots": "-1"}, {"x_icdsel_selector": ""}])
def test_wrong_headers_are_refused(headers):
    assert refused(user(IMAGE, TEXT), **headers).param.startswith("X-Icdsel")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video_url", "video_url": {"url": "http://internal/x"}},
        {"type": "audio_url", "audio_url": {"url": "file:///etc/passwd"}},
        {"type": "file", "file": {"file_data": "x"}},
        {"type": "image_embeds", "image_embeds": "x"},
        {"image_url": {"url": "http://internal/x"}},
        {"type": "text", "text": "a", "image_url": {"url": "http://internal/x"}},
        {"type": "image_url", "image_url": {"url": "data:", "path": "/etc/passwd"}},
        {"type": "image_url"},
        {"type": "image_url", "image_url": {"url": 3}},
        {"type": "input_audio", "input_audio": {"data": "file:///etc/passwd", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "/etc/passwd", "format": "wav"}},
        {"type": "input_audio", "input_audio": "x"},
        {"type": ["text"], "text": "a"},
        {"type": "text"},
        "text",
        None,
    ],
)
def test_parts_that_a_server_could_open_are_refused_in_every_request(part):
    refused(user(IMAGE, TEXT, part))
    refused({"messages": [{"role": "user", "content": "Hi"}, {"role": "tool", "content": [part]}]})


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "a", "images": ["/etc/passwd"]},
        {"role": "user", "content": {"type": "image_url"}},
        {"role": "root", "content": "a"},
        {"content": "a"},
        {"role": "user", "content": 3},
        [],
        "Hi",
    ],
)
def test_messages_of_other_forms_are_refused(message):
    refused({"messages": [message]})


@pytest.mark.parametrize(
    "field", ["chat_template", "chat_template_kwargs", "custom_logit_processor", "kv_transfer_params", "lora_path"]
)
def test_fields_that_have_servers_run_or_open_something_are_refused(field):
    assert refused({**user(IMAGE, TEXT), field: "x"}).param == field


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": "Hi"},
        {"messages": None},
        {"messages": [{"role": "user", "content": "a"}] * 9},
        user(*[TEXT] * 11),
        user(IMAGE, {"type": "text", "text": "a" * 201}),
        {"messages": [{"role": "user", "content": "a" * 201}]},
        {**user(IMAGE, TEXT), "stream": "yes"},
    ],
)
def test_missing_messages_and_more_than_the_limits_are_refused(body):
    refused(body)


def test_keys_without_a_value_change_nothing():
    message = {"role": "assistant", "content": None, "audio": None, "tool_calls": [{"id": "1"}]}
    sent = read({"messages": [message]}).body["messages"]
    assert sent == [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]


def test_reading_does_not_change_the_body_that_was_given():
    body = chat_body(icdsel={"shots": 1})
    before = copy.deepcopy(body)
    read_chat(body, {}, LIMITS)
    assert body == before
