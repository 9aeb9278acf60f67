"""What transformers' own `generate` and forward passes make of one prompt at a time, for small models of any family."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from icdsel.records import Answer, Example
from icdsel.records.examples import PLACE
from icdsel.vlm.engine import Request
from icdsel.vlm.local.decoding import until
from icdsel.vlm.local.model import LocalModel
from icdsel.vlm.prompts import chat_messages
from icdsel.vlm.supervision import SupervisedEngine
from icdsel.vlm.time_limit import CallTimer

MAX_IMAGE_PIXELS = 1_000_000


def answers_of(vlm: LocalModel, requests: Sequence[Request]) -> list[Answer]:
    """The answers as commands get them: in the model's own batches, under supervision."""
    return SupervisedEngine(vlm, CallTimer(600), max_failed=1).answer(requests)


def examples_in(folder: Path) -> list[Example]:
    """Eight examples whose images have different sizes; the last two have two and three images."""
    made = []
    generator = torch.Generator().manual_seed(2)
    sizes = {"one": (40, 40), "two": (64, 30), "three": (30, 70), "four": (64, 64), "five": (90, 41), "six": (33, 60)}
    for i, (number, (width, height)) in enumerate(sizes.items()):
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        path = folder / f"{i}.png"
        Image.fromarray(pixels.numpy()).save(path)
        made.append(Example(i, i, path, f"What is number {number}?", "doni", ("doni",)))
    first, second, third, *_ = (example.image for example in made)
    made.append(Example(6, 6, third, "What do both show?", "doni", ("doni",), more_images=(first,)))
    between = f"{PLACE} is to {PLACE} as {PLACE} is to what?"
    made.append(Example(7, 7, second, between, "doni", ("doni",), more_images=(third, second)))
    return made


def requests_of(examples: list[Example], seed: int, count: int) -> list[Request]:
    """Prompts of 0 to 4 ICDs with up to three references."""
    rng, made = random.Random(seed), []
    for _ in range(count):
        *icds, query = rng.sample(examples, rng.randint(1, 5))
        references = tuple(rng.sample(["doni", "not sure", "", "red and blue"], rng.randint(0, 3)))
        made.append(Request(tuple(icds), query, references))
    return made


def plain_inputs(vlm: LocalModel, request: Request, answer: str = ""):
    """The inputs that transformers' own processor makes for one prompt (followed by an answer)."""
    messages = chat_messages(request.icds, request.query, vlm.style)
    images = [Image.open(image) for image in request.images]
    template = vlm.processor.chat_template.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
    text = vlm.processor.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, chat_template=template
    )
    return vlm.processor(text=[text + answer], images=[images], return_tensors="pt", add_special_tokens=False)


@torch.inference_mode()
def plain_answer(vlm: LocalModel, request: Request, end: str) -> str:
    inputs = plain_inputs(vlm, request)
    stops = [vlm.processor.tokenizer.eos_token_id, vlm.processor.tokenizer.convert_tokens_to_ids(end)]
    made = vlm.model.generate(
        **inputs,
        do_sample=False,
        num_beams=vlm.settings.num_beams,
        length_penalty=vlm.settings.length_penalty,
        early_stopping=False,
        repetition_penalty=vlm.settings.repetition_penalty,
        max_new_tokens=vlm.settings.max_new_tokens,
        eos_token_id=stops,
        pad_token_id=0,
    )
    tokens = until(made[0, inputs["input_ids"].shape[1] :].tolist(), tuple(stops))
    return vlm.processor.tokenizer.decode(tokens, skip_special_tokens=True)


@torch.inference_mode()
def plain_log_prob(vlm: LocalModel, request: Request, reference: str) -> tuple[float, int]:
    """Σ log p over the tokens of `reference`, marks spelled out, behind one prompt; and how many there are."""
    prompt = plain_inputs(vlm, request)["input_ids"][0]
    inputs = plain_inputs(vlm, request, reference)
    ids, start = inputs["input_ids"][0], len(prompt)
    assert ids[:start].equal(prompt)
    log_probs = vlm.model(**inputs).logits[0].log_softmax(-1)
    return sum(float(log_probs[i - 1, ids[i]]) for i in range(start, len(ids))), len(ids) - start
