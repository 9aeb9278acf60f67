"""Small random models of other families against transformers' own `generate`, one prompt at a time."""

import dataclasses
import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from vlm_families import FAMILIES, SHARED
from vlm_plain import (
    MAX_IMAGE_PIXELS,
    answers_of,
    examples_in,
    plain_answer,
    plain_inputs,
    plain_log_prob,
    requests_of,
)

from icdsel.errors import VlmError
from icdsel.records import Example
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Request
from icdsel.vlm.local.any_vlm import AnyVlm, ScoreWatcher
from icdsel.vlm.local.decoding import Search
from icdsel.vlm.local.loading import load_local
from icdsel.vlm.local.qwen_vl import QwenVl

PLAIN = [name for name in FAMILIES if name not in (*SHARED, "qwen3_vl_moe")]
"""`test_shared_prefix` compares the others with the plain way."""


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for name in (*PLAIN, "idefics3"):
        torch.manual_seed(0)
        made[name] = tmp_path_factory.mktemp(name)
        FAMILIES[name].build(made[name])
    return made


@pytest.fixture(params=PLAIN)
def family(request) -> str:
    return request.param


def load(folder: Path, **settings) -> AnyVlm:
    """As `--engine transformers` does."""
    vlm = load_local(VlmSettings(model=str(folder), device="cpu", **settings), MAX_IMAGE_PIXELS, family=AnyVlm)
    assert isinstance(vlm, AnyVlm)
    return vlm


def changed(vlm: AnyVlm, **changes) -> AnyVlm:
    settings = vlm.settings.model_copy(update=changes)
    return AnyVlm(vlm.model, vlm.processor, settings, vlm.name, vlm.fingerprint, MAX_IMAGE_PIXELS)


@pytest.fixture
def embedding_vlm(vlm) -> AnyVlm:
    if not vlm.can_embed:
        pytest.skip("it has no features of single images")
    return vlm


@pytest.fixture
def vlm(folders, family) -> AnyVlm:
    return load(folders[family], **FAMILIES[family].changes)


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> list[Example]:
    return examples_in(tmp_path_factory.mktemp("images"))


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
    vlm = changed(vlm, **search)
    requests = requests_of(examples, seed=1, count=7)
    answers = answers_of(vlm, requests)
    marks = FAMILIES[family]
    for request, answer in zip(requests, answers, strict=True):
        assert answer.error is None
        assert answer.text == plain_answer(vlm, request, marks.end)
        assert answer.prompt_tokens == plain_inputs(vlm, request)["input_ids"].shape[1]
        for reference, got, tokens in zip(
            request.references, answer.reference_log_probs, answer.reference_tokens, strict=True
        ):
            wanted, count = plain_log_prob(vlm, request, marks.before + reference + marks.end)
            assert got == pytest.approx(wanted, abs=1e-4)
            assert tokens == count
    assert len({answer.text for answer in answers}) > 1


def test_batch_size_and_order_change_nothing(vlm, examples):
    requests = requests_of(examples, seed=2, count=8)
    answers = answers_of(vlm, requests)
    order = random.Random(0).sample(range(len(requests)), len(requests))
    alone = answers_of(changed(vlm, batch_tokens=1), [requests[i] for i in order])
    for i, other in zip(order, alone, strict=True):
        assert other.text == answers[i].text
        assert other.reference_log_probs == pytest.approx(answers[i].reference_log_probs, abs=1e-4)


def test_a_prompt_scores_alone_as_beside_one_with_more_images(vlm, examples):
    query, *icds = examples[:4]
    requests = [Request((), query, ("doni", "not sure")), Request(tuple(icds), query, ("doni", "not sure"))]
    together = vlm.answer(requests)
    for request, beside in zip(requests, together, strict=True):
        [alone] = changed(vlm).answer([request])
        assert beside.text == alone.text
        assert beside.reference_log_probs == pytest.approx(alone.reference_log_probs, abs=1e-4)
    planned = changed(vlm).batches(requests)
    assert sorted(map(list, planned)) == [[0], [1]]


def test_padding_is_not_penalised():
    inputs = {"input_ids": torch.tensor([[0, 0, 3], [1, 2, 3]]), "attention_mask": torch.tensor([[0, 0, 1], [1, 1, 1]])}
    search = Search(num_beams=1, length_penalty=1.0, repetition_penalty=2.0, max_new_tokens=2, stops=(0,))
    watch = ScoreWatcher(inputs, search)
    grown = torch.tensor([[0, 0, 3, 4], [1, 2, 3, 3]])
    assert watch(grown, torch.full((2, 5), -1.0)).tolist() == [[-1, -1, -1, -2, -2], [-1, -2, -2, -2, -1]]
    by_beam = watch(grown.repeat_interleave(2, 0), torch.full((4, 5), 1.0))
    assert by_beam.tolist() == [[1, 1, 1, 0.5, 0.5]] * 2 + [[1, 0.5, 0.5, 0.5, 1]] * 2


def watch_inputs(monkeypatch: pytest.MonkeyPatch, vlm: AnyVlm, watch: Callable[[dict[str, Any]], Any]) -> None:
    """Calls `watch` with the inputs of each call of the model's `generate`."""
    generate = vlm.model.generate
    monkeypatch.setattr(vlm.model, "generate", lambda **inputs: watch(inputs) or generate(**inputs))


def test_batches_stay_within_their_tokens(vlm, examples, monkeypatch):
    narrow = changed(vlm, batch_tokens=900)
    narrow.image_tokens = 1  # images turn out to be longer
    sizes = []
    watch_inputs(monkeypatch, narrow, lambda inputs: sizes.append(inputs["input_ids"].shape))
    answers = answers_of(narrow, requests_of(examples, seed=3, count=9))
    assert sum(rows for rows, _ in sizes) == 9
    assert all(answer.error is None for answer in answers)
    assert all(rows == 1 or rows * length <= 900 for rows, length in sizes)
    assert any(rows > 1 for rows, _ in sizes)


def test_both_ways_to_run_a_qwen_give_the_same_answers(examples):
    fast = load_local(VlmSettings(model="tiny-vlm", device="cpu", num_beams=3), MAX_IMAGE_PIXELS)
    assert isinstance(fast, QwenVl)
    slow = AnyVlm(fast.model, fast.processor, fast.settings, "", "", MAX_IMAGE_PIXELS)
    requests = requests_of(examples, seed=4, count=6)
    for one, other in zip(answers_of(fast, requests), answers_of(slow, requests), strict=True):
        assert (one.text, one.cut) == (other.text, other.cut)
        assert one.reference_tokens == other.reference_tokens
        assert one.reference_log_probs == pytest.approx(other.reference_log_probs, abs=1e-4)


@pytest.mark.parametrize("way", [QwenVl, AnyVlm])
def test_references_that_are_not_wanted_cost_nothing_and_change_no_answer(examples, way):
    vlm = load_local(VlmSettings(model="tiny-vlm", device="cpu"), MAX_IMAGE_PIXELS, family=way)
    wanted = [dataclasses.replace(request, references=("doni", "gesa")) for request in requests_of(examples, 4, 3)]
    bare = [dataclasses.replace(request, references=()) for request in wanted]
    passes: list[int] = []
    hook = vlm.model.model.language_model.register_forward_hook(lambda *_: passes.append(1))
    try:
        for one, other in zip(wanted, bare, strict=True):
            (scored,), with_references = answers_of(vlm, [one]), len(passes)
            passes.clear()
            (answer,), without = answers_of(vlm, [other]), len(passes)
            passes.clear()
            assert dataclasses.replace(scored, reference_log_probs=(), reference_tokens=()) == answer
            # All references of a prompt are read side by side, or one after the other.
            assert with_references - without == (1 if way is QwenVl else 2)
    finally:
        hook.remove()


@pytest.mark.parametrize("max_new_tokens", [1, 5])
def test_an_answer_that_reaches_its_maximum_length_is_cut(examples, max_new_tokens):
    settings = VlmSettings(model="tiny-vlm", device="cpu", max_new_tokens=max_new_tokens)
    fast = load_local(settings, MAX_IMAGE_PIXELS)
    slow = AnyVlm(fast.model, fast.processor, fast.settings, "", "", MAX_IMAGE_PIXELS)
    requests = requests_of(examples, seed=4, count=6)
    answers = [*answers_of(fast, requests), *answers_of(slow, requests)]
    # The tiny VLM answers nothing, or one word and the end of the turn.
    assert [answer.cut for answer in answers] == [max_new_tokens == 1 and answer.text != "" for answer in answers]
    assert any(answer.text for answer in answers)


def test_a_broken_image_fails_its_own_prompts_only(vlm, examples, tmp_path):
    torn = tmp_path / "torn.png"
    torn.write_bytes(examples[0].image.read_bytes()[:60])
    broken = dataclasses.replace(examples[0], image=torn)
    fine = Request((examples[1],), examples[2], ("doni",))
    answers = answers_of(vlm, [Request((broken,), examples[2]), fine])
    assert "torn.png" in str(answers[0].error)
    assert answers[1].error is None
    assert answers[1].text == vlm.answer([fine])[0].text
    if not vlm.can_embed:
        return
    features, failed = vlm.embed_images([torn, examples[1].image])
    assert "torn.png" in failed[0] and not features[0].any()
    assert features[1].any() and list(failed) == [0]


@pytest.mark.parametrize("beams", [1, 2])
def test_not_finite_logits_are_a_failure_not_an_answer(vlm, examples, beams):
    with torch.no_grad():
        vlm.model.get_output_embeddings().weight.fill_(torch.nan)
    [answer] = changed(vlm, num_beams=beams).answer([Request((examples[0],), examples[1], ("doni",))])
    assert "not finite" in str(answer.error)


def test_an_images_embedding_is_the_mean_of_its_tokens_over_all_tiles(embedding_vlm, examples):
    """The embeddings that the model puts in the place of an image's tokens, in a prompt with that image alone."""
    vlm = embedding_vlm
    tokens = []
    with torch.inference_mode():
        for example in examples[:3]:
            inputs = plain_inputs(vlm, Request((), example))
            place = inputs["input_ids"] == vlm.model.config.image_token_id
            seen = {}
            layer = vlm.model.get_decoder().layers[0]
            hook = layer.register_forward_pre_hook(
                lambda _, args, kwargs, seen=seen: seen.update(x=args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True,
            )
            vlm.model(**inputs)
            hook.remove()
            tokens.append(seen["x"][place].mean(0))
    torch.testing.assert_close(
        vlm.embed_images([e.image for e in examples[:3]])[0], torch.stack(tokens), atol=1e-5, rtol=1e-4
    )


def test_the_pixels_that_are_embedded_are_those_of_a_prompt(embedding_vlm, examples):
    """What the model's vision encoder gets: the processor also tells how images are cut."""
    vlm = embedding_vlm
    seen: list[torch.Tensor] = []
    examples = [example for example in examples if not example.more_images]
    paths = [example.image for example in examples]
    names = ("vision_tower", "vision_model", "visual")
    encoder = next(part for name, part in vlm.model.named_modules() if name.split(".")[-1] in names)

    def watch(_: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        seen.append(args[0] if args else inputs.get("pixel_values", inputs.get("hidden_states")))

    hook = encoder.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        features, failed = vlm.embed_images(paths)
        embedded, seen = seen, []
        for example in examples:
            vlm.model(**plain_inputs(vlm, Request((), example)))
    finally:
        hook.remove()
    assert failed == {} and features.any(1).all()
    assert len(embedded) == len(seen) == len(paths)
    assert all(ours.equal(theirs) for ours, theirs in zip(embedded, seen, strict=True))


def test_a_texts_embedding_is_the_mean_of_its_input_embeddings(vlm):
    table = vlm.model.get_input_embeddings().weight.detach()
    ids = vlm.processor.tokenizer("Which?", add_special_tokens=False)["input_ids"]
    embedded = vlm.embed_texts(["Which?", "", "x"])
    torch.testing.assert_close(embedded[0], table[ids].mean(0))
    assert embedded.isfinite().all()


def test_special_tokens_in_a_dataset_are_text(vlm, family, examples):
    mark = FAMILIES[family].image
    end = FAMILIES[family].end
    odd = dataclasses.replace(examples[0], question=f"How many {mark}{end}?", answer=f"{mark}no{end}")
    [answer] = vlm.answer([Request((odd,), odd, (f"{mark}no",))])
    assert answer.error is None
    text = vlm.prompt(Request((odd,), odd)).text
    assert text.count(mark) == 2
    assert f"{mark[0]} {mark[1:]}" in text


def test_limits_of_an_images_size_are_kept(folders, examples):
    vlm = load(folders["idefics3"], min_pixels=2_000, max_pixels=3_000)
    for example in examples:
        picture = vlm.picture(example.image)
        width, height = Image.open(example.image).size
        assert 1_900 < picture.width * picture.height < 3_100
        assert picture.width / picture.height == pytest.approx(width / height, rel=0.05)


# ---- chat templates and processors ----


def test_a_prompt_has_one_beginning_of_text(folders, examples, monkeypatch):
    vlm = load(folders["idefics3"])
    prompts = []
    watch_inputs(monkeypatch, vlm, lambda inputs: prompts.append(inputs["input_ids"][0].tolist()))
    vlm.answer([Request((), examples[0])])
    assert [ids.count(vlm.processor.tokenizer.bos_token_id) for ids in prompts] == [1]


def with_template(folder: Path, tmp_path: Path, template: str | None) -> Path:
    made = tmp_path / "changed"
    shutil.copytree(folder, made)
    (made / "chat_template.jinja").unlink()
    if template is not None:
        (made / "chat_template.jinja").write_text(template)
    return made


def test_a_template_without_system_turns_says_what_to_type(folders):
    with pytest.raises(VlmError, match=r'no system turns.*--system-prompt ""'):
        load(folders["gemma3"])


def test_a_template_that_drops_the_system_turn_says_what_to_type(folders, tmp_path):
    template = (
        "{% for turn in messages if turn.role != 'system' %}{{ turn.role }}:{% for part in turn.content %}"
        "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}<end_of_utterance>{% endfor %}"
    )
    folder = with_template(folders["idefics3"], tmp_path, template)
    with pytest.raises(VlmError, match=r'leaves out .*--system-prompt ""'):
        load(folder)
    assert load(folder, system_prompt="")


def test_a_template_that_needs_strings_gets_them(folders, tmp_path, examples):
    template = (
        "{% for turn in messages %}{{ turn.role + ': ' }}{% if turn.role == 'user' %}{% for part in turn.content %}"
        "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% else %}{{ turn.content + '' }}{% endif %}"
        "<end_of_utterance>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    vlm = load(with_template(folders["idefics3"], tmp_path, template), system_prompt="Be brief.", layout="turns")
    assert vlm.prompt(Request((examples[0],), examples[1])).text == (
        "system: Be brief.<end_of_utterance>"
        "user: <image>Question:What is number one? Short answer:<end_of_utterance>assistant: doni<end_of_utterance>"
        "user: <image>Question:What is number two? Short answer:<end_of_utterance>assistant: "
    )
    assert reference_tokens(vlm, examples) == (len("doni") + 1,)
    assert vlm.search.stops == (vlm.processor.tokenizer.eos_token_id,)


def reference_tokens(vlm: AnyVlm, examples: Sequence[Example]) -> tuple[int, ...]:
    """The tokens of the reference "doni", with what the template puts around an answer."""
    return vlm.answer([Request((), examples[0], ("doni",))])[0].reference_tokens


def test_if_the_template_does_not_end_an_answer_the_end_of_text_does(folders, tmp_path, examples):
    template = (
        "{% for turn in messages %}{% for part in turn.content %}"
        "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}\n{% endfor %}"
    )
    vlm = load(with_template(folders["idefics3"], tmp_path, template))
    assert reference_tokens(vlm, examples) == (len("doni") + 1,)
    assert vlm.search.stops == (vlm.processor.tokenizer.eos_token_id,)


def test_the_templates_end_of_a_turn_ends_answers_too(folders, tmp_path, examples):
    folder = tmp_path / "forgotten"
    shutil.copytree(folders["gemma3"], folder)
    own = json.loads((folder / "generation_config.json").read_text())
    vlm = load(folders["gemma3"], system_prompt="")
    eos, end = own["eos_token_id"]
    assert vlm.search.stops == tuple(sorted((eos, end)))
    (folder / "generation_config.json").write_text(json.dumps(own | {"eos_token_id": eos}))
    forgetful = load(folder, system_prompt="")
    assert forgetful.search.stops == vlm.search.stops
    assert reference_tokens(forgetful, examples) == reference_tokens(vlm, examples) == (len("doni") + 1,)


def test_answers_and_references_of_a_model_that_thinks_stand_behind_a_closed_thought(folders, tmp_path, examples):
    template = (
        "<s>{% for turn in messages %}{{ turn.role }}: {% for part in turn.content %}"
        "{{ '<image>' if part.type == 'image' else part.text.split('</think>')[-1] }}{% endfor %}<end_of_utterance>"
        "{% endfor %}{% if add_generation_prompt %}assistant: <think>\n{% endif %}"
    )
    vlm = load(with_template(folders["idefics3"], tmp_path, template))
    request = Request((examples[0],), examples[1], ("doni",))
    [answer] = vlm.answer([request])
    assert vlm.prompt(request).text.endswith("assistant: <think>\n\n</think>\n\n")
    thought = "\n</think>\n\n"
    whole, count = plain_log_prob(vlm, request, f"{thought}doni<end_of_utterance>")
    before, _ = plain_log_prob(vlm, request, thought)
    assert answer.reference_log_probs == (pytest.approx(whole - before, abs=1e-4),)
    assert answer.reference_tokens == (count - len(thought),) == (len("doni") + 1,)


def test_a_model_that_begins_to_think_by_itself_has_failed(vlm, examples, monkeypatch):
    thought = vlm.processor.tokenizer("<think>\nThe", add_special_tokens=False, return_tensors="pt")["input_ids"]
    monkeypatch.setattr(vlm.model, "generate", lambda input_ids, **_: torch.cat([input_ids, thought], 1))
    [answer] = vlm.answer([Request((), examples[0], ("doni",))])
    assert "begins to think instead of answering" in str(answer.error)
    assert answer.reference_log_probs == ()


def test_a_processor_without_a_chat_template_is_a_clear_mistake(folders, tmp_path):
    with pytest.raises(VlmError, match="has no chat template"):
        load(with_template(folders["idefics3"], tmp_path, None))


def test_a_template_that_leaves_out_images_is_a_clear_mistake(folders, tmp_path):
    template = "{% for turn in messages %}{% for part in turn.content %}{{ part.text }}{% endfor %}{% endfor %}"
    with pytest.raises(VlmError, match=r"it leaves out images.*no layout fits it"):
        load(with_template(folders["idefics3"], tmp_path, template))


def test_the_models_own_sampling_settings_do_not_matter(folders, tmp_path, examples):
    folder = tmp_path / "sampling"
    shutil.copytree(folders["idefics3"], folder)
    own = json.loads((folder / "generation_config.json").read_text())
    own |= {"do_sample": True, "temperature": 5.0, "top_k": 3, "repetition_penalty": 1.7, "no_repeat_ngram_size": 1}
    own |= {"num_beams": 4, "min_new_tokens": 4, "length_penalty": 3.0, "early_stopping": True, "max_length": 7}
    (folder / "generation_config.json").write_text(json.dumps(own))
    requests = requests_of(examples, seed=5, count=5)
    assert answers_of(load(folder), requests) == answers_of(load(folders["idefics3"]), requests)
    assert load(folder, repetition_penalty="model").search.repetition_penalty == 1.7
