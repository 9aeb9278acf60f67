"""A bundle in memory: a policy, and the candidates that it chooses from."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from icdsel.artefacts.bundle.manifest import Manifest
from icdsel.data.datasets import Split
from icdsel.policy.network import PointerNetwork
from icdsel.retrieval.embeddings import Centre, Embeddings
from icdsel.store.files import size_of
from icdsel.store.fingerprints import fingerprint_examples


class Tables(NamedTuple):
    """Embeddings of N candidates, float32.

    Attributes:
        vectors: Their images and questions by the policy's encoder, (N, d) each.
        own: What the policy sees instead of these (`--train-embeddings`), (N, e); None if it sees these.
        answers: What it sees of their answers (N, a); None if it sees none.
        centre: What is subtracted from a query's features; None if nothing is.
    """

    vectors: Embeddings
    own: Tensor | None = None
    answers: Tensor | None = None
    centre: Centre | None = None


@dataclass(frozen=True, eq=False)
class Bundle:
    """A policy with its candidates.

    Attributes:
        manifest: What it is.
        network: The policy, in eval mode, on the CPU.
        epoch: The epoch after which it was written, counted from 0.
        phase: The phase of that epoch.
        trained_for: What it was trained for.
        train: The N candidates, with the paths of their images.
        tables: Their embeddings.
        digests: The SHA-256 of each candidate's original images; None if the images are the original files.
    """

    manifest: Manifest
    network: PointerNetwork
    epoch: int | None
    phase: str | None
    trained_for: Mapping[str, object]
    train: Split
    tables: Tables
    digests: Sequence[Sequence[str]] | None = None

    @cached_property
    def table(self) -> Tensor:
        """What the policy sees of the candidates, (N, w)."""
        tables = self.tables
        base = tables.vectors.of(self.manifest.embed) if tables.own is None else tables.own
        return base if tables.answers is None else torch.cat([base, tables.answers], dim=-1)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies everything that decides a choice: the policy, the candidates, and their embeddings."""
        digest = hashlib.sha256(f"{self.network.config} {fingerprint_examples(self.train)}".encode())
        for tensor in (*self.network.state_dict().values(), self.table):
            digest.update(tensor.contiguous().numpy())
        digest.update(json.dumps(self.manifest.settings, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def images_root(self) -> Path:
        """The folder that holds all images of the candidates."""
        return Path(os.path.commonpath({image.parent for example in self.train for image in example.images}))

    def rows_of_equal_image(self, image: Path) -> Sequence[int]:
        """The candidates of which an image has the same content as a file."""
        if self.digests is not None:
            return self._rows_by_digest.get(digest_of_file(image), ())
        rows = self._rows_by_size.get(size_of(image), ())
        digest = digest_of_file(image) if rows else ""
        size = size_of(image)
        return [
            row
            for row in rows
            if any(size_of(own) == size and digest_of_file(own) == digest for own in self.train[row].images)
        ]

    @cached_property
    def _rows_by_size(self) -> Mapping[int, list[int]]:
        """The candidates by the sizes of their images' files, of those that exist."""
        rows: dict[int, list[int]] = {}
        for row, example in enumerate(self.train):
            for size in {size_of(image) for image in example.images}:
                rows.setdefault(size, []).append(row)
        rows.pop(-1, None)
        return rows

    @cached_property
    def _rows_by_digest(self) -> Mapping[str, list[int]]:
        """The candidates of each image, by its SHA-256."""
        rows: dict[str, list[int]] = {}
        for row, digests in enumerate(self.digests or ()):
            for digest in dict.fromkeys(digests):
                rows.setdefault(digest, []).append(row)
        return rows


def digest_of_file(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
