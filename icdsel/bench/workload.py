"""What `icdsel bench` measures with: sizes, and prompts about generated pictures."""

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import randbits

import numpy as np
from PIL import Image

from icdsel.records import Example
from icdsel.vlm.engine import Request

ANSWERS = ("doni", "gesa", "a red kite")  # references of a query


@dataclass(frozen=True)
class Sizes:
    """The sizes of the measured workloads.

    Attributes:
        queries: Queries that the scorer answers.
        pointers: Pointers per query.
        shots: ICDs per pointer.
        pool: Candidates in a query's pool.
        images: Distinct images that pools are drawn from.
        image_size: Width and height of an image.
        plain: Pointers that the baseline scores; fewer, because it is slow.
        proposal_pool: Candidates that proposals choose from.
        neighbours: Training examples that are searched for nearest neighbours.
        train_queries: Queries of an epoch of training.
    """

    queries: int
    pointers: int
    shots: int
    pool: int
    images: int
    image_size: tuple[int, int]
    plain: int
    proposal_pool: int
    neighbours: int
    train_queries: int


def make_requests(folder: Path, sizes: Sizes, seed: int, pictures: Sequence[int] = ()) -> list[Request]:
    """Creates requests with random ICDs from pools of generated pictures; those of a query are adjacent.

    Args:
        folder: Where the pictures are written; it must exist.
        sizes: How many queries and pointers, and of what.
        seed: Seed for drawing pools and pointers.
        pictures: Seed of the pictures, beside the number of each.
    """
    rng = random.Random(seed)
    examples = []
    for i in range(sizes.images + sizes.queries):
        question = f"Which code does the {('shape', 'colour')[i % 2]} have?"
        examples.append(Example(i, i, folder / f"{i}.jpg", question, ANSWERS[i % 2], ANSWERS))
    candidates, queries = examples[: sizes.images], examples[sizes.images :]
    requests = []
    for query in queries:
        pool = rng.sample(candidates, min(sizes.pool, len(candidates)))
        requests += [Request(tuple(rng.sample(pool, sizes.shots)), query, ANSWERS) for _ in range(sizes.pointers)]
    for number in {example.question_id for request in requests for example in request.shown}:
        coarse = np.random.default_rng([int(number), *pictures]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize(sizes.image_size, Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.jpg", quality=90)
    return requests


@dataclass(frozen=True)
class Prompts:
    """Prompts that no cache knows.

    Attributes:
        units: The prompts as stages ask them: each list has those of several queries.
        chosen: The positions of the prompts that the plain way answers.
    """

    units: Sequence[Sequence[Request]]
    chosen: Sequence[int]


class Supply:
    """Makes prompts with new pictures.

    Args:
        sizes: The prompts of a round.
        seed: Seed of everything.
        lasting: Whether something outlasts this command with its caches, so that other commands need other pictures.
    """

    def __init__(self, sizes: Sizes, seed: int, lasting: bool) -> None:
        self._sizes, self._seed, self._made = sizes, seed, 0
        self._pictures = [randbits(64)] if lasting else [seed]

    @contextmanager
    def prompts(self, queries: int, unit: int, references: bool) -> Iterator[Prompts]:
        """Prompts for so many queries in units of some, with references or without; their pictures last as the block.

        A seed and the number of prompts that were made before decide which they are.
        """
        self._made += 1
        with tempfile.TemporaryDirectory() as folder:
            sizes, seed = replace(self._sizes, queries=queries), self._seed + self._made
            requests = make_requests(Path(folder), sizes, seed, (self._made, *self._pictures))
            if not references:
                requests = [replace(request, references=()) for request in requests]
            chosen = random.Random(seed).sample(range(len(requests)), min(sizes.plain, len(requests)))
            length = unit * sizes.pointers
            yield Prompts([requests[at : at + length] for at in range(0, len(requests), length)], chosen)
