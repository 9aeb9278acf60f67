"""Qwen2.5-VL against transformers' own `generate` and forward passes, one prompt at a time."""

import dataclasses
import json
import logging
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import qwen_vl_utils
import torch
from huggingface_hub.utils import are_progress_bars_disabled
from PIL import Image
from safetensors.torch import load_file, save_file
from vlm_parts import sentencepiece_tokenizer

from icdsel.console import err
from icdsel.data import world
from icdsel.errors import CallsError, SettingsError, VlmError
from icdsel.records import Answer, Example
from icdsel.records.examples import PLACE
from icdsel.settings.tables import VlmSettings
from icdsel.tiny_vlm.tokenizer import build_processor
from icdsel.vlm.devices import resolve_device
from icdsel.vlm.engine import Request
from icdsel.vlm.local.decoding import until
from icdsel.vlm.local.loading import TINY_VLM_DIR, load_local
from icdsel.vlm.local.model import LocalModel
from icdsel.vlm.local.qwen_vl import QwenVl
from icdsel.vlm.prompts import chat_messages
from icdsel.vlm.supervision import SupervisedEngine
from icdsel.vlm.time_limit import CallTimer

MAX_IMAGE_PIXELS = 1_000_000


# Two other sizes, with grouped-query attention and windowed vision attention.
RANDOM = {
    "random": (
        {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4},
        [2, 2, 2],
        {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "fullatt_block_indexes": [1]},
    ),
    "random, deeper": (
        {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 8},
        [2, 1, 1],
        {"depth": 4, "hidden_size": 48, "intermediate_size": 64, "num_heads": 3, "fullatt_block_indexes": [0, 3]},
    ),
}


def small_random_model(processor, name: str = "random"):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in processor.tokenizer.all_special_tokens}
    text, sections, vision = RANDOM[name]
    torch.manual_seed(5)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer),
            **text,
            "num_key_value_heads": 2,
            "initializer_range": 0.3,  # so that answers differ from prompt to prompt
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            **vision,
            "out_hidden_size": text["hidden_size"],
            "initializer_range": 0.2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    return Qwen2_5_VLForConditionalGeneration(config).float().eval()


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> list[Example]:
    """Twelve examples whose images have different sizes; the last two have two images, placed in the question."""
    folder, rng, made = tmp_path_factory.mktemp("images"), random.Random(3), []
    for i, scene in enumerate(rng.sample(world.all_scenes(), 12)):
        image = world.draw(scene, rng)
        if i % 3 == 1:
            image = image.resize((112, 70))
        if i % 3 == 2:
            image = image.resize((60, 150))
        path = folder / f"{i}.png"
        image.save(path)
        question = f"What is the code of this {'colour' if i % 2 else 'shape'}?"
        more, question = ((), question) if i < 10 else ((made[0].image,), f"{PLACE} or {PLACE}: {question}")
        made.append(Example(i, i, path, question, "doni", ("doni",), more_images=more))
    return made


@pytest.fixture(scope="module", params=["tiny-vlm", *RANDOM])
def vlm(request) -> LocalModel:
    if request.param == "tiny-vlm":
        return load_local(VlmSettings(model="tiny-vlm", device="cpu"), MAX_IMAGE_PIXELS)
    processor = build_processor()
    settings = VlmSettings(device="cpu")
    model = small_random_model(processor, request.param)
    return QwenVl(model, processor, settings, request.param, request.param, MAX_IMAGE_PIXELS)


def changed(vlm: LocalModel, **changes) -> LocalModel:
    """The same model with other settings and an empty cache."""
    settings = vlm.settings.model_copy(update=changes)
    return QwenVl(vlm.model, vlm.processor, settings, vlm.name, vlm.fingerprint, MAX_IMAGE_PIXELS)


def answers_of(vlm: LocalModel, requests: Sequence[Request]) -> list[Answer]:
    """The answers as commands get them: in the model's own batches, under supervision."""
    return SupervisedEngine(vlm, CallTimer(600), max_failed=1).answer(requests)


@contextmanager
def before_each_call(module: torch.nn.Module, do: Callable[..., Any]) -> Iterator[None]:
    """Calls `do` with the inputs of each call of a part of the model."""
    hook = module.register_forward_pre_hook(lambda _, args, inputs: do(*args, **inputs), with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def requests_of(examples: list[Example], seed: int, count: int = 24) -> list[Request]:
    """Prompts of 0 to 8 ICDs with references of one and of several tokens, and an empty one."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        *icds, query = rng.sample(examples, rng.randint(1, 9))
        references = tuple(rng.sample(["doni", "not sure", "", "red, white and blue", "gesa gesa"], rng.randint(0, 4)))
        made.append(Request(tuple(icds), query, references))
    return made


def plain_inputs(vlm: LocalModel, request: Request, answer: str = ""):
    """The inputs that transformers' own processor makes for the prompt (followed by an answer)."""
    messages = chat_messages(request.icds, request.query, vlm.style)
    text = vlm.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + answer
    images = [Image.open(image).convert("RGB") for image in request.images]
    return vlm.processor(text=[text], images=images, return_tensors="pt")


@torch.inference_mode()
def plain_answer(vlm: LocalModel, request: Request) -> tuple[str, float]:
    """The answer to one prompt alone, and how narrow the decision was.

    That is the least margin between the best and second-best token of a greedy answer, or the margin between the best
    and second-best answer of a beam search.
    """
    inputs, search = plain_inputs(vlm, request), vlm.search
    output = vlm.model.generate(
        **inputs,
        max_new_tokens=search.max_new_tokens,
        do_sample=False,
        num_beams=search.num_beams,
        num_return_sequences=search.num_beams,
        length_penalty=search.length_penalty,
        early_stopping=False,
        repetition_penalty=search.repetition_penalty,
        output_scores=True,
        return_dict_in_generate=True,
    )
    if search.num_beams == 1:
        margin = min(float(scores[0].topk(2).values.diff().abs()) for scores in output.scores)
    else:
        margin = float(output.sequences_scores[0] - output.sequences_scores[1])
    tokens = until(output.sequences[0, inputs["input_ids"].shape[1] :].tolist(), search.stops)
    return vlm.processor.tokenizer.decode(tokens, skip_special_tokens=True), margin


@torch.inference_mode()
def plain_log_prob(vlm: LocalModel, request: Request, reference: str) -> tuple[float, int]:
    """One forward pass per reference: Σ log p over its tokens, the end of the turn included."""
    start = plain_inputs(vlm, request)["input_ids"].shape[1]
    inputs = plain_inputs(vlm, request, reference + "<|im_end|>")
    log_probs = vlm.model(**inputs).logits[0].log_softmax(-1)
    ids = inputs["input_ids"][0]
    return sum(float(log_probs[i - 1, ids[i]]) for i in range(start, len(ids))), len(ids) - start


@pytest.mark.parametrize("layout", ["one-turn", "turns"])
def test_answers_and_log_probs_are_those_of_one_prompt_at_a_time(vlm, examples, layout):
    vlm = changed(vlm, layout=layout)
    requests = requests_of(examples, seed=1)
    answers = answers_of(vlm, requests)
    compared = 0
    for request, answer in zip(requests, answers, strict=True):
        text, margin = plain_answer(vlm, request)
        if margin > 1e-4:
            assert answer.text == text
            compared += 1
        assert answer.prompt_tokens == plain_inputs(vlm, request)["input_ids"].shape[1]
        for reference, got, tokens in zip(
            request.references, answer.reference_log_probs, answer.reference_tokens, strict=True
        ):
            wanted, count = plain_log_prob(vlm, request, reference)
            assert got == pytest.approx(wanted, abs=1e-4)
            assert tokens == count
    assert compared > len(requests) // 2


def test_prompts_that_begin_alike_are_read_together_and_answered_as_if_alone(vlm, examples):
    # The pointers of one query, with growing shot counts: most share their first ICDs.
    query, a, b, c, d = examples[:5]
    pointers = [(), (a,), (a, b), (a, b, c), (a, b, c, d), (a, c), (b, a), (a, b)]
    requests = [Request(pointer, query, ("doni", "not sure")) for pointer in pointers]
    image_token, blocks = vlm.model.config.image_token_id, 0

    def count(ids: torch.Tensor) -> None:
        nonlocal blocks
        blocks += int((ids == image_token).any(1).sum())

    with before_each_call(vlm.model.get_input_embeddings(), count):
        answers = answers_of(vlm, requests)
    # First a, b and the query alone; then b, c after a, a after b, two queries; and so on.
    assert blocks == 3 + 4 + 4 + 2 + 1
    for request, answer in zip(requests, answers, strict=True):
        text, margin = plain_answer(vlm, request)
        assert answer.text == text or margin < 1e-4
        for reference, got in zip(request.references, answer.reference_log_probs, strict=True):
            assert got == pytest.approx(plain_log_prob(vlm, request, reference)[0], abs=1e-4)
    assert answers[2] == answers[7]


def test_attention_in_plain_matrix_products_gives_the_same_scores(examples):
    """As in a copy whose configuration names `eager` attention."""
    processor = build_processor()
    model, requests = small_random_model(processor), requests_of(examples, seed=9, count=6)
    usual, eager = [], []
    for kind, answers in (("sdpa", usual), ("eager", eager)):
        model.set_attn_implementation(kind)
        answers += answers_of(QwenVl(model, processor, VlmSettings(device="cpu"), "", "", MAX_IMAGE_PIXELS), requests)
    for one, other in zip(usual, eager, strict=True):
        assert one.reference_log_probs == pytest.approx(other.reference_log_probs, abs=1e-4)
    assert sum(len(answer.reference_log_probs) for answer in eager) > 6


@pytest.mark.parametrize(
    ("num_beams", "length_penalty", "repetition_penalty", "max_new_tokens"),
    [
        (1, 1.0, 1.3, 5),
        (3, 0.0, 1.05, 5),  # as in Lever-Plus
        (3, 1.0, 1.0, 5),
        (3, -0.5, 1.3, 1),
        (4, 1.0, 1.3, 5),
    ],
)
def test_searched_answers_are_those_of_one_prompt_at_a_time(
    vlm, examples, num_beams, length_penalty, repetition_penalty, max_new_tokens
):
    searching = changed(
        vlm,
        num_beams=num_beams,
        length_penalty=length_penalty,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
    )
    requests = requests_of(examples, seed=3, count=10)
    answers = answers_of(searching, requests)
    ties = 0
    for request, answer in zip(requests, answers, strict=True):
        text, margin = plain_answer(searching, request)
        ties += margin < 1e-4
        assert answer.text == text or margin < 1e-4
    assert ties <= 1
    greedy = answers_of(vlm, requests)
    for one, other in zip(greedy, answers, strict=True):  # decoding has no influence on the references
        assert one.reference_log_probs == pytest.approx(other.reference_log_probs, abs=1e-4)
    order = random.Random(0).sample(range(len(requests)), len(requests))
    alone = changed(searching, batch_tokens=1)
    assert [a.text for a in answers_of(alone, [requests[i] for i in order])] == [answers[i].text for i in order]


def test_the_models_own_repetition_penalty_is_used_if_the_setting_says_so(vlm):
    own = vlm.model.generation_config.repetition_penalty
    try:
        for penalty, used in ((None, 1.0), (1.05, 1.05)):
            vlm.model.generation_config.repetition_penalty = penalty
            assert changed(vlm, repetition_penalty="model").search.repetition_penalty == used
            assert vlm.search.repetition_penalty == 1.0
    finally:
        vlm.model.generation_config.repetition_penalty = own


def test_an_answer_ends_with_its_turn_even_if_the_files_name_only_the_end_of_a_text(examples):
    """As in copies of Qwen2.5-VL whose tokenizer names `<|endoftext|>` alone."""
    model, made = small_random_model(build_processor()), {}
    for eos in ("<|im_end|>", "<|endoftext|>"):
        processor = build_processor()
        processor.tokenizer.eos_token = eos
        model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
        made[eos] = QwenVl(model, processor, VlmSettings(device="cpu", max_new_tokens=40), "", "", MAX_IMAGE_PIXELS)
    proper, forgetful = made.values()
    number = proper.processor.tokenizer.convert_tokens_to_ids
    assert proper.search.stops == (number("<|im_end|>"),)
    assert set(forgetful.search.stops) == {number("<|im_end|>"), number("<|endoftext|>")}
    requests = requests_of(examples, seed=4, count=12)
    with torch.no_grad():
        model.lm_head.weight[number("<|im_end|>")] *= 4  # so that answers end
    answers = answers_of(proper, requests)
    for one, other in zip(answers, answers_of(forgetful, requests), strict=True):
        assert other.reference_log_probs == one.reference_log_probs
        assert other.reference_tokens == one.reference_tokens
        assert other.text == one.text
    assert min(len(answer.text) for answer in answers) < 20


def test_the_fast_scorer_answers_behind_a_closed_thought(examples):
    """As if the template closed the thought that it opens."""
    answers = []
    for thought in ("<think>\\n", "<think>\\n\\n</think>\\n\\n", ""):
        processor = build_processor()
        start = "{{- '<|im_start|>assistant\\n" + thought + "' -}}"
        processor.chat_template = processor.chat_template.replace("{{- '<|im_start|>assistant\n' -}}", start)
        processor.chat_template += "{# it removes thoughts up to </think> #}"
        vlm = QwenVl(small_random_model(processor), processor, VlmSettings(device="cpu"), "", "", MAX_IMAGE_PIXELS)
        answers.append(answers_of(vlm, requests_of(examples, seed=8, count=4)))
    assert answers[0] == answers[1] != answers[2]


def test_a_tokenizer_with_spaces_in_its_words_reads_prompts_and_references_as_transformers_does(examples):
    """ChatML on a tokenizer like Llama's."""
    processor = build_processor()
    marks = processor.tokenizer.all_special_tokens
    processor.tokenizer = sentencepiece_tokenizer(
        marks, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=marks
    )
    processor.image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    processor.video_token_id = processor.tokenizer.convert_tokens_to_ids(processor.video_token)
    vlm = QwenVl(small_random_model(processor), processor, VlmSettings(device="cpu"), "", "", MAX_IMAGE_PIXELS)
    requests = requests_of(examples, seed=6, count=6)
    for request, answer in zip(requests, answers_of(vlm, requests), strict=True):
        text, margin = plain_answer(vlm, request)
        assert answer.text == text or margin < 1e-4
        scores = zip(request.references, answer.reference_log_probs, answer.reference_tokens, strict=True)
        for reference, log_prob, tokens in scores:
            wanted, count = plain_log_prob(vlm, request, reference)
            assert (log_prob, tokens) == (pytest.approx(wanted, abs=1e-4), count)


class ShortSighted(QwenVl):
    """The same model with a context that a prompt of many ICDs exceeds."""

    context = 250


def test_a_prompt_that_exceeds_the_context_fails_with_a_remedy(vlm, examples):
    settings = vlm.settings
    short = ShortSighted(vlm.model, vlm.processor, settings, vlm.name, vlm.fingerprint, MAX_IMAGE_PIXELS)
    alone, many = Request((), examples[0]), Request(tuple(examples[1:12]), examples[0])
    assert vlm.context is not None and vlm.context >= 2048
    first, second = answers_of(short, [alone, many])
    assert first.error is None
    assert second.error is not None and "a prompt with 11 ICDs has about" in second.error
    assert "the model's context holds 250: use fewer ICDs (--shots, --max-shots" in second.error


def test_batch_size_order_and_cache_state_change_nothing(vlm, examples):
    requests = requests_of(examples, seed=2)
    answers = answers_of(vlm, requests)
    small = changed(vlm, batch_tokens=1, image_cache_mb=0)
    order = random.Random(0).sample(range(len(requests)), len(requests))
    one_by_one = dict(zip(order, answers_of(small, [requests[i] for i in order]), strict=True))
    again = answers_of(vlm, requests[::-1])[::-1]
    in_one_batch = vlm.answer(requests)
    for i, answer in enumerate(answers):
        for other in (one_by_one[i], again[i], in_one_batch[i]):
            assert other.text == answer.text
            assert other.reference_log_probs == pytest.approx(answer.reference_log_probs, abs=1e-4)


def test_features_of_an_image_do_not_depend_on_the_other_images(vlm, examples):
    together = changed(vlm)
    together.images.load([example.image for example in examples])
    for example in examples:
        alone = changed(vlm)
        alone.images.load([example.image])
        assert alone.images.grid(example.image) == together.images.grid(example.image)
        assert alone.images.features(example.image).equal(together.images.features(example.image))


def test_an_image_has_as_many_visual_tokens_as_qwen_vl_utils_says(vlm, tmp_path):
    """Unless a side has less than half of a token's pixels, where transformers enlarges more."""
    limited = changed(vlm, min_pixels=6_000, max_pixels=100_000)
    for width, height in [(56, 56), (100, 75), (75, 100), (20, 33), (15, 1500), (640, 480), (1000, 30), (90, 89)]:
        path = tmp_path / f"{width}x{height}.png"
        Image.new("RGB", (width, height)).save(path)
        limited.images.load([path])
        size = qwen_vl_utils.smart_resize(height, width, factor=28, min_pixels=6_000, max_pixels=100_000)
        assert limited.images.grid(path) == (size[0] // 28, size[1] // 28)


def test_a_small_cache_encodes_again_and_says_so(vlm, examples):
    small = changed(vlm, image_cache_mb=0)
    for example in [*examples[:3], *examples[:3]]:
        answers_of(small, [Request((), example)])
    assert small.images.encoded == 6
    assert small.images.encoded_again == 3
    assert "3 of 6 images were encoded again" in small.advice()
    large = changed(vlm)
    for example in [*examples[:3], *examples[:3]]:
        answers_of(large, [Request((), example)])
    assert (large.images.encoded, large.images.encoded_again) == (3, 0)
    assert large.advice() is None


def test_a_broken_image_fails_its_own_prompts_only(vlm, examples, tmp_path):
    torn = tmp_path / "torn.png"
    torn.write_bytes(examples[0].image.read_bytes()[:40])
    broken = dataclasses.replace(examples[0], image=torn)
    missing = dataclasses.replace(examples[0], image=tmp_path / "missing.png")
    fine = Request((examples[1],), examples[2], ("doni",))
    answers = answers_of(vlm, [Request((broken,), examples[2]), fine, Request((), missing)])
    assert answers[1] == vlm.answer([fine])[0]
    assert answers[1].error is None
    assert "torn.png" in str(answers[0].error)
    assert "missing.png" in str(answers[2].error)


def test_not_finite_logits_are_a_failure_not_an_answer(vlm, examples):
    requests = [Request((examples[0],), examples[1], ("doni",))]
    weight = vlm.model.lm_head.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(torch.nan)
        assert "not finite" in str(vlm.answer(requests)[0].error)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_embeddings_are_means_over_the_models_own_tokens(vlm, examples):
    paths = [example.image for example in examples[:3]]
    inputs = vlm.processor.image_processor(images=[Image.open(p).convert("RGB") for p in paths], return_tensors="pt")
    with torch.inference_mode():
        features = vlm.model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
    counts = (inputs["image_grid_thw"].prod(1) // 4).tolist()
    wanted = torch.stack([part.mean(0) for part in features.split(counts)])
    embedded, failed = vlm.embed_images(paths)
    torch.testing.assert_close(embedded, wanted, atol=1e-5, rtol=1e-5)
    assert failed == {}
    ids = vlm.processor.tokenizer("Which code?")["input_ids"]
    table = vlm.model.get_input_embeddings().weight
    torch.testing.assert_close(vlm.embed_texts(["Which code?", "x"])[0], table[ids].mean(0).detach())


def test_embedding_images_in_between_changes_no_answer(vlm, examples):
    requests = requests_of(examples, seed=7, count=6)
    small = changed(vlm, image_cache_mb=0)
    batches = [[requests[i] for i in batch] for batch in small.batches(requests)]
    small.embed_images([examples[0].image])  # the cache drops all others
    answers = {request: answer for batch in batches for request, answer in zip(batch, small.answer(batch), strict=True)}
    assert [answers[request].text for request in requests] == [answer.text for answer in answers_of(vlm, requests)]


def test_mistakes_name_what_to_type():
    with pytest.raises(SettingsError, match="--device cpu"):
        resolve_device("cuda:99")
    with pytest.raises(SettingsError, match="auto, cpu"):
        resolve_device("gpu")


def load(model: str | Path) -> LocalModel:
    return load_local(VlmSettings(model=str(model), device="cpu"), MAX_IMAGE_PIXELS)


def test_a_folder_without_a_model_is_a_clear_mistake(tmp_path):
    with pytest.raises(VlmError, match="--model tiny-vlm"):
        load(tmp_path)


def test_a_model_that_takes_no_images_is_rejected_by_name(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(VlmError, match="bert"):
        load(tmp_path)


def test_damaged_and_missing_weights_are_a_clear_mistake(tmp_path):
    shutil.copytree(TINY_VLM_DIR, tmp_path / "vlm")
    [path] = (tmp_path / "vlm").glob("*.safetensors")
    weights = load_file(path)
    gone = next(name for name in weights if "layers.0" in name)
    save_file({name: value for name, value in weights.items() if name != gone}, path, {"format": "pt"})
    with pytest.raises(VlmError, match="lack 1 tensors"):
        load(tmp_path / "vlm")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(VlmError, match="cannot load"):
        load(tmp_path / "vlm")


def test_code_that_comes_with_a_model_is_never_run(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "surprise", "auto_map": {"AutoConfig": "surprise.Config"}})
    )
    (tmp_path / "surprise.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(VlmError):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_name_that_cannot_be_on_the_hub_is_rejected_without_the_network(no_network):
    for name in ("no-such-model", "/no/such/folder", "a/b/c"):
        with pytest.raises(VlmError, match=r"qwen2\.5-vl-3b.*--model tiny-vlm"):
            load(name)
    assert no_network == []


def test_a_model_that_was_downloaded_needs_no_network(no_network, monkeypatch, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    kept = tmp_path / "models--owner--tiny"
    shutil.copytree(TINY_VLM_DIR, kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load("owner/tiny").fingerprint == load("tiny-vlm").fingerprint
    assert no_network == []
    (kept / "snapshots" / commit / "model.safetensors").unlink()  # an incomplete download
    with pytest.raises(VlmError, match="the network is down"):
        load("owner/tiny")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_download_is_announced_with_its_size_and_a_terminal_gets_bars(monkeypatch, tmp_path, capsys, terminal):
    files = {"model.safetensors": 7_400_000_000, "config.json": 30_000_000, "old.bin": 10**12, "code.py": 10**12}
    siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in files.items()]
    seen: list[tuple[bool, str]] = []

    def download(name: str, local_files_only: bool = False, **_: Any) -> str:
        if local_files_only:
            raise FileNotFoundError
        seen.append((are_progress_bars_disabled(), " ".join(capsys.readouterr().err.split())))
        return str(TINY_VLM_DIR)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(siblings=siblings))
    monkeypatch.setattr(type(err), "is_terminal", terminal)
    before = are_progress_bars_disabled()
    assert load("owner/name").fingerprint == load("tiny-vlm").fingerprint
    [(hidden, message)] = seen
    assert hidden is not terminal
    assert "Downloading owner/name (7.4 GB), once, to " in message
    assert are_progress_bars_disabled() == before


def test_a_hub_that_cannot_be_reached_is_queried_once_and_without_logs(no_network, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(VlmError, match=r"nobody/nothing.*--model tiny-vlm"):
        load("nobody/nothing")
    assert no_network == ["nobody/nothing"]
    assert caplog.records == []
    assert logging.getLogger("huggingface_hub").level < logging.CRITICAL


@pytest.fixture
def no_network(monkeypatch) -> list[str]:
    """The queries to the hub, which cannot be reached; its cache is empty."""
    import huggingface_hub

    queries = []

    def model_info(self, name, **_):
        queries.append(name)
        raise ConnectionError("the network is down")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    return queries


# --- memory -----------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_halved_and_answers_stay_the_same(vlm, examples):
    requests = requests_of(examples, seed=5)
    expected = answers_of(vlm, requests)
    largest = 0

    def small_memory(inputs_embeds: torch.Tensor, **_: Any) -> None:
        nonlocal largest
        largest = max(largest, len(inputs_embeds))
        if len(inputs_embeds) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    with before_each_call(vlm.model.model.language_model, small_memory):
        answers = answers_of(vlm, requests)
    assert largest > 3
    assert [answer.text for answer in answers] == [answer.text for answer in expected]
    for ours, theirs in zip(answers, expected, strict=True):
        assert ours.reference_log_probs == pytest.approx(theirs.reference_log_probs, abs=1e-4)


def test_features_leave_the_memory_for_a_folder_and_come_back(vlm, examples, tmp_path):
    def opened() -> LocalModel:
        return changed(vlm, image_cache_mb=0, image_cache_dir=tmp_path / "cache")

    requests = [Request((example,), example, ("doni",)) for example in examples[:3]]
    small = opened()
    for request in (*requests, *requests):
        assert answers_of(small, [request])[0].text == answers_of(vlm, [request])[0].text
    assert (small.images.encoded, small.images.encoded_again) == (3, 0)
    later = opened()  # another run finds what the first one wrote
    answers_of(later, requests[:2])
    assert later.images.encoded == 0
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    damaged = opened()
    assert answers_of(damaged, requests[:1])[0].text == answers_of(vlm, requests[:1])[0].text
    assert damaged.images.encoded == 1


def test_features_that_are_not_finite_are_computed_again_and_never_cached(vlm, examples, tmp_path):
    flaky = changed(vlm, image_cache_mb=0, image_cache_dir=tmp_path / "cache")
    calls = 0

    def first_is_nan(_module: Any, _args: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        output.pooler_output = output.pooler_output * (torch.nan if calls == 1 else 1)
        return output

    requests = [Request((example,), example, ("doni",)) for example in examples[:3]]
    hook = vlm.model.model.visual.register_forward_hook(first_is_nan)
    try:
        assert [a.text for a in answers_of(flaky, requests)] == [a.text for a in answers_of(vlm, requests)]
    finally:
        hook.remove()
    assert flaky.images.encoded == 3
    for request in requests:
        answers_of(flaky, [request])
    for number, file in enumerate((tmp_path / "cache").iterdir()):
        [(grid, features)] = load_file(file).items()
        save_file({grid: features * (1 if number else torch.nan)}, file)
    later = changed(vlm, image_cache_mb=0, image_cache_dir=tmp_path / "cache")
    assert [a.text for a in answers_of(later, requests)] == [a.text for a in answers_of(vlm, requests)]
    assert later.images.encoded == 1


def test_an_image_without_memory_is_tried_again(vlm, examples):
    own, calls = changed(vlm), 0

    def no_memory_at_first(*_: Any, **__: Any) -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    request = Request((), examples[0])
    with before_each_call(vlm.model.model.visual, no_memory_at_first):
        [failed] = answers_of(own, [request])
        assert "OutOfMemoryError: CUDA out of memory" in failed.error
        with pytest.raises(CallsError, match=r"out of memory.*--device"):
            own.embed_images([examples[0].image])
        [answer] = answers_of(own, [request])
    assert calls == 3 and answer.text == answers_of(vlm, [request])[0].text


def test_a_template_that_fails_for_one_prompt_fails_that_call(vlm, examples, monkeypatch):
    queries = [dataclasses.replace(example, question=f"Which {i}?") for i, example in enumerate(examples[:4])]
    requests = [Request((query,), query, ("doni",)) for query in queries]
    expected = answers_of(vlm, requests)
    render = vlm.processor.apply_chat_template

    def fails_once(messages, **options):
        if queries[2].question in messages[-1]["content"][-1]["text"]:
            raise ZeroDivisionError("in the template")
        return render(messages, **options)

    monkeypatch.setattr(vlm.processor, "apply_chat_template", fails_once)
    answers = answers_of(vlm, requests)
    assert answers[2].error == "ZeroDivisionError: in the template"
    assert [answers[i].text for i in (0, 1, 3)] == [expected[i].text for i in (0, 1, 3)]


def test_a_full_folder_takes_no_more(vlm, examples, tmp_path):
    small = changed(vlm, image_cache_mb=0, image_cache_dir=tmp_path / "cache", image_cache_disk_mb=0)
    for example in examples[:2]:
        answers_of(small, [Request((), example)])
    assert not (tmp_path / "cache").exists()
