"""Encoded candidates are computed once for a policy and its embeddings, whichever process asks for them."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from icdsel.artefacts import encoded_candidates as module
from icdsel.artefacts.encoded_candidates import encoded_candidates
from icdsel.policy.config import PointerConfig
from icdsel.policy.encoding import EncodedCandidates
from icdsel.policy.network import CosineNetwork, PointerNetwork


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST", 20)


class Counting(PointerNetwork):
    """A network that counts what it encodes."""

    encoded = 0

    def encode_candidates(self, candidates: Tensor) -> EncodedCandidates:
        self.encoded += len(candidates)
        return super().encode_candidates(candidates)


def network(seed: int = 0, layers: int = 1) -> Counting:
    torch.manual_seed(seed)
    return Counting(PointerConfig(6, 8, num_layers=layers, num_heads=2, tower=8)).eval()


def table(size: int = 30, seed: int = 0) -> Tensor:
    return torch.randn(size, 6, generator=torch.Generator().manual_seed(seed))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("layers", [0, 2])
def test_a_file_serves_every_network_of_the_same_weights(tmp_path: Path, layers: int) -> None:
    first, second = network(layers=layers), network(layers=layers)
    made, read = (encoded_candidates(policy, table(), tmp_path) for policy in (first, second))
    assert (first.encoded, second.encoded) == (30, 0)
    for one, other, expected in zip(made, read, network(layers=layers).encode_candidates(table()), strict=True):
        assert torch.equal(one, expected) and torch.equal(other, expected)
    query = torch.randn(3, 6)
    assert torch.equal(first.greedy(query, read, 3), first.greedy(query, table().expand(3, -1, -1), 3))


def test_other_weights_or_embeddings_are_encoded_again(tmp_path: Path) -> None:
    encoded_candidates(network(), table(), tmp_path)
    other = network(seed=1)
    assert torch.equal(encoded_candidates(other, table(), tmp_path).unit, network(1).encode_candidates(table()).unit)
    policy = network()
    changed = table()
    changed[7, 3] += 1e-3
    assert torch.equal(encoded_candidates(policy, changed, tmp_path).unit, network().encode_candidates(changed).unit)
    assert (other.encoded, policy.encoded) == (30, 30)


def test_the_files_used_last_are_kept(tmp_path: Path) -> None:
    found = []
    for seed in range(3):
        encoded_candidates(network(seed), table(), tmp_path)
        found.append(next(iter(files(tmp_path) - set(found))))
        os.utime(tmp_path / found[-1], (1000 + seed, 1000 + seed))
        if seed == 1:  # the first one is used again
            encoded_candidates(network(0), table(), tmp_path)
    assert files(tmp_path) == {found[0], found[2]}


def test_small_pools_and_networks_without_weights_need_no_file(tmp_path: Path) -> None:
    assert encoded_candidates(network(), table(19), tmp_path).unit.shape == (19, 8)
    assert encoded_candidates(CosineNetwork(6), table(), tmp_path).unit.shape == (30, 6)
    assert not files(tmp_path)


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"x" + content[1:]])
def test_a_damaged_file_is_replaced(tmp_path: Path, damage, capsys: pytest.CaptureFixture[str]) -> None:
    encoded_candidates(network(), table(), tmp_path)
    (name,) = files(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(damage(content))
    assert torch.equal(encoded_candidates(network(), table(), tmp_path).unit, network().encode_candidates(table()).unit)
    assert "is damaged" in capsys.readouterr().err and (tmp_path / name).read_bytes() == content


def test_a_file_of_other_tables_is_replaced(tmp_path: Path) -> None:
    encoded_candidates(network(), table(), tmp_path)
    (name,) = files(tmp_path)
    (tmp_path / name).unlink()
    encoded_candidates(network(), table(25), tmp_path)
    next(tmp_path.glob("*.safetensors")).rename(tmp_path / name)
    assert len(encoded_candidates(network(), table(), tmp_path).unit) == 30


def test_a_full_disk_costs_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "candidates")

    monkeypatch.setattr("icdsel.store.files.os.fsync", full)
    assert len(encoded_candidates(network(), table(), tmp_path).unit) == 30
    assert "were not kept" in capsys.readouterr().err
    assert not files(tmp_path) and not list(tmp_path.glob(".*.part"))
