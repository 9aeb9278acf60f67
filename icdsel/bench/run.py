"""The measurements of `icdsel bench`: rates on this machine, and their ratios to the plain way in the same run."""

import copy
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from icdsel.bench import plain
from icdsel.bench.architectures import random_vlm
from icdsel.console import progress
from icdsel.policy.groups import Groups
from icdsel.policy.loop import make_network, train_policy
from icdsel.policy.network import CosineNetwork
from icdsel.policy.proposals import Unit, propose
from icdsel.records import Answer, Example
from icdsel.retrieval.neighbours import nearest_rows
from icdsel.settings.loading import Settings
from icdsel.settings.tables import ProposalSettings, TrainSettings
from icdsel.store.metadata import environment
from icdsel.vlm.base import Request, Vlm
from icdsel.vlm.loading import load_vlm
from icdsel.vlm.prompts import chat_messages

ANSWERS = ("doni", "gesa", "a red kite")  # references of a query
Figures = dict[str, float | int | None]


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        queries: Queries that the scorer answers.
        pointers: Pointers of each.
        shots: ICDs in a pointer.
        pool: Candidates in a query's pool.
        images: Distinct images that pools are drawn from.
        image_size: Width and height of an image.
        plain: Pointers that the plain way scores, as it is slow.
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


def bench(settings: Settings, sizes: Sizes, architecture: str | None) -> dict[str, Any]:
    """All figures: `device`, `scorer`, `proposals`, `train_batch_1`, `train_batch_32`, `neighbours`, what they ran on.

    Of each, `plain_per_second`, `per_second` and `ratio`; of the scorer more.

    Raises:
        VlmError: the model cannot be loaded.
    """
    limit = settings.data.max_image_pixels
    if architecture:
        vlm: Vlm = random_vlm(architecture, settings.vlm, limit, settings.data.seed)
    else:
        vlm = load_vlm(settings.vlm, limit)
    stages: dict[str, Callable[[], Figures]] = {
        "scorer": lambda: _scorer(vlm, sizes, settings.data.seed),
        "proposals": lambda: _proposals(sizes, settings.proposals, vlm.device),
        "train_batch_1": lambda: _training(sizes, settings.train, 1, vlm.device),
        "train_batch_32": lambda: _training(sizes, settings.train, 32, vlm.device),
        "neighbours": lambda: _neighbours(sizes, vlm.device),
    }
    figures: dict[str, Any] = {"device": _device_name(vlm.device), "model": vlm.name, "dtype": vlm.dtype}
    with progress("Measuring", len(stages)) as advance:
        for name, measure in stages.items():
            figures[name] = measure()
            advance(1)
    return figures | {"sizes": vars(sizes), "environment": environment(str(vlm.device))}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)"


@contextmanager
def _clock(device: torch.device) -> Iterator[list[float]]:
    """Gives a list that holds the seconds once the block has ended, the device's work included."""
    took: list[float] = []
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    yield took
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    took.append(time.perf_counter() - start)


def _figures(plain_rate: float, rate: float, **more: float | int | None) -> Figures:
    shown = {"plain_per_second": plain_rate, "per_second": rate, "ratio": rate / plain_rate} | more
    return {
        name: value if value is None or isinstance(value, int) else float(f"{value:.4g}")
        for name, value in shown.items()
    }


# --- the scorer -------------------------------------------------------------------------------------------


def _scorer(vlm: Vlm, sizes: Sizes, seed: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        requests = _requests(Path(folder), sizes, seed)
        for request in requests[:2]:  # kernels are chosen and memory is taken at the first use
            plain.answer(vlm, request)
        vlm.answer(requests[: 2 * sizes.pointers])
        chosen = random.Random(seed).sample(requests, min(sizes.plain, len(requests)))
        with _clock(vlm.device) as plain_took:
            expected = [plain.answer(vlm, request) for request in chosen]
        vlm.images.clear()
        if vlm.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(vlm.device)
        with _clock(vlm.device) as took:
            answers = vlm.answer(requests)
        peak = _peak_memory(vlm.device)
        encoded, again = vlm.images.encoded, vlm.images.encoded_again
        vlm.images.clear()
        with FlopCounterMode(display=False) as counter:
            vlm.answer(requests)
        found = dict(zip(map(id, requests), answers, strict=True))
        pairs = [(found[id(request)], *said) for request, said in zip(chosen, expected, strict=True)]
        same = [answer.text.strip() == text.strip() for answer, text, _ in pairs]
        apart = [
            abs(ours - theirs)
            for answer, _, scores in pairs
            for ours, theirs in zip(answer.reference_log_probs, scores, strict=True)
        ]
        other = _apart_from_float32(vlm, chosen, expected, [answer for answer, _, _ in pairs])
        peak_rate = _matmul_rate(vlm)
        per_second = len(requests) / took[0]
        executed = counter.get_total_flops()
        return _figures(
            len(chosen) / plain_took[0],
            per_second,
            tokens_per_second=sum(_tokens(vlm, request) for request in requests[:50]) / 50 * per_second,
            tflop_per_second=executed / took[0] / 1e12,
            matmul_tflop_per_second=peak_rate / 1e12,
            mfu=executed / took[0] / peak_rate,
            peak_memory_mib=peak,
            images_encoded=encoded,
            images_encoded_again=again,
            answers_like_plain=sum(same) / len(same),
            largest_log_prob_difference=max(apart, default=0.0),
            **other,
        )


def _peak_memory(device: torch.device) -> float:
    """In MiB: what the device's allocator held at most, or on a CPU the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _apart_from_float32(
    vlm: Vlm, requests: Sequence[Request], plain_said: Sequence[tuple[str, list[float]]], said: Sequence[Answer]
) -> Figures:
    """How far the plain way and the scorer are from the plain way in float32; nothing where the model is float32.

    Shares of other answers, and mean absolute differences of log-probs.
    """
    if vlm.model.dtype == torch.float32:
        return {}
    exact = type(vlm)(
        copy.deepcopy(vlm.model).float(), vlm.processor, vlm.settings, vlm.name, vlm.fingerprint, vlm.max_image_pixels
    )
    wanted = [plain.answer(exact, request) for request in requests]
    ways = {"plain_": plain_said, "": [(answer.text, list(answer.reference_log_probs)) for answer in said]}
    figures: Figures = {}
    for way, found in ways.items():
        pairs = list(zip(found, wanted, strict=True))
        figures[f"{way}unlike_float32"] = statistics.mean(a.strip() != b.strip() for (a, _), (b, _) in pairs)
        figures[f"{way}log_prob_difference_to_float32"] = statistics.mean(
            abs(x - y) for (_, a), (_, b) in pairs for x, y in zip(a, b, strict=True)
        )
    return figures


def _requests(folder: Path, sizes: Sizes, seed: int) -> list[Request]:
    """Pointers of random ICDs over pools of made pictures."""
    rng = random.Random(seed)
    width, height = sizes.image_size
    examples = []
    for i in range(sizes.images + sizes.queries):
        path = folder / f"{i}.jpg"
        coarse = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
        question = f"Which code does the {('shape', 'colour')[i % 2]} have?"
        examples.append(Example(i, i, path, question, ANSWERS[i % 2], ANSWERS))
    candidates, queries = examples[: sizes.images], examples[sizes.images :]
    requests = []
    for query in queries:
        pool = rng.sample(candidates, min(sizes.pool, len(candidates)))
        requests += [Request(tuple(rng.sample(pool, sizes.shots)), query, ANSWERS) for _ in range(sizes.pointers)]
    return requests


def _tokens(vlm: Vlm, request: Request) -> int:
    """Of a prompt as the plain way reads it."""
    text = vlm.processor.apply_chat_template(
        chat_messages(request.icds, request.query, vlm.style), tokenize=False, add_generation_prompt=True
    )
    return int(plain.inputs(vlm, request, text)["input_ids"].shape[1])


def _matmul_rate(vlm: Vlm) -> float:
    """What a large matrix product reaches in the model's arithmetic, in FLOP/s."""
    size = 8192 if vlm.device.type == "cuda" else 2048
    a = torch.randn(size, size, device=vlm.device, dtype=vlm.model.dtype)
    a @ a
    rates = []
    for _ in range(5):
        with _clock(vlm.device) as took:
            for _ in range(4):
                a @ a
        rates.append(4 * 2 * size**3 / took[0])
    return statistics.median(rates)


# --- proposals, training, neighbours ----------------------------------------------------------------------


def _unit(rows: int, width: int, device: torch.device, seed: int) -> Tensor:
    made = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return normalize(made, dim=-1).to(device)


def _proposals(sizes: Sizes, settings: ProposalSettings, device: torch.device) -> Figures:
    """Queries per second over one pool; the plain way leaves out samples and random pointers, the least of its work."""
    table, queries = _unit(sizes.proposal_pool, 512, device, 0), _unit(32, 512, device, 1)
    ids = [range(sizes.proposal_pool)] * len(queries)
    network = CosineNetwork(512).to(device)
    propose(Unit(queries, table[None], ids, network, settings, "warm"))
    with _clock(device) as plain_took:
        plain.beam(queries[0], table, settings.beam, settings.shots)
        plain.retrieval(queries[0], table, settings.retrieval, settings.shots)
    rounds = 4
    with _clock(device) as took:
        for k in range(rounds):
            propose(Unit(queries, table[None], ids, network, settings, str(k)))
    return _figures(1 / plain_took[0], rounds * len(queries) / took[0], pool=sizes.proposal_pool)


def _training(sizes: Sizes, settings: TrainSettings, batch_size: int, device: torch.device) -> Figures:
    """Queries per second of an epoch of RCE, validation left out on both sides."""
    count, pool, pointers = sizes.train_queries, 64, 15
    table = _unit(4000, 512, device, 2)
    generator = torch.Generator().manual_seed(3)
    groups = Groups(
        query=torch.randint(4000, (count,), generator=generator),
        pool=torch.stack([torch.randperm(4000, generator=generator)[:pool] for _ in range(count)]),
        mask=torch.ones(count, pool, dtype=torch.bool),
        pointers=torch.stack([torch.randperm(pool, generator=generator)[:30].view(15, 2) for _ in range(count)]),
        raw=torch.rand(count, pointers, generator=generator),
        normalized=torch.randn(count, pointers, generator=generator),
    ).to(device)
    told = settings.model_copy(update={"batch_size": batch_size, "rce_epochs": 1, "grpo_epochs": 0})
    network = make_network(told, 512, 0).to(device)

    def train() -> None:
        nothing = groups[torch.arange(2, device=device)]
        train_policy(network, table, groups, nothing, told, seed=0, on_epoch=_ignore, on_step=_ignore)

    steps = min(count, 64)
    plain.train_epoch(network, table, groups, told, 4)
    train()
    with _clock(device) as plain_took:
        plain.train_epoch(network, table, groups, told, steps)
    with _clock(device) as took:
        train()
    return _figures(steps / plain_took[0], count / took[0], batch_size=batch_size)


def _ignore(_: object) -> None:
    pass


def _neighbours(sizes: Sizes, device: torch.device) -> Figures:
    """Queries per second of the exact 64 nearest neighbours; the plain way ranks one query after the other."""
    table, queries = _unit(sizes.neighbours, 512, device, 4), _unit(256, 512, device, 5)
    hidden: Sequence[frozenset[int]] = [frozenset()] * len(queries)
    list(nearest_rows(queries[:8], table, 64, hidden[:8]))
    with _clock(device) as plain_took:
        for query in queries[:8]:
            (table @ query).argsort(descending=True)[:64].tolist()
    with _clock(device) as took:
        list(nearest_rows(queries, table, 64, hidden))
    return _figures(8 / plain_took[0], len(queries) / took[0], candidates=sizes.neighbours)
