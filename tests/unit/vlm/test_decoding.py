"""Our own search against transformers' `generate`, one prompt at a time, and against answers computed by hand."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from icdsel.vlm.local.decoding import Search, decode, penalised, until

PROMPTS, LENGTH, VOCABULARY = 10, 6, 19


class Table:
    """A reader whose next token depends only on the last one: `logits[last]`."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.rows: Tensor | None = None
        self.steps = 0

    def select(self, rows: Tensor) -> None:
        self.rows = rows

    def step(self, tokens: Tensor) -> Tensor:
        self.steps += 1
        return self.logits[tokens]


class LanguageModel:
    """A reader around a causal language model and its cache."""

    def __init__(self, model, prompts: Tensor) -> None:
        self.model = model
        out = model(prompts, use_cache=True)
        self.cache, self.logits = out.past_key_values, out.logits[:, -1]

    def select(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)

    def step(self, tokens: Tensor) -> Tensor:
        return self.model(tokens[:, None], past_key_values=self.cache, use_cache=True).logits[:, -1]


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=[1, 2],
    )
    made = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        made.lm_head.weight[1:3] *= 4  # so that answers end at all lengths
    return made


@pytest.fixture(scope="module")
def prompts() -> Tensor:
    return torch.randint(3, VOCABULARY, (PROMPTS, LENGTH), generator=torch.Generator().manual_seed(4))


def search_of(**changes) -> Search:
    return Search(
        **{
            "num_beams": 1,
            "length_penalty": 1.0,
            "repetition_penalty": 1.0,
            "max_new_tokens": 5,
            "stops": (1, 2),
        }
        | changes
    )


def searched(model, prompts: Tensor, search: Search) -> list[list[int]]:
    reader = LanguageModel(model, prompts)
    seen = torch.zeros(len(prompts), VOCABULARY, dtype=torch.bool).scatter(1, prompts, True)
    return decode(reader.logits, seen, reader, search)


def generated(model, prompt: Tensor, search: Search) -> tuple[list[int], float]:
    """The output of `generate` for one prompt, and the margin between the best and second-best hypothesis."""
    beams = search.num_beams
    out = model.generate(
        prompt[None],
        attention_mask=torch.ones_like(prompt[None]),
        do_sample=False,
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=search.length_penalty,
        early_stopping=False,
        repetition_penalty=search.repetition_penalty,
        max_new_tokens=search.max_new_tokens,
        eos_token_id=list(search.stops),
        return_dict_in_generate=True,
        output_scores=True,
    )
    if beams == 1:
        margin = min(float(scores[0].topk(2).values.diff().abs()) for scores in out.scores)
    else:
        margin = float(out.sequences_scores[0] - out.sequences_scores[1])
    return until(out.sequences[0, len(prompt) :].tolist(), search.stops), margin


@pytest.mark.parametrize("beams", [1, 2, 3, 4])
@torch.inference_mode()
def test_answers_are_those_of_generate_one_prompt_at_a_time(model, prompts, beams):
    ties = total = 0
    lengths = set()
    for length, exponent, penalty in itertools.product(
        (1, 2, 5, 9), (0.0, 1.0, -0.5, 2.5) if beams > 1 else (1.0,), (1.0, 1.3, 0.8)
    ):
        search = search_of(num_beams=beams, max_new_tokens=length, length_penalty=exponent, repetition_penalty=penalty)
        for prompt, found in zip(prompts, searched(model, prompts, search), strict=True):
            wanted, margin = generated(model, prompt, search)
            total += 1
            ties += margin < 1e-4
            lengths.add(len(wanted))
            if margin >= 1e-4:
                assert found == wanted, search
    assert ties <= total / 50
    assert len(lengths) > 5  # from no token at all to the longest


@pytest.mark.parametrize("beams", [1, 3])
@torch.inference_mode()
def test_an_answer_does_not_depend_on_the_others_in_its_batch(model, prompts, beams):
    search = search_of(num_beams=beams, repetition_penalty=1.2, length_penalty=0.0)
    together = searched(model, prompts, search)
    assert together == [searched(model, prompt[None], search)[0] for prompt in prompts]
    assert together == searched(model, prompts.flip(0), search)[::-1]


def table(probabilities: dict[str, dict[str, float]]) -> tuple[Tensor, list[str]]:
    """Logits by the last token, from probabilities by name; tokens without a name are almost impossible."""
    names = sorted(probabilities)
    logits = torch.full((len(names), len(names)), -60.0)
    for last, following in probabilities.items():
        for token, probability in following.items():
            logits[names.index(last), names.index(token)] = math.log(probability)
    return logits, names


def answers(probabilities: dict[str, dict[str, float]], **changes) -> str:
    """The answer after `^`; `.` stops."""
    logits, names = table(probabilities)
    reader = Table(logits)
    search = search_of(stops=(names.index("."),), **changes)
    seen = torch.zeros(1, len(names), dtype=torch.bool)
    seen[0, names.index("^")] = True
    [tokens] = decode(logits[[names.index("^")]], seen, reader, search)
    return "".join(names[token] for token in tokens)


GARDEN_PATH = {
    "^": {"a": 0.6, "b": 0.4},
    "a": {"c": 0.5, "d": 0.5},
    "b": {"e": 0.99, ".": 0.01},
    **{name: {".": 1.0} for name in ("c", "d", "e", ".")},
}


def test_a_beam_search_finds_what_greedy_search_misses():
    assert answers(GARDEN_PATH)[0] == "a"  # 0.6 · 0.5 = 0.3
    assert answers(GARDEN_PATH, num_beams=2, length_penalty=0.0) == "be"  # 0.4 · 0.99


SHORT_OR_LONG = {
    "^": {".": 0.4, "a": 0.6},
    "a": {"b": 0.6, "c": 0.4},
    "b": {".": 0.9, "c": 0.1},
    "c": {".": 1.0},
    ".": {".": 1.0},
}


def test_the_length_penalty_favours_longer_answers():
    # The empty answer: log 0.4 = -0.92 at length 1. "ab": log 0.324 = -1.13 at length 3.
    assert answers(SHORT_OR_LONG, num_beams=3, length_penalty=0.0) == ""
    assert answers(SHORT_OR_LONG, num_beams=3, length_penalty=1.0) == "ab"
    # -0.92 / 1 against -1.13 / 3^p: the sides change at p = log(1.13 / 0.92) / log 3 = 0.19
    assert answers(SHORT_OR_LONG, num_beams=3, length_penalty=0.15) == ""
    assert answers(SHORT_OR_LONG, num_beams=3, length_penalty=0.25) == "ab"


def test_at_the_length_limit_an_open_answer_counts_as_finished():
    endless = {"^": {"a": 1.0}, "a": {"a": 0.9, "b": 0.1}, "b": {"a": 1.0}, ".": {".": 1.0}}
    for beams in (1, 2):
        assert answers(endless, num_beams=beams, max_new_tokens=4) == "aaaa"
        assert answers(endless, num_beams=beams, max_new_tokens=1) == "a"


def test_reading_stops_when_every_answer_has_ended():
    logits, names = table(GARDEN_PATH)
    reader = Table(logits)
    decode(logits[[names.index("b")]], None, reader, search_of(stops=(names.index("."),), max_new_tokens=50))
    assert reader.steps == 1  # e, then the stop


def test_repeated_tokens_are_penalised_whatever_the_sign():
    scores = torch.tensor([[2.0, -2.0, 3.0, -3.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalised(scores, seen, 2.0).tolist() == [[1.0, -4.0, 3.0, -3.0]]
    assert penalised(scores, None, 2.0) is scores
    assert penalised(scores, seen, 1.0) is scores


def test_a_repetition_penalty_ends_a_loop():
    loop = {"^": {"a": 1.0}, "a": {"a": 0.6, "b": 0.4}, "b": {".": 1.0}, ".": {".": 1.0}}
    assert answers(loop, max_new_tokens=3) == "aaa"
    assert answers(loop, max_new_tokens=3, repetition_penalty=2.0) == "ab"  # log 0.6 · 2 < log 0.4
