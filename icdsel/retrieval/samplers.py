"""Samplers: how the candidates of a query are drawn from the training split. Does not import torch."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from icdsel.registry import Registry

Kind = Literal["image", "question", "both"]
"""What similarity is measured on."""


class Draws(Protocol):
    """The draws that samplers combine: for each query, in order, rows of the training split that may be candidates."""

    def random(self, count: int) -> Iterable[list[int]]:
        """`count` different rows, drawn uniformly."""

    def nearest(self, kind: Kind, count: int) -> Iterable[list[int]]:
        """The `count` most similar rows, best first."""


Sample = Callable[[Draws, int], Iterable[list[int]]]
"""Returns the pool of each query from draws and the pool size."""


@dataclass(frozen=True)
class Sampler:
    """A way to draw pools.

    Attributes:
        name: The name that users type.
        pools: Returns pools of the given number of distinct rows.
        needs_embeddings: Whether it calls `Draws.nearest`, so that results depend on the sampler's encoder.
        lever_plus_pools: Replaces `pools` under Lever-Plus's rules (`--pool-rules lever-plus`), if these combine draws
            differently. Such a pool may contain repeated rows and the query; these are removed afterwards.
    """

    name: str
    pools: Sample
    needs_embeddings: bool = True
    lever_plus_pools: Sample | None = None


def _random(draws: Draws, size: int) -> Iterable[list[int]]:
    return draws.random(size)


def _by_question(draws: Draws, size: int) -> Iterable[list[int]]:
    return draws.nearest("question", size)


def _by_image(draws: Draws, size: int) -> Iterable[list[int]]:
    return draws.nearest("image", size)


def _mixed(draws: Draws, size: int) -> Iterator[list[int]]:
    """Half at random, a quarter by image, the rest by question; each part takes the best rows not yet in the pool."""
    parts = draws.random(size // 2), draws.nearest("image", size), draws.nearest("question", size)
    for pool, by_image, by_question in zip(*parts, strict=True):
        pool += [row for row in by_image if row not in pool][: size // 4]
        pool += [row for row in by_question if row not in pool][: size - len(pool)]
        yield pool


def _mixed_as_lever_plus(draws: Draws, size: int) -> Iterator[list[int]]:
    """Half at random, then by image, then a quarter by question: 32, 16 and 16 of 64. Rows may repeat."""
    # Lever-Plus's ratios are random 0.5, text 0.25, image 0.25, in this order; rounding is made up in the last part.
    drawn, by_question = size // 2, size // 4
    parts = (
        draws.random(drawn),
        draws.nearest("image", size - drawn - by_question),
        draws.nearest("question", by_question),
    )
    for rows in zip(*parts, strict=True):
        yield [row for part in rows for row in part]


SAMPLERS = Registry(
    "sampler",
    (
        Sampler("rand", _random, needs_embeddings=False),
        Sampler("text-sim", _by_question),
        Sampler("img-sim", _by_image),
        Sampler("mix", _mixed, lever_plus_pools=_mixed_as_lever_plus),
    ),
)
"""The samplers, by the name that `--sampler` takes.

To add one, write a file such as `my_sampler.py`, and run `python my_sampler.py gen-rl-data --sampler near-and-far`:

    from icdsel.__main__ import main
    from icdsel.retrieval.samplers import SAMPLERS, Sampler

    def near_and_far(draws, size):
        for near, far in zip(draws.nearest("both", size), draws.random(size), strict=True):
            yield list(dict.fromkeys(near[: size // 2] + far))[:size]

    SAMPLERS.add(Sampler("near-and-far", near_and_far))
    if __name__ == "__main__":
        main()

* The function yields one pool per query: `size` distinct rows of the training split. Draws never contain excluded rows:
  the query itself, examples of its image (unless the setting allows them), unreadable images.
* The order of rows matters: it is the order of `candidate_pool_ids` in the RL data, and breaks ties between equal
  similarities.
* With `needs_embeddings=False` it may call only `draws.random`; `draws.nearest` raises a ValueError.
* A name consists of lower-case words joined by dashes. Files are named after it: the RL data of `near-and-far` is
  `rl_data_NearAndFarSampler_<Model>.jsonl`.
"""
