"""The measurements of `icdsel bench`: rates on this machine, and the speedup over a baseline in the same run."""

import copy
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from icdsel.bench import baseline
from icdsel.bench.architectures import random_vlm
from icdsel.bench.workload import Sizes, make_requests
from icdsel.console import note, progress
from icdsel.policy.groups import Groups
from icdsel.policy.loop import make_network, train_policy
from icdsel.policy.network import CosineNetwork
from icdsel.policy.proposals import Unit, propose
from icdsel.records import Answer
from icdsel.retrieval.neighbours import nearest_rows
from icdsel.settings.loading import Settings
from icdsel.settings.tables import ProposalSettings, TrainSettings, VlmSettings
from icdsel.stages.threads import use_threads
from icdsel.store.metadata import environment
from icdsel.vlm.engine import Request
from icdsel.vlm.engines import open_engine
from icdsel.vlm.local.model import LocalModel
from icdsel.vlm.supervision import SupervisedEngine
from icdsel.vlm.time_limit import CallTimer

Figures = dict[str, float | int | None]


def bench(settings: Settings, sizes: Sizes, architecture: str | None) -> dict[str, Any]:
    """Measures `scorer`, `proposals`, `train_batch_1`, `train_batch_32` and `neighbours`; also returns the environment.

    The scorer is the automatic engine in this process; other engines are measured by `icdsel.bench.engines`.

    Each has `plain_per_second` (the baseline's rate), `per_second` and `ratio`; the scorer has further figures.

    Raises:
        VlmError: The model cannot be loaded.
    """
    use_threads(settings)
    engine = _open(settings.vlm, settings.data.max_image_pixels, architecture, settings.data.seed)
    vlm = engine.engine
    assert isinstance(vlm, LocalModel)  # other engines are measured by `bench_engines`
    device = torch.device(vlm.device)
    stages: dict[str, tuple[str, Callable[[], Figures]]] = {
        "scorer": ("the scorer", lambda: _scorer(engine, vlm, sizes, settings.data.seed)),
        "proposals": ("proposals", lambda: _proposals(sizes, settings.proposals, device)),
        "train_batch_1": ("training, batch size 1", lambda: _training(sizes, settings.train, 1, device)),
        "train_batch_32": ("training, batch size 32", lambda: _training(sizes, settings.train, 32, device)),
        "neighbours": ("neighbour searches", lambda: _neighbours(sizes, device)),
    }
    figures: dict[str, Any] = {"device": _device_name(device), "model": vlm.name, "dtype": vlm.dtype}
    with progress("Measuring", len(stages)) as advance:
        for name, (what, measure) in stages.items():
            note(f"measuring {what}")
            figures[name] = measure()
            advance(1)
    return figures | {"sizes": vars(sizes), "environment": environment(vlm.device, torch.get_num_threads())}


def _open(settings: VlmSettings, max_image_pixels: int, architecture: str | None, seed: int) -> SupervisedEngine:
    if architecture is None:
        opened = open_engine(settings, max_image_pixels)
        assert isinstance(opened, SupervisedEngine)  # workers are measured by `bench_engines`
        return opened
    vlm = random_vlm(architecture, settings, max_image_pixels, seed)
    return SupervisedEngine(vlm, CallTimer(settings.call_timeout), settings.max_failed)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)"


@contextmanager
def _clock(device: torch.device) -> Iterator[list[float]]:
    """Measures the seconds that the block takes, including the device's work; adds them to the yielded list."""
    seconds: list[float] = []
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    yield seconds
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds.append(time.perf_counter() - start)


def _figures(baseline_rate: float, rate: float, **more: float | int | None) -> Figures:
    figures = {"plain_per_second": baseline_rate, "per_second": rate, "ratio": rate / baseline_rate} | more
    return {
        name: value if value is None or isinstance(value, int) else float(f"{value:.4g}")
        for name, value in figures.items()
    }


# --- the scorer -------------------------------------------------------------------------------------------


def _scorer(engine: SupervisedEngine, vlm: LocalModel[Any], sizes: Sizes, seed: int) -> Figures:
    """Measures pointers per second.

    Args:
        engine: The engine to measure.
        vlm: Its model, which the baseline uses.
        sizes: The sizes of the workload.
        seed: Seed for drawing pointers.
    """
    device = torch.device(vlm.device)
    with tempfile.TemporaryDirectory() as folder:
        requests = make_requests(Path(folder), sizes, seed)
        for request in requests[:2]:  # warm-up: the first use selects kernels and allocates memory
            baseline.answer(vlm, request)
        engine.answer(requests[: 2 * sizes.pointers])
        chosen = random.Random(seed).sample(requests, min(sizes.plain, len(requests)))
        with _clock(device) as baseline_seconds:
            expected = [baseline.answer(vlm, request) for request in chosen]
        vlm.images.clear()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with _clock(device) as seconds:
            answers = engine.answer(requests)
        peak = _peak_memory(device)
        encoded, again = vlm.images.encoded, vlm.images.encoded_again
        vlm.images.clear()
        with FlopCounterMode(display=False) as counter:
            engine.answer(requests)
        answer_of = dict(zip(map(id, requests), answers, strict=True))
        pairs = [(answer_of[id(request)], *other) for request, other in zip(chosen, expected, strict=True)]
        same = [answer.text.strip() == text.strip() for answer, text, _ in pairs]
        differences = [
            abs(ours - theirs)
            for answer, _, scores in pairs
            for ours, theirs in zip(answer.reference_log_probs, scores, strict=True)
        ]
        rounding = _differences_to_float32(vlm, chosen, expected, [answer for answer, _, _ in pairs])
        matmul_rate = _matmul_rate(vlm)
        per_second = len(requests) / seconds[0]
        executed = counter.get_total_flops()
        return _figures(
            len(chosen) / baseline_seconds[0],
            per_second,
            tokens_per_second=sum(_tokens(vlm, request) for request in requests[:50]) / 50 * per_second,
            tflop_per_second=executed / seconds[0] / 1e12,
            matmul_tflop_per_second=matmul_rate / 1e12,
            mfu=executed / seconds[0] / matmul_rate,
            peak_memory_mib=peak,
            images_encoded=encoded,
            images_encoded_again=again,
            answers_like_plain=sum(same) / len(same),
            largest_log_prob_difference=max(differences, default=0.0),
            **rounding,
        )


def _peak_memory(device: torch.device) -> float:
    """Peak memory in MiB: of the GPU's allocator, or, on a CPU, of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _differences_to_float32(
    vlm: LocalModel[Any],
    requests: Sequence[Request],
    baseline_answers: Sequence[tuple[str, list[float]]],
    answers: Sequence[Answer],
) -> Figures:
    """How much baseline and scorer differ from a float32 baseline; empty if the model is float32.

    The figures are shares of different answers, and mean absolute differences of log-probs.
    """
    if vlm.model.dtype == torch.float32:
        return {}
    exact = type(vlm)(
        copy.deepcopy(vlm.model).float(), vlm.processor, vlm.settings, vlm.name, vlm.fingerprint, vlm.max_image_pixels
    )
    expected = [baseline.answer(exact, request) for request in requests]
    ways = {"plain_": baseline_answers, "": [(answer.text, list(answer.reference_log_probs)) for answer in answers]}
    figures: Figures = {}
    for way, found in ways.items():
        pairs = list(zip(found, expected, strict=True))
        figures[f"{way}unlike_float32"] = statistics.mean(a.strip() != b.strip() for (a, _), (b, _) in pairs)
        figures[f"{way}log_prob_difference_to_float32"] = statistics.mean(
            abs(x - y) for (_, a), (_, b) in pairs for x, y in zip(a, b, strict=True)
        )
    return figures


def _tokens(vlm: LocalModel[Any], request: Request) -> int:
    """The number of tokens of a prompt as the baseline reads it."""
    return int(baseline.inputs(vlm, request, baseline.rendered(vlm, request))["input_ids"].shape[1])


def _matmul_rate(vlm: LocalModel[Any]) -> float:
    """The rate of a large matrix product in the model's dtype, in FLOP/s."""
    device = torch.device(vlm.device)
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=vlm.model.dtype)
    a @ a
    rates = []
    for _ in range(5):
        with _clock(device) as seconds:
            for _ in range(4):
                a @ a
        rates.append(4 * 2 * size**3 / seconds[0])
    return statistics.median(rates)


# --- proposals, training, neighbours ----------------------------------------------------------------------


def _unit(rows: int, width: int, device: torch.device, seed: int) -> Tensor:
    vectors = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return normalize(vectors, dim=-1).to(device)


def _proposals(sizes: Sizes, settings: ProposalSettings, device: torch.device) -> Figures:
    """Measures queries per second with one pool.

    The baseline omits sampled and random pointers, which take the least time.
    """
    table, queries = _unit(sizes.proposal_pool, 512, device, 0), _unit(32, 512, device, 1)
    ids = [range(sizes.proposal_pool)] * len(queries)
    network = CosineNetwork(512).to(device)
    propose(Unit(queries, table[None], ids, network, settings, "warm"))
    with _clock(device) as baseline_seconds:
        baseline.beam(queries[0], table, settings.beam, settings.shots)
        baseline.retrieval(queries[0], table, settings.retrieval, settings.shots)
    rounds = 4
    with _clock(device) as seconds:
        for k in range(rounds):
            propose(Unit(queries, table[None], ids, network, settings, str(k)))
    return _figures(1 / baseline_seconds[0], rounds * len(queries) / seconds[0], pool=sizes.proposal_pool)


def _training(sizes: Sizes, settings: TrainSettings, batch_size: int, device: torch.device) -> Figures:
    """Measures queries per second in an epoch of RCE."""
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
    one_epoch = settings.model_copy(update={"batch_size": batch_size, "rce_epochs": 1, "grpo_epochs": 0})
    network = make_network(one_epoch, 512, 0).to(device)

    def train() -> None:
        validation = groups[torch.arange(2, device=device)]
        train_policy(network, table, groups, validation, one_epoch, seed=0, on_epoch=_ignore, on_step=_ignore)

    steps = min(count, 64)
    baseline.train_epoch(network, table, groups, one_epoch, 4)
    train()
    with _clock(device) as baseline_seconds:
        baseline.train_epoch(network, table, groups, one_epoch, steps)
    with _clock(device) as seconds:
        train()
    return _figures(steps / baseline_seconds[0], count / seconds[0], batch_size=batch_size)


def _ignore(_: object) -> None:
    pass


def _neighbours(sizes: Sizes, device: torch.device) -> Figures:
    """Measures queries per second for the exact 64 nearest neighbours; the baseline ranks queries one by one."""
    table, queries = _unit(sizes.neighbours, 512, device, 4), _unit(256, 512, device, 5)
    hidden: Sequence[frozenset[int]] = [frozenset()] * len(queries)
    list(nearest_rows(queries[:8], table, 64, hidden[:8]))
    with _clock(device) as baseline_seconds:
        for query in queries[:8]:
            (table @ query).argsort(descending=True)[:64].tolist()
    with _clock(device) as seconds:
        list(nearest_rows(queries, table, 64, hidden))
    return _figures(8 / baseline_seconds[0], len(queries) / seconds[0], candidates=sizes.neighbours)
