"""Log-probs of references from calls along their trie, against a made-up model that is asked for every token."""

import math

import numpy as np
import pytest

from icdsel.vlm.server.reference_trie import MOST_IDS, ReferenceTrie, TrieCall

STOP = 0


class MadeUpModel:
    """Draws the logits of the next token from a generator that the tokens before seed."""

    def __init__(self, vocabulary: int, seed: int) -> None:
        self.vocabulary, self.seed = vocabulary, seed
        self.asked: list[TrieCall] = []

    def log_probs(self, before: tuple[int, ...]) -> np.ndarray:
        logits = np.random.default_rng([self.seed, len(before), *before]).normal(scale=3, size=self.vocabulary)
        return logits - np.log(np.exp(logits).sum())

    def reference(self, tokens: tuple[int, ...]) -> float:
        return float(sum(self.log_probs(tokens[:n])[token] for n, token in enumerate(tokens)))

    def answer(self, call: TrieCall) -> tuple[list[int], list[dict[int, float]]]:
        """Continues greedily, as a server does: it also tells the log-prob of the generated token itself."""
        self.asked.append(call)
        generated: list[int] = []
        told: list[dict[int, float]] = []
        while len(generated) < call.length and STOP not in generated:
            log_probs = self.log_probs((*call.prefix, *generated))
            generated.append(int(log_probs.argmax()))
            told.append({token: float(log_probs[token]) for token in (generated[-1], *call.ids)})
        return generated, told


def read_all(trie: ReferenceTrie, model: MadeUpModel) -> int:
    """Makes all calls; returns the number of rounds."""
    rounds = 0
    while calls := trie.calls():
        rounds += 1
        for call in calls:
            trie.read(call, *model.answer(call))
    return rounds


def random_references(rng: np.random.Generator, vocabulary: int) -> list[tuple[int, ...]]:
    """References that share beginnings; some are equal, some begin others, one may be empty but for the stop."""
    drawn: list[tuple[int, ...]] = []
    for _ in range(rng.integers(1, 12)):
        begin = drawn[rng.integers(len(drawn))] if drawn and rng.random() < 0.6 else ()
        begin = begin[: rng.integers(len(begin) + 1)] if rng.random() < 0.5 else begin
        drawn.append((*begin, *map(int, rng.integers(1, vocabulary, rng.integers(0, 4)))))
    return [(*tokens, STOP) for tokens in drawn]


@pytest.mark.parametrize("seed", range(30))
def test_log_probs_equal_those_of_a_model_that_is_asked_for_every_token(seed):
    rng = np.random.default_rng(seed)
    model = MadeUpModel(int(rng.integers(2, 12)), seed)
    references = random_references(rng, model.vocabulary)
    most_ids = int(rng.integers(1, 6))
    trie = ReferenceTrie(references, most_ids)
    read_all(trie, model)
    assert trie.log_probs() == pytest.approx([model.reference(each) for each in references], abs=1e-9)
    assert trie.lengths() == tuple(map(len, references))
    assert all(0 < len(call.ids) <= most_ids and len(set(call.ids)) == len(call.ids) for call in model.asked)
    nodes = {each[:n] for each in references for n in range(len(each))}
    assert {call.prefix for call in model.asked} <= nodes


def greedy(model: MadeUpModel, length: int, prefix: tuple[int, ...] = ()) -> tuple[int, ...]:
    return (*prefix, *model.answer(TrieCall(prefix, (), length))[0])


def test_references_on_the_greedy_path_are_read_by_the_answer_alone():
    model = MadeUpModel(50, 5)
    path = tuple(token for token in greedy(model, 5) if token != STOP)
    references = [(*path, STOP), (*path[:2], 7, STOP), (*path[:1], STOP)]
    trie, model.asked = ReferenceTrie(references), []
    (call,) = trie.calls()
    assert call.prefix == () and call.length == len(path) + 1
    trie.read(call, *model.answer(call))
    assert [each.prefix for each in trie.calls()] == [(*path[:2], 7)]  # what follows a token that was not generated


def test_an_inner_node_is_read_on_to_where_its_references_end():
    model = MadeUpModel(50, 11)
    other = next(token for token in range(1, 50) if token != greedy(model, 1)[0])
    tail = greedy(model, 3, (other,))
    assert STOP not in tail
    trie, model.asked = ReferenceTrie([(*tail, STOP)]), []
    assert read_all(trie, model) == 2  # the answer, then one call that follows `other` to the end
    assert [call.prefix for call in model.asked] == [(), (other,)]


def test_equal_and_single_token_references_cost_no_further_call():
    model = MadeUpModel(9, 0)
    trie = ReferenceTrie([(STOP,), (STOP,)])
    assert read_all(trie, model) == 1
    assert trie.log_probs() == pytest.approx([model.reference((STOP,))] * 2)


def test_no_call_asks_for_more_tokens_than_a_server_tells():
    model = MadeUpModel(900, 2)
    references = [(token, STOP) for token in range(1, 400)]
    trie = ReferenceTrie(references)
    read_all(trie, model)
    assert max(len(call.ids) for call in model.asked) == MOST_IDS
    assert trie.log_probs() == pytest.approx([model.reference(each) for each in references])
    assert len([call for call in model.asked if call.prefix == ()]) == math.ceil(400 / MOST_IDS)


@pytest.mark.parametrize(
    ("generated", "told", "reason"),
    [
        ([], [], "0 of 0"),
        ([3], [], "0 of 1"),
        ([3], [{3: -0.1}], "no log-prob of token"),
        ([3], [{3: -0.1, 4: -math.inf, STOP: -9.0}], "not finite"),
        ([3], [{3: -0.1, 4: math.nan, STOP: -9.0}], "not finite"),
        ([3], [{3: 21.5, 4: 3.0, STOP: -9.0}], "not log-probs"),
        ([3], [{3: -0.1, 4: -0.2, STOP: -9.0}], "not log-probs"),
    ],
)
def test_impossible_log_probs_are_refused(generated, told, reason):
    trie = ReferenceTrie([(3, STOP), (4, STOP)])
    (call,) = trie.calls()
    with pytest.raises(ValueError, match=reason):
        trie.read(call, generated, told)
    with pytest.raises(ValueError, match="not been read"):
        trie.log_probs()


def test_an_answer_that_stops_early_leaves_the_rest_to_further_calls():
    trie = ReferenceTrie([(3, 4, STOP)])
    (call,) = trie.calls()
    trie.read(call, [3], [{3: -0.1, 4: -5.0, STOP: -9.0}])  # cut after one token
    assert [(each.prefix, each.length) for each in trie.calls()] == [((3,), 2)]
