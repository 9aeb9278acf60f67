"""An answer has the tokens of prompt and answer together, without those of the prompt."""

from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast
from vlm_parts import byte_tokenizer, sentencepiece_tokenizer

from icdsel.errors import VlmError
from icdsel.vlm.local.answer_tokens import AnswerTokens, continuation


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without splitting into words, so that it merges a colon, a space and a letter with an answer."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("y", "e"), ("ye", "s"), ("Ġ", "yes"), (":", "y"), ("r", "n")]
    vocab = {token: i for i, token in enumerate([*letters, *(a + b for a, b in merges)])}
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=[merges[3], merges[4], *merges[:3]]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


def prefixing_tokenizer() -> PreTrainedTokenizerFast:
    """Words that begin with a space, with one before the first word of a text."""
    made = sentencepiece_tokenizer([])
    made.backend_tokenizer.normalizer = None
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return made


TOKENIZERS = {
    "SentencePiece": sentencepiece_tokenizer([]),
    "a space before the first word": prefixing_tokenizer(),
    "BPE that merges": merging_tokenizer(),
    "bytes": byte_tokenizer([]),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request) -> Any:
    return TOKENIZERS[request.param]


@pytest.mark.parametrize("answer", ["yes", " yes", "no", "doni", "2", "", "yes no", "\nyes", "néon"])
@pytest.mark.parametrize("prompt", ["USER: q ASSISTANT:", "Answer: ", "Short answer", "assistant\n", "over"])
def test_prompt_and_answer_together_spell_the_whole(tokenizer, prompt, answer):
    before = tokenizer.encode(prompt, add_special_tokens=False)
    tokens = continuation(lambda text: tokenizer.encode(text, add_special_tokens=False), prompt, answer)
    assert tokenizer.decode([*before, *tokens]) == tokenizer.decode(before) + answer
    whole = tokenizer.encode(prompt + answer, add_special_tokens=False)
    if whole[: len(before)] == before:
        assert list(tokens) == whole[len(before) :]


def pieces(name: str, prompt: str, answer: str) -> list[str]:
    tokenizer = TOKENIZERS[name]
    tokens = continuation(lambda text: tokenizer.encode(text, add_special_tokens=False), prompt, answer)
    return tokenizer.convert_ids_to_tokens(list(tokens))


@pytest.mark.parametrize(
    ("name", "prompt", "answer", "expected"),
    [
        ("SentencePiece", "ASSISTANT:", "yes", ["yes"]),
        ("SentencePiece", "ASSISTANT:", " yes", ["▁yes"]),
        ("SentencePiece", "ASSISTANT: ", "yes", ["yes"]),  # the prompt's tokens end with ▁, those of both with ▁yes
        ("BPE that merges", "answer:", "yes", ["yes"]),  # alone `:`, together `:y`
        ("BPE that merges", "answer: ", "yes", ["yes"]),
        ("BPE that merges", "answer:", " yes", ["Ġyes"]),
        ("BPE that merges", "over", "n", ["n"]),
    ],
)
def test_the_model_continues_from_the_prompts_own_tokens(name, prompt, answer, expected):
    assert pieces(name, prompt, answer) == expected


# ---- the end ----


def template(before: str = "", after: str = "") -> Any:
    return SimpleNamespace(before_answer=before, after_answer=after)


MARKS = ["<|im_start|>", "<|im_end|>", "<|user|>", "<|endoftext|>"]


@pytest.mark.parametrize(
    ("after", "end"),
    [
        ("<|im_end|>\n<|im_start|>user\n", "<|im_end|>"),
        ("\n<|user|>\n", "\n<|user|>"),  # GLM-4V's turns have no end of their own
        (" USER: ", "<|endoftext|>"),  # as in LLaVA-1.5
        ("", "<|endoftext|>"),
    ],
)
def test_an_answer_ends_at_the_first_stop_before_the_next_turns_text(after, end):
    tokenizer = byte_tokenizer(MARKS, eos_token="<|endoftext|>")
    number = tokenizer.convert_tokens_to_ids
    answers = AnswerTokens(tokenizer, template(after=after), {number("<|endoftext|>")}, "m")
    assert tokenizer.decode(answers.of("<|im_start|>assistant\n", "yes")) == f"yes{end}"
    assert number(end.strip()) == answers.stop
    assert set(answers.stops) == {answers.stop, number("<|endoftext|>")}


def test_without_any_stop_there_is_no_answer():
    tokenizer = byte_tokenizer(["<image>"])
    with pytest.raises(VlmError, match="no token that ends an answer"):
        AnswerTokens(tokenizer, template(after=" USER: "), (), "m")


@pytest.mark.parametrize("name", ["SentencePiece", "bytes", "with a beginning", "marks that take spaces"])
def test_a_prompt_has_the_tokens_of_the_whole_text(name):
    if name == "SentencePiece":
        tokenizer = sentencepiece_tokenizer(MARKS, eos_token="<|endoftext|>")
    else:
        begin = {"bos_token": "<s>"} if name == "with a beginning" else {}
        tokenizer = byte_tokenizer(MARKS, eos_token="<|endoftext|>", **begin)
    if name == "marks that take spaces":
        tokenizer.add_tokens([AddedToken("<greedy>", lstrip=True, rstrip=True, special=True)])
    answers = AnswerTokens(tokenizer, template(), {tokenizer.eos_token_id}, "m")
    for text in (
        "plain text",
        "<|im_start|>user\nWhat  is it? <greedy> yes<|im_end|>\n<|im_start|>assistant\n",
        "before <|user|><|user|>  <|im_end|>",
        "<s>begun <|user|>",
        "",
    ):
        begun = text.startswith("<s>") and name == "with a beginning"
        assert list(answers.of_prompt(text)) == tokenizer.encode(text, add_special_tokens=not begun)


def test_texts_before_the_last_marker_do_not_matter():
    tokenizer = sentencepiece_tokenizer(MARKS, eos_token="<|endoftext|>")
    answers = AnswerTokens(tokenizer, template(), {tokenizer.eos_token_id}, "m")
    behind = [answers.of(f"{before}<|im_start|>assistant\n", "yes") for before in ("", "a long question<|im_end|>\n")]
    assert behind[0] == behind[1] == (*tokenizer.convert_tokens_to_ids(["yes"]), tokenizer.eos_token_id)
