"""Baseline implementations that work as Lever-Plus does; `icdsel bench` reports speedups over them."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, Dataset

from icdsel.data.images import open_image
from icdsel.policy import decoding
from icdsel.policy.groups import Groups
from icdsel.policy.losses import rce_loss, rce_temperature
from icdsel.policy.network import PointerNetwork
from icdsel.settings.tables import TrainSettings
from icdsel.vlm.engine import Request
from icdsel.vlm.local.model import LocalModel
from icdsel.vlm.prompts import chat_messages


@torch.inference_mode()
def answer(vlm: LocalModel[Any], request: Request) -> tuple[str, list[float]]:
    """Generates an answer, then scores each reference in a forward pass; each of these encodes the images again."""
    tokenizer = vlm.processor.tokenizer
    text = rendered(vlm, request)
    prompt = inputs(vlm, request, text)
    length = prompt["input_ids"].shape[1]
    search = vlm.search
    generated = vlm.model.generate(
        **prompt,
        do_sample=False,
        num_beams=search.num_beams,
        length_penalty=search.length_penalty,
        repetition_penalty=search.repetition_penalty,
        max_new_tokens=search.max_new_tokens,
        eos_token_id=list(search.stops),
        pad_token_id=tokenizer.eos_token_id,
    )
    scores = []
    for reference in request.references:
        end = tokenizer.decode([vlm.answers.stop])
        extended = inputs(vlm, request, f"{text}{vlm.chat.before_answer}{reference}{end}")
        logits = vlm.model(**extended).logits[0, length - 1 : -1].float()  # (n, V)
        wanted = extended["input_ids"][0, length:]
        scores.append(float(logits.log_softmax(-1).gather(1, wanted[:, None]).sum()))
    return tokenizer.decode(generated[0, length:], skip_special_tokens=True), scores


def rendered(vlm: LocalModel[Any], request: Request) -> str:
    """Renders the prompt as text."""
    return vlm.chat.prompt(chat_messages(request.icds, request.query, vlm.style))


def inputs(vlm: LocalModel[Any], request: Request, text: str) -> Any:
    """Opens a prompt's images and creates the model's inputs."""
    pictures: list[Image.Image] = [open_image(example.image, vlm.max_image_pixels) for example in request.shown]
    return vlm.processed([text], [pictures]).to(vlm.device, vlm.model.dtype)


@torch.no_grad()
def beam(query: Tensor, candidates: Tensor, width: int, shots: int) -> list[tuple[list[int], float]]:
    """Lever-Plus's proposal loop: beam search in Python, with two `.item()` calls per candidate.

    Args:
        query: (d), a unit vector.
        candidates: (K, d), unit vectors.
        width: Number of beams.
        shots: ICDs per pointer.
    """
    beams: list[tuple[list[int], float, float]] = [([], 0.0, 0.0)]
    for _ in range(shots):
        grown: list[tuple[list[int], float, float]] = []
        for pointer, total, log_total in beams:
            logits = candidates @ query / 0.1
            logits[pointer] = -100.0
            log_probs = logits.log_softmax(-1)
            probs = log_probs.exp()
            for place in range(len(candidates)):
                if place not in pointer:
                    p, log_p = probs[place].item(), log_probs[place].item()
                    grown.append(([*pointer, place], total + p, log_total + log_p))
        grown.sort(key=lambda entry: -entry[2])
        beams = grown[:width]
    return [(pointer, log_total) for pointer, _, log_total in beams]


@torch.no_grad()
def retrieval(query: Tensor, candidates: Tensor, count: int, shots: int) -> list[list[int]]:
    """Lever-Plus's retrieval of consecutive ranks: calls `.item()` on every similarity for every choice."""
    pointers = []
    similar = candidates @ query
    for rank in range(count):
        pointer: list[int] = []
        for _ in range(shots):
            ranked = [(similar[place].item(), place) for place in range(len(candidates)) if place not in pointer]
            ranked.sort(key=lambda entry: -entry[0])
            pointer.append(ranked[rank][1])
        pointers.append(pointer)
    return pointers


def choose(network: PointerNetwork, query: Tensor, table: Tensor, shots: int, mask: Tensor | None) -> Tensor:
    """Greedy choice from all N candidates by encoding them for the batch, and by holding all logits.

    Args:
        network: The policy.
        query: Embeddings [B, d].
        table: Embeddings of the candidates [N, d].
        shots: ICDs per pointer, S.
        mask: True where a candidate may be chosen [B, N].

    Returns:
        Pointers [B, S].
    """
    with network.deciding():
        return decoding.greedy(network, network.encode(query, table[None], mask), shots)


class _Queries(Dataset[dict[str, Tensor]]):
    """The training queries one by one, with their embeddings."""

    def __init__(self, table: Tensor, groups: Groups) -> None:
        self._table, self._groups = table.cpu(), groups.to(torch.device("cpu"))

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, q: int) -> dict[str, Tensor]:
        groups = self._groups
        real = ~groups.raw[q].isnan()
        return {
            "query": self._table[groups.query[q]],
            "candidates": self._table[groups.pool[q]],
            "pointers": groups.pointers[q][real],
            "rewards": groups.raw[q][real],
        }


def _first(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return rows[0]


def train_epoch(network: PointerNetwork, table: Tensor, groups: Groups, settings: TrainSettings, steps: int) -> float:
    """Trains with RCE: a DataLoader with batch size 1, one forward pass per pointer, the loss copied at every step."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.rce_lr)
    loader = DataLoader(_Queries(table, groups), batch_size=1, shuffle=True, collate_fn=_first)
    device = table.device
    network.train()
    total = 0.0
    for step, row in enumerate(loader):
        if step == steps:
            break
        query, candidates = row["query"][None].to(device), row["candidates"][None].to(device)
        pointers = row["pointers"][None].to(device)  # (1, P, S)
        logits = torch.cat(
            [network.step_logits(query, candidates, pointer) for pointer in pointers.split(1, dim=1)], dim=1
        )
        tau = rce_temperature(step, len(groups), settings.rce_temp_start, settings.rce_temp_end)
        loss = rce_loss(logits, pointers, row["rewards"][None].to(device), tau)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
    return total / steps
