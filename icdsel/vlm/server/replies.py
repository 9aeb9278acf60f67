"""Reads replies to chat completions. Whatever is not certainly an answer is an error of the call, never an answer."""

from dataclasses import dataclass
from typing import Any

from icdsel.console import plain
from icdsel.records.values import is_number, is_prompt_length
from icdsel.vlm.local.chat_template import THINKS, thinks
from icdsel.vlm.server.failures import Unusable
from icdsel.vlm.server.key import ApiKey

_CUT = {"stop": False, "length": True}
"""Whether an answer was cut off, by the reason why it ended; it has failed for any other reason."""
_LOWEST = -1e6  # nats; servers write −9999 or lower for a token that cannot come

_LONGEST_TOKEN = 1000  # characters; the longest ones of vocabularies, runs of spaces, have some hundreds


@dataclass(frozen=True)
class Completion:
    """What a server answered.

    Attributes:
        text: The answer.
        cut: Whether it reached its maximum length before it ended.
        prompt_tokens: The length of the prompt; None if the server does not say.
        first: The most probable first tokens with their log-probs (nats), most probable first; empty if they were not
            wanted or the server gives none.
        reply: The whole reply.
    """

    text: str
    cut: bool
    prompt_tokens: int | None
    first: tuple[tuple[str, float], ...]
    reply: dict[str, Any]


def completion_of(reply: Any, model: str | None, key: ApiKey, most_tokens: int | None = None) -> Completion:
    """The answer in a reply.

    Args:
        reply: The reply.
        model: The name that replies have for the model; None if it is not known yet.
        key: What no message may show. (Replies that contain it are rejected where they are received.)
        most_tokens: The number of tokens that the answer may have; None if there is no limit.

    Raises:
        Unusable: It is not an answer.
    """
    if not isinstance(reply, dict):
        raise Unusable(f"its reply is not an object, but {_short(reply, key)}")
    if reply.get("error"):
        raise Unusable(f"its reply is an error: {_short(reply['error'], key)}")
    if model is not None and reply.get("model") != model:
        raise Unusable(f"it answered with the model {_short(reply.get('model'), key)}, not {model!r}")
    choices = reply.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        found = len(choices) if isinstance(choices, list) else _short(choices, key)
        raise Unusable(f"its reply has {found} choices instead of one")
    [choice] = choices
    message = choice.get("message")
    if choice.get("index", 0) != 0 or not isinstance(message, dict) or message.get("role") != "assistant":
        raise Unusable("its reply is not the first turn of an assistant")
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or reason not in _CUT:
        raise Unusable(f"its answer ended for the reason {_short(reason, key)}, not 'stop' or 'length'")
    text = message.get("content")
    thought = message.get("reasoning_content") or message.get("reasoning")
    if thought or (isinstance(text, str) and thinks(text)):
        raise Unusable(THINKS)
    if not isinstance(text, str) or message.get("tool_calls"):
        raise Unusable(f"its reply has no text, but {_short(text, key)}")
    if most_tokens is not None and len(text) > _LONGEST_TOKEN * most_tokens:
        raise Unusable(f"its answer has {len(text):,} characters, more than --max-new-tokens allows")
    usage = reply.get("usage")
    length = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return Completion(
        text, _CUT[reason], length if is_prompt_length(length) else None, first_tokens(choice.get("logprobs")), reply
    )


def first_tokens(log_probs: Any) -> tuple[tuple[str, float], ...]:
    """The most probable first tokens of an answer; empty if they are not given, or not in the form of the protocol."""
    content = log_probs.get("content") if isinstance(log_probs, dict) else None
    first = content[0] if isinstance(content, list) and content else None
    top = first.get("top_logprobs") if isinstance(first, dict) else None
    found = [
        (entry["token"], float(entry["logprob"]))
        for entry in (top if isinstance(top, list) else [])
        if isinstance(entry, dict)
        and isinstance(entry.get("token"), str)
        and is_number(entry.get("logprob"), _LOWEST, 1e-3)
    ]
    return tuple(sorted(found, key=lambda pair: (-pair[1], pair[0])))


def _short(value: object, key: ApiKey) -> str:
    return plain(key.hidden_in(repr(value)))
