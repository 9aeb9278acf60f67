"""The figures in docs/models.md: how far scores are off if answers are tokenized alone, or batches are mixed.

python tests/vlm_figures.py
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from vlm_families import FAMILIES

from icdsel.records import Example
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.engine import Request
from icdsel.vlm.local.any_vlm import AnyVlm, TextPrompt
from icdsel.vlm.local.loading import load_local


class Mixed(AnyVlm):
    """Answers prompts with different numbers of images in one batch."""

    def _kinds(self, prompts: Mapping[int, TextPrompt]) -> list[Mapping[int, TextPrompt]]:
        return [prompts]


def examples(folder: Path) -> list[Example]:
    generator, made = torch.Generator().manual_seed(2), []
    for i, (width, height) in enumerate([(40, 40), (64, 30), (30, 70), (64, 64)]):
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
        made.append(Example(i, i, folder / f"{i}.png", f"What is number {i}?", "doni", ("doni",)))
    return made


def load(name: str, folder: Path, family: type[AnyVlm] = AnyVlm) -> AnyVlm:
    torch.manual_seed(0)
    FAMILIES[name].build(folder)
    settings = VlmSettings(model=str(folder), device="cpu", **FAMILIES[name].changes)
    vlm = load_local(settings, 10**6, family=AnyVlm)
    return family(vlm.model, vlm.processor, settings, vlm.name, vlm.fingerprint, 10**6)


def main() -> None:
    with TemporaryDirectory() as place:
        folder = Path(place)
        query, *icds = examples(folder)
        requests = [Request(tuple(shown), query, ("doni", "yes")) for shown in ((), icds)]
        for name, family in (("mllama", AnyVlm), ("mllama", Mixed), ("llava", AnyVlm)):
            vlm = load(name, folder / name, family)
            for request, answer in zip(requests, vlm.answer(requests), strict=True):
                print(name, family.__name__, f"{len(request.icds)} shots", answer.reference_log_probs)
        encode = vlm.processor.tokenizer.encode
        tokens_of = {
            text: (*encode(vlm.chat.before_answer + text, add_special_tokens=False), vlm.answers.stop)
            for text in ("doni", "yes")
        }
        vlm.answers.of = lambda prompt, answer: tokens_of[answer]  # type: ignore[method-assign]
        for request, answer in zip(requests, vlm.answer(requests), strict=True):
            print("llava, answers tokenized alone", f"{len(request.icds)} shots", answer.reference_log_probs)


if __name__ == "__main__":
    main()
