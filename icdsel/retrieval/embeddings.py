"""Embeddings of examples, the input of selectors, samplers and nearest-neighbour search.

An encoder computes raw features of images and questions. They are centred on the training split, if the encoder
requires it, and combined as Lever-Plus combines CLIP's: normalise, mean, normalise. They are cached in a file; an
interrupted run resumes where it stopped. Features of answers, for policies that see them, have a file of their own.
"""

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import normalize

from icdsel.console import note, warn
from icdsel.errors import DataError, VlmError
from icdsel.records import Example
from icdsel.store.files import remove_leftovers, size_of, write_bytes
from icdsel.store.json_reading import parsed
from icdsel.store.lock import locked
from icdsel.store.reading import in_utf_8, why_no_file
from icdsel.store.slot import find_or_make
from icdsel.store.torch_files import Foreign, StoredTensor, describe, open_torch_file

if TYPE_CHECKING:
    from icdsel.retrieval.encoders import Encoder

WIDEST = 2**16
"""The maximum width of vectors in a file."""
PART_ROWS = 512  # images or questions per part file: the most that an interruption can cost
STEP = 256  # images or questions passed to an encoder per call, after which the progress bar advances

_Item = TypeVar("_Item", bound=Hashable)
_Embed = Callable[[Sequence[_Item]], tuple[Tensor, dict[int, str]]]


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors of a split's images and questions, float32 (N, d) each, in row order."""

    image: Tensor
    question: Tensor

    @property
    def both(self) -> Tensor:
        """normalise(image + question), (N, d)."""
        return normalize(self.image + self.question, dim=-1)

    @property
    def separate(self) -> Tensor:
        """The image's vector beside the question's, (N, 2d)."""
        return torch.cat([self.image, self.question], dim=-1)

    def of(self, kind: str) -> Tensor:
        """The vectors by name: `image`, `question`, `both` or `separate`."""
        vectors: Tensor = getattr(self, kind)
        return vectors


class Centre(NamedTuple):
    """The mean features of a training split's images and questions, (d) each, which are subtracted from all features.

    Only features of a `centred` encoder are: they share a large component, which hides the differences.
    """

    image: Tensor
    question: Tensor


@dataclass(frozen=True)
class Encoded:
    """Raw features of a split, float32 (N, d), in row order.

    Attributes:
        image: Features of the images; zeros for images that cannot be read.
        question: Features of the questions.
        broken: For the rows whose image cannot be read, the reason.
    """

    image: Tensor
    question: Tensor
    broken: Mapping[int, str] = field(default_factory=dict)

    @property
    def centre(self) -> "Centre":
        """The means over the rows whose image can be read."""
        return Centre(self._mean(self.image), self._mean(self.question))

    def relative_to(self, centre: "Centre | None") -> Embeddings:
        """Converts to unit vectors, after subtracting the training split's means if there are any. Zeros stay zeros."""
        if centre is None:
            return Embeddings(normalize(self.image, dim=-1), normalize(self.question, dim=-1))
        image, question = self.image - centre.image, self.question - centre.question
        image[list(self.broken)] = 0.0
        return Embeddings(normalize(image, dim=-1), normalize(question, dim=-1))

    def _mean(self, features: Tensor) -> Tensor:
        """The mean (d) over the rows whose image can be read."""
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
    """Computes raw features of examples, or reads them from the cache.

    An image or question that many examples share is encoded and stored once. Images that could not be read are tried
    again every time, because a repaired image may have the same size and thus the same fingerprint.

    Args:
        examples: At least one.
        encoder: Computes the features; not used if all of them are cached.
        cache_dir: The folder of the file, `{split}_embeddings_{fingerprint}.safetensors`. During computation, completed
            parts are stored beside it, in a folder `….parts`.
        split: The name of the split.
        on_done: Called with the number of examples completed since the previous call.

    Raises:
        VlmError: The encoder cannot be loaded, or computes features that are not finite.
    """
    images, images_of = distinct_images(examples)
    questions, question_of = distinct(example.text for example in examples)
    path = cache_dir / f"{split}_embeddings_{_fingerprint(examples, images, images_of, encoder)}.safetensors"
    rows = {"image": len(images), "question": len(questions)}
    parts = path.with_suffix(".parts")
    is_new = False

    def compute() -> _Features:
        nonlocal is_new
        is_new = True
        advance = _in_rows(on_done, len(examples), len(images + questions))
        return _compute(images, questions, encoder, path, parts, advance)

    features = find_or_make(path, f"embeddings of {split}", lambda: _read(path, rows), compute)
    shutil.rmtree(parts, ignore_errors=True)  # the file is complete, so they are no longer needed
    if not is_new:
        features = _try_again(features, images, encoder, path)
        if on_done:
            on_done(len(examples))
    return Encoded(
        means_of(features.tables["image"], images_of),
        features.tables["question"][question_of],
        {row: features.broken[own] for row, images in enumerate(images_of) for own in images if own in features.broken},
    )


def encode_answers(
    examples: Sequence[Example],
    encoder: "Encoder",
    cache_dir: Path,
    split: str,
    on_done: Callable[[int], None] | None = None,
) -> Tensor:
    """Computes unit vectors of the answers that demonstrations show, or reads their features from the cache.

    Like a question's features, they are centred on the mean over the examples if the encoder requires it.

    Args:
        examples: At least one.
        encoder: Computes the features; not used if all of them are cached.
        cache_dir: The folder of the file, `{split}_answers_{fingerprint}.safetensors`.
        split: The name of the split.
        on_done: Called with the number of examples completed since the previous call.

    Returns:
        Float32 (N, a), in row order.

    Raises:
        VlmError: The encoder cannot be loaded, or computes features that are not finite.
    """
    answers, answer_of = distinct(example.answer for example in examples)
    digest = hashlib.sha256(json.dumps([encoder.fingerprint, answers]).encode())
    path = cache_dir / f"{split}_answers_{digest.hexdigest()[:16]}.safetensors"
    parts = path.with_suffix(".parts")

    def compute() -> _Features:
        truncated = encoder.truncated
        advance = _in_rows(on_done, len(examples), len(answers))
        table, _ = _in_parts("answer", answers, _texts(encoder), parts, encoder.name, advance)
        _write(path, features := _Features({"answer": table}, {}))
        _warn_of_truncated("answers", encoder, truncated)
        return features

    features = find_or_make(
        path, f"embeddings of the answers of {split}", lambda: _read(path, {"answer": len(answers)}), compute
    )
    shutil.rmtree(parts, ignore_errors=True)
    vectors = features.tables["answer"][answer_of]  # (N, a)
    return normalize(vectors - vectors.mean(0) if encoder.centred else vectors, dim=-1)


def distinct(items: Iterable[_Item]) -> tuple[list[_Item], list[int]]:
    """Returns the distinct items, and the position of each item among them."""
    place: dict[_Item, int] = {}
    places = [place.setdefault(item, len(place)) for item in items]
    return list(place), places


def distinct_images(examples: Sequence[Example]) -> tuple[list[Path], list[list[int]]]:
    """Returns the distinct images of examples, and the positions of each example's own among them."""
    images, places = distinct(image for example in examples for image in example.images)
    at = iter(places)
    return images, [list(islice(at, len(example.images))) for example in examples]


def means_of(features: Tensor, rows_of: Sequence[Sequence[int]]) -> Tensor:
    """The mean (N, d) over the rows of each of N examples, of features (M, d)."""
    found = features[[rows[0] for rows in rows_of]]
    for n, rows in enumerate(rows_of):
        if len(rows) > 1:
            found[n] = features[list(rows)].mean(0)
    return found


def _fingerprint(
    examples: Sequence[Example], images: Sequence[Path], images_of: Sequence[Sequence[int]], encoder: "Encoder"
) -> str:
    """A hash of the encoder, the examples, and the images' names and sizes, and which examples share an image."""
    sizes = [size_of(image) for image in images]  # the encoder reports missing files
    digest = hashlib.sha256(encoder.fingerprint.encode())
    for example, (first, *others) in zip(examples, images_of, strict=True):
        row: list[object] = [example.question_id, example.image.name, first, sizes[first], example.question]
        row += [[images[other].name, other, sizes[other]] for other in others]
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:16]


def _in_rows(on_done: Callable[[int], None] | None, rows: int, items: int) -> Callable[[int], None]:
    """Returns a callback that converts progress in distinct items to progress in rows, for `on_done`."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if on_done:
            on_done(rows * done // items - rows * before // items)

    return advance


# --- computing --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Features:
    """The content of a file: tables (M, d) by name, and, by row, why an image cannot be read."""

    tables: dict[str, Tensor]
    broken: dict[int, str]


def _compute(
    images: Sequence[Path],
    questions: Sequence[str],
    encoder: "Encoder",
    path: Path,
    parts: Path,
    advance: Callable[[int], None],
) -> _Features:
    truncated = encoder.truncated
    image, broken = _in_parts("image", images, encoder.embed_images, parts, encoder.name, advance)
    question, _ = _in_parts("question", questions, _texts(encoder), parts, encoder.name, advance)
    features = _Features({"image": image, "question": question}, broken)
    _write(path, features)
    _warn_of_truncated("questions", encoder, truncated)
    return features


def _texts(encoder: "Encoder") -> "_Embed[str]":
    return lambda texts: (encoder.embed_texts(texts), {})


def _warn_of_truncated(kind: str, encoder: "Encoder", before: int) -> None:
    if encoder.truncated > before:
        warn(f"{encoder.truncated - before} {kind} are longer than {encoder.name} reads and were truncated")


def _in_parts(
    kind: str, items: Sequence[_Item], embed: "_Embed[_Item]", parts: Path, name: str, advance: Callable[[int], None]
) -> tuple[Tensor, dict[int, str]]:
    """Computes features (M, d) of `items` part by part; existing parts are reused."""
    tables: list[Tensor] = []
    broken: dict[int, str] = {}
    for number, start in enumerate(range(0, len(items), PART_ROWS)):
        part, path = items[start : start + PART_ROWS], parts / f"{kind}-{number:05d}.safetensors"
        features = _read(path, {kind: len(part)})
        if features is None:
            steps: list[Tensor] = []
            failed: dict[int, str] = {}
            for at in range(0, len(part), STEP):
                vectors, reasons = embed(part[at : at + STEP])
                if not vectors.isfinite().all():
                    raise VlmError(f"the encoder {name!r} computes features that are not finite: try another --encoder")
                steps.append(vectors)
                failed |= {at + i: reason for i, reason in reasons.items()}
                advance(len(vectors))
            features = _Features({kind: torch.cat(steps)}, failed)
            _write(path, features)
        else:
            advance(len(part))
        tables.append(features.tables[kind])
        broken |= {start + i: reason for i, reason in features.broken.items()}
    return torch.cat(tables), broken


def _try_again(features: _Features, images: Sequence[Path], encoder: "Encoder", path: Path) -> _Features:
    """Encodes the images that could not be read before but can be read now."""
    if not features.broken:
        return features
    places = list(features.broken)
    vectors, reasons = encoder.embed_images([images[place] for place in places])
    if len(reasons) == len(places):
        return features
    image = features.tables["image"].clone()
    image[places] = vectors
    now = _Features(features.tables | {"image": image}, {places[i]: reason for i, reason in reasons.items()})
    with locked(path, "embeddings of images that can be read now"):
        remove_leftovers(path)
        _write(path, now)
    return now


# --- files ------------------------------------------------------------------------------------------------


def _write(path: Path, features: _Features) -> None:
    write_bytes(path, save(features.tables, {"broken": json.dumps(features.broken)}))


def _read(path: Path, rows: Mapping[str, int]) -> _Features | None:
    """Reads a file written by `_write`; returns None, with a note, if it is damaged or has a wrong number of rows."""
    if not path.is_file():
        return None
    try:
        with in_utf_8(path) as name, safe_open(name, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - it is not a dict
            width = {shape[-1] for shape in shapes.values()}
            if shapes != {name: [count, *width] for name, count in rows.items()} or not 0 < max(width) <= WIDEST:
                raise ValueError(f"its tables are {str(shapes)[:200]}")
            features = {name: file.get_tensor(name) for name in rows}
            reasons = parsed(file.metadata()["broken"])
        broken = {int(row): str(reason) for row, reason in reasons.items()}
        if not all(0 <= row < next(iter(rows.values())) for row in broken):
            raise ValueError("it names images that it does not contain")
        if any(table.dtype != torch.float32 or not table.isfinite().all() for table in features.values()):
            raise ValueError("its tables are not finite numbers in float32")
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        note(f"{path} is damaged ({str(error)[:200] or type(error).__name__}): computing it again")
        return None
    return _Features(features, broken)


def read_train_embeddings(path: Path, rows: int) -> Tensor:
    """Reads vectors of the training split that were computed elsewhere, float32 (rows, d), without normalising them.

    Args:
        path: Lever-Plus's `query_embeddings.pt` (a bare tensor), or safetensors with one tensor.
        rows: The size of the training split; row i is its i-th example by question_id.

    Raises:
        DataError: The file is missing or damaged, or does not contain such vectors.
    """
    expected = f"expected one float tensor [{rows}, d], row i for the i-th training example by question_id"
    if not path.is_file():
        raise DataError(f"{path} {why_no_file(path)}: --train-embeddings takes a .pt or .safetensors file")
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
                raise _no_vectors(path, content, expected)
            if len(shape) != 2 or shape[0] != rows or not 0 < shape[1] <= WIDEST:
                raise DataError(
                    f"{path} holds a tensor {shape}; {expected}. Was it computed for another dataset or split?"
                )
            vectors = file.read_tensor(content) if isinstance(content, StoredTensor) else tables.get_tensor(names[0])
            if not vectors.is_floating_point():
                raise _no_vectors(path, vectors, expected)
            vectors = vectors.float()
        except (OSError, SafetensorError, ValueError, LookupError) as error:
            raise DataError(f"{path} is damaged or not a file of tensors ({str(error)[:200]}); {expected}") from None
    if not vectors.isfinite().all():
        bad = (~vectors.isfinite()).any(1).nonzero()[:, 0].tolist()
        raise DataError(f"{path}: {len(bad)} rows are not finite, first {bad[:3]}; {expected}")
    return vectors


def _no_vectors(path: Path, content: object, expected: str) -> DataError:
    """The error for a file that does not contain vectors."""
    found = describe(content)
    if isinstance(content, Foreign) and "numpy" in found:
        code = (
            f"import torch; x = torch.load({str(path)!r}, weights_only=False); "
            f"torch.save(torch.as_tensor(x).float(), {str(path.with_name('converted.pt'))!r})"
        )
        return DataError(
            f"{path} holds a numpy array, which is not loaded: such a file can run code. If you trust it, convert "
            f"it: python -c {shlex.quote(code)}"
        )
    if isinstance(content, Tensor | StoredTensor):
        found = f"a tensor of {content.dtype}"
    elif isinstance(content, dict):
        names = [str(name)[:80] for name in list(content)[:3]]
        found = f"{len(content)} entries, named {', '.join(names)}{' …' if len(content) > 3 else ''}"
    return DataError(f"{path} holds {found}; {expected}")
