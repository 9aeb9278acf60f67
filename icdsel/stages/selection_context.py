"""Opens, from a session, the data that selectors base their choices on."""

from pathlib import Path

from icdsel.artefacts.checkpoint import load_policy
from icdsel.artefacts.encoded_candidates import encoded_candidates
from icdsel.policy.encoding import EncodedCandidates
from icdsel.policy.network import PointerNetwork
from icdsel.selection.context import Context
from icdsel.selection.fingerprints import Fingerprints
from icdsel.selection.scored import read_scored
from icdsel.settings.identity import identity
from icdsel.settings.loading import Settings
from icdsel.stages.policy_check import candidates_for
from icdsel.stages.session import Queries, Session
from icdsel.store.fingerprints import unchanged
from icdsel.tasks.scoring import SCORER_VERSION


def fingerprints_of(session: Session, settings: Settings, policy: Path | None) -> Fingerprints:
    """Fingerprints of the files that selectors base their choices on, under `settings`."""
    return Fingerprints(settings, policy, lambda: session.sampler_encoder.fingerprint)


def open_context(session: Session, queries: Queries, policy: Path | None, fingerprints: Fingerprints) -> Context:
    """The context for choosing the ICDs of `queries`.

    Args:
        session: Dataset, embeddings and settings.
        queries: The queries, with their embeddings and pools.
        policy: The policy's checkpoint, if a selector needs one.
        fingerprints: Those that are recorded with the predictions.

    Raises:
        CheckpointError: the checkpoint is damaged, or was trained on embeddings of another width.
        RunError: it changed while it was read.
    """
    settings, split = session.settings, session.settings.infer.split
    network: PointerNetwork | None = None
    if policy:
        with unchanged(policy):
            network = load_policy(policy).eval()
            _ = fingerprints.policy  # computed now, so that it is that of the file just read
    inputs = identity(settings, "data", "vlm") | session.identity
    inputs |= {"queries": session.fingerprint(split), "scorer": SCORER_VERSION}
    candidates = candidates_for(network, session, policy) if network else session.embeddings

    def encoded() -> EncodedCandidates:
        assert network is not None  # a selector that asks for encodings needs a policy
        return encoded_candidates(network, candidates, settings.dataset_dir / "cache")

    return Context(
        settings=settings,
        train=session.train,
        queries=queries.examples,
        pools=queries.pools,
        embeddings=queries.embeddings,
        train_embeddings=candidates,
        open_similar=lambda: (session.similar(queries.examples, split), session.similar_train),
        network=network,
        open_encoded=encoded,
        open_scored=lambda: read_scored(settings, len(queries.examples), inputs, fingerprints.rl_data),
    )
