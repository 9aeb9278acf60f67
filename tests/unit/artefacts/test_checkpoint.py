import collections
import functools
import json
import os
import pickle
import sys
import types
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from icdsel.artefacts.checkpoint import load_checkpoint, load_policy
from icdsel.artefacts.checkpoint_conversion import ConversionWarning, convert_checkpoint, is_converted
from icdsel.artefacts.checkpoint_writing import save_policy
from icdsel.artefacts.run_folder import find_checkpoint
from icdsel.errors import CheckpointError, UserError
from icdsel.policy.config import PointerConfig
from icdsel.policy.network import PointerNetwork
from icdsel.store.torch_files import open_torch_file

DATA = Path(__file__).parents[2] / "data"
LEVER_PLUS = [
    "rce_epoch1.pt",
    "rce_epoch2.pt",
    "grpo_epoch1.pt",
    "grpo_epoch2.pt",
    "grpo_epoch3.pt",
    "rce_epoch2_v2format.ckpt",
    "lightning_v2_with_omegaconf.ckpt",
]
PREFIX = "lever_lm.pointer_selector."


def network(seed: int = 0, **config: object) -> PointerNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = PointerNetwork(PointerConfig(**{"d_model": 6, "hidden_dim": 8, **config}))
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return policy.eval()


def save(path: Path, policy: PointerNetwork, **more: object) -> Path:
    arguments = {"epoch": 2, "phase": "rce", "metrics": {"rce_loss": 1.5, "val_loss": 2.5}, "kl_beta": 0.15}
    save_policy(path, policy, **{**arguments, **more})
    return path


def torch_save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def logits(policy: PointerNetwork, shots: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    d = policy.config.d_model
    query = torch.randn(2, d, generator=generator)
    candidates = torch.randn(2, 5, d + policy.config.answer_dim, generator=generator)
    pointers = torch.tensor([[4, 2, 0, 1, 3][:shots], [1, 0, 3, 2, 4][:shots]]).expand(2, 2, shots)
    return policy.step_logits(query, candidates, pointers)


def same(a: PointerNetwork, b: PointerNetwork) -> bool:
    return a.config == b.config and torch.equal(logits(a), logits(b))


VARIANTS = [
    pytest.param({}, id="gate"),
    pytest.param({"gate": False}, id="no-gate"),
    pytest.param({"d_model": 8}, id="no-input-projection"),
    pytest.param({"num_layers": 3, "gate": False, "dropout": 0.1}, id="layers"),
    pytest.param({"num_heads": 4, "tower": 12, "attn_dropout": 0.0}, id="larger"),
    pytest.param({"num_heads": 2, "tower": 12, "gate": False}, id="larger-no-gate"),
    pytest.param({"tower": 12, "answer_dim": 5}, id="answers"),
]


# --- checkpoints of Lever-Plus ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEVER_PLUS)
def test_checkpoints_of_lever_plus_are_read(name: str) -> None:
    checkpoint = load_checkpoint(DATA / name)
    policy = checkpoint.network
    assert policy.config == PointerConfig(d_model=32, hidden_dim=16, gate=False)
    assert not policy.training and all(p.requires_grad for p in policy.parameters())
    assert all(p.dtype == torch.float32 for p in policy.parameters())
    if name.endswith(".pt"):
        phase, epoch = name.removesuffix(".pt").split("_epoch")
        assert (checkpoint.phase, checkpoint.epoch) == (phase, int(epoch) - 1)
        assert f"{phase}_loss" in checkpoint.metrics and isinstance(checkpoint.kl_beta, float)
    state = policy.state_dict()
    with open_torch_file(DATA / name) as file:
        stored = file.content.get("model_state_dict", file.content.get("state_dict"))
        assert any(torch.equal(file.read_tensor(value), state["query_proj.weight"]) for value in stored.values())


def test_a_checkpoint_converted_by_lever_plus_is_the_same_policy() -> None:
    converted, original = (load_policy(DATA / f"rce_epoch2{end}") for end in ("_v2format.ckpt", ".pt"))
    assert same(converted, original)
    assert not torch.equal(logits(load_policy(DATA / "rce_epoch1.pt")), logits(original))


def test_a_lightning_checkpoint_is_read_without_omegaconf() -> None:
    with pytest.raises(pickle.UnpicklingError):
        torch.load(DATA / "lightning_v2_with_omegaconf.ckpt", weights_only=True)
    load_policy(DATA / "lightning_v2_with_omegaconf.ckpt")
    assert "omegaconf" not in sys.modules
    assert load_policy(DATA / "lightning_v2_with_omegaconf.ckpt").state_dict().keys() == (
        load_policy(DATA / "rce_epoch1.pt").state_dict().keys()
    )


@pytest.mark.parametrize("prefix", ["", "lever_lm.", "pointer_selector.", PREFIX])
@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", None])
@pytest.mark.parametrize("old_names", [False, True])
def test_every_naming_of_the_parameters_is_read(tmp_path: Path, prefix: str, key: str | None, old_names: bool) -> None:
    policy = network()
    state = {}
    for name, value in policy.state_dict().items():
        if old_names:
            name = name.replace("cross_attn_layers.0", "cross_attn").replace("attn_norms.0", "attn_norm")
        state[prefix + name] = value
    if prefix.startswith("lever_lm."):
        state["lever_lm.sen_model.text_model.weight"] = torch.zeros(3)
        state["lever_lm.img_model.vision_model.weight"] = torch.zeros(3)
    path = torch_save(tmp_path / "x.ckpt", state if key is None else {key: state, "epoch": 1})
    assert same(load_policy(path), policy)


def test_weights_without_cross_attention_and_config_are_rejected(tmp_path: Path) -> None:
    weights = {name: x for name, x in network().state_dict().items() if not name.startswith("cross_attn_layers")}
    with pytest.raises(CheckpointError, match="no cross-attention layer"):
        load_policy(torch_save(tmp_path / "x.pt", {"model_state_dict": weights}))


def test_sizes_are_inferred_from_the_shapes(tmp_path: Path) -> None:
    for config in ({}, {"gate": False}, {"d_model": 8}, {"num_layers": 3}, {"tower": 12}, {"answer_dim": 4}):
        policy = network(**config)
        path = torch_save(tmp_path / "x.pt", {"model_state_dict": policy.state_dict()})
        assert same(load_policy(path), policy)


def test_half_precision_is_converted_to_float32(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in network().state_dict().items()}
    loaded = load_policy(torch_save(tmp_path / "x.pt", {"model_state_dict": state}))
    assert torch.equal(loaded.query_proj.weight, state["query_proj.weight"].float())


# --- checkpoints of icdsel --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant",
    [
        *VARIANTS,
        pytest.param({"num_layers": 0}, id="no-layers"),
        pytest.param({"question_gate": 4, "num_layers": 0, "update": "residual"}, id="gate by the question"),
        pytest.param({"update": "residual", "stop": True, "query_tower": 4, "tower": 4}, id="stop"),
    ],
)
def test_a_written_checkpoint_is_read_again(tmp_path: Path, variant: dict) -> None:
    policy = network(**variant)
    checkpoint = load_checkpoint(save(tmp_path / "run" / "rce_epoch3.pt", policy))
    assert same(checkpoint.network, policy) and not checkpoint.network.training
    assert (checkpoint.epoch, checkpoint.phase, checkpoint.kl_beta) == (2, "rce", 0.15)
    assert checkpoint.metrics == {"rce_loss": 1.5, "val_loss": 2.5}
    assert checkpoint.optimizer is None and checkpoint.extra == {}


@pytest.mark.parametrize("phase", ["sft", "rce\nnothing is wrong", "r" * 1000, 3, None, ["rce"]])
def test_an_unknown_phase_is_none(tmp_path: Path, phase: object) -> None:
    content = torch.load(save(tmp_path / "rce_epoch3.pt", network()), weights_only=True)
    assert load_checkpoint(torch_save(tmp_path / "x.pt", content | {"phase": phase})).phase is None


def test_a_checkpoint_has_the_five_keys_of_lever_plus(tmp_path: Path) -> None:
    content = torch.load(save(tmp_path / "rce_epoch3.pt", network()), weights_only=True)
    ours, theirs = content, torch.load(DATA / "rce_epoch2.pt", weights_only=True)
    assert ours.keys() - theirs.keys() == {"config"} and theirs.keys() <= ours.keys()
    assert ours["config"]["d_model"] == 6
    assert [type(ours[key]) for key in ("epoch", "phase", "kl_beta")] == [int, str, float]


def test_training_resumes_from_the_optimizer_in_a_checkpoint(tmp_path: Path) -> None:
    def step(policy: PointerNetwork, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        logits(policy).square().mean().backward()
        optimizer.step()

    policy = network()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, betas=(0.8, 0.9))
    step(policy, optimizer)
    extra = {"step": 1, "generator": torch.get_rng_state(), "order": [3, (1, 2), None, True]}
    path = save(tmp_path / "last.pt", policy, optimizer=optimizer, extra=extra)
    checkpoint = load_checkpoint(path)
    assert checkpoint.extra["order"] == [3, (1, 2), None, True]
    assert torch.equal(checkpoint.extra["generator"], extra["generator"])
    resumed = torch.optim.AdamW(checkpoint.network.parameters())
    resumed.load_state_dict(checkpoint.optimizer)
    step(policy, optimizer)
    step(checkpoint.network, resumed)
    assert same(policy, checkpoint.network)


def test_equal_content_gives_the_same_bytes(tmp_path: Path) -> None:
    policy = network(tower=4)
    optimizer = torch.optim.AdamW(policy.parameters())
    logits(policy).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer, "extra": {"x": torch.arange(3), "loss": "val_loss"}}
    first = save(tmp_path / "a.pt", policy, **state).read_bytes()
    assert save(tmp_path / "other.name.pt", policy, **state).read_bytes() == first
    # Loaded again, the objects, what they share and their storages are different.
    again = load_checkpoint(tmp_path / "a.pt")
    resumed = torch.optim.AdamW(again.network.parameters())
    resumed.load_state_dict(again.optimizer)
    metrics = {"".join(["rce", "_loss"]): 1.5, "".join(["val", "_loss"]): 2.5}
    extra = {"x": torch.arange(9)[:3], "loss": "".join(["val", "_loss"])}
    save(tmp_path / "b.pt", again.network, optimizer=resumed, metrics=metrics, extra=extra)
    assert (tmp_path / "b.pt").read_bytes() == first
    assert save(tmp_path / "c.pt", network(seed=1, tower=4)).read_bytes() != first


def test_loading_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    load_policy(DATA / "rce_epoch1.pt")
    assert torch.equal(torch.get_rng_state(), before)


def test_saving_keeps_the_mode_and_leaves_no_other_file(tmp_path: Path) -> None:
    policy = network().train()
    save(tmp_path / "a.pt", policy)
    save(tmp_path / "a.pt", policy, epoch=3)
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"] and policy.training
    assert load_checkpoint(tmp_path / "a.pt").epoch == 3


def test_only_plain_data_is_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="set"):
        save(tmp_path / "a.pt", network(), extra={"x": {1, 2}})
    assert not (tmp_path / "a.pt").exists()


# --- conversion -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_converted_policy_is_the_same_policy(tmp_path: Path, variant: dict) -> None:
    policy = network(**variant)
    path = save(tmp_path / "grpo_epoch3.pt", policy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        converted = convert_checkpoint(path)
    assert converted == tmp_path / "grpo_epoch3_v2format.ckpt"
    assert same(load_policy(converted), policy)
    content = torch.load(converted, weights_only=True)
    assert content["epoch"] == 2 and content["global_step"] == 0
    assert content["pytorch-lightning_version"] == "2.0.0"
    assert content["hyper_parameters"] == {"lr": 1e-4, "weight_decay": 1e-3, "warm_steps": 0.05}
    assert all(name.startswith(PREFIX) for name in content["state_dict"])
    assert f"{PREFIX}cross_attn_layers.0.in_proj_weight" in content["state_dict"]


def test_legacy_names_are_those_of_lever_plus_own_converter(tmp_path: Path) -> None:
    converted = convert_checkpoint(DATA / "rce_epoch2.pt", tmp_path / "x.ckpt", legacy_names=True)
    ours = torch.load(converted, weights_only=True)
    theirs = torch.load(DATA / "rce_epoch2_v2format.ckpt", weights_only=True)
    for name, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], value)
    added = {f"{PREFIX}query_update_gate.weight", f"{PREFIX}query_update_gate.bias"}
    assert ours["state_dict"].keys() - theirs["state_dict"].keys() == added
    assert {key: theirs[key] for key in theirs if key != "state_dict"}.items() <= {
        key: value for key, value in ours.items() if key != "state_dict"
    }.items()
    assert same(load_policy(converted), load_policy(DATA / "rce_epoch2.pt"))


def test_with_the_neutral_gate_lever_plus_chooses_like_the_policy_without_one(tmp_path: Path) -> None:
    policy = network(gate=False)
    content = torch.load(convert_checkpoint(save(tmp_path / "rce_epoch1.pt", policy)), weights_only=True)
    gate = {name: value for name, value in content["state_dict"].items() if "gate" in name}
    assert len(gate) == 2 and not gate[f"{PREFIX}query_update_gate.weight"].any()
    assert (gate[f"{PREFIX}query_update_gate.bias"] == 30).all()
    del content["config"]  # Lever-Plus reads none and always has a gate
    gated = load_policy(torch_save(tmp_path / "theirs.ckpt", content))
    assert gated.config.gate
    torch.testing.assert_close(logits(gated, 5), logits(policy, 5), rtol=1e-6, atol=1e-5)


def test_a_warning_names_the_parts_that_lever_plus_would_ignore(tmp_path: Path) -> None:
    path = save(tmp_path / "rce_epoch1.pt", network(num_heads=4, tower=12, answer_dim=5))
    ignored = r"shared encoder .*12 wide.* and 4 attention heads and view of the candidates' answers.*ignore"
    with pytest.warns(ConversionWarning, match=ignored):
        converted = convert_checkpoint(path)
    assert f"{PREFIX}tower.up.weight" in torch.load(converted, weights_only=True)["state_dict"]


def test_a_shared_encoder_has_one_projection(tmp_path: Path) -> None:
    path = save(tmp_path / "rce_epoch1.pt", network(tower=12))
    content = torch.load(path, weights_only=True)
    assert torch.equal(
        content["model_state_dict"]["query_proj.weight"], content["model_state_dict"]["cand_proj.weight"]
    )
    content["model_state_dict"]["cand_proj.weight"] = content["model_state_dict"]["cand_proj.weight"] + 1
    with pytest.raises(CheckpointError, match="query_proj and cand_proj differ"):
        load_policy(torch_save(path, content))


def test_there_is_no_warning_if_lever_plus_knows_all_parts(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_checkpoint(save(tmp_path / "rce_epoch1.pt", network()))


def test_a_repeated_conversion_gives_the_same_bytes(tmp_path: Path) -> None:
    path = save(tmp_path / "rce_epoch1.pt", network(gate=False))
    first = convert_checkpoint(path)
    second = convert_checkpoint(first, tmp_path / "again" / "x.ckpt")  # from a converted file
    assert first.read_bytes() == second.read_bytes() == convert_checkpoint(path).read_bytes()


def test_impossible_conversions_are_rejected(tmp_path: Path) -> None:
    two_layers = save(tmp_path / "rce_epoch1.pt", network(num_layers=2))
    with pytest.raises(CheckpointError, match="one cross-attention layer, this policy has 2"):
        convert_checkpoint(two_layers, legacy_names=True)
    residual = save(tmp_path / "rce_epoch2.pt", network(update="residual"))
    with pytest.raises(CheckpointError, match="update their state by a gate, this policy by --update residual"):
        convert_checkpoint(residual)
    without = save(tmp_path / "rce_epoch2.pt", network(num_layers=0))
    with pytest.raises(CheckpointError, match="have a cross-attention layer, this policy has none"):
        convert_checkpoint(without)
    with pytest.raises(CheckpointError, match="already converted"):
        convert_checkpoint(DATA / "rce_epoch2_v2format.ckpt")
    with pytest.raises(CheckpointError, match="is the file to be converted"):
        convert_checkpoint(two_layers, two_layers)
    with pytest.raises(CheckpointError, match="does not exist"):
        convert_checkpoint(tmp_path / "rce_epoch9.pt")


def test_a_conversion_replaces_no_other_file(tmp_path: Path) -> None:
    path = save(tmp_path / "rce_epoch1.pt", network())
    target = tmp_path / "policy.ckpt"
    target.write_text("somebody's own")
    with pytest.raises(
        CheckpointError, match=r"is not the conversion of .*: name another file with --output, or use --overwrite"
    ):
        convert_checkpoint(path, target)
    assert target.read_text() == "somebody's own"
    convert_checkpoint(path, target, overwrite=True)
    assert (tmp_path / "policy.ckpt.old-1").read_text() == "somebody's own"
    convert_checkpoint(path, target)  # exists already
    assert load_policy(target).config == network().config
    assert len(list(tmp_path.glob("policy*"))) == 2


# --- the last checkpoint of a run -------------------------------------------------------------------------


def test_the_last_epoch_is_found_by_its_number(tmp_path: Path) -> None:
    for name in ("rce_epoch2.pt", "rce_epoch10.pt", "rce_epoch10_v2format.ckpt", "last.pt", "rce_epochX.pt"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "rce_epoch10.pt", (0, 0))  # the modification time does not matter
    assert find_checkpoint(tmp_path) == tmp_path / "rce_epoch10.pt"
    for stray in ("rce_epoch\u0663\u0663.pt", "rce_epoch0011.pt"):  # not written by icdsel
        (tmp_path / stray).touch()
    assert find_checkpoint(tmp_path) == tmp_path / "rce_epoch10.pt"
    (tmp_path / "grpo_epoch1.pt").touch()
    os.utime(tmp_path / "grpo_epoch1.pt", (0, 0))
    assert find_checkpoint(str(tmp_path)) == tmp_path / "grpo_epoch1.pt"


def test_a_run_without_a_checkpoint_is_an_error_with_the_expected_names(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"grpo_epochN\.pt, then rce_epochN\.pt, and found nothing"):
        find_checkpoint(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"found notes\.txt"):
        find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        find_checkpoint(tmp_path / "missing")


# --- checkpoints that do not fit --------------------------------------------------------------------------


def altered(tmp_path: Path, change, **config: object) -> Path:
    path = save(tmp_path / "rce_epoch1.pt", network(**config))
    content = torch.load(path, weights_only=True)
    change(content)
    return torch_save(path, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model_state_dict"].pop("attn_norms.0.bias"), r"lacks attn_norms\.0\.bias"),
        (lambda c: c["model_state_dict"].pop("query_update_gate.bias"), r"lacks query_update_gate\.bias"),
        (lambda c: c["model_state_dict"].update(stop_token=torch.zeros(2)), "has stop_token, which"),
        (lambda c: c["model_state_dict"].update({"attn_norm.bias": torch.zeros(8)}), "twice"),
        (
            lambda c: c["model_state_dict"].update({"cand_proj.weight": torch.zeros(8, 9)}),
            r"cand_proj\.weight is \[8, 9\], not \[8, 8\]",
        ),
        (lambda c: c["model_state_dict"].update({"cand_proj.weight": "x"}), "not a tensor of floats"),
        (lambda c: c["model_state_dict"].update({"cand_proj.weight": torch.ones(8, 8).long()}), "not a tensor"),
        (lambda c: c["config"].update(d_model=7), r"input_proj\.weight is \[8, 6\], not \[8, 7\]"),
        (lambda c: c["config"].update(gate=False), "has query_update_gate"),
        (lambda c: c["config"].update(num_heads=3), "num_heads"),
        (lambda c: c["config"].update(d_model="wide"), "cannot be used"),
        (lambda c: c["config"].update(rotary=True), "rotary.*newer version"),
        (lambda c: c["config"].pop("d_model"), "d_model"),
        (lambda c: c.update(config=[1]), "config is a list"),
        (lambda c: c.update(model_state_dict={}), "no pointer selector"),
        (lambda c: c.update(model_state_dict=[1]), "state_dict is a list"),
    ],
)
def test_weights_and_config_must_fit_the_network(tmp_path: Path, change, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_policy(altered(tmp_path, change))
    assert "rce_epoch1.pt" in str(caught.value) and "Expected a checkpoint" in str(caught.value)
    assert isinstance(caught.value, UserError)


def test_weights_without_a_config_must_have_the_shapes_of_a_network(tmp_path: Path) -> None:
    def without_config(content: dict) -> None:
        del content["config"]
        content["model_state_dict"]["query_proj.weight"] = torch.zeros(8)

    with pytest.raises(CheckpointError, match=r"query_proj\.weight is not a matrix"):
        load_policy(altered(tmp_path, without_config))


def test_other_content_than_a_checkpoint_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a Tensor, not a checkpoint"):
        load_policy(DATA / "query_embeddings.pt")
    with pytest.raises(CheckpointError, match=r"no pointer selector .* it begins with: a, b"):
        load_policy(torch_save(tmp_path / "x.pt", {"a": 1, "b": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match="does not exist"):
        load_policy(tmp_path / "missing.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_policy(tmp_path)


# --- damage -----------------------------------------------------------------------------------------------


def other_files(tmp_path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("readme.txt", "hello")
    return {
        "text": b"not a checkpoint at all\n" * 9,
        "json": json.dumps({"state_dict": {}}).encode(),
        "zip": (tmp_path / "other.zip").read_bytes(),
        "pickle": pickle.dumps({"model_state_dict": {}}),
        "zeros": bytes(5000),
    }


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["text", "json", "zip", "pickle", "zeros"])
def test_other_files_are_rejected(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rce_epoch1.pt"
    path.write_bytes(other_files(tmp_path)[kind])
    with pytest.raises(CheckpointError, match=r"not a checkpoint, or damaged|no pointer selector"):
        load_policy(path)


@pytest.mark.parametrize("name", ["rce_epoch1.pt", "lightning_v2_with_omegaconf.ckpt"])
def test_truncated_files_are_rejected(tmp_path: Path, name: str) -> None:
    whole, path = (DATA / name).read_bytes(), tmp_path / name
    for length in range(0, len(whole), 397):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"empty|damaged"):
            load_policy(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["rce_epoch1.pt", "lightning_v2_with_omegaconf.ckpt"]),
    place=st.integers(0, 15_000),
    replacement=st.binary(min_size=1, max_size=4),
)
def test_damage_is_harmless_or_a_checkpoint_error(tmp_path, name, place, replacement) -> None:
    content = bytearray((DATA / name).read_bytes())
    place %= len(content)
    content[place : place + len(replacement)] = replacement
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    try:
        assert isinstance(load_policy(path), PointerNetwork)
    except CheckpointError as error:
        assert str(path) in str(error)


# --- malice -----------------------------------------------------------------------------------------------


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call

    def __call__(self) -> None:
        """Never called; pickle requires the function of a call to be callable."""


def evils(marker: Path) -> dict[str, Call]:
    create = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, f"touch {marker}"),
        "builtins.exec": Call(exec, create),
        "builtins.eval": Call(eval, create),
        "torch.save": Call(torch.save, {}, str(marker)),
        "a call of a call": Call(Call(functools.partial, os.mkdir), str(marker)),
        "an iterator": Call(collections.deque, Call(map, os.mkdir, [str(marker)])),
    }


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", list(evils(Path("x"))))
@pytest.mark.parametrize("form", ["torch", "legacy", "pickle"])
def test_no_code_in_a_file_is_run(tmp_path: Path, kind: str, form: str) -> None:
    marker, trap = tmp_path / "executed", tmp_path / "trap"
    pickle.loads(pickle.dumps(evils(trap)[kind]))  # noqa: S301 - it would run otherwise
    assert trap.exists()
    policy = network()
    content = {"state_dict": policy.state_dict(), "hyper_parameters": evils(marker)[kind]}
    path = tmp_path / "x.ckpt"
    if form == "pickle":
        path.write_bytes(pickle.dumps(content["hyper_parameters"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    if form == "torch":  # the weights beside it are read
        assert same(load_policy(path), policy)
    else:
        with pytest.raises(CheckpointError):
            load_policy(path)
    assert not marker.exists()


def test_no_code_among_the_weights_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    state = {**network().state_dict(), "query_proj.weight": Call(os.system, f"touch {marker}")}
    for content in (
        {"state_dict": state},
        Call(os.system, f"touch {marker}"),
        {"state_dict": Call(exec, "1")},
    ):
        with pytest.raises(CheckpointError):
            load_policy(torch_save(tmp_path / "x.ckpt", content))
        assert not marker.exists()


def test_no_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "imported"
    (tmp_path / "unheard_of.py").write_text(f"open({str(marker)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    module = types.ModuleType("unheard_of")
    module.Thing = type("Thing", (), {"__module__": "unheard_of"})
    monkeypatch.setitem(sys.modules, "unheard_of", module)
    thing = module.Thing()
    thing.value = 3
    path = torch_save(tmp_path / "x.ckpt", {"state_dict": network().state_dict(), "extra": [thing]})
    monkeypatch.delitem(sys.modules, "unheard_of")
    assert load_checkpoint(path).extra == {}  # it is a list, not a dict
    assert "unheard_of" not in sys.modules and not marker.exists()


@pytest.mark.parametrize(
    "forgery",
    [
        {"size": (8, 10**6)},
        {"size": (8, 9)},
        {"offset": 60},
        {"offset": -4},
        {"stride": (-8, 1)},
        {"stride": (10**9, 1)},
        {"size": (8,)},
        {"size": (8, 8.5)},
        {"storage": "x"},
    ],
)
def test_a_tensor_stays_within_its_storage(tmp_path: Path, forgery: dict) -> None:
    weight = torch.randn(8, 8)
    storage = torch.storage.TypedStorage(wrap_storage=weight.untyped_storage(), dtype=weight.dtype, _internal=True)
    place = {"storage": storage, "offset": 0, "size": (8, 8), "stride": (8, 1), **forgery}
    forged = Call(torch._utils._rebuild_tensor_v2, *place.values(), False, collections.OrderedDict())
    state = {**network().state_dict(), "query_proj.weight": forged}
    with pytest.raises(CheckpointError, match=r"damaged|cannot be used"):
        load_policy(torch_save(tmp_path / "x.ckpt", {"state_dict": state}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_must_be_finite(tmp_path: Path, value: float) -> None:
    policy = network()
    with torch.no_grad():
        policy.query_proj.weight[0, 0] = value
    with pytest.raises(CheckpointError, match=r"query_proj\.weight has NaN or infinite"):
        load_policy(save(tmp_path / "rce_epoch1.pt", policy))


def test_a_checkpoint_that_links_out_of_its_run_is_rejected(tmp_path):
    elsewhere = save(tmp_path / "elsewhere.pt", network())
    run = tmp_path / "run"
    run.mkdir()
    (run / "rce_epoch1.pt").symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match=r"link that leads out of its run.*elsewhere\.pt.*--checkpoint"):
        find_checkpoint(run)
    (run / "rce_epoch3.pt").symlink_to("rce_epoch3.pt")
    with pytest.raises(CheckpointError, match=r"rce_epoch3\.pt is not a file"):
        find_checkpoint(run)
    (run / "rce_epoch3.pt").unlink()
    save(run / "kept.pt", network())
    (run / "rce_epoch2.pt").symlink_to("kept.pt")
    assert find_checkpoint(run) == run / "rce_epoch2.pt"


def test_a_conversion_is_recognised_by_its_content(tmp_path):
    path = save(tmp_path / "rce_epoch1.pt", network(seed=1))
    assert not is_converted(path)
    written = convert_checkpoint(path, legacy_names=True)
    assert is_converted(path)
    os.utime(written, (1, 1))  # a wrong clock, or a copy
    assert is_converted(path)
    save(path, network(seed=2))
    os.utime(written, (2e9, 2e9))
    assert not is_converted(path)
    written.write_bytes(b"torn")
    assert not is_converted(path)


def test_foreign_objects_are_named_when_a_checkpoint_is_converted(tmp_path: Path) -> None:
    content = torch.load(DATA / "rce_epoch2.pt", weights_only=True)
    path = torch_save(tmp_path / "theirs.pt", content | {"tool": os.system, "when": pickle.Pickler})
    with pytest.warns(ConversionWarning, match=r"theirs.pt holds objects .*system.*runs none of them.*v2format.* none"):
        written = convert_checkpoint(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(load_policy(written), load_policy(DATA / "rce_epoch2.pt"))
        convert_checkpoint(DATA / "rce_epoch2.pt", tmp_path / "plain.ckpt")


def test_a_checkpoint_says_what_it_was_trained_for(tmp_path: Path) -> None:
    trained_for = {
        "encoder": "abc",
        "data.pool_size": 64,
        "vlm.length_penalty": 0.5,
        "init": None,
        "examples": ["x", "y"],
    }
    path = save(tmp_path / "a.pt", network(), trained_for=trained_for)
    assert load_checkpoint(path).trained_for == trained_for
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        assert load_checkpoint(convert_checkpoint(path)).trained_for == trained_for
    assert load_checkpoint(save(tmp_path / "b.pt", network())).trained_for == {}
    assert b"trained_for" not in (tmp_path / "b.pt").read_bytes()  # the bytes of earlier versions


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (["x"], {}),
        ({str(n): n for n in range(1001)}, {}),
        ({"a": 1, 2: "b", "c": {"d": 1}, "e": [1], "f": ("x",), "g": torch.zeros(2)}, {"a": 1}),
        ({"a": ["x"] * 1001, "b": os.system, "c": True}, {"c": True}),
    ],
)
def test_damaged_parts_of_what_it_was_trained_for_are_ignored(value: object, kept: dict, tmp_path: Path) -> None:
    content = torch.load(save(tmp_path / "a.pt", network()), weights_only=True)
    assert load_checkpoint(torch_save(tmp_path / "b.pt", content | {"trained_for": value})).trained_for == kept
