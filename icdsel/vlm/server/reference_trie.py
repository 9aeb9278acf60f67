"""Reads the log-probs of reference answers from a server that tells those of chosen tokens at each generated position.

The references of a prompt, as tokens with the end of the turn, form a trie. Its inner nodes are what stands before a
token of a reference; the tokens that follow there are the ones whose log-probs are wanted. A call continues the prompt
and a node greedily, so that it reads this node, and each further node that the generated tokens happen to pass. The
call that answers the prompt reads the root. Nodes that no call has passed yet need calls of their own, from the top:

    trie = ReferenceTrie(references)
    while calls := trie.calls():
        for call in calls:
            trie.read(call, *ask_server(call))
    trie.log_probs()
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Tokens = tuple[int, ...]
MOST_IDS = 128
"""The number of tokens whose log-probs vLLM tells in one call."""
_ROUNDING = 1e-3
"""By how much probabilities may exceed 1 in total, since servers round them."""


@dataclass(frozen=True)
class TrieCall:
    """A call that reads log-probs.

    Attributes:
        prefix: The tokens between the prompt and the first generated token.
        ids: The tokens whose log-probs are wanted at each generated position, at most `MOST_IDS`.
        length: The number of tokens to generate; further ones would read nothing.
    """

    prefix: Tokens
    ids: Tokens
    length: int


class ReferenceTrie:
    """The references of a prompt, and what is known of their log-probs.

    Args:
        references: The tokens of each reference behind the prompt, the end of the turn included.
        most_ids: The number of tokens that a call may ask for.
    """

    def __init__(self, references: Sequence[Sequence[int]], most_ids: int = MOST_IDS) -> None:
        self._references = [tuple(reference) for reference in references]
        self._most_ids = most_ids
        # Node → the tokens that follow it in some reference, without a log-prob as long as it is unknown.
        self._nodes: dict[Tokens, dict[int, float | None]] = {}
        for reference in self._references:
            for n, token in enumerate(reference):
                self._nodes.setdefault(reference[:n], {})[token] = None

    def calls(self) -> list[TrieCall]:
        """The calls that are to be made next: one for each incomplete node that is not below another one.

        Before anything has been read, it is the call that answers the prompt.
        """
        incomplete = {node for node in self._nodes if self._missing(node)}
        return [self._call(node) for node in self._nodes if node in incomplete and not _above(node, incomplete)]

    def read(self, call: TrieCall, generated: Sequence[int], log_probs: Sequence[Mapping[int, float]]) -> None:
        """Takes in what a call has returned.

        Args:
            call: The call.
            generated: The generated tokens, the end of the turn included if it was generated.
            log_probs: The log-probs (nats) of tokens at each generated position, with those of `call.ids`.

        Raises:
            ValueError: The log-probs are incomplete, or impossible.
        """
        if not generated or len(log_probs) != len(generated):
            raise ValueError(f"log-probs for {len(log_probs)} of {len(generated)} generated tokens")
        for n, told in enumerate(log_probs):
            if (known := self._nodes.get((*call.prefix, *generated[:n]))) is None:
                return
            _require_log_probs(told, call.ids)
            known |= {token: told[token] for token in call.ids if token in known and known[token] is None}

    def log_probs(self) -> tuple[float, ...]:
        """The log-prob (nats) of each reference, summed over its tokens.

        Raises:
            ValueError: Some are not known yet.
        """
        return tuple(sum(self._of_token(reference, n) for n in range(len(reference))) for reference in self._references)

    def lengths(self) -> tuple[int, ...]:
        """The number of tokens of each reference."""
        return tuple(map(len, self._references))

    def _of_token(self, reference: Tokens, n: int) -> float:
        known = self._nodes[reference[:n]][reference[n]]
        if known is None:
            raise ValueError("log-probs of references have not been read")
        return known

    def _missing(self, node: Tokens) -> list[int]:
        return [token for token, known in self._nodes[node].items() if known is None]

    def _call(self, node: Tokens) -> TrieCall:
        """The call that reads a node; what it can read of the nodes below is limited by the number of tokens."""
        ids: dict[int, None] = {}
        length = 1
        for below in self._below(node):
            missing = self._missing(below)
            ids |= dict.fromkeys(missing)
            if missing:
                length = max(length, len(below) - len(node) + 1)
        return TrieCall(node, tuple(ids)[: self._most_ids], length)

    def _below(self, node: Tokens) -> Iterator[Tokens]:
        """The node and the inner nodes below it, level by level."""
        level = [node]
        while level:
            yield from level
            level = [(*at, token) for at in level for token in self._nodes[at] if (*at, token) in self._nodes]


def _above(node: Tokens, nodes: set[Tokens]) -> bool:
    """Whether one of `nodes` is above the node."""
    return any(node[:n] in nodes for n in range(len(node)))


def _require_log_probs(told: Mapping[int, float], wanted: Sequence[int]) -> None:
    if absent := [token for token in wanted if token not in told]:
        raise ValueError(f"no log-prob of token {absent[0]}")
    if not all(map(math.isfinite, told.values())):
        raise ValueError("a log-prob is not finite")
    if (total := sum(math.exp(min(value, 1.0)) for value in told.values())) > 1 + _ROUNDING:
        raise ValueError(f"not log-probs: the probabilities of {len(told)} tokens add up to {total:.4g}")
