"""A small bundle for tests: the easy world with few examples, and a policy with random weights that may stop."""

from pathlib import Path
from typing import NamedTuple

import torch
from worlds import write_small_world

from icdsel.artefacts.bundle.writing import write_bundle
from icdsel.artefacts.checkpoint_writing import save_policy
from icdsel.artefacts.run_folder import METADATA_FILE
from icdsel.policy.config import PointerConfig
from icdsel.policy.network import PointerNetwork
from icdsel.settings.loading import Settings, settings_from
from icdsel.stages.bundle_of_run import bundle_of
from icdsel.stages.policy_check import trained_for
from icdsel.stages.session import Session
from icdsel.store.metadata import Metadata

CANDIDATES = 60


class Bundled(NamedTuple):
    """A bundle's folder, and the session that it was made by."""

    folder: Path
    session: Session


def small_settings(folder: Path, **data: object) -> Settings:
    """The settings of a small world in a folder, drawn if it is not there."""
    if not (folder / "data/world").exists():
        write_small_world(folder / "data", train=CANDIDATES, tuning=20, validation=20)
    places = {"data_dir": folder / "data", "results_dir": folder / "results"}
    return settings_from({"data": {**places, "pool_size": "all", **data}})


def save_random_policy(path: Path, session: Session, **config: object) -> Path:
    """A checkpoint of a policy with random weights, as if it had been trained with these settings."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PointerNetwork(PointerConfig(session.embeddings.shape[1], hidden_dim=16, stop=True, **config))
        assert network.stop_head is not None
        torch.nn.init.normal_(network.stop_head.weight)
    recorded = trained_for(session, [], shots=2)
    save_policy(path, network, epoch=0, phase="rce", metrics={}, kl_beta=0.1, trained_for=recorded)
    return path


def write_small_bundle(folder: Path, work: Path) -> Session:
    """Writes a bundle into a folder; `work` gets its dataset, results and checkpoint."""
    session = Session(small_settings(work))
    run = work / "results/world/model_cpk/small"
    policy = save_random_policy(run / "rce_epoch1.pt", session)
    recorded = {"settings": session.settings.model_dump(mode="json"), "pair": session.settings.pair_name, "finished": 1}
    Metadata(inputs={}, **recorded).write(run / METADATA_FILE)
    write_bundle(bundle_of(session, policy, "small"), folder, "full")
    return session
