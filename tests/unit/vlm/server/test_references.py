"""Log-probs of references through the chat completions of a made-up vLLM, with the tiny VLM's tokenizer."""

import asyncio
from pathlib import Path

import pytest
from made_up_vllm import MadeUpVllm

from icdsel.errors import VlmError
from icdsel.records import Example
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Request
from icdsel.vlm.prompts import PromptStyle
from icdsel.vlm.server.failures import Rejected, Unusable
from icdsel.vlm.server.references import Scored, VllmReferences
from icdsel.vlm.server.tokens import local_tokenizer, two_shot_prompt

SETTINGS = VlmSettings()
STYLE = PromptStyle.of(SETTINGS)


@pytest.fixture(scope="module")
def tokenizer():
    return local_tokenizer(SETTINGS)


def request(*references: str) -> Request:
    icd = Example(1, 1, Path("a.png"), "What colour is it?", "red", ("red",))
    query = Example(2, 2, Path("b.png"), "Which code?", "doni", ("doni",))
    return Request((icd,), query, references)


def score(tokenizer, vllm: MadeUpVllm, asked: Request) -> Scored:
    return asyncio.run(VllmReferences(tokenizer, SETTINGS).score(asked, vllm.complete))


@pytest.mark.parametrize("seed", range(5))
def test_log_probs_equal_those_of_each_token_after_the_other(tokenizer, seed):
    asked = request("red", "a red kite", "a red kit", "a", "", "red", "Ω", "né à 7 h")
    vllm = MadeUpVllm(tokenizer, STYLE, asked, seed)
    scored = score(tokenizer, vllm, asked)
    assert scored.log_probs == pytest.approx([vllm.reference(text) for text in asked.references], abs=1e-6)
    assert scored.lengths == tuple(len(vllm.answers.of(vllm.prompt, text)) for text in asked.references)
    assert scored.completion.text == "answer"
    assert "max_tokens" not in vllm.asked[0]  # the answer is not cut off where the references end


def test_half_a_character_is_forced_behind_what_can_be_shown(tokenizer):
    asked = request("né")
    vllm = MadeUpVllm(tokenizer, STYLE, asked)
    _, half, _, _ = vllm.answers.of(vllm.prompt, "né")
    scored = score(tokenizer, vllm, asked)
    assert scored.log_probs == pytest.approx([vllm.reference("né")], abs=1e-6)
    [forced] = [each for each in vllm.asked if "logit_bias" in each]
    assert forced["logit_bias"] == {str(half): 100.0} and forced["messages"][0]["content"] == "n"


def test_a_template_that_cannot_continue_a_turn_costs_further_calls_only(tokenizer):
    asked = request("red", "blue")
    vllm = MadeUpVllm(tokenizer, STYLE, asked)
    vllm.continues = False
    assert score(tokenizer, vllm, asked).log_probs == pytest.approx([vllm.reference("red"), vllm.reference("blue")])


def test_a_path_that_cannot_be_forced_is_a_failure_and_not_a_number(tokenizer):
    asked = request("\N{GRINNING FACE}")  # four tokens that are no text by themselves
    outcomes = set()
    for seed in range(12):
        vllm = MadeUpVllm(tokenizer, STYLE, asked, seed)
        try:
            assert score(tokenizer, vllm, asked).log_probs == pytest.approx([vllm.reference(asked.references[0])])
            outcomes.add("right")
        except Unusable as error:
            assert "one more were wanted" in str(error)
            outcomes.add("failed")
    assert "failed" in outcomes


def test_prompts_that_the_server_reads_as_other_tokens_are_a_failure(tokenizer):
    asked = request("red", "blue")
    vllm = MadeUpVllm(tokenizer, STYLE, asked)

    async def forgetful(**parameters):
        completion = await vllm.complete(**parameters)
        if len(vllm.asked) > 1:
            completion.reply["prompt_token_ids"].insert(0, 1)
        return completion

    with pytest.raises(Unusable, match="other tokens"):
        asyncio.run(VllmReferences(tokenizer, SETTINGS).score(asked, forgetful))


def _entry(reply: dict) -> dict:
    return reply["choices"][0]["logprobs"]["content"][0]


def _without_prompt(reply: dict) -> None:
    del reply["prompt_token_ids"]


def _without_log_probs(reply: dict) -> None:
    reply["choices"][0]["logprobs"] = None


def _without_the_wanted(reply: dict) -> None:
    _entry(reply)["top_logprobs"] = _entry(reply)["top_logprobs"][:1]


def _as_words(reply: dict) -> None:
    _entry(reply)["token"] = "red"


def _floored(reply: dict) -> None:
    _entry(reply)["top_logprobs"][-1]["logprob"] = -9999.0


def _as_logits(reply: dict) -> None:
    for each in _entry(reply)["top_logprobs"]:
        each["logprob"] += 30


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without_prompt, "return_token_ids"),
        (_without_log_probs, "logprob_token_ids"),
        (_without_the_wanted, "no log-prob of token"),
        (_as_words, "logprob_token_ids"),
        (_floored, "logprob_token_ids"),
        (_as_logits, "not log-probs"),
    ],
)
@pytest.mark.parametrize("at", [0, 1])
def test_a_reply_without_usable_log_probs_is_a_failure(tokenizer, change, reason, at):
    asked = request("red", "blue")
    vllm = MadeUpVllm(tokenizer, STYLE, asked)

    async def lying(**parameters):
        completion = await vllm.complete(**parameters)
        if len(vllm.asked) == at + 1:
            change(completion.reply)
        return completion

    with pytest.raises(Unusable, match=reason):
        asyncio.run(VllmReferences(tokenizer, SETTINGS).score(asked, lying))


def test_a_rejected_answer_is_not_asked_for_in_another_way(tokenizer):
    asked = request("red")

    async def rejecting(**parameters):
        raise Rejected(400, "the prompt is too long")

    with pytest.raises(Rejected, match="too long"):
        asyncio.run(VllmReferences(tokenizer, SETTINGS).score(asked, rejecting))


def check(tokenizer, complete) -> None:
    asyncio.run(VllmReferences(tokenizer, SETTINGS).check(two_shot_prompt(SETTINGS), complete))


def test_a_server_that_tells_the_models_own_log_probs_passes_the_check(tokenizer):
    vllm = MadeUpVllm(tokenizer, STYLE, request("red"))
    check(tokenizer, vllm.complete)
    assert [each["max_tokens"] for each in vllm.asked] == [1, 1]


def test_log_probs_after_logit_bias_are_refused_with_the_flag_of_the_server(tokenizer):
    vllm = MadeUpVllm(tokenizer, STYLE, request("red"))

    async def processed(**parameters):
        completion = await vllm.complete(**parameters)
        for each in _entry(completion.reply)["top_logprobs"] if "logit_bias" in parameters else []:
            each["logprob"] -= 5
        return completion

    with pytest.raises(VlmError, match="--logprobs-mode raw_logprobs"):
        check(tokenizer, processed)


@pytest.mark.parametrize("change", [_without_log_probs, _without_the_wanted])
def test_a_server_without_log_probs_of_chosen_tokens_is_refused(tokenizer, change):
    vllm = MadeUpVllm(tokenizer, STYLE, request("red"))

    async def old(**parameters):
        completion = await vllm.complete(**parameters)
        change(completion.reply)
        return completion

    with pytest.raises(VlmError, match="use a newer vLLM"):
        check(tokenizer, old)
