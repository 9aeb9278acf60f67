"""Code that comes with a model runs only if the user trusts it."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tiny_clip import save_tiny_clip
from transformers import CLIPConfig
from vlm_families import FAMILIES

from icdsel.errors import VlmError
from icdsel.retrieval.encoders import load_clip
from icdsel.settings.identity import identity
from icdsel.settings.loading import load_settings
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.devices import resolve_device
from icdsel.vlm.local.any_vlm import AnyVlm
from icdsel.vlm.local.loading import TINY_VLM_DIR, load_local
from icdsel.vlm.local.model import LocalModel
from icdsel.vlm.local.pretrained import fingerprint, missing_package, model_folder, replace_flash_attention, uses_kernel
from icdsel.vlm.local.qwen_vl import QwenVl

PIXELS = 1_000_000

# A tiny VLM under a name that transformers does not know, whose code leaves a file when it runs.
CODE = """
from pathlib import Path
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

Path({marker!r}).touch()

class Config(Qwen2_5_VLConfig):
    model_type = "surprise"

class Model(Qwen2_5_VLForConditionalGeneration):
    config_class = Config
"""


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "ran"


@pytest.fixture
def surprise(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model that needs custom code."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    folder = tmp_path / "surprise"
    shutil.copytree(TINY_VLM_DIR, folder)
    names = {"AutoConfig": "surprise.Config", "AutoModelForImageTextToText": "surprise.Model"}
    edit(folder, model_type="surprise", auto_map=names)
    (folder / "surprise.py").write_text(CODE.format(marker=str(marker)))
    # Named as in memory: transformers renames the weights of architectures that it knows as it reads them.
    weights = load(TINY_VLM_DIR).model.state_dict()
    save_file({name: held.clone() for name, held in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load(folder: Path, **settings: object) -> LocalModel:
    return load_local(VlmSettings(model=str(folder), device="cpu", **settings), PIXELS)


def test_a_model_that_needs_its_own_code_is_rejected_with_the_flag_that_would_run_it(surprise: Path, marker: Path):
    with pytest.raises(VlmError, match=r"custom code \(surprise\.py\).*not run.*--trust-remote-code"):
        load(surprise)
    assert not marker.exists()


def test_its_code_is_run_if_it_is_trusted(surprise: Path, marker: Path):
    vlm = load(surprise, trust_remote_code=True)
    assert marker.exists()
    assert type(vlm.model).__name__ == "Model" and vlm.model.config.model_type == "surprise"
    # The fast path knows the inside of one class; a class of the model's own may compute anything.
    assert type(vlm) is AnyVlm


@pytest.mark.parametrize("kind", ["AutoModelForImageTextToText", "AutoModelForCausalLM"])
def test_a_known_configuration_with_a_class_of_its_own_is_rejected(tmp_path: Path, kind: str):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "auto_map": {kind: "surprise.Model"}}))
    (tmp_path / "surprise.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(VlmError, match=r"surprise\.py.*--trust-remote-code"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_code_that_a_known_model_does_not_need_is_not_run(tmp_path: Path, surprise: Path, marker: Path):
    edit(surprise, model_type="qwen2_5_vl")
    vlm = load(surprise)
    assert type(vlm) is QwenVl
    assert not marker.exists()


@pytest.mark.parametrize("place", [{}, {"text_config": {"_attn_implementation": "some-one/attention"}}])
def test_a_kernel_of_the_hub_is_code_too(tmp_path: Path, place: dict):
    shutil.copytree(TINY_VLM_DIR, tmp_path / "vlm")
    edit(tmp_path / "vlm", **(place or {"attn_implementation": "some-one/attention@main"}))
    with pytest.raises(VlmError, match=r"code in another place.*--trust-remote-code"):
        load(tmp_path / "vlm")


def test_a_kernel_that_transformers_would_fetch_by_itself_is_code_too(tmp_path: Path):
    shutil.copytree(TINY_VLM_DIR, tmp_path / "vlm")
    edit(tmp_path / "vlm", experts_implementation="sonicmoe")
    with pytest.raises(VlmError, match=r"code in another place.*--trust-remote-code"):
        load(tmp_path / "vlm")


FLASH = {"attn_implementation": "flash_attention_2"}


@pytest.mark.parametrize(
    ("changes", "trusted"),
    [
        (FLASH, False),
        (FLASH, True),
        ({"_attn_implementation": "flash_attention_3"}, False),
        ({"attn_implementation": {"text_config": "flash_attention_3"}}, False),
        (FLASH | {"auto_map": {"AutoConfig": "surprise.Config"}}, False),
    ],
)
def test_flash_attention_that_is_not_installed_is_replaced_with_a_note(tmp_path, monkeypatch, capsys, changes, trusted):
    """Neither code is run nor a kernel fetched."""
    monkeypatch.setattr("transformers.integrations.hub_kernels.load_and_register_attn_kernel", None)
    shutil.copytree(TINY_VLM_DIR, tmp_path / "vlm")
    edit(tmp_path / "vlm", **changes)
    vlm = load(tmp_path / "vlm", trust_remote_code=trusted)
    assert {vlm.model.config._attn_implementation, vlm.model.config.text_config._attn_implementation} == {"sdpa"}
    message = " ".join(capsys.readouterr().err.split())
    assert re.search(
        r"asks for flash_attention_\d, which is not installed.*PyTorch's attention \(sdpa\) instead", message
    )


@pytest.mark.parametrize(
    ("installed", "device", "dtype", "sdpa", "used", "reason"),
    [
        (True, "cuda", torch.bfloat16, True, "flash_attention_2", None),
        (True, "cuda", torch.float32, True, "sdpa", "needs a GPU and --dtype bfloat16"),
        (True, "cpu", torch.bfloat16, True, "sdpa", "needs a GPU and --dtype bfloat16"),
        (False, "cuda", torch.bfloat16, False, "eager", "pip install flash-attn"),
    ],
)
def test_flash_attention_is_used_where_it_can_be(monkeypatch, capsys, installed, device, dtype, sdpa, used, reason):
    """Only the choice: no GPU is needed."""
    monkeypatch.setattr("transformers.utils.import_utils.is_flash_attn_2_available", lambda: installed)
    config = CLIPConfig(attn_implementation="flash_attention_2")
    replace_flash_attention(config, SimpleNamespace(_supports_sdpa=sdpa), "m", torch.device(device), dtype)
    assert {config._attn_implementation, config.text_config._attn_implementation} == {used}
    message = " ".join(capsys.readouterr().err.split())
    assert reason in message if reason else message == ""


RENAMED = {"attribute_map": {"foo": "_attn_implementation"}, "foo": "some-one/attention"}


@pytest.mark.parametrize("inner", [False, True])
def test_a_renamed_attribute_is_rejected(tmp_path: Path, inner: bool):
    shutil.copytree(TINY_VLM_DIR, tmp_path / "vlm")
    text = json.loads((TINY_VLM_DIR / "config.json").read_text())["text_config"]
    edit(tmp_path / "vlm", **({"text_config": text | RENAMED} if inner else RENAMED))
    with pytest.raises(VlmError, match=r"refers to something else \(attribute_map\)"):
        load(tmp_path / "vlm")
    with pytest.raises(VlmError, match=r"refers to something else \(attribute_map\)"):
        load_clip(str(tmp_path / "vlm"), resolve_device("cpu"), PIXELS)


def test_an_encoder_with_flash_attention_that_is_not_installed_gives_the_same_vectors(tmp_path: Path, capsys):
    save_tiny_clip(tmp_path / "clip")
    plain = load_clip(str(tmp_path / "clip"), resolve_device("cpu"), PIXELS).embed_texts(["a cat"])
    edit(tmp_path / "clip", attn_implementation="flash_attention_2")
    flash = load_clip(str(tmp_path / "clip"), resolve_device("cpu"), PIXELS).embed_texts(["a cat"])
    assert flash.equal(plain)
    assert "flash_attention_2, which is not installed (pip install flash-attn)" in " ".join(
        capsys.readouterr().err.split()
    )


def test_an_encoder_that_uses_a_kernel_is_rejected(tmp_path: Path):
    CLIPConfig().save_pretrained(tmp_path)
    edit(tmp_path, attn_implementation="some-one/attention")
    with pytest.raises(VlmError, match="custom code, which is never run for an encoder"):
        load_clip(str(tmp_path), resolve_device("cpu"), PIXELS)


def test_a_nested_configuration_counts():
    config = CLIPConfig()
    assert not uses_kernel(config)
    config.text_config._attn_implementation = "some-one/attention"
    assert uses_kernel(config)


def test_another_file_of_the_configuration_is_not_read(tmp_path: Path):
    shutil.copytree(TINY_VLM_DIR, tmp_path / "vlm")
    kernel = json.loads((TINY_VLM_DIR / "config.json").read_text()) | {"_attn_implementation": "some-one/attention"}
    (tmp_path / "vlm" / "config.4.0.0.json").write_text(json.dumps(kernel))
    edit(tmp_path / "vlm", configuration_files=["config.4.0.0.json"])
    with pytest.raises(VlmError, match=r"refers to something else \(configuration_files\)"):
        load(tmp_path / "vlm")


@pytest.mark.parametrize("file", ["processor_config.json", "audio_tokenizer_config.json"])
def test_another_model_is_not_loaded_for_a_processor(tmp_path: Path, file: str):
    shutil.copytree(TINY_VLM_DIR, tmp_path / "vlm")
    named = {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": "some-one/audio"}
    path = tmp_path / "vlm" / file
    held = json.loads(path.read_text()) | {"audio_tokenizer": named} if path.exists() else named
    path.write_text(json.dumps(held))
    with pytest.raises(VlmError, match=r"refers to something else \(audio_tokenizer"):
        load(tmp_path / "vlm")


def test_a_package_that_is_missing_is_named_rather_than_code(tmp_path: Path, monkeypatch):
    """SmolVLM's processor needs num2words; some files also name code that is not needed."""
    torch.manual_seed(0)
    FAMILIES["idefics3"].build(tmp_path)
    path = tmp_path / "processor_config.json"
    held = json.loads(path.read_text()) | {"processor_class": "SmolVLMProcessor"}
    held["auto_map"] = {"AutoProcessor": "surprise.Processor"}
    held["video_processor"] = {"video_processor_type": "SmolVLMVideoProcessor"}
    path.write_text(json.dumps(held))
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    with pytest.raises(VlmError, match=r"needs a package that is not installed.*pip install num2words$"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ModuleNotFoundError("No module named 'einops'", name="einops"),
            r"No module named 'einops'\. Install .* einops$",
        ),
        (
            ImportError("needs:\n flash_attn. Run `pip install flash_attn`"),
            r"needs: flash_attn.*pip install flash_attn$",
        ),
        (ValueError("install with `pip install sentencepiece`."), r"pip install sentencepiece$"),
        (ValueError("the tokenizer is damaged"), None),
    ],
)
def test_a_missing_package_is_told_from_other_errors(error: Exception, message: str | None):
    found = missing_package(error)
    assert (found is None) if message is None else re.search(message, str(found))


def test_an_error_in_a_file_is_not_taken_for_code_that_is_needed(tmp_path: Path, surprise: Path, marker: Path):
    edit(surprise, model_type="qwen2_5_vl")
    (surprise / "tokenizer.json").write_text("{}")
    with pytest.raises(VlmError, match="cannot load the model") as caught:
        load(surprise)
    assert "--trust-remote-code" not in str(caught.value)
    assert not marker.exists()


def test_an_encoders_code_is_never_run(surprise: Path, marker: Path):
    with pytest.raises(VlmError, match="custom code, which is never run for an encoder"):
        load_clip(str(surprise), resolve_device("cpu"), PIXELS)
    assert not marker.exists()


def test_trusted_code_is_part_of_the_identity_of_a_result(surprise: Path, tmp_path: Path, monkeypatch):
    before = fingerprint(surprise), fingerprint(surprise, code=True)
    (surprise / "surprise.py").write_text("something else")
    assert fingerprint(surprise) == before[0]
    assert fingerprint(surprise, code=True) != before[1]
    monkeypatch.chdir(tmp_path)
    # Results from before this setting existed, when nothing was trusted, stay valid.
    assert "vlm.trust_remote_code" not in identity(load_settings({}), "vlm")
    assert identity(load_settings({"vlm": {"trust_remote_code": True}}), "vlm")["vlm.trust_remote_code"] is True


def test_code_is_downloaded_only_if_it_is_trusted(tmp_path: Path, surprise: Path, monkeypatch):
    wanted = []

    def download(name: str, allow_patterns: list[str] | None = None, local_files_only: bool = False) -> str:
        if local_files_only:
            known = tmp_path / "known"
            shutil.copytree(surprise, known, ignore=shutil.ignore_patterns("*.py"), dirs_exist_ok=True)
            return str(known)
        wanted.append(allow_patterns)
        return str(surprise)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(siblings=None))
    assert model_folder("some/one") == tmp_path / "known" and wanted == []
    assert model_folder("some/one", code=True) == surprise
    assert [("*.py" in patterns) for patterns in wanted] == [True]
