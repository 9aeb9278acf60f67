"""What every stage that asks the VLM works on: the training split, the VLM, embeddings and pools."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from icdsel.console import note, progress
from icdsel.datasets import Split, load_split
from icdsel.embeddings import Embeddings, Encoded, encode
from icdsel.pools import build_pools
from icdsel.provenance import announce, fingerprint_examples
from icdsel.records import Example
from icdsel.settings import Settings
from icdsel.vlm import Vlm, load_vlm


@dataclass(frozen=True)
class Sources:
    """The training split with its embeddings, and the VLM."""

    settings: Settings
    vlm: Vlm
    train: Split
    encoded: Encoded
    embeddings: Embeddings

    @property
    def identity(self) -> dict[str, str]:
        """Fingerprints of the dataset and the model and its arithmetic, for the identity of what is made of them."""
        return {
            "dataset": fingerprint_examples(self.train),
            "model": self.vlm.fingerprint,
            "dtype": str(self.vlm.model.dtype).removeprefix("torch."),
        }

    def split(self, name: str) -> Split:
        """A split of the dataset."""
        return self.train if name == "train" else load_split(self.settings.data, name)

    def embed(self, queries: Split) -> Embeddings:
        """Embeddings of a split, centred on the training split."""
        if queries is self.train:
            return self.embeddings
        return _encode(self.settings, self.vlm, queries).relative_to(self.encoded)

    def pools(self, queries: Sequence[Example], rows: Sequence[int], embeddings: Embeddings) -> list[list[int]]:
        """Candidate pools (rows of the training split) of `queries`, which stand at `rows` of `embeddings`."""
        chosen = list(rows)
        own = Embeddings(embeddings.image[chosen], embeddings.question[chosen])
        return build_pools(queries, self.train, own, self.embeddings, self.settings.data)

    def seen(self, embeddings: Embeddings) -> Tensor:
        """The embeddings as the selector sees them, (N, d)."""
        return embeddings.of(self.settings.data.embed)


def _encode(settings: Settings, vlm: Vlm, split: Split) -> Encoded:
    with progress(f"Embedding {split.name}", len(split)) as advance:
        return encode(split, vlm, settings.dataset_dir / "cache", split.name, advance)


def open_sources(settings: Settings) -> Sources:
    """Loads dataset and VLM and embeds the training split (from the cache where it was embedded before).

    Raises:
        DataError: the dataset is not there or damaged.
        VlmError: the model is not there, or an image cannot be read.
    """
    train = load_split(settings.data, "train")
    vlm = load_vlm(settings.vlm)
    note(announce(settings, str(vlm.device)))
    encoded = _encode(settings, vlm, train)
    return Sources(settings, vlm, train, encoded, encoded.relative_to(encoded))
