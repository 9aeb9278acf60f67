"""A session opens what is needed, when it is needed, and the same inputs result whatever was opened before."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up import rl_groups, write_dataset
from safetensors.torch import save_file
from tiny_clip import save_tiny_clip

from icdsel.artefacts.checkpoint import load_policy
from icdsel.artefacts.rl_data import rl_data_path
from icdsel.artefacts.run_folder import METADATA_FILE, Run, run_name
from icdsel.errors import CheckpointError, DataError, SettingsError, VlmError
from icdsel.experiments.plan import dry_run
from icdsel.experiments.run import run_experiments
from icdsel.experiments.variants import plan_experiments
from icdsel.policy.network import PointerConfig, PointerNetwork
from icdsel.retrieval.agreement import agreement
from icdsel.settings.loading import Settings, load_settings, with_values
from icdsel.settings.tables import VlmSettings
from icdsel.stages.generate import generate
from icdsel.stages.infer import infer
from icdsel.stages.policy_check import candidates_for
from icdsel.stages.rl_data_inputs import decided_inputs
from icdsel.stages.session import Session
from icdsel.stages.train import train
from icdsel.vlm.engines import EngineIdentity, identify_engine, open_engine
from icdsel.vlm.local.loading import TINY_VLM_DIR
from icdsel.vlm.supervision import SupervisedEngine

TRAIN = 40
BROKEN = 5
"""Row of the training example whose image is damaged, where one is."""


class Loader:
    """Loads the VLM and counts how often."""

    def __init__(self) -> None:
        self.loads = 0

    def __call__(self, settings: VlmSettings, max_image_pixels: int) -> SupervisedEngine:
        self.loads += 1
        return open_engine(settings, max_image_pixels)


def no_vlm(settings: VlmSettings, max_image_pixels: int) -> SupervisedEngine:
    raise AssertionError("the VLM is loaded")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset, RL data, and a file of vectors for the training split."""
    write_dataset(tmp_path, 6, train=TRAIN)
    (tmp_path / "rl.jsonl").write_text("".join(f"{json.dumps(group)}\n" for group in rl_groups()))
    save_file({"vectors": torch.randn(TRAIN, 12, generator=torch.manual_seed(0))}, tmp_path / "vectors.safetensors")
    return tmp_path


def make_settings(folder: Path, data: dict[str, Any] | None = None, **tables: dict[str, Any]) -> Settings:
    own = {"dataset": str(folder / "made.jsonl"), "results_dir": str(folder / "results"), "pool_size": 8}
    defaults = {"vlm": {"model": "tiny-vlm"}, "train": {"rce_epochs": 1}, "infer": {"n": 6, "shots": "1"}}
    return load_settings({**defaults, "data": own | (data or {}), **tables})


def train_on_file(session: Session, folder: Path, **more: Any) -> tuple[Run, dict[str, Any]]:
    run = train(session.settings, rl_data_files=[folder / "rl.jsonl"], session=session, **more)
    return run, json.loads((run.folder / METADATA_FILE).read_text())


# --- what is opened ---------------------------------------------------------------------------------------


def test_creating_a_session_opens_nothing(tmp_path):
    Session(make_settings(tmp_path, {"encoder": str(tmp_path / "no-encoder")}, vlm={"model": "no/model"}), no_vlm)


def test_training_on_a_file_with_a_clip_encoder_loads_no_vlm(folder, clip):
    run, _ = train_on_file(Session(make_settings(folder, {"encoder": str(clip)}), no_vlm), folder)
    assert run.checkpoint.exists()


def test_training_on_a_file_with_given_embeddings_loads_no_vlm(folder, clip):
    data = {"encoder": str(clip), "train_embeddings": str(folder / "vectors.safetensors")}
    run, metadata = train_on_file(Session(make_settings(folder, data), no_vlm), folder)
    assert run.checkpoint.exists()
    assert metadata["identity"]["train_embeddings"] is not None


def test_training_on_a_file_with_cached_embeddings_of_the_vlm_loads_no_vlm(folder):
    settings, loader = make_settings(folder), Loader()
    embeddings = Session(settings, loader).embeddings
    assert loader.loads == 1
    session = Session(settings, no_vlm)
    run, _ = train_on_file(session, folder)
    assert run.checkpoint.exists()
    assert torch.equal(session.embeddings, embeddings)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_inputs_hold_fingerprint_and_dtype_of_the_model_as_it_is_loaded(folder, clip, dtype):
    settings = make_settings(folder, {"encoder": str(clip)}, vlm={"model": "tiny-vlm", "device": "cpu", "dtype": dtype})
    inputs = Session(settings, no_vlm).identity
    vlm = open_engine(settings.vlm, settings.data.max_image_pixels)
    assert (inputs["model"], inputs["dtype"]) == (vlm.fingerprint, vlm.dtype)


def test_predictions_that_exist_are_read_without_the_vlm(folder, clip):
    settings = make_settings(folder, {"encoder": str(clip)}, infer={"n": 6, "shots": "1", "selector": "random"})
    rows = infer(settings, session=Session(settings))
    again = infer(settings, session=Session(settings, no_vlm))
    assert [row.score for row in again] == [row.score for row in rows]


def test_the_majority_answer_needs_no_vlm(folder, clip):
    settings = make_settings(folder, {"encoder": str(clip)}, infer={"n": 6, "shots": "1", "selector": "majority"})
    (row,) = infer(settings, session=Session(settings, no_vlm), with_baselines=False)
    assert row.failed == 0 and row.path.exists()


def test_a_model_that_cannot_be_loaded_leaves_no_files_behind(folder, clip):
    data = {"encoder": str(clip)}
    settings = make_settings(folder, data, infer={"n": 6, "shots": "1", "selector": "random"})

    def damaged(settings: VlmSettings, max_image_pixels: int) -> SupervisedEngine:
        raise VlmError("damaged")

    with pytest.raises(VlmError, match="damaged"):
        infer(settings, session=Session(settings, damaged))
    with pytest.raises(VlmError, match="damaged"):
        train(settings, session=Session(settings, damaged))
    online = make_settings(folder, data, train={"online": True, "grpo_epochs": 1})
    with pytest.raises(VlmError, match="damaged"):
        train_on_file(Session(online, damaged), folder)
    written = [path for path in (folder / "results").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert {path.parent.name for path in written} == {"cache"}


def test_files_that_change_between_fingerprint_and_load_are_an_error(folder, clip):
    settings = make_settings(folder, {"encoder": str(clip)})

    def changed(settings: VlmSettings, max_image_pixels: int) -> SupervisedEngine:
        vlm = open_engine(settings, max_image_pixels)
        vlm.fingerprint = "of another model"
        return vlm

    session = Session(settings, changed)
    assert session.identity
    with pytest.raises(VlmError, match="changed while they were read"):
        _ = session.vlm


def test_files_that_change_after_the_inputs_were_read_are_an_error(folder, clip):
    shutil.copytree(TINY_VLM_DIR, folder / "vlm")
    vlm = {"model": str(folder / "vlm"), "device": "cpu"}
    session = Session(make_settings(folder, {"encoder": str(clip)}, vlm=vlm))
    before = session.identity["model"]
    path = folder / "vlm" / "generation_config.json"
    path.write_text(path.read_text().replace("{", '{"repetition_penalty": 1.5,', 1))
    with pytest.raises(VlmError, match="changed while they were read"):
        _ = session.vlm
    assert Session(session.settings).identity["model"] != before


def test_the_files_of_the_model_are_fingerprinted_once_before_it_is_opened(folder, clip, monkeypatch):
    calls = []

    def identify(settings: VlmSettings) -> EngineIdentity | None:
        calls.append(settings.model)
        return identify_engine(settings)

    monkeypatch.setattr("icdsel.stages.session.identify_engine", identify)
    session = Session(make_settings(folder, {"encoder": str(clip)}))
    _ = session.identity, session.vlm, session.vlm_identity
    assert calls == ["tiny-vlm"]


@pytest.mark.parametrize("given", [{}, {"model": "no/model"}])
def test_the_default_model_is_named_before_it_is_looked_for(folder, clip, monkeypatch, capsys, given):
    looked = []
    monkeypatch.setattr(
        "icdsel.stages.session.identify_engine", lambda vlm: looked.append(capsys.readouterr().err) or None
    )
    session = Session(make_settings(folder, {"encoder": str(clip)}, vlm=given), no_vlm)
    with pytest.raises(AssertionError):
        _ = session.vlm
    (message,) = looked
    wanted = "No --model is given: using Qwen/Qwen2.5-VL-3B-Instruct"
    assert (wanted in " ".join(message.split())) == (not given)


# --- sharing ----------------------------------------------------------------------------------------------


def test_sessions_with_other_settings_open_everything_once_in_any_order(folder):
    loader = Loader()
    first = Session(make_settings(folder), loader)
    second = first.under(make_settings(folder, train={"rce_epochs": 2}))
    vlm = second.vlm
    assert first.vlm is vlm
    assert first.embeddings is second.embeddings
    assert first.train is second.under(first.settings).train
    assert loader.loads == 1
    assert (first.settings.train.rce_epochs, second.settings.train.rce_epochs) == (1, 2)


@pytest.mark.parametrize("other", [{"data": {"seed": 7}}, {"vlm": {"max_new_tokens": 9}}])
def test_a_session_is_not_used_with_other_data_or_another_vlm(folder, other):
    settings = make_settings(folder)
    with pytest.raises(ValueError, match="other settings"):
        Session(settings).under(with_values(settings, other))


# --- the training device ----------------------------------------------------------------------------------


def test_the_policy_is_trained_on_a_device_of_its_own(folder, clip):
    data, vlm = {"encoder": str(clip)}, {"model": "tiny-vlm", "device": "cpu"}
    run, metadata = train_on_file(Session(make_settings(folder, data, vlm=vlm), no_vlm), folder)
    expected = "cuda:0" if torch.cuda.is_available() else "cpu"
    assert metadata["environment"]["device"] == expected
    explicit = make_settings(folder, data, vlm=vlm, train={"rce_epochs": 1, "device": "cpu"})
    again, _ = train_on_file(Session(explicit, no_vlm), folder)
    assert again.folder == run.folder  # the device is no input of a run
    with pytest.raises(SettingsError, match="--train-device"):
        train_on_file(Session(make_settings(folder, data, train={"device": "gpu"}), no_vlm), folder)


# --- images that cannot be read ---------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["text-sim", "img-sim", "mix"])
def test_no_pool_contains_images_that_only_the_sampler_encoder_reads_and_fails_on(folder, clip, sampler, capsys):
    given = {"encoder": str(clip), "train_embeddings": str(folder / "vectors.safetensors"), "sampler": sampler}
    complete = Session(make_settings(folder, given | {"on_image_error": "skip"}), no_vlm)
    assert "broken_images" not in complete.identity
    (folder / f"images/{BROKEN}.png").write_bytes(b"damaged")
    settings = make_settings(folder, given | {"on_image_error": "skip"})
    session = Session(settings, no_vlm)
    for shots in (1, 2):  # the first time and later
        queries = session.queries(session.split("validation"), "validation", shots)
        assert all(BROKEN not in pool for pool in queries.pools)
    assert "No pool contains them" in " ".join(capsys.readouterr().err.split())
    assert session.broken == {BROKEN}
    before = Session(settings, no_vlm)  # whose inputs are read before any pool is built
    inputs = [decided_inputs(settings, each, rl_data_path(settings)) for each in (before, session)]
    assert inputs[0] == inputs[1]
    without = Session(make_settings(folder, {"encoder": str(clip), "sampler": "rand", "on_image_error": "skip"}))
    assert before.identity["broken_images"] == without.identity["broken_images"]


def test_random_pools_do_not_depend_on_an_encoder_that_only_selectors_use(folder, clip):
    (folder / f"images/{BROKEN}.png").write_bytes(b"damaged")
    data = {"encoder": str(clip), "train_embeddings": str(folder / "vectors.safetensors"), "on_image_error": "skip"}
    settings = make_settings(folder, data)
    first, second = Session(settings, no_vlm), Session(settings, no_vlm)
    _ = second.similar_train
    assert first.identity == second.identity
    assert "broken_images" not in first.identity
    pools = [session.queries(session.split("validation"), "validation", 1).pools for session in (first, second)]
    assert list(pools[0]) == list(pools[1])


def test_a_broken_image_stops_the_command_by_default(folder, clip):
    (folder / f"images/{BROKEN}.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"(?s)5\.png.*--on-image-error skip"):
        _ = Session(make_settings(folder, {"encoder": str(clip)}), no_vlm).embeddings


# --- experiments ------------------------------------------------------------------------------------------


def test_a_comparison_that_is_complete_is_repeated_and_dry_run_without_the_vlm(folder, clip):
    settings, loader = make_settings(folder, {"encoder": str(clip)}), Loader()
    experiments, files = plan_experiments(settings, "rce", 1), [folder / "rl.jsonl"]
    names, _ = run_experiments(settings, experiments, rl_data_files=files, session=Session(settings, loader))
    assert loader.loads == 1
    session = Session(settings, no_vlm)
    _, *steps = dry_run(settings, experiments, rl_data_files=files, session=session)
    assert not any(estimate.step.todo for estimate in steps)
    again, _ = run_experiments(settings, experiments, rl_data_files=files, session=session)
    assert again == names


# --- answers of candidates --------------------------------------------------------------------------------


@pytest.mark.parametrize("pool_size", [8, "all"])
def test_a_policy_that_sees_answers_is_trained_answers_queries_and_proposes(folder, clip, pool_size):
    settings = make_settings(
        folder, {"encoder": str(clip)}, train={"rce_epochs": 1, "rce_lr": 0.05, "candidate_answers": True}
    )
    run, metadata = train_on_file(Session(settings, no_vlm), folder)
    network = load_policy(run.checkpoint)
    session = Session(with_values(settings, {"data": {"pool_size": pool_size}}))
    d = session.embeddings.shape[1]
    assert (network.config.d_model, network.config.answer_dim) == (d, d + 1)
    assert metadata["identity"]["train.candidate_answers"] is True and "candidate-answers" in run_name(settings)
    assert network.answer_proj.any()  # it has learnt
    table = candidates_for(network, session, run.checkpoint)
    assert torch.equal(table[:, :d], session.embeddings)
    torch.testing.assert_close(table[:, -1], agreement(table[:, :d], [example.answer for example in session.train]))
    one = {row: table[row, d:-1].tolist() for row in range(TRAIN)}
    same = [(a, b) for a in one for b in range(a) if session.train[a].answer == session.train[b].answer]
    assert same and all(one[a] == one[b] for a, b in same)
    assert len({tuple(answer) for answer in one.values()}) == len({example.answer for example in session.train})

    # Whether answers are needed is up to the policy, not to the settings of the command that uses it.
    plain = with_values(session.settings, {"train": {"candidate_answers": False}})
    (row, *_) = infer(plain, checkpoint=run.checkpoint, session=session, with_baselines=False)
    chosen = [tuple(json.loads(line)["icds"]) for line in row.path.read_text().splitlines()]
    assert len(chosen) == 6
    proposing = with_values(plain, {"proposals": {"init": str(run.checkpoint), "queries": 2, "shots": 1}})
    generate(proposing, session=session.under(proposing))


def test_a_policy_that_saw_answers_of_another_width_is_rejected(folder, clip):
    session = Session(make_settings(folder, {"encoder": str(clip)}), no_vlm)
    d = session.embeddings.shape[1]
    with pytest.raises(CheckpointError, match=rf"a.pt takes answers of width 5, this encoder's have {d + 1}"):
        candidates_for(PointerNetwork(PointerConfig(d, answer_dim=5)), session, Path("a.pt"))
    with pytest.raises(CheckpointError, match=rf"a.pt takes embeddings of width 3, this encoder's have {d}"):
        candidates_for(PointerNetwork(PointerConfig(3)), session, Path("a.pt"))


def test_answers_are_embedded_only_for_a_policy_that_sees_them(folder, clip):
    session = Session(make_settings(folder, {"encoder": str(clip)}), no_vlm)
    train_on_file(session, folder)
    assert not list(folder.rglob("train_answers_*"))
