"""Makes a bundle of a run: its policy, with the training split as candidates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from icdsel import __version__
from icdsel.artefacts.bundle.contents import Bundle, Tables
from icdsel.artefacts.bundle.manifest import FORMAT, EncoderModel, Images, Manifest, Model, kept_settings, portable_name
from icdsel.artefacts.checkpoint import load_checkpoint
from icdsel.console import note, warn
from icdsel.data.datasets import Split
from icdsel.errors import BundleError, SettingsError
from icdsel.retrieval.embeddings import Embeddings
from icdsel.retrieval.encoders import VlmEncoder
from icdsel.settings.presets import TINY_VLM
from icdsel.settings.tables import ProposalSettings
from icdsel.stages.policy_check import SHOTS, candidates_for, require_fitting
from icdsel.stages.session import Session
from icdsel.store.fingerprints import unchanged


def bundle_of(
    session: Session,
    policy: Path,
    name: str,
    *,
    licence: str = "",
    headline: str = "",
    figures: Sequence[Mapping[str, Any]] = (),
) -> Bundle:
    """The bundle of a policy and the training split.

    Args:
        session: The dataset, and its embeddings.
        policy: The policy's checkpoint.
        name: What the bundle is called.
        licence: Under which it may be used.
        headline: The result of the comparison.
        figures: The rows of the comparison.

    Raises:
        CheckpointError: The policy does not fit the settings.
        DataError: The dataset is missing, or an image cannot be read.
    """
    settings = session.settings
    with unchanged(policy):
        checkpoint = load_checkpoint(policy)
        require_fitting(policy, session)
    table = candidates_for(checkpoint.network, session, policy)
    readable = [row for row in range(len(session.train)) if row not in session.broken]
    if not readable:
        raise BundleError("no image of the training split can be read")
    if len(readable) < len(session.train):
        warn(f"{len(session.train) - len(readable)} examples whose image cannot be read are left out")
    own = session.embeddings if settings.data.train_embeddings is not None else None
    width = session.embeddings.shape[1]
    baselines = session.sampler_encoder.fingerprint == session.encoder.fingerprint
    if not baselines:
        note("Nearest neighbours are found by another encoder (--sampler-encoder), which the bundle does without.")
    vectors = session.similar_train if baselines else session.train_vectors
    answers = table[:, width:] if table.shape[1] > width else None
    tables = Tables(
        Embeddings(vectors.image[readable], vectors.question[readable]),
        None if own is None else own[readable],
        None if answers is None else answers[readable],
        session.centre,
    )
    train = Split("train", [session.train[row] for row in readable])
    shots, usual = checkpoint.trained_for.get(SHOTS), ProposalSettings.model_fields["shots"].default
    manifest = Manifest(
        format=FORMAT,
        icdsel=__version__,
        name=name,
        dataset=settings.dataset_dir.name,
        licence=licence,
        candidates=len(train),
        images="full",
        encoder=_encoder(session),
        vlm=_vlm(session),
        embed=settings.data.embed,
        baselines=baselines,
        shots=shots if isinstance(shots, int) and shots > 0 else usual,
        pool_size=str(checkpoint.trained_for.get("data.pool_size", settings.data.pool_size)),
        run=f"{policy.absolute().parent.name}, {policy.stem}",
        headline=headline,
        figures=[dict(row) for row in figures],
        settings=kept_settings(settings),
    )
    return Bundle(
        manifest, checkpoint.network, checkpoint.epoch, checkpoint.phase, checkpoint.trained_for, train, tables
    )


def _encoder(session: Session) -> EncoderModel:
    encoder, settings = session.encoder, session.settings
    of_vlm = isinstance(encoder, VlmEncoder)
    model = TINY_VLM if settings.vlm.url else settings.vlm.model  # servers have no features of images
    return EncoderModel(
        name=portable_name(model if of_vlm else encoder.name),
        fingerprint=encoder.fingerprint,
        dtype=str(encoder.dtype).removeprefix("torch."),
        of_vlm=of_vlm,
        centred=encoder.centred,
    )


def _vlm(session: Session) -> Model:
    identity = session.vlm_identity
    name = portable_name(session.settings.vlm.model)
    return Model(name=name, fingerprint=identity.fingerprint, dtype=identity.dtype)


def chosen_images(text: str) -> Images:
    """What a user typed for the images of a bundle.

    Raises:
        SettingsError: It is none of the choices.
    """
    kinds = get_args(Images)
    if text not in kinds:
        raise SettingsError(f"--images is {', '.join(kinds)}, not {text!r}")
    return next(kind for kind in kinds if kind == text)
