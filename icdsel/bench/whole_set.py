"""The measurement of `icdsel bench --whole-set N`: a policy chooses from N candidates, as before and as it does now."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from icdsel.bench import baseline
from icdsel.console import note, progress
from icdsel.policy.loop import make_network
from icdsel.policy.network import PointerNetwork
from icdsel.policy.shared_pool import QUERIES
from icdsel.settings.loading import Settings
from icdsel.settings.presets import GATED
from icdsel.settings.tables import TrainSettings
from icdsel.stages.threads import use_threads
from icdsel.store.metadata import environment

WIDTH = 512
"""Width of the embeddings, that of CLIP ViT-B/32."""
SHOTS = 2
DEFAULT = "default"
NETWORKS = {
    DEFAULT: (TrainSettings(), WIDTH),
    "no-layers": (TrainSettings(num_layers=0), WIDTH),
    "whole-set": (TrainSettings(**GATED), 2 * WIDTH),
}
"""The training settings of the networks and the width of their embeddings: the default, the same without
cross-attention, and that of the preset `whole-set`, whose embeddings hold image and question beside each other."""
BASELINE_QUERIES = 32
"""Queries for which the baseline encodes the candidates: those of a unit of proposals."""
HIDDEN = 3
"""Candidates that a query may not choose, as examples of its own image."""

_T = TypeVar("_T")


def bench_whole_set(settings: Settings, size: int) -> dict[str, Any]:
    """Measures for how many queries per second policies choose on the CPU: those of `networks`.

    Candidates and queries are random unit vectors. The two ways take turns: now, before, now.

    Args:
        settings: Seed and threads.
        size: The number of candidates, N.

    Returns:
        For each network: `plain_per_second`, `per_second` and their `ratio`; `ratio_to_default`, to the baseline of
        the default network; `encode_seconds`, once for all queries; `encoded_mib`, the size of what is kept;
        `plain_peak_mib` and `peak_mib`, the peak memory of the process, of which `table_mib` are the embeddings; and
        `choices_like_plain`, the share of the choices that are equal.
    """
    use_threads(settings)
    seed = settings.data.seed
    mask = _mask(2 * QUERIES, size, seed)
    figures: dict[str, Any] = {"candidates": size}
    with progress("Measuring", len(NETWORKS)) as advance:
        for name, (train, width) in NETWORKS.items():
            note(f"measuring the network {name}")
            table, query = _unit(size, width, seed), _unit(2 * QUERIES, width, seed + 1)
            measured = _measured(_network(train, width, seed), query, table, mask)
            default = figures.get(DEFAULT, measured)["plain_per_second"]
            ratio = float(f"{measured['per_second'] / default:.4g}")
            figures[name] = measured | {"table_mib": table.nbytes / 2**20, "ratio_to_default": ratio}
            advance(1)
    return figures | {"environment": environment("cpu", torch.get_num_threads())}


def _measured(network: PointerNetwork, query: Tensor, table: Tensor, mask: Tensor) -> dict[str, float]:
    few = slice(0, BASELINE_QUERIES)
    small = table[: 4 * len(query)]  # the first use selects kernels
    network.choose(query, small, SHOTS)
    baseline.choose(network, query[few], small, SHOTS, None)
    with _peak() as peak:
        encode_seconds, pool = _timed(lambda: network.encode_candidates(table))
        first, chosen = _timed(lambda: network.choose(query, pool, SHOTS, mask).positions)
    with _peak() as plain_peak:
        plain_seconds, expected = _timed(lambda: baseline.choose(network, query[few], table, SHOTS, mask[few]))
    again, _ = _timed(lambda: network.choose(query, pool, SHOTS, mask))
    plain, now = len(expected) / plain_seconds, 2 * len(query) / (first + again)
    figures = {
        "plain_per_second": plain,
        "per_second": now,
        "ratio": now / plain,
        "encode_seconds": encode_seconds,
        "encoded_mib": sum(tensor.nbytes for tensor in pool) / 2**20,
        "plain_peak_mib": plain_peak[0],
        "peak_mib": peak[0],
        "choices_like_plain": float((chosen[few] == expected).all(1).double().mean()),
    }
    return {name: float(f"{value:.4g}") for name, value in figures.items()}


def _timed(work: Callable[[], _T]) -> tuple[float, _T]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


@contextmanager
def _peak() -> Iterator[list[float]]:
    """Measures the peak memory of the process inside the block in MiB; where that is not possible, since its start."""
    peak: list[float] = []
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    can_reset = clear.exists()
    if can_reset:
        clear.write_text("5")  # resets the peak, see man 5 proc
    yield peak
    if can_reset:
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        peak.append(int(line.split()[1]) / 2**10)
    else:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak.append(most / (2**20 if sys.platform == "darwin" else 2**10))


def _network(settings: TrainSettings, width: int, seed: int) -> PointerNetwork:
    network = make_network(settings, width, seed).eval()
    for module in network.tower.modules():
        if isinstance(module, nn.Linear):  # a new network's encoder adds nothing
            nn.init.normal_(module.weight, std=0.02)
    return network


def _unit(rows: int, width: int, seed: int) -> Tensor:
    return normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def _mask(rows: int, size: int, seed: int) -> Tensor:
    mask = torch.ones(rows, size, dtype=torch.bool)
    hidden = torch.randint(size, (rows, HIDDEN), generator=torch.Generator().manual_seed(seed))
    return mask.scatter_(1, hidden, False)
