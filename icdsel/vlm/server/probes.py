"""Four prompts with drawn images, by which a server is known again, and which show whether it sees its images.

They have the same texts, and differ in their images alone: the first one, the last one, or the order of two. The
fingerprint rests on the most probable first token of each and its log-prob. These differ in the last digits with the
batch in which a server computes a prompt, so they are measured one after another, without what is cached of other
prompts where a server allows that, and rounded to `STEP`: two models of one name are told apart, while noise seldom
crosses a boundary. A server without log-probs is known by the texts of its answers.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from icdsel.vlm.server.images import picture_url
from icdsel.vlm.server.replies import Completion

STEP = 0.5
"""Nats to which log-probs are rounded."""
TOLERANCE = 0.25
"""Nats by which log-probs of one prompt may differ between two calls, or between two servers of one model."""
TOP = 5
"""How many of the most probable tokens are asked for."""
LONGEST_TEXT = 16
"""Tokens of an answer where there are no log-probs."""
_SIDE = 224  # pixels: enough tokens for several blocks of a prefix cache
QUESTION = "Question:What is in this picture? Short answer:"
"""The text of prompts that check a server."""
ORDERS = ((0, 1, 2), (3, 1, 2), (0, 1, 3), (1, 0, 2))
"""The images of each probe: the first one differs in its first image, in its last, and in their order."""


def pictures() -> list[Image.Image]:
    """Four pictures that are as different as possible: stripes, a gradient, a board, and rings."""
    y, x = np.mgrid[:_SIDE, :_SIDE]
    zero = np.zeros_like(x)
    stripes = np.where(x // 28 % 2 == 0, 255, 0)
    board = np.where((x // 56 + y // 56) % 2 == 0, 255, 30)
    rings = ((x - _SIDE // 2) ** 2 + (y - _SIDE // 2) ** 2) // 32 % 256
    planes = [(stripes, zero, zero), (zero, zero, x * 255 // _SIDE), (zero, board, zero), (rings, rings, 255 - rings)]
    return [Image.fromarray(np.stack(plane, axis=-1).astype(np.uint8)) for plane in planes]


@cache
def probe_messages() -> list[list[dict[str, Any]]]:
    """The messages of the four probes, in OpenAI's form."""
    urls = [picture_url(picture) for picture in pictures()]
    texts = [f"{QUESTION} lines", f"{QUESTION} shades", QUESTION]

    def content(order: Sequence[int]) -> list[dict[str, Any]]:
        return [
            part
            for k, text in zip(order, texts, strict=True)
            for part in ({"type": "image_url", "image_url": {"url": urls[k]}}, {"type": "text", "text": text})
        ]

    return [[{"role": "user", "content": content(order)}] for order in ORDERS]


@dataclass(frozen=True)
class Probed:
    """What a server answered to a probe: the most probable first tokens with log-probs, or if it has none the text."""

    first: tuple[tuple[str, float], ...]
    text: str

    @classmethod
    def of(cls, completion: Completion) -> "Probed":
        """What is kept of an answer to a probe."""
        return cls(completion.first, completion.text)

    def agrees(self, other: "Probed") -> bool:
        """Whether both can be the same model's answer to the same prompt."""
        if not self.first or not other.first:
            return self.text == other.text
        mine, yours = dict(self.first), dict(other.first)
        # A token that is not among the most probable ones of the other side is at most as probable as the last of them.
        return all(
            abs(value - theirs.get(token, min(theirs.values()))) <= TOLERANCE
            for own, theirs in ((mine, yours), (yours, mine))
            for token, value in list(own.items())[:1]
        )

    @property
    def rounded(self) -> list[Any]:
        """What the fingerprint rests on."""
        if not self.first:
            return [self.text]
        token, value = self.first[0]
        return [token, round(value / STEP)]


def fingerprint(dialect: str, model: str, version: str, probed: Sequence[Probed]) -> str:
    """Identifies a model by its name, the version of its server, and its answers to the probes."""
    known = [dialect, model, version, [each.rounded for each in probed]]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
