"""Examples become vectors: what the selector, the samplers and the nearest neighbours see.

An encoder gives raw features of image and question. Centred on the training split where the encoder wants it,
they are joined as Lever-Plus joins CLIP's: normalise, mean, normalise (specification §2). What was computed
is kept in a file, and an interrupted run goes on where it was.
"""

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import normalize

from icdsel.console import note, warn
from icdsel.errors import DataError, VlmError
from icdsel.records import Example
from icdsel.store.files import refuse_link, remove_leftovers, size_of, write_bytes
from icdsel.store.json_reading import parsed
from icdsel.store.lock import waiting
from icdsel.store.reading import in_utf_8
from icdsel.store.torch_files import Foreign, StoredTensor, describe, open_torch_file

if TYPE_CHECKING:
    from icdsel.retrieval.encoders import Encoder

WIDEST = 2**16
"""Of vectors that a file holds, at most."""
PART_ROWS = 512  # images or questions in a part file, at most this many are computed again after an interruption
STEP = 256  # images or questions that an encoder is given at once: how often a progress bar moves

_Item = TypeVar("_Item", bound=Hashable)
_Embed = Callable[[Sequence[_Item]], tuple[Tensor, dict[int, str]]]


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
    """Raw features of a split, float32 (N, d), in row order.

    Attributes:
        image: Features of the images; 0 where an image cannot be read.
        question: Features of the questions.
        broken: Row → why its image cannot be read.
    """

    image: Tensor
    question: Tensor
    broken: Mapping[int, str] = field(default_factory=dict)

    def relative_to(self, train: "Encoded", centred: bool) -> Embeddings:
        """Centred on the training split's readable rows, if `centred`, then normalised; 0 stays where nothing is."""
        if not centred:
            return Embeddings(normalize(self.image, dim=-1), normalize(self.question, dim=-1))
        image, question = self.image - train._mean(train.image), self.question - train._mean(train.question)
        image[list(self.broken)] = 0.0
        return Embeddings(normalize(image, dim=-1), normalize(question, dim=-1))

    def _mean(self, features: Tensor) -> Tensor:
        """Mean over the rows whose image can be read, (d)."""
        if not self.broken:
            return features.mean(0)
        readable = torch.ones(len(features), dtype=torch.bool)
        readable[list(self.broken)] = False
        return features[readable].mean(0)


def encode(
    examples: Sequence[Example],
    encoder: "Encoder",
    cache_dir: Path,
    split: str,
    on_done: Callable[[int], None] | None = None,
) -> Encoded:
    """Raw features of `examples`, from `cache_dir` where they were computed before.

    An image or question that many examples share is encoded, and kept in the file, once. Images that could not be
    read are tried again each time: a repaired one may be as large as before.

    Args:
        examples: At least one.
        encoder: What gives the features; not asked where all of them are kept.
        cache_dir: Folder of the file, `{split}_embeddings_{fingerprint}.safetensors`. While features are
            computed, those that are done lie beside it, in a folder `….parts`.
        split: Its name.
        on_done: Called with a number of examples whenever so many more are done.

    Raises:
        VlmError: The encoder cannot be loaded, or gives features that are not finite.
    """
    images, image_of = _distinct(example.image for example in examples)
    questions, question_of = _distinct(example.question for example in examples)
    path = cache_dir / f"{split}_embeddings_{_fingerprint(examples, images, image_of, encoder)}.safetensors"
    rows = {"image": len(images), "question": len(questions)}
    parts = path.with_suffix(".parts")
    computed = None
    if (kept := _read(path, rows)) is None or parts.exists():
        with waiting(path, f"embeddings of {split}"):
            if (kept := _read(path, rows)) is None:
                advance = _in_rows(on_done, len(examples), len(images + questions))
                kept = computed = _compute(images, questions, encoder, path, parts, advance)
            shutil.rmtree(parts, ignore_errors=True)  # of no use any more, and of no harm
    if computed is None:
        kept = _try_again(kept, images, encoder, path)
        if on_done:
            on_done(len(examples))
    return Encoded(
        kept.features["image"][image_of],
        kept.features["question"][question_of],
        {row: kept.broken[image] for row, image in enumerate(image_of) if image in kept.broken},
    )


def _distinct(items: Iterable[_Item]) -> tuple[list[_Item], list[int]]:
    """The items without repetitions, and where each item stands among them."""
    place: dict[_Item, int] = {}
    places = [place.setdefault(item, len(place)) for item in items]
    return list(place), places


def _fingerprint(
    examples: Sequence[Example], images: Sequence[Path], image_of: Sequence[int], encoder: "Encoder"
) -> str:
    """Of the encoder and of what it is given; images count by name, size, and which examples share them."""
    sizes = [size_of(image) for image in images]  # what cannot be reached the encoder tells
    digest = hashlib.sha256(encoder.fingerprint.encode())
    for example, image in zip(examples, image_of, strict=True):
        row = [example.question_id, example.image.name, image, sizes[image], example.question]
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:16]


def _in_rows(on_done: Callable[[int], None] | None, rows: int, items: int) -> Callable[[int], None]:
    """Takes numbers of finished items (of so many) and tells `on_done` numbers of rows."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if on_done:
            on_done(rows * done // items - rows * before // items)

    return advance


# --- computing --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kept:
    """What a file holds: tables by name, and row → reason of images that cannot be read."""

    features: dict[str, Tensor]
    broken: dict[int, str]


def _compute(
    images: Sequence[Path],
    questions: Sequence[str],
    encoder: "Encoder",
    path: Path,
    parts: Path,
    advance: Callable[[int], None],
) -> _Kept:
    refuse_link(parts)
    cut = encoder.truncated
    remove_leftovers(path)
    image, broken = _in_parts("image", images, encoder.embed_images, parts, encoder.name, advance)
    question, _ = _in_parts("question", questions, lambda t: (encoder.embed_texts(t), {}), parts, encoder.name, advance)
    kept = _Kept({"image": image, "question": question}, broken)
    _write(path, kept)
    if encoder.truncated > cut:
        warn(f"{encoder.truncated - cut} questions are longer than {encoder.name} reads and were cut")
    return kept


def _in_parts(
    kind: str, items: Sequence[_Item], embed: "_Embed[_Item]", parts: Path, name: str, advance: Callable[[int], None]
) -> tuple[Tensor, dict[int, str]]:
    """Features of `items`, (M, d), part by part; parts that lie in the folder are not computed again."""
    tables: list[Tensor] = []
    broken: dict[int, str] = {}
    for number, start in enumerate(range(0, len(items), PART_ROWS)):
        part, path = items[start : start + PART_ROWS], parts / f"{kind}-{number:05d}.safetensors"
        kept = _read(path, {kind: len(part)})
        if kept is None:
            steps: list[Tensor] = []
            failed: dict[int, str] = {}
            for at in range(0, len(part), STEP):
                features, reasons = embed(part[at : at + STEP])
                if not features.isfinite().all():
                    raise VlmError(f"the encoder {name!r} gives features that are not finite: try another --encoder")
                steps.append(features)
                failed |= {at + i: reason for i, reason in reasons.items()}
                advance(len(features))
            kept = _Kept({kind: torch.cat(steps)}, failed)
            _write(path, kept)
        else:
            advance(len(part))
        tables.append(kept.features[kind])
        broken |= {start + i: reason for i, reason in kept.broken.items()}
    return torch.cat(tables), broken


def _try_again(kept: _Kept, images: Sequence[Path], encoder: "Encoder", path: Path) -> _Kept:
    """Embeds images that could not be read, if they now can."""
    if not kept.broken:
        return kept
    places = list(kept.broken)
    features, reasons = encoder.embed_images([images[place] for place in places])
    if len(reasons) == len(places):
        return kept
    image = kept.features["image"].clone()
    image[places] = features
    now = _Kept(kept.features | {"image": image}, {places[i]: reason for i, reason in reasons.items()})
    with waiting(path, "embeddings of images that can be read now"):
        remove_leftovers(path)
        _write(path, now)
    return now


# --- files ------------------------------------------------------------------------------------------------


def _write(path: Path, kept: _Kept) -> None:
    write_bytes(path, save(kept.features, {"broken": json.dumps(kept.broken)}))


def _read(path: Path, rows: Mapping[str, int]) -> _Kept | None:
    """What `_write` wrote; None, with a note, if it is not tables of so many rows."""
    if not path.is_file():
        return None
    try:
        with in_utf_8(path) as name, safe_open(name, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - it is no dict
            width = {shape[-1] for shape in shapes.values()}
            if shapes != {name: [count, *width] for name, count in rows.items()} or not 0 < max(width) <= WIDEST:
                raise ValueError(f"its tables are {str(shapes)[:200]}")
            features = {name: file.get_tensor(name) for name in rows}
            told = parsed(file.metadata()["broken"])
        broken = {int(row): str(reason) for row, reason in told.items()}
        if not all(0 <= row < next(iter(rows.values())) for row in broken):
            raise ValueError("it names images that it does not have")
        if any(table.dtype != torch.float32 or not table.isfinite().all() for table in features.values()):
            raise ValueError("its tables are not finite numbers in float32")
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        note(f"{path} is damaged ({str(error)[:200] or type(error).__name__}): computing it again")
        return None
    return _Kept(features, broken)


def read_train_embeddings(path: Path, rows: int) -> Tensor:
    """Reads embeddings of the training split from a file, float32 (rows, d).

    Args:
        path: Lever-Plus's `query_embeddings.pt` (one tensor, saved with `torch.save`), or safetensors with one tensor.
        rows: Number of training examples; row i is the i-th of them by question_id.

    Raises:
        DataError: The file is missing or damaged, or holds something else.
    """
    expected = f"expected one float tensor [{rows}, d], row i for the i-th training example by question_id"
    if not path.is_file():
        raise DataError(f"{path} is not a file: --train-embeddings takes one (.pt or .safetensors)")
    with ExitStack() as stack:
        try:
            content: object
            if path.suffix == ".safetensors":
                tables = stack.enter_context(safe_open(stack.enter_context(in_utf_8(path)), framework="pt"))
                names = list(tables.keys())
                content = tables.get_slice(names[0]) if len(names) == 1 else dict.fromkeys(names)
                shape = None if isinstance(content, dict) else content.get_shape()
            else:
                file = stack.enter_context(open_torch_file(path))
                content = file.content
                shape = list(content.shape) if isinstance(content, StoredTensor) else None
            if shape is None or (isinstance(content, StoredTensor) and not content.dtype.is_floating_point):
                raise _not_embeddings(path, content, expected)
            if len(shape) != 2 or shape[0] != rows or not 0 < shape[1] <= WIDEST:
                raise DataError(
                    f"{path} holds a tensor {shape}; {expected}. Is it of another dataset, or of another split?"
                )
            vectors = file.read_tensor(content) if isinstance(content, StoredTensor) else tables.get_tensor(names[0])
            if not vectors.is_floating_point():
                raise _not_embeddings(path, vectors, expected)
            vectors = vectors.float()
        except (OSError, SafetensorError, ValueError, LookupError) as error:
            raise DataError(f"{path} is damaged, or not a file of tensors ({str(error)[:200]}); {expected}") from None
    if not vectors.isfinite().all():
        bad = (~vectors.isfinite()).any(1).nonzero()[:, 0].tolist()
        raise DataError(f"{path}: {len(bad)} rows are not finite, first {bad[:3]}; {expected}")
    return vectors


def _not_embeddings(path: Path, content: object, expected: str) -> DataError:
    """The error for a file with other content."""
    found = describe(content)
    if isinstance(content, Foreign) and "numpy" in found:
        code = (
            f"import torch; x = torch.load({str(path)!r}, weights_only=False); "
            f"torch.save(torch.as_tensor(x).float(), {str(path.with_name('converted.pt'))!r})"
        )
        return DataError(
            f"{path} holds a numpy array, which is not read, because such a file can run code. If you trust it, "
            f"convert it: python -c {shlex.quote(code)}"
        )
    if isinstance(content, Tensor | StoredTensor):
        found = f"a tensor of {content.dtype}"
    elif isinstance(content, dict):
        names = [str(name)[:80] for name in list(content)[:3]]
        found = f"{len(content)} entries, named {', '.join(names)}{' …' if len(content) > 3 else ''}"
    return DataError(f"{path} holds {found}; {expected}")
