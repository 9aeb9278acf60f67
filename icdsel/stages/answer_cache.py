"""The VLM's answers of earlier commands: the same prompt to the same model is answered once.

Selectors often choose the same pointer, and larger sets of queries contain the smaller ones. The text of an answer
depends on the prompt alone, so results have the same bytes with and without the cache. The log-probs of reference
answers do not: their last digits depend on the batch. They are not cached, and a request that wants them is always
sent to the VLM; its text is kept. The length of the prompt is kept too. Answers from before it was recorded are not
used, since a result would lack it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

from icdsel.console import warn
from icdsel.errors import of_system
from icdsel.records import Answer
from icdsel.store.fingerprints import fingerprint_file
from icdsel.store.metadata import Inputs
from icdsel.store.shared_journal import SharedJournal
from icdsel.vlm.call_count import OnAnswers
from icdsel.vlm.engine import Request

if TYPE_CHECKING:
    from icdsel.stages.session import Session


class AnswerCache:
    """The answers of one model with one style of prompts and one way of decoding; may be used by several threads.

    Args:
        folder: Where the file is, `answers_<fingerprint>.jsonl`.
        inputs: Everything that decides an answer besides the examples of its prompt.
    """

    def __init__(self, folder: Path, inputs: Inputs) -> None:
        fingerprint = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
        self._journal = SharedJournal(folder / f"answers_{fingerprint}.jsonl")
        self._answers: dict[str, Answer] = {}
        self._usable = True
        self._image = cache(fingerprint_file)
        self._lock = RLock()

    def find(self, requests: Sequence[Request]) -> dict[int, Answer]:
        """The known answers, by the position of the request; none for requests with references."""
        with self._lock:
            self._refresh()
            if not self._answers:
                return {}
            keys = {i: self._key(request) for i, request in enumerate(requests) if not request.references}
            return {i: self._answers[key] for i, key in keys.items() if key in self._answers}

    def keep(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        """Keeps new answers for this and other processes; failed calls are left out."""
        if not self._usable:
            return
        new: dict[str, Answer] = {}
        with self._lock:
            for request, answer in zip(requests, answers, strict=True):
                if answer.error is None and (key := self._key(request)) is not None and key not in self._answers:
                    new[key] = Answer(answer.text, prompt_tokens=answer.prompt_tokens)
            if new:
                self._try(lambda: self._journal.append(_line(key, answer) for key, answer in new.items()))
                self._answers |= new

    def _refresh(self) -> None:
        """Adds what other processes have answered."""
        self._try(lambda: list(self._journal.new()))

    def _try(self, read: Callable[[], list[object]]) -> None:
        if not self._usable:
            return
        try:
            lines = read()
        except OSError as error:  # a read-only folder, a full disk: the work needs no cache
            self._usable = False
            warn(f"answers are not cached: {of_system(error)}")
            return
        for line in lines:
            match line:
                case {"prompt": str(key), "answer": str(text), "prompt_tokens": int(tokens)} if tokens > 0:
                    self._answers.setdefault(key, Answer(text, prompt_tokens=tokens))
                case {"prompt": str(key), "answer": str(text), "prompt_tokens": None}:
                    self._answers.setdefault(key, Answer(text))

    def _key(self, request: Request) -> str | None:
        """Identifies the content of a prompt: images by their content, questions, and shown answers.

        None if an image cannot be read: such a call fails, and may succeed when it is repeated.
        """
        try:
            icds = [[*map(self._image, icd.images), icd.question, icd.answer] for icd in request.icds]
            prompt = [*icds, [*map(self._image, request.query.images), request.query.question]]
        except OSError:
            return None
        return hashlib.sha256(json.dumps(prompt).encode()).hexdigest()[:32]


def _line(key: str, answer: Answer) -> dict[str, str | int | None]:
    return {"prompt": key, "answer": answer.text, "prompt_tokens": answer.prompt_tokens}


def ask(session: "Session", requests: Sequence[Request], on_answers: OnAnswers) -> list[int]:
    """Has requests answered, from the cache if possible; the VLM is opened only if it is needed.

    Equal requests without references are sent to the VLM once.

    Args:
        session: The cache, and the VLM.
        requests: The requests.
        on_answers: Called with answers, by the position of their requests, as soon as they are available; by one thread
            at a time.

    Returns:
        The positions of the requests that the VLM answered.

    Raises:
        CallsError: Too many VLM calls failed.
    """
    known = session.answers
    found = known.find(requests) if known else {}

    def report(answers: Mapping[int, Answer]) -> None:
        with session.lock:
            on_answers(answers)

    if found:
        report(found)
    same: dict[object, list[int]] = {}
    for i in range(len(requests)):
        if i not in found:
            same.setdefault(i if requests[i].references else requests[i], []).append(i)
    together = list(same.values())
    asked = [positions[0] for positions in together]
    if asked:
        wanted = [requests[i] for i in asked]
        answers = session.vlm.answer(
            wanted, lambda new: report({i: answer for at, answer in new.items() for i in together[at]})
        )
        if known:
            known.keep(wanted, answers)
    return asked
