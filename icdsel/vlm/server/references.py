"""The log-probs of reference answers on vLLM, which tells those of chosen tokens at each generated position.

Which calls are needed is decided by `ReferenceTrie`. The call that answers a prompt has all tokens of its references as
`logprob_token_ids`; a further call shows the beginning of a reference as an open turn of the assistant, which vLLM
continues. A text need not have the tokens that it was made of: half a character has none, and templates strip spaces.
So each reply must contain the tokens of the prompt (`return_token_ids`), and they must be the expected ones. If they
are not, a shorter beginning is shown, and the tokens that it lacks are forced with `logit_bias`, which does not change
the log-probs that vLLM tells. Generated tokens are compared too: nothing is read from another path than the wanted one.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from icdsel.errors import VlmError
from icdsel.records.values import is_number
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Request
from icdsel.vlm.prompts import Message, PromptStyle, chat_messages, harmless
from icdsel.vlm.server.background import all_or_cancelled
from icdsel.vlm.server.failures import Rejected, ServerFailure, Unusable
from icdsel.vlm.server.reference_trie import ReferenceTrie, Tokens, TrieCall
from icdsel.vlm.server.replies import Completion
from icdsel.vlm.server.tokens import LocalTokenizer

FORCED = 100.0
"""What is added to the logits of tokens that are forced, the most that the protocol allows."""
_FLOOR = -9999.0  # nats: what vLLM writes for a token without a log-prob, or that cannot come
_MARK = "token_id:"
_TRIED = ("yes", "no")  # references of the prompt by which a server is checked
_AGREES = 0.25  # nats by which log-probs of one prompt may differ between two calls
Complete = Callable[..., Awaitable[Completion]]
"""The completion of a prompt with further parameters; `messages` follow those of the prompt."""


@dataclass(frozen=True)
class Scored:
    """An answer, and the log-probs (nats) and numbers of tokens of the references."""

    completion: Completion
    log_probs: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()


class References(Protocol):
    """Answers prompts, and scores their references."""

    async def check(self, messages: Sequence[Message], complete: Complete) -> None:
        """Checks with a prompt that a server tells log-probs.

        Raises:
            VlmError: It does not.
        """

    async def score(self, request: Request, complete: Complete) -> Scored:
        """Answers a request that has references, and scores these."""


class VllmReferences(References):
    """Scores references on vLLM.

    Args:
        tokenizer: Tokenizer and chat template of the model.
        settings: How prompts are laid out.

    Raises:
        VlmError: No token ends an answer.
    """

    def __init__(self, tokenizer: LocalTokenizer, settings: VlmSettings) -> None:
        self._tokenizer, self._style = tokenizer, PromptStyle.of(settings)
        self._answers = tokenizer.answer_tokens()

    async def check(self, messages: Sequence[Message], complete: Complete) -> None:
        """Checks that log-probs of chosen tokens are told, and that they are not those after `logit_bias`.

        Raises:
            VlmError: The server tells none, or others.
        """
        [call] = self._trie(messages, _TRIED).calls()
        forced = call.ids[-1]
        try:
            plain = _positions(await complete(**_asking(call.ids), max_tokens=1))
            biased = _positions(await complete(**_asking(call.ids), max_tokens=1, logit_bias={str(forced): FORCED}))
            [(_, told)], [(generated, told_biased)] = plain, biased
            same = all(abs(told[token] - told_biased[token]) <= _AGREES for token in call.ids)
        except (ServerFailure, ValueError, KeyError) as failure:
            raise VlmError(f"the server tells no log-probs of chosen tokens ({failure}): use a newer vLLM") from None
        if generated != forced or not same:
            raise VlmError("the server's log-probs are not the model's: start vLLM with --logprobs-mode raw_logprobs")

    async def score(self, request: Request, complete: Complete) -> Scored:
        """Answers a request, and scores its references.

        Raises:
            ServerFailure: A call has failed, or what it returned does not fit.
        """
        trie = self._trie(chat_messages(request.icds, request.query, self._style), request.references)
        [call] = trie.calls()
        answer = await complete(**_asking(call.ids))
        before = _tokens_of_prompt(answer)
        _read(trie, call, answer)
        while calls := trie.calls():
            await all_or_cancelled(self._continue(trie, call, before, complete) for call in calls)
        return Scored(answer, trie.log_probs(), trie.lengths())

    def _trie(self, messages: Sequence[Message], references: Sequence[str]) -> ReferenceTrie:
        prompt = self._tokenizer.chat.prompt(messages)
        return ReferenceTrie([self._answers.of(prompt, harmless(text)) for text in references])

    async def _continue(self, trie: ReferenceTrie, call: TrieCall, before: Tokens, complete: Complete) -> None:
        """Makes a call behind the longest beginning of its prefix that can be shown as text."""
        for shown in range(len(call.prefix), -1, -1):
            begin, forced = call.prefix[:shown], call.prefix[shown:]
            text = self._tokenizer.text(begin).removeprefix(self._tokenizer.chat.before_answer)
            if "\N{REPLACEMENT CHARACTER}" in text:
                continue
            parameters: dict[str, Any] = {"max_tokens": len(forced) + (1 if forced else call.length)}
            if begin:
                turn = {"role": "assistant", "content": text}
                parameters |= {"messages": [turn], "continue_final_message": True, "add_generation_prompt": False}
            if forced:
                parameters["logit_bias"] = {str(token): FORCED for token in forced}
            try:
                completion = await complete(**_asking(call.ids), **parameters)
            except Rejected:
                if not begin:
                    raise
                continue  # not every template can continue a turn
            if _tokens_of_prompt(completion) == before + begin:
                return _read(trie, TrieCall(begin, call.ids, len(forced) + 1), completion, forced)
        raise Unusable("it reads the same prompt as other tokens when it is asked again")


def _asking(ids: Tokens) -> dict[str, Any]:
    """The parameters that ask for log-probs of tokens, and for the tokens of the prompt."""
    return {
        "logprobs": True,
        "logprob_token_ids": list(ids),
        "return_tokens_as_token_ids": True,
        "return_token_ids": True,
    }


def _tokens_of_prompt(completion: Completion) -> Tokens:
    tokens = completion.reply.get("prompt_token_ids")
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise Unusable("its reply has no tokens of the prompt (return_token_ids): use a newer vLLM")
    return tuple(tokens)


def _read(trie: ReferenceTrie, call: TrieCall, completion: Completion, forced: Tokens = ()) -> None:
    """Takes a reply into the trie.

    Raises:
        Unusable: It has no log-probs, or it does not begin with the tokens that were forced.
    """
    positions = _positions(completion)
    generated = [token for token, _ in positions]
    if tuple(generated[: len(forced)]) != forced or len(generated) == len(forced):
        raise Unusable(f"it generated the tokens {generated} where {list(forced)} and one more were wanted")
    try:
        trie.read(call, generated, [told for _, told in positions])
    except ValueError as error:
        raise Unusable(f"its log-probs cannot be used: {error}") from None


def _positions(completion: Completion) -> list[tuple[int, dict[int, float]]]:
    """The generated tokens, each with the log-probs that are told at its position.

    Raises:
        Unusable: The reply has none.
    """
    try:
        return [_position(entry) for entry in completion.reply["choices"][0]["logprobs"]["content"]]
    except (KeyError, TypeError, ValueError):
        raise Unusable("its reply has no log-probs of the tokens that were asked for (logprob_token_ids)") from None


def _position(entry: Mapping[str, Any]) -> tuple[int, dict[int, float]]:
    """The generated token at a position, and the log-probs that are told there.

    Raises:
        ValueError: An entry has another form.
    """
    told = {_token(each): _log_prob(each) for each in entry["top_logprobs"]}
    return _token(entry), told


def _token(entry: Mapping[str, Any]) -> int:
    mark, number = entry["token"][: len(_MARK)], entry["token"][len(_MARK) :]
    if mark != _MARK:
        raise ValueError("tokens are not written as numbers")
    return int(number)


def _log_prob(entry: Mapping[str, Any]) -> float:
    value = entry["logprob"]
    if not is_number(value, _FLOOR, 1e6) or value == _FLOOR:
        raise ValueError("a log-prob is not one")
    return float(value)
