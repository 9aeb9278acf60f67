"""Queries as the policy and the baselines see them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from icdsel.artefacts.bundle.contents import Bundle
from icdsel.records import Example
from icdsel.retrieval.embeddings import Embeddings, Encoded, distinct, distinct_images, means_of
from icdsel.retrieval.encoders import Encoder

__all__ = ["EncodedQueries", "encode_queries"]


@dataclass(frozen=True, eq=False)
class EncodedQueries:
    """B queries with their embeddings.

    Attributes:
        queries: The queries.
        vectors: Embeddings of their images and questions, (B, d) each.
        embeddings: What the policy sees, (B, e).
        excluded: For each query the rows that must not be shown: itself, and examples of its image.
        broken: Why the image of a query cannot be read, by its position; its embedding means nothing.
    """

    queries: Sequence[Example]
    vectors: Embeddings
    embeddings: Tensor
    excluded: Sequence[frozenset[int]]
    broken: Mapping[int, str]


def encode_queries(
    bundle: Bundle, encoder: Encoder, queries: Sequence[Example], exclude_same_image: bool
) -> EncodedQueries:
    """Embeds queries. Each image and each question is embedded once.

    Raises:
        VlmError: The encoder cannot be loaded.
    """
    images, images_of = distinct_images(queries)
    questions, of_question = distinct([query.text for query in queries])
    image_features, reasons = encoder.embed_images(images)  # (M, d)
    question_features = encoder.embed_texts(questions)
    broken = {at: reasons[image] for at, images in enumerate(images_of) for image in images if image in reasons}
    encoded = Encoded(means_of(image_features, images_of), question_features[of_question], broken)
    vectors = encoded.relative_to(bundle.tables.centre)
    excluded = [_excluded(bundle, query, exclude_same_image) for query in queries]
    return EncodedQueries(queries, vectors, vectors.of(bundle.manifest.embed), excluded, broken)


def _excluded(bundle: Bundle, query: Example, exclude_same_image: bool) -> frozenset[int]:
    own = bundle.train.row.get(query.question_id)
    rows = set() if own is None or bundle.train[own].question != query.question else {own}
    for image in filter(Path.is_file, query.images) if exclude_same_image else ():
        rows |= {*bundle.train.rows_of_image(image), *bundle.rows_of_equal_image(image)}
    if query.pool is not None:  # it may be shown these examples alone
        own_pool = {bundle.train.row.get(icd) for icd in query.pool}
        rows |= {row for row in range(len(bundle.train)) if row not in own_pool}
    return frozenset(rows)
