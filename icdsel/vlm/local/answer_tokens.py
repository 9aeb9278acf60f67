"""The tokens of an answer, which depend on what stands before and after it."""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from icdsel.errors import VlmError
from icdsel.vlm.local.chat_template import ChatTemplate

_NEUTRAL = ("\n", ":")  # characters that tokenizers rarely merge with the next one
Encode = Callable[[str], Sequence[int]]


def continuation(encode: Encode, prompt: str, text: str) -> tuple[int, ...]:
    """The tokens of `text` behind `prompt`: those of both together without those of the prompt.

    A tokenizer may merge the last characters of the prompt with the first ones of the text, so that the tokens of the
    prompt do not begin those of both. The model reads the prompt as it is, and continues from there. So the text then
    has the tokens that it has behind a character with which it does not merge; together with those of the prompt, they
    still spell the whole.

    Args:
        encode: The tokens of a text, without those that a tokenizer adds around it.
        prompt: What stands before.
        text: What follows.
    """
    for before in (prompt, *_NEUTRAL):
        alone, both = list(encode(before)), list(encode(before + text))
        if both[: len(alone)] == alone:
            return tuple(both[len(alone) :])
    return tuple(encode(text))


class AnswerTokens:
    """Tokenizes prompts, and answers as they stand behind them in the assistant's turn.

    An answer ends with the first token that ends a text or is special where the template goes on to the next user
    turn. For most models it is the end of the turn, for GLM-4V the next user's marker; if there is none, it is the end
    of a text.

    Args:
        tokenizer: The tokenizer.
        chat: The chat template.
        eos: The tokens that end a text by the model's files.
        name: The model's name, for messages.

    Attributes:
        stop: The token with which an answer ends when it is scored.
        stops: All tokens that end an answer when it is decoded.

    Raises:
        VlmError: No token ends an answer.
    """

    def __init__(self, tokenizer: Any, chat: ChatTemplate, eos: Iterable[int], name: str) -> None:
        self._tokenizer = tokenizer
        self._before, self._gap = chat.before_answer, ""
        added = {token: number for token, number in tokenizer.get_added_vocab().items() if is_marker(token)}
        self.markers = re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))) or r"(?!)")
        known = set(eos)
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        ends = [mark for mark in self.markers.finditer(chat.after_answer) if added[mark[0]] in known | special]
        if not ends and not known:
            raise VlmError(f"{name} has no token that ends an answer (eos_token_id in generation_config.json)")
        if ends:
            self._gap = chat.after_answer[: ends[0].start()]
            self.stop = added[ends[0][0]]
        else:
            eos_token = tokenizer.eos_token_id
            self.stop = min(known) if eos_token is None else eos_token
        self.stops = tuple(sorted(known | {self.stop}))
        self._begin = tokenizer.bos_token
        # Markers separate texts, unless they take the spaces before them; the parts recur in thousands of prompts.
        takes_spaces = any(token.lstrip for token in tokenizer.added_tokens_decoder.values())
        self._separate = not takes_spaces and not tokenizer.encode("", add_special_tokens=True)
        self._encode = lru_cache(65_536)(lambda part: tuple(tokenizer.encode(part, add_special_tokens=False)))
        self._behind = lru_cache(65_536)(self._tokens)  # few prompts end differently, and references recur

    def of_prompt(self, prompt: str) -> tuple[int, ...]:
        """The tokens of a prompt as the model's processor gives them, images aside."""
        if not self._separate:
            begins_bare = not (self._begin and prompt.startswith(self._begin))
            return tuple(self._tokenizer.encode(prompt, add_special_tokens=begins_bare))
        starts = [0, *(mark.start() for mark in self.markers.finditer(prompt)), len(prompt)]
        return tuple(token for a, b in pairwise(starts) if b > a for token in self._encode(prompt[a:b]))

    def of(self, prompt: str, answer: str) -> tuple[int, ...]:
        """The tokens of `answer` behind the text of a prompt, with the one that ends it."""
        # Texts on both sides of a marker are tokenized separately, so what precedes the last one does not matter.
        last = max((mark.start() for mark in self.markers.finditer(prompt)), default=0)
        return self._behind(prompt[last:], answer)

    def _tokens(self, prompt: str, answer: str) -> tuple[int, ...]:
        return (*continuation(self._encode, prompt, f"{self._before}{answer}{self._gap}"), self.stop)


def is_marker(token: str) -> bool:
    """Whether an added token is a marker, rather than a character or white space."""
    return len(token) > 1 and not token.isspace()
