"""What is special about families that cut images into tiles; `test_shared_prefix` compares them with transformers."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from vlm_families import FAMILIES
from vlm_plain import MAX_IMAGE_PIXELS, answers_of, examples_in, plain_inputs, requests_of

from icdsel.errors import VlmError
from icdsel.records import Answer, Example
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Request
from icdsel.vlm.local.any_vlm import AnyVlm
from icdsel.vlm.local.loading import identify_local, load_local
from icdsel.vlm.local.model import LocalModel
from icdsel.vlm.local.shared_prefix import SharedPrefix
from icdsel.vlm.local.tiled_vlm import TiledVlm

TILED = ("idefics3", "smolvlm", "llava_onevision", "internvl")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for name in TILED:
        torch.manual_seed(0)
        made[name] = tmp_path_factory.mktemp(name)
        FAMILIES[name].build(made[name])
    return made


@pytest.fixture(scope="module", params=TILED)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def vlm(folders, family) -> TiledVlm:
    return load(folders[family], family)


@pytest.fixture(scope="module")
def llava(folders) -> TiledVlm:
    return load(folders["llava_onevision"], "llava_onevision")


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> list[Example]:
    return examples_in(tmp_path_factory.mktemp("images"))


def opened(folder: Path, family: str, way: type[LocalModel] | None = None, **settings: Any) -> LocalModel:
    given = FAMILIES[family].changes | settings
    return load_local(VlmSettings(model=str(folder), device="cpu", **given), MAX_IMAGE_PIXELS, family=way)


def load(folder: Path, family: str, **settings: Any) -> TiledVlm:
    vlm = opened(folder, family, **settings)
    assert isinstance(vlm, TiledVlm)
    return vlm


def changed(vlm: TiledVlm, **changes: Any) -> TiledVlm:
    """The same model with other settings and an empty cache."""
    settings = vlm.settings.model_copy(update=changes)
    return type(vlm)(vlm.model, vlm.processor, settings, vlm.name, vlm.fingerprint, MAX_IMAGE_PIXELS)


def require_equal(answers: Sequence[Answer], expected: Sequence[Answer]) -> None:
    for one, other in zip(answers, expected, strict=True):
        assert one.error is None
        assert (one.text, one.prompt_tokens, one.cut) == (other.text, other.prompt_tokens, other.cut)
        assert one.reference_tokens == other.reference_tokens
        assert one.reference_log_probs == pytest.approx(other.reference_log_probs, abs=1e-4)


def with_config(folder: Path, made: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a model whose configuration is changed."""
    shutil.copytree(folder, made)
    config = json.loads((made / "config.json").read_text())
    change(config)
    (made / "config.json").write_text(json.dumps(config))
    return made


def test_a_prompt_has_the_tokens_that_the_processor_makes_of_it(vlm, tmp_path):
    """Images from a single tile to long strips; rows and columns of tiles differ."""
    sizes = [(32, 32), (31, 64), (64, 31), (8, 200), (200, 8), (300, 290), (1, 1), (50, 49), (129, 64)]
    examples = []
    for n, (width, height) in enumerate(sizes):
        path = tmp_path / f"{n}.png"
        Image.linear_gradient("L").convert("RGB").resize((width, height)).save(path)
        examples.append(Example(n, n, path, f"What is {n}?", "doni", ("doni",)))
    requests = [Request((), example) for example in examples]
    requests += [Request(tuple(examples[:k]), examples[k]) for k in range(1, len(examples))]
    own = changed(vlm)
    assert sum(len(batch) for batch in own.batches(requests)) == len(requests)
    for request in requests:
        blocks = own.prompt(request).blocks
        ids = [token for block in blocks for token in block.ids]
        assert ids == plain_inputs(own, request)["input_ids"][0].tolist()
        assert len(blocks) == 1 + len(request.shown)


def test_limits_of_an_images_size_are_kept_as_on_the_plain_way(vlm, folders, family, examples):
    limits = {"min_pixels": 2_000, "max_pixels": 3_000}
    limited = changed(vlm, **limits)
    for example in examples:
        picture = limited.picture(example.image)
        assert 1_900 < picture.width * picture.height < 3_100
    plain = opened(folders[family], family, AnyVlm, **limits)
    require_equal(answers_of(limited, requests := requests_of(examples, seed=8, count=4)), answers_of(plain, requests))


@pytest.mark.parametrize(("family", "text"), [("internvl", "qwen3_moe"), ("internvl", "llama"), ("idefics3", "qwen3")])
def test_text_models_of_other_makers_give_the_same_results(folders, family, text, examples, tmp_path):
    from transformers import AutoConfig, AutoModelForImageTextToText

    folder = tmp_path / text
    shutil.copytree(folders[family], folder)
    config = AutoConfig.from_pretrained(folder)
    own = config.text_config.to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    kept = {name: own[name] for name in (*names, "num_key_value_heads", "initializer_range", "eos_token_id")}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16} if text == "qwen3_moe" else {}
    config.text_config = AutoConfig.for_model(text, **kept, **experts, head_dim=8, pad_token_id=None)
    torch.manual_seed(1)
    model = AutoModelForImageTextToText.from_config(config)
    model.generation_config.eos_token_id = own["eos_token_id"]
    model.save_pretrained(folder)
    vlm, plain = load(folder, family), opened(folder, family, AnyVlm)
    require_equal(answers_of(vlm, requests := requests_of(examples, seed=6, count=5)), answers_of(plain, requests))


# ---- an image alone in its prompt ----


def test_an_image_alone_in_its_prompt_is_cut_and_several_are_not(llava, examples):
    """In any order of calls, and without planning."""
    own, example = changed(llava), examples[4]  # 90 x 41 pixels
    alone, beside = Request((), example, ("doni",)), Request((example,), examples[0], ("doni",))
    lengths = {}
    for requests in ([alone], [beside], [beside, alone], [alone, beside]):
        for request, answer in zip(requests, own.answer(requests), strict=True):
            require_equal([answer], changed(llava).answer([request]))
            lengths[request] = [block.grid[0] for block in own.prompt(request).blocks]
    whole = llava.processor.num_image_tokens + 1
    assert lengths[beside] == [0, whole, whole]
    assert lengths[alone][1] > 2 * whole
    assert own.images.encoded == 3  # one of them in both forms


def test_features_of_an_image_alone_do_not_depend_on_the_others_and_are_kept_on_disk(llava, examples, tmp_path):
    paths = [example.image for example in examples]
    kept = changed(llava, image_cache_dir=tmp_path, image_cache_mb=0)
    embedded, failed = kept.embed_images(paths)
    assert failed == {}
    for example, row in zip(examples, embedded, strict=True):
        assert changed(llava).embed_images([example.image])[0][0].equal(row)
    answers_of(kept, [Request((examples[0],), examples[0])])  # drops those that were embedded
    again = changed(llava, image_cache_dir=tmp_path)
    requests = [Request((), example, ("doni",)) for example in examples[1:6]]
    require_equal(answers_of(again, requests), answers_of(llava, requests))
    assert again.images.encoded == 0


def test_a_broken_image_that_is_alone_fails_its_prompt_only(llava, examples, tmp_path):
    torn = tmp_path / "torn.png"
    torn.write_bytes(examples[0].image.read_bytes()[:60])
    broken = dataclasses.replace(examples[0], image=torn)
    fine = Request((), examples[1], ("doni",))
    answers = answers_of(llava, [Request((), broken), fine, Request((broken,), examples[1])])
    assert ["torn.png" in str(answer.error) for answer in answers] == [True, False, True]
    require_equal(answers[1:2], llava.answer([fine]))


# ---- models that are unlike their family ----


def require_plain_way(folder: Path, family: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The model is run by `AnyVlm`, with a note, and with the fingerprint that is known without loading it."""
    vlm = opened(folder, family)
    assert type(vlm) is AnyVlm
    said = " ".join(capsys.readouterr().err.split())
    assert "is not like other models of its kind" in said and reason in said
    settings = VlmSettings(model=str(folder), device="cpu", **FAMILIES[family].changes)
    assert identify_local(settings)[0] == vlm.fingerprint
    with pytest.raises(VlmError, match="which this engine does not run: --engine auto"):
        opened(folder, family, SharedPrefix)


def test_a_processor_that_lays_out_images_otherwise_is_noticed(vlm, folders, family, monkeypatch, capsys):
    kind = type(vlm.processor)
    call = kind.__call__

    def one_token_more(self: Any, *args: Any, **options: Any) -> Any:
        made = call(self, *args, **options)
        return {**made, "input_ids": torch.cat([made["input_ids"], made["input_ids"][:, -1:]], 1)}

    def darker(self: Any, *args: Any, **options: Any) -> Any:
        made = call(self, *args, **options)
        return {**made, "pixel_values": made["pixel_values"] * 0.5}

    for change, reason in ((one_token_more, "makes other tokens of a prompt"), (darker, "cuts images in another way")):
        monkeypatch.setattr(kind, "__call__", change)
        require_plain_way(folders[family], family, reason, capsys)


def test_a_processor_of_another_kind_is_noticed(vlm, folders, family, monkeypatch, capsys):
    def fails(*_: Any, **__: Any) -> None:
        raise AttributeError("it has no tiles")

    monkeypatch.setattr(type(vlm), "_tiled", fails)
    require_plain_way(folders[family], family, "AttributeError: it has no tiles", capsys)


def test_an_untested_text_model_is_run_the_plain_way(folders, tmp_path, capsys):
    def becomes_mistral(config: dict[str, Any]) -> None:
        config["text_config"]["model_type"] = "mistral"
        config["text_config"]["sliding_window"] = None

    folder = with_config(folders["idefics3"], tmp_path / "mistral", becomes_mistral)
    require_plain_way(folder, "idefics3", "its text model is mistral", capsys)


def test_an_image_with_other_than_the_expected_tokens_is_broken(vlm, examples, monkeypatch):
    """As if the vision encoder left out a tile."""
    own, encode = changed(vlm), vlm.model.get_image_features
    monkeypatch.setattr(vlm.model, "get_image_features", lambda **inputs: cut(encode(**inputs)))

    def cut(output: Any) -> Any:
        parts = output.pooler_output
        output.pooler_output = parts[:-1] if isinstance(parts, torch.Tensor) else [*parts[:-1], parts[-1][:-1]]
        return output

    [answer] = own.answer([Request((examples[0],), examples[1])])
    assert "visual tokens of it, but a prompt has" in str(answer.error)
