"""Has a VLM answer queries with the ICDs that were chosen for them."""

import re
from collections.abc import Sequence
from threading import Lock

from icdsel.choosing.choice import Choice
from icdsel.errors import VlmError
from icdsel.settings.loading import Settings, with_values
from icdsel.tasks.cleaners import CLEANERS
from icdsel.vlm.engines import Vlm, open_engine
from icdsel.vlm.server.naming import with_served_model

__all__ = ["Answering"]


class Answering:
    """VLMs by name, each opened when it is first asked.

    Args:
        settings: How prompts are worded and answers decoded.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened: dict[str, Vlm] = {}
        self._one_at_a_time = Lock()

    def answers(self, choices: Sequence[Choice], vlm: str) -> list[str]:
        """The VLM's answers, cleaned as `icdsel infer` cleans them.

        Args:
            choices: The queries, with their ICDs.
            vlm: A model's name or folder, or the address of a server.

        Raises:
            VlmError: It cannot be opened, or failed on a query.
        """
        cleaner = CLEANERS.named(self._settings.vlm.clean_answers)
        requests = [choice.request for choice in choices]
        with self._one_at_a_time:
            if vlm not in self._opened:
                self._opened[vlm] = self._open(vlm)
            answers = self._opened[vlm].answer(requests)
        if failed := [answer.error for answer in answers if answer.error is not None]:
            raise VlmError(f"{len(failed)} of {len(answers)} queries were not answered: {failed[0]}")
        return [
            choice.prompts.task.read(cleaner.clean(answer.text), choice.query)
            for choice, answer in zip(choices, answers, strict=True)
        ]

    def close(self) -> None:
        """Ends the VLMs."""
        while self._opened:
            self._opened.popitem()[1].close()

    def _open(self, vlm: str) -> Vlm:
        served = re.match("https?://", vlm) is not None
        given = {"url": vlm, "model": None, "dtype": None} if served else {"model": vlm, "dtype": None}
        settings = with_served_model(with_values(self._settings, {"vlm": given}))
        return open_engine(settings.vlm, settings.data.max_image_pixels)
