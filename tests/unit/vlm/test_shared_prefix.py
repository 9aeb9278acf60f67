"""Small random models of families that share prefixes, against transformers' own `generate`, one prompt at a time.

Qwen2.5-VL has more tests of its own in `test_qwen_vl`.
"""

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationMixin
from vlm_families import ALIKE, FAMILIES, SHARED
from vlm_plain import (
    MAX_IMAGE_PIXELS,
    answers_of,
    examples_in,
    plain_answer,
    plain_inputs,
    plain_log_prob,
    requests_of,
)

from icdsel.bench import baseline
from icdsel.errors import VlmError
from icdsel.records import Answer, Example
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Request
from icdsel.vlm.local.any_vlm import AnyVlm
from icdsel.vlm.local.loading import identify_local, load_local
from icdsel.vlm.local.shared_prefix import SharedPrefix

MIXES_IMAGES = not hasattr(GenerationMixin, "_expand_multimodal_outputs")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for name in (*SHARED, *ALIKE):
        torch.manual_seed(0)
        made[name] = tmp_path_factory.mktemp(name)
        FAMILIES[name].build(made[name])
    return made


@pytest.fixture(scope="module", params=SHARED)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def vlm(folders, family) -> SharedPrefix:
    return load(folders[family], **FAMILIES[family].changes)


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> list[Example]:
    return examples_in(tmp_path_factory.mktemp("images"))


def load(folder: Path, **settings: Any) -> SharedPrefix:
    vlm = load_local(VlmSettings(model=str(folder), device="cpu", **settings), MAX_IMAGE_PIXELS)
    assert isinstance(vlm, SharedPrefix)
    return vlm


def changed(vlm: SharedPrefix, **changes: Any) -> SharedPrefix:
    """The same model with other settings and an empty cache."""
    settings = vlm.settings.model_copy(update=changes)
    return type(vlm)(vlm.model, vlm.processor, settings, vlm.name, vlm.fingerprint, MAX_IMAGE_PIXELS)


def require_plain(vlm: SharedPrefix, family: str, request: Request, answer: Answer) -> None:
    """Compares an answer and its log-probs with those of the prompt alone."""
    marks = FAMILIES[family]
    assert answer.error is None
    assert answer.text == plain_answer(vlm, request, marks.end)
    assert answer.prompt_tokens == plain_inputs(vlm, request)["input_ids"].shape[1]
    scores = zip(request.references, answer.reference_log_probs, answer.reference_tokens, strict=True)
    for reference, got, tokens in scores:
        wanted, count = plain_log_prob(vlm, request, marks.before + reference + marks.end)
        assert got == pytest.approx(wanted, abs=1e-4)
        assert tokens == count


@pytest.mark.parametrize(
    "search",
    [
        {},
        {"num_beams": 3, "length_penalty": 0.0, "repetition_penalty": 1.3},
        {"repetition_penalty": 1.2, "layout": "turns"},
    ],
    ids=["greedy", "beams", "turns"],
)
def test_answers_and_log_probs_are_those_of_one_prompt_at_a_time(vlm, family, examples, search):
    if "num_beams" in search and family in ("llava_onevision", "internvl") and MIXES_IMAGES:
        pytest.skip("this version of transformers mixes up the images of different beams")
    vlm = changed(vlm, **search)
    requests = requests_of(examples, seed=1, count=7)
    answers = answers_of(vlm, requests)
    for request, answer in zip(requests, answers, strict=True):
        require_plain(vlm, family, request, answer)
    assert len({answer.text for answer in answers}) > 1


@pytest.mark.parametrize("family", ALIKE)
def test_families_that_are_built_like_others_answer_as_if_alone(folders, family, examples):
    vlm = load(folders[family], **FAMILIES[family].changes)
    requests = requests_of(examples, seed=5, count=5)
    for request, answer in zip(requests, answers_of(vlm, requests), strict=True):
        require_plain(vlm, family, request, answer)


def test_prompts_that_begin_alike_are_read_together_and_answered_as_if_alone(vlm, family, examples):
    vlm, (query, a, b, c, d) = changed(vlm), examples[:5]
    pointers = [(), (a,), (a, b), (a, b, c), (a, b, c, d), (a, c), (b, a), (a, b)]
    requests = [Request(pointer, query, ("doni", "not sure")) for pointer in pointers]
    image_token, blocks = vlm.model.config.image_token_id, 0

    def count(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal blocks
        blocks += int((args[0] == image_token).any(1).sum())

    hook = vlm.model.get_input_embeddings().register_forward_pre_hook(count)
    try:
        answers = answers_of(vlm, requests)
    finally:
        hook.remove()
    # First a, b and the query alone; then b, c after a, a after b, two queries; and so on.
    assert blocks == 3 + 4 + 4 + 2 + 1
    two_forms = family == "llava_onevision"  # the query's image looks different if it is alone
    assert vlm.images.encoded == 5 + two_forms
    for request, answer in zip(requests, answers, strict=True):
        require_plain(vlm, family, request, answer)
    assert answers[2] == answers[7]


def test_batch_size_order_and_cache_state_change_nothing(vlm, examples, tmp_path):
    requests = requests_of(examples, seed=2, count=8)
    answers = answers_of(vlm, requests)
    order = random.Random(0).sample(range(len(requests)), len(requests))
    small = changed(vlm, batch_tokens=1, image_cache_mb=0, image_cache_dir=tmp_path)
    for i, other in zip(order, answers_of(small, [requests[i] for i in order]), strict=True):
        assert other.text == answers[i].text
        assert other.reference_log_probs == pytest.approx(answers[i].reference_log_probs, abs=1e-4)


def test_features_of_an_image_do_not_depend_on_the_other_images(vlm, examples):
    together = changed(vlm)
    together.images.load([example.image for example in examples])
    for example in examples:
        alone = changed(vlm)
        alone.images.load([example.image])
        assert alone.images.grid(example.image) == together.images.grid(example.image)
        assert alone.images.features(example.image).equal(together.images.features(example.image))


def test_features_leave_the_memory_for_a_folder_and_come_back(vlm, examples, tmp_path):
    def opened() -> SharedPrefix:
        return changed(vlm, image_cache_mb=0, image_cache_dir=tmp_path / "cache")

    requests = [Request((example,), example, ("doni",)) for example in examples[:3]]
    expected = [answers_of(vlm, [request]) for request in requests]
    small = opened()
    assert [answers_of(small, [request]) for request in (*requests, *requests)] == 2 * expected
    assert (small.images.encoded, small.images.encoded_again) == (3, 0)
    later = opened()  # another run finds what the first one wrote
    assert answers_of(later, requests[:2]) == answers_of(vlm, requests[:2])
    assert later.images.encoded == 0
    kept = [load_file(file) for file in (tmp_path / "cache").iterdir()]
    sizes = {features.nbytes for features in vlm.images._features.values()}
    assert kept and {features.nbytes for file in kept for features in file.values()} <= sizes
    for number, file in enumerate((tmp_path / "cache").iterdir()):
        [features] = load_file(file).values()
        save_file({f"{10**12}x0": features}, file)
        file.write_bytes(file.read_bytes()[: 50 if number else None])
    damaged = opened()
    assert [answers_of(damaged, [request]) for request in requests] == expected
    assert damaged.images.encoded == 3


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "glm4v"])
def test_limits_of_an_images_size_are_kept(folders, family, examples):
    """Up to whole visual tokens, of 16 × 16 pixels."""
    limited = load(folders[family], max_pixels=2_000)
    paths = [example.image for example in examples]
    limited.images.load(paths)
    assert all(1_000 <= 16 * 16 * rows * columns <= 2_000 for rows, columns in map(limited.images.grid, paths))


def test_a_broken_image_fails_its_own_prompts_only(vlm, examples, tmp_path):
    torn = tmp_path / "torn.png"
    torn.write_bytes(examples[0].image.read_bytes()[:60])
    broken = dataclasses.replace(examples[0], image=torn)
    fine = Request((examples[1],), examples[2], ("doni",))
    answers = answers_of(vlm, [Request((broken,), examples[2]), fine])
    assert "torn.png" in str(answers[0].error)
    assert answers[1] == vlm.answer([fine])[0]
    assert answers[1].error is None


def test_results_are_those_of_the_plain_way(vlm, family, folders, examples):
    settings = VlmSettings(model=str(folders[family]), device="cpu", **FAMILIES[family].changes)
    plain = load_local(settings, MAX_IMAGE_PIXELS, family=AnyVlm)
    assert isinstance(plain, AnyVlm)
    mark = FAMILIES[family].image
    odd = dataclasses.replace(examples[0], question=f"How many {mark}?", answer=f"{mark}no</think>")
    requests = [*requests_of(examples, seed=4, count=4), Request((odd,), odd, (f"{mark}no",))]
    for one, other in zip(answers_of(vlm, requests), answers_of(plain, requests), strict=True):
        assert one.error is None
        assert (one.text, one.cut, one.prompt_tokens) == (other.text, other.cut, other.prompt_tokens)
        assert one.reference_tokens == other.reference_tokens
        assert one.reference_log_probs == pytest.approx(other.reference_log_probs, abs=1e-4)
    text, log_probs = baseline.answer(vlm, request := Request((examples[0],), examples[4], ("doni", "not sure")))
    [answer] = vlm.answer([request])  # `icdsel bench` compares the two
    assert (text, log_probs) == (answer.text, pytest.approx(list(answer.reference_log_probs), abs=1e-4))
    paths = [example.image for example in examples]
    torch.testing.assert_close(vlm.embed_images(paths)[0], plain.embed_images(paths)[0], atol=1e-5, rtol=1e-4)
    assert {vlm.fingerprint, plain.fingerprint} == {f"{plain.fingerprint.split('-')[0]}-{n}" for n in (2, 3)}
    assert identify_local(settings) == (vlm.fingerprint, "float32")


def test_a_model_whose_attention_is_not_pytorchs_scores_references_alike(vlm, folders, family, examples, tmp_path):
    """Several references are read at once with a mask of their own, which not all implementations of attention take."""
    folder = tmp_path / "eager"
    shutil.copytree(folders[family], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attn_implementation": "eager"}))
    eager = load(folder, **FAMILIES[family].changes)
    requests = requests_of(examples, seed=4, count=4)
    for one, other in zip(answers_of(eager, requests), answers_of(vlm, requests), strict=True):
        assert one.text == other.text
        assert one.reference_log_probs == pytest.approx(other.reference_log_probs, abs=1e-4)


def test_a_model_that_attends_to_a_window_only_is_run_the_plain_way(folders, tmp_path):
    folder = tmp_path / "window"
    shutil.copytree(folders["qwen2_vl"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    config["text_config"].pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    settings = VlmSettings(model=str(folder), device="cpu")
    assert type(load_local(settings, MAX_IMAGE_PIXELS)) is AnyVlm
    with pytest.raises(VlmError, match="a qwen2_vl, which this engine does not run: --engine auto"):
        load_local(settings, MAX_IMAGE_PIXELS, family=SharedPrefix)
