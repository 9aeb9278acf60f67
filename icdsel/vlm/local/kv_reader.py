"""A KV cache of token rows that a language model has read, from which reading can continue.

Positions and masks are explicit, and the model itself keeps no state between calls.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from itertools import islice
from typing import Any, Self

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_ATTENTION = "sdpa"
Scores = tuple[tuple[float, ...], tuple[int, ...]]
"""Log-probs (nats) and numbers of tokens of a row's references."""


def attends_to_all(model: Any) -> bool:
    """Whether every layer of a model's language model attends to all earlier tokens, not to a window of them."""
    layers = DynamicCache(config=model.config.get_text_config()).layers
    return all(type(layer) is DynamicLayer for layer in layers)


@dataclass(frozen=True)
class Decoder:
    """The language model of a vision-language model, in parts.

    Attributes:
        model: The text model without its head: it takes `inputs_embeds`, `position_ids`, `attention_mask` and a cache.
        embed: The embeddings (…, d) of tokens (…).
        head: The logits (…, V) of hidden states (…, d).
        axes: How many numbers are the position of a token: 1, or 3 for M-RoPE (time, row, column).
    """

    model: Any
    embed: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]
    axes: int = 1

    @classmethod
    def of(cls, model: Any, axes: int) -> Self:
        """The language model of a model of transformers, whose attention becomes PyTorch's if it is another.

        Others misread the mask with which `KvReader.score` reads references side by side, without an error.
        """
        decoder = model.get_decoder()
        if decoder.config._attn_implementation != _ATTENTION:
            decoder.set_attn_implementation(_ATTENTION)
        return cls(decoder, model.get_input_embeddings(), model.get_output_embeddings(), axes)

    @property
    def cache_argument(self) -> str:
        """The name of the argument for the KV cache: `cache` since transformers 5.24."""
        return "cache" if "cache" in signature(type(self.model).forward).parameters else "past_key_values"


class KvReader:
    """R rows of tokens that have been read: keys and values, which of them are visible, and the next position.

    Args:
        decoder: The language model; every layer must attend to all earlier tokens.
        rows: The number of rows; they start empty.
    """

    def __init__(self, decoder: Decoder, rows: int) -> None:
        self._decoder, device = decoder, decoder.model.device
        self._cache = DynamicCache(config=decoder.model.config.get_text_config())
        self._visible = torch.zeros(rows, 0, dtype=torch.bool, device=device)  # (R, L)
        self.position = torch.zeros(rows, dtype=torch.long, device=device)  # (R,)

    def taken(self, rows: Sequence[int]) -> Self:
        """Creates a new reader that continues from `rows`; each row may occur any number of times."""
        index = torch.tensor(rows, device=self.position.device)
        copy = type(self)(self._decoder, len(rows))
        for number, layer in enumerate(self._cache.layers):
            if layer.is_initialized:
                copy._cache.update(layer.keys[index], layer.values[index], number)
        copy._visible, copy.position = self._visible[index], self.position[index]
        return copy

    def select(self, rows: Tensor) -> None:
        """Continue with `rows` (R',) only."""
        self._cache.batch_select_indices(rows)
        self._visible, self.position = self._visible[rows], self.position[rows]

    def read(self, embeds: Tensor, positions: Tensor, own: Tensor, extents: Tensor, **more: Any) -> Tensor:
        """Read one block of tokens in each row; padding may be anywhere.

        Args:
            embeds: (R, L, d).
            positions: Positions of the tokens, relative to the block's start, (axes, R, L).
            own: True for tokens, False for padding, (R, L).
            extents: By how much each block advances the next position, (R,).
            more: Further inputs of the language model.

        Returns:
            The last hidden states, (R, L, d).
        """
        self._visible = torch.cat([self._visible, own], 1)
        hidden = self._forward(embeds, positions + self.position[:, None], self._visible.long(), **more)
        self.position = self.position + extents
        return hidden

    def _forward(self, embeds: Tensor, positions: Tensor, mask: Tensor, **more: Any) -> Tensor:
        """Adds a block with positions (axes, R, L) to the cache, and returns its last hidden states (R, L, d)."""
        places = positions[0] if self._decoder.axes == 1 else positions
        inputs = {"inputs_embeds": embeds, "position_ids": places, "attention_mask": mask, **more}
        inputs[self._decoder.cache_argument] = self._cache
        hidden: Tensor = self._decoder.model(**inputs, use_cache=True).last_hidden_state
        return hidden

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token (R,) in each row; return the logits (R, V) of the next one, float32."""
        embeds, ones = self._decoder.embed(tokens[:, None]), torch.ones_like(tokens)
        starts = torch.zeros_like(tokens)[None, :, None].expand(self._decoder.axes, -1, -1)
        return self.logits(self.read(embeds, starts, ones[:, None] > 0, ones)[:, -1])

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (…, V) of the token after `hidden` (…, d), float32."""
        return self._decoder.head(hidden).float()

    def score(self, references: Sequence[Sequence[Sequence[int]]], logits: Tensor) -> list[Scores]:
        """Computes the log-probs of each row's references, and their numbers of tokens.

        All references of a row are read in one pass, side by side: each attends only to the row and to itself. Tokens
        that are read later do not attend to them.

        Args:
            references: The references of each row, as tokens. Their last token, the end of the turn, is predicted but
                not read.
            logits: Those of the first token after each row, (R, V).
        """
        if not any(references):
            return [((), ()) for _ in references]
        first = logits.log_softmax(-1)
        width = max((sum(len(ref) - 1 for ref in row) for row in references), default=0)
        later: list[float] = []
        if width:
            hidden = self._read_references(references, width)  # (R, M, d)
            # Logits are computed only where a token is predicted: one position before the token.
            rows = [r for r, row in enumerate(references) for ref in row for _ in ref[1:]]
            places = [m for row in references for m in range(sum(len(ref) - 1 for ref in row))]
            wanted = torch.tensor([token for row in references for ref in row for token in ref[1:]])
            log_probs = self.logits(hidden[rows, places]).log_softmax(-1)
            later = log_probs.gather(1, wanted.to(log_probs.device)[:, None])[:, 0].tolist()
        owners = [r for r, row in enumerate(references) for _ in row]
        firsts = iter(first[owners, [ref[0] for row in references for ref in row]].tolist())
        others = iter(later)
        return [
            (tuple(next(firsts) + sum(islice(others, len(ref) - 1)) for ref in row), tuple(map(len, row)))
            for row in references
        ]

    def _read_references(self, references: Sequence[Sequence[Sequence[int]]], width: int) -> Tensor:
        count, device = len(references), self.position.device
        ids = torch.zeros(count, width, dtype=torch.long)
        own = torch.eye(width, dtype=torch.bool).repeat(count, 1, 1)  # (R, M, M)
        offsets = torch.zeros(count, width, dtype=torch.long)
        for r, row in enumerate(references):
            start = 0
            for ref in row:
                n = len(ref) - 1
                ids[r, start : start + n] = torch.tensor(ref[:-1])
                own[r, start : start + n, start : start + n] = torch.ones(n, n, dtype=torch.bool).tril()
                offsets[r, start : start + n] = torch.arange(n)
                start += n
        mask = torch.cat([self._visible[:, None].expand(-1, width, -1), own.to(device)], 2)[:, None]  # (R, 1, M, L+M)
        embeds = self._decoder.embed(ids.to(device))  # (R, M, d)
        places = (self.position[:, None] + offsets.to(device)).expand(self._decoder.axes, -1, -1)
        hidden = self._forward(embeds, places, mask)
        self._visible = torch.cat([self._visible, self._visible.new_zeros(count, width)], 1)
        return hidden
