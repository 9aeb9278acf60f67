"""Examples become vectors: what the selector, the samplers and the nearest neighbours see.

The encoder is the VLM's own: the mean visual token of the image, the mean input embedding of the question.
Both are centred on the training split (such features share a large common part that hides the differences),
then image and question are joined as Lever-Plus joins CLIP's: normalise, mean, normalise (specification §2).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import normalize

from icdsel.files import write_bytes
from icdsel.records import Example

if TYPE_CHECKING:
    from icdsel.vlm import Vlm


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors of a split, float32 (N, d), in row order: of the image, of the question, and of `both`."""

    image: Tensor
    question: Tensor

    @property
    def both(self) -> Tensor:
        """normalise(image + question), (N, d)."""
        return normalize(self.image + self.question, dim=-1)

    def of(self, kind: str) -> Tensor:
        """The vectors by name: "image", "question" or "both"."""
        vectors: Tensor = getattr(self, kind)
        return vectors


@dataclass(frozen=True)
class Encoded:
    """Raw features of a split, float32 (N, d): mean visual tokens and mean question tokens."""

    image: Tensor
    question: Tensor

    def relative_to(self, train: "Encoded") -> Embeddings:
        """Centred on the training split, then normalised."""
        return Embeddings(
            normalize(self.image - train.image.mean(0), dim=-1),
            normalize(self.question - train.question.mean(0), dim=-1),
        )


def fingerprint(examples: Sequence[Example], vlm: "Vlm") -> str:
    """Of the encoder and of what it is given; the images by path and size."""
    digest = hashlib.sha256(
        json.dumps([vlm.fingerprint, str(vlm.model.dtype), vlm.settings.min_pixels, vlm.settings.max_pixels]).encode()
    )
    for example in examples:
        size = example.image.stat().st_size if example.image.exists() else -1
        digest.update(f"{example.question_id}\0{example.image.name}\0{size}\0{example.question}\n".encode())
    return digest.hexdigest()[:16]


def encode(
    examples: Sequence[Example],
    vlm: "Vlm",
    cache_dir: Path,
    split: str,
    on_done: Callable[[int], None] | None = None,
) -> Encoded:
    """Raw features of `examples`, from `cache_dir` where they were computed before."""
    path = cache_dir / f"{split}_embeddings_{fingerprint(examples, vlm)}.safetensors"
    if path.exists():
        kept = load_file(path)
        if on_done:
            on_done(len(examples))
        return Encoded(kept["image"], kept["question"])
    chunks = []
    for at in range(0, len(examples), 256):
        chunk = examples[at : at + 256]
        chunks.append(vlm.embed_images([example.image for example in chunk]))
        if on_done:
            on_done(len(chunk))
    image = torch.cat(chunks)
    question = vlm.embed_texts([example.question for example in examples])
    write_bytes(path, save({"image": image, "question": question}))
    return Encoded(image, question)
