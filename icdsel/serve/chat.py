"""Reads a chat request of OpenAI's protocol: what is asked, whether it gets demonstrations, and what is sent on.

What is sent on is written anew from the values that were checked. Content that is not known to be harmless is rejected
in every request, also in those that go through unchanged: servers open URLs and paths in many places of a message.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from icdsel.console import plain
from icdsel.serve.bodies import validated
from icdsel.serve.errors import bad_request
from icdsel.serve.limits import Limits
from icdsel.serve.schemas import Options

_SYSTEM = ("system", "developer")
_ROLES = (*_SYSTEM, "user", "assistant", "tool", "function")
_MESSAGE_KEYS = {
    *("role", "content", "name", "refusal", "tool_calls", "tool_call_id", "function_call"),
    *("reasoning", "reasoning_content", "annotations", "prefix"),
}
_PART_KEYS = {
    "text": {"text", "cache_control"},
    "refusal": {"refusal"},
    "image_url": {"image_url", "cache_control", "uuid"},
    "input_audio": {"input_audio"},
}
"""The keys of a part by its type. Other types have addresses (video_url, file) or files in them."""
_REFUSED_FIELDS = (
    *("chat_template", "chat_template_kwargs", "custom_logit_processor", "kv_transfer_params"),
    *("bootstrap_host", "lora_path", "media_io_kwargs"),
)
"""Fields by which servers run a template or code, open connections or read files that a client names."""
_QUESTION_JOINT = "\n"
_MOST_OF_A_NAME = 40  # characters shown of a key or type


@dataclass(frozen=True)
class ImagePart:
    """An image of a request.

    Attributes:
        holder: The `image_url` object that is sent on; its `url` may be replaced.
        param: Its place, for messages.
    """

    holder: dict[str, Any]
    param: str

    @property
    def url(self) -> str:
        """Its address."""
        return str(self.holder["url"])


@dataclass(frozen=True)
class ChatRequest:
    """A chat request that was checked.

    Attributes:
        body: What is sent on, without icdsel's own field.
        options: What the client asks of icdsel, from the field and the headers.
        images: All images, in order.
        question: The text beside the only image.
        system: The client's own system message.
        skipped: Why no demonstrations are put in front; None if they are.
    """

    body: dict[str, Any]
    options: Options
    images: tuple[ImagePart, ...]
    question: str
    system: Mapping[str, Any] | None
    skipped: str | None

    @property
    def is_plain(self) -> bool:
        """Whether it asks one question about one image, and nothing else."""
        return self.skipped in (None, "off")

    @property
    def streams(self) -> bool:
        """Whether the answer is wanted in parts."""
        return self.body.get("stream") is True


def read_chat(value: Mapping[str, Any], headers: Mapping[str, str], limits: Limits) -> ChatRequest:
    """A chat request from the JSON of its body.

    Args:
        value: The body.
        headers: The request's headers, by names in lower case.
        limits: The limits of a request.

    Raises:
        ApiError: It is not a chat request, is above a limit, or has content that is not sent on.
    """
    body = dict(value)
    own = body.pop("icdsel", None)
    options = _options(validated({} if own is None else own, Options, "icdsel"), headers)
    for field in _REFUSED_FIELDS:
        if body.get(field) is not None:
            raise bad_request(f"the field {field} is not sent on", "field_not_allowed", field)
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise bad_request("stream is neither true nor false", param="stream")
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise bad_request("messages is missing, empty or not a list", param="messages")
    if len(given) > limits.messages:
        raise bad_request(f"{len(given):,} messages are more than the limit of {limits.messages}", param="messages")
    messages = [_message(message, f"messages.{at}") for at, message in enumerate(given)]
    body["messages"] = messages
    parts = list(_parts(messages))
    if len(parts) > limits.parts:
        raise bad_request(f"{len(parts):,} parts are more than the limit of {limits.parts}", param="messages")
    for text, param in _texts(messages):
        if len(text) > limits.text:
            raise bad_request(f"a text has more than {limits.text:,} characters", "too_large", param)
    images = tuple(ImagePart(part["image_url"], param) for part, param in parts if part["type"] == "image_url")
    skipped, question, system = _asked(messages)
    if options.enabled is False and skipped is None:
        skipped = "off"
    return ChatRequest(body, options, images, question, system, skipped)


def with_prompt(request: ChatRequest, prompt: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The body with another prompt; a system message of the client replaces that of the prompt."""
    turns = list(prompt)
    if request.system is not None:
        turns = [dict(request.system), *(turn for turn in turns if turn["role"] not in _SYSTEM)]
    if (detail := request.images[0].holder.get("detail")) is not None:
        query = turns[-1]
        last = max(at for at, part in enumerate(query["content"]) if part["type"] == "image_url")
        parts = list(query["content"])
        parts[last] = {"type": "image_url", "image_url": {**parts[last]["image_url"], "detail": detail}}
        turns[-1] = {**query, "content": parts}
    return {**request.body, "messages": turns}


def _options(field: Options, headers: Mapping[str, str]) -> Options:
    """The options of the field `icdsel`, and of the headers where the field says nothing."""
    given: dict[str, Any] = {}
    if (switch := headers.get("x-icdsel")) is not None:
        if switch.strip().lower() not in ("on", "off"):
            raise bad_request("X-Icdsel is neither on nor off", param="X-Icdsel")
        given["enabled"] = switch.strip().lower() == "on"
    for name in ("shots", "selector"):
        if (text := headers.get(f"x-icdsel-{name}")) is not None:
            given[name] = text.strip()
    from_headers = validated(given, Options, "X-Icdsel")
    return from_headers.model_copy(update=field.model_dump(exclude_none=True, exclude_unset=True))


def _message(message: Any, param: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise bad_request(f"{param} is not an object", param=param)
    if message.get("role") not in _ROLES:
        raise bad_request(f"{param} has no role, or none of {', '.join(_ROLES)}", param=f"{param}.role")
    kept = {key: value for key, value in message.items() if value is not None or key in ("role", "content")}
    if unknown := kept.keys() - _MESSAGE_KEYS:
        name = plain(min(unknown))[:_MOST_OF_A_NAME]
        raise bad_request(f"a message with the key {name!r} is not sent on", "content_not_allowed", param)
    content = kept.get("content")
    if isinstance(content, list):
        kept["content"] = [_part(part, f"{param}.content.{at}") for at, part in enumerate(content)]
    elif content is not None and not isinstance(content, str):
        raise bad_request(f"{param}.content is neither a text nor a list", param=f"{param}.content")
    return kept


def _part(part: Any, param: str) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise bad_request(f"{param} is not an object", param=param)
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in _PART_KEYS:
        shown = plain(kind)[:_MOST_OF_A_NAME]
        known = ", ".join(_PART_KEYS)
        raise bad_request(f"a part of the type {shown!r} is not sent on, only {known}", "content_not_allowed", param)
    kept = {key: value for key, value in part.items() if value is not None}
    if unknown := kept.keys() - _PART_KEYS[kind] - {"type"}:
        name = plain(min(unknown))[:_MOST_OF_A_NAME]
        raise bad_request(f"a part with the key {name!r} is not sent on", "content_not_allowed", param)
    if kind == "image_url":
        kept["image_url"] = _image(kept.get("image_url"), f"{param}.image_url")
    elif kind == "input_audio":
        _require_audio(kept.get("input_audio"), f"{param}.input_audio")
    elif not isinstance(kept.get(kind), str):
        raise bad_request(f"{param}.{kind} is not a text", param=f"{param}.{kind}")
    return kept


def _image(value: Any, param: str) -> dict[str, Any]:
    image = {"url": value} if isinstance(value, str) else value
    if not isinstance(image, dict) or not isinstance(image.get("url"), str):
        raise bad_request(f"{param} has no url", param=param)
    if unknown := image.keys() - {"url", "detail"}:
        name = plain(min(unknown))[:_MOST_OF_A_NAME]
        raise bad_request(f"an image with the key {name!r} is not sent on", "content_not_allowed", param)
    return dict(image)


def _require_audio(value: Any, param: str) -> None:
    """Audio is sent on only as what it is: base64, which is neither an address nor a path."""
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, str) or value.keys() - {"data", "format"} or ":" in data or data.startswith(("/", ".")):
        raise bad_request(f"{param} is not audio in base64", "content_not_allowed", param)


def _parts(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """All parts, each with its place."""
    for at, message in enumerate(messages):
        if isinstance(message.get("content"), list):
            for k, part in enumerate(message["content"]):
                yield part, f"messages.{at}.content.{k}"


def _texts(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """All texts that people wrote, each with its place."""
    for at, message in enumerate(messages):
        if isinstance(message.get("content"), str):
            yield message["content"], f"messages.{at}.content"
    for part, param in _parts(messages):
        if part["type"] == "text":
            yield part["text"], param


def _asked(messages: Sequence[Mapping[str, Any]]) -> tuple[str | None, str, Mapping[str, Any] | None]:
    """Why there is no single question about an image (None if there is), the question, and the system message."""
    system = messages[0] if messages[0]["role"] in _SYSTEM else None
    turns = messages[1:] if system is not None else messages
    parts = [part for part, _ in _parts(messages)]
    images = sum(part["type"] == "image_url" for part in parts)
    if not images:
        return "no-image", "", system
    if images > 1:
        return "several-images", "", system
    if len(turns) != 1 or turns[0]["role"] != "user":
        return "earlier-turns", "", system
    own = turns[0]["content"]
    if not isinstance(own, list) or any(part["type"] not in ("text", "image_url") for part in own):
        return "other-content", "", system
    if system is not None and any(part["type"] == "image_url" for part, _ in _parts([system])):
        return "other-content", "", system
    question = _QUESTION_JOINT.join(part["text"] for part in own if part["type"] == "text").strip()
    return (None, question, system) if question else ("no-question", "", system)
