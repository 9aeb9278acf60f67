"""What a policy was trained for, which its checkpoint records, and whether it fits the present settings."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from icdsel.artefacts.checkpoint import load_checkpoint
from icdsel.artefacts.rl_data import metadata_path
from icdsel.artefacts.run_folder import METADATA_FILE
from icdsel.console import note, warn
from icdsel.errors import CheckpointError, RunError
from icdsel.policy.network import PointerNetwork
from icdsel.settings.identity import identity
from icdsel.settings.tables import ProposalSettings
from icdsel.stages.session import Session
from icdsel.store.fingerprints import known_share, sketch_examples
from icdsel.store.metadata import Inputs, differences, read_metadata

_EMBEDDINGS = ("data.embed", "encoder", "train_embeddings")
_EXAMPLES, _COUNT, SHOTS = "examples", "count", "shots"
_SAME_DATASET = 0.5  # the share of the examples trained on that must exist for a dataset to count as the same one


def trained_for(session: Session, rl_data: Iterable[Path], shots: int) -> Inputs:
    """What checkpoints record: data, model, encoder, prompt, and a sample of the training examples.

    Args:
        session: The settings, and the training split.
        rl_data: What is trained on; if their metadata name another prompt than the settings, theirs is recorded.
        shots: The largest number of ICDs in their pointers.
    """
    train = session.train
    return _now(session) | _prompt(rl_data) | {_EXAMPLES: sketch_examples(train), _COUNT: len(train), SHOTS: shots}


def most_shots_of(path: Path) -> int | None:
    """The largest number of ICDs that a policy was trained to show; None for a policy that may not stop.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    checkpoint = load_checkpoint(path)
    if not checkpoint.network.config.stop:
        return None
    shots = checkpoint.trained_for.get(SHOTS)
    usual: int = ProposalSettings.model_fields["shots"].default
    return shots if isinstance(shots, int) and shots > 0 else usual


def require_fitting(path: Path, session: Session, same_data: bool = True) -> None:
    """Checks that a policy was trained on embeddings like those of the session; warns of other differences.

    Args:
        path: The checkpoint.
        session: The settings, and the training split.
        same_data: Whether the dataset and the model must be the same too. A training set that has grown is.

    Raises:
        CheckpointError: The policy does not fit; the message lists the differences.
    """
    trained, now = load_checkpoint(path).trained_for or _inputs_of_run(path), _now(session)
    if not trained:
        warn(
            f"{path} does not say what it was trained for (Lever-Plus and earlier versions of icdsel record nothing in "
            "it): make sure that --encoder, --model and the dataset are the same"
        )
        return
    binding = (*_EMBEDDINGS, "model") if same_data else _EMBEDDINGS
    if different := _differences(trained, now, binding):
        raise _unfitting(path, different)
    if same_data and trained.get("dataset") != now["dataset"]:
        _check_data(path, trained, now, session)
    noted = [name for name in trained if name.startswith(("data.", "vlm.")) and name not in (*binding, "data.dataset")]
    for line in _differences(trained, now, noted):
        note(f"The policy was trained with a different setting: {line}")


def candidates_for(network: PointerNetwork, session: Session, path: Path | None) -> Tensor:
    """What a policy, read from `path`, sees of the training split as candidates.

    Returns:
        Embeddings, float32 (N, d), or with those of the answers beside them (N, d + a) if the policy sees answers.

    Raises:
        CheckpointError: The policy was trained on embeddings of another width.
    """
    config, width = network.config, session.embeddings.shape[1]
    if config.d_model != width:
        raise _of_other_width(path, f"embeddings of width {config.d_model}", width)
    table = session.candidates(config.answer_dim > 0)
    if config.answer_dim != table.shape[1] - width:
        raise _of_other_width(path, f"answers of width {config.answer_dim}", table.shape[1] - width)
    return table


def _of_other_width(path: Path | None, takes: str, width: int) -> CheckpointError:
    return CheckpointError(
        f"{path} takes {takes}, this encoder's have {width}: use a checkpoint trained with the same --dataset, --model "
        f"and --encoder"
    )


def _check_data(path: Path, trained: Inputs, now: Inputs, session: Session) -> None:
    """Warns of a training split that has changed.

    Raises:
        CheckpointError: It is another dataset.
    """
    sample = trained.get(_EXAMPLES)
    if not isinstance(sample, list) or not sample:  # the metadata of a run of an earlier version
        if trained.get("data.dataset") != now["data.dataset"]:
            raise _unfitting(path, _differences(trained, now, ("data.dataset", "dataset")))
        warn(f"the training examples or their images have changed since {path} was trained")
        return
    share = known_share(sample, session.train)
    if share < _SAME_DATASET:
        raise _unfitting(
            path,
            [
                f"the dataset {trained.get('data.dataset')!r}: {share:.0%} of the examples that it was trained on are "
                f"in the training split of {now['data.dataset']!r}"
            ],
        )
    gone = f"about {1 - share:.0%} of the old ones are gone or changed" if share < 1 else "the old ones are still there"
    sizes = f"{trained.get(_COUNT)} examples then, {len(session.train)} now"
    warn(f"the training split has changed since {path} was trained ({sizes}): {gone}")


def _differences(trained: Inputs, now: Inputs, names: Iterable[str]) -> list[str]:
    return differences(*({name: inputs.get(name) for name in names} for inputs in (trained, now)))


def _unfitting(path: Path, different: Sequence[str]) -> CheckpointError:
    lines = "\n  ".join(different)
    return CheckpointError(
        f"{path} was trained with different settings:\n  {lines}\nUse those settings, or train another policy."
    )


def _now(session: Session) -> Inputs:
    return identity(session.settings, "data", "vlm") | session.identity


def _prompt(rl_data: Iterable[Path]) -> Inputs:
    """The settings of the VLM that RL data were scored with, by their metadata; empty if they have none."""
    for path in rl_data:
        try:
            inputs = read_metadata(metadata_path(path)).inputs
        except RunError:
            continue
        return {name: value for name, value in inputs.items() if name.startswith("vlm.")}
    return {}


def _inputs_of_run(checkpoint: Path) -> Inputs:
    """What a run's metadata record; checkpoints of earlier versions hold nothing themselves."""
    path = checkpoint.parent / METADATA_FILE
    return read_metadata(path).inputs if path.exists() else {}
