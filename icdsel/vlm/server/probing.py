"""Asks a server the probes: whether its answers depend on their images, and on nothing else."""

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from icdsel.console import warn
from icdsel.errors import VlmError
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.server.background import all_or_cancelled
from icdsel.vlm.server.client import Client
from icdsel.vlm.server.dialects import Dialect
from icdsel.vlm.server.failures import Busy, Rejected, Unusable
from icdsel.vlm.server.key import ApiKey
from icdsel.vlm.server.probes import LONGEST_TEXT, TOP, Probed, probe_messages
from icdsel.vlm.server.replies import Completion, completion_of

PATIENCE = 60.0
"""Seconds that a server which is busy at start-up is asked again."""
_WAIT = 2.0  # seconds, if it does not say how long
_REPEATS = 3
_KINDS = ("first image", "last image", "order of images")
"""What distinguishes each further probe from the first one."""
_CACHES = "vLLM --no-enable-prefix-caching --mm-processor-cache-gb 0, SGLang --disable-radix-cache"
_T = TypeVar("_T")


async def patiently(ask: Callable[[], Awaitable[_T]]) -> _T:
    """The result of a request, which is sent again while the server is busy.

    Raises:
        ServerFailure: It failed, or the server stays busy.
    """
    now = asyncio.get_running_loop().time
    end = now() + PATIENCE
    while True:
        try:
            return await ask()
        except Busy as busy:
            wait = _WAIT if busy.seconds is None else busy.seconds
            if now() + wait > end:
                raise
            await asyncio.sleep(wait)


class Prober:
    """Asks the probes of one server.

    Args:
        client: The server.
        model: The model's name there.
        dialect: Its dialect.
        settings: The settings.
        key: The key.
    """

    def __init__(self, client: Client, model: str, dialect: Dialect, settings: VlmSettings, key: ApiKey) -> None:
        self._client, self._model, self._dialect, self._key = client, model, dialect, key
        own = settings.model_copy(update={"repetition_penalty": 1.0, "max_new_tokens": LONGEST_TEXT})
        self._decoding = dialect.decoding(own)

    async def check(self) -> tuple[str, tuple[Probed, ...]]:
        """The name that replies have for the model, and the answers to the probes.

        They are asked one after another without what is cached of other prompts, where that is possible; then again
        with what is cached, and then all together.

        Raises:
            ServerFailure: A probe fails.
            VlmError: The server confuses images, or answers differently each time.
        """
        numbers = range(len(probe_messages()))
        completions = [await self._ask(number, fresh=True) for number in numbers]
        probed = tuple(map(Probed.of, completions))
        self._require_images(probed)
        for number in numbers:
            await self._require_same(number, probed)
        await all_or_cancelled(self._require_same(number, probed) for number in numbers)
        return self._named(completions[0]), probed

    def _named(self, completion: Completion) -> str:
        """The name of the model in a reply, by which an answer of another model is found.

        Raises:
            Unusable: It has none.
        """
        name = completion.reply.get("model")
        if not isinstance(name, str):
            raise Unusable("its replies do not name the model, so one of another model could not be told")
        return name

    async def answers_as(self, number: int, probed: Sequence[Probed]) -> bool:
        """Whether the answer to a probe, asked again without what is cached where that is possible, is the same.

        Raises:
            ServerFailure: It fails.
        """
        return probed[number].agrees(await self._again(number, probed, fresh=True))

    async def _again(self, number: int, probed: Sequence[Probed], fresh: bool = False) -> Probed:
        """The answer to a probe that is asked again, more often if it has no log-probs: two texts may be close."""
        before, again = probed[number], Probed.of(await self._ask(number, fresh))
        for _ in range(_REPEATS - 1):
            if before.first or before.agrees(again):
                break
            again = Probed.of(await self._ask(number, fresh))
        return again

    def _require_images(self, probed: Sequence[Probed]) -> None:
        same = [kind for kind, each in zip(_KINDS, probed[1:], strict=True) if each == probed[0]]
        if same and all(each.first for each in probed):
            raise VlmError(
                f"{self._client.address} answers prompts that differ in their {' and '.join(same)} with the same "
                f"probabilities: it drops images or confuses them. Serve {self._model} as a vision-language model, or "
                f"switch off the server's caches ({_CACHES})"
            )
        if len(same) == len(_KINDS):
            warn(
                f"{self._client.address} gives no log-probs, and the same answer to prompts with different images: "
                "whether it sees images cannot be told. Look at its answers before you trust them"
            )

    async def _require_same(self, number: int, probed: Sequence[Probed]) -> None:
        """Asks a probe again.

        Raises:
            VlmError: Its answer is another one.
            ServerFailure: It fails.
        """
        again = await self._again(number, probed)
        if probed[number].agrees(again):
            return
        confused = again.first and any(each.agrees(again) for each in probed)
        raise VlmError(
            f"{self._client.address} answers the same prompt differently when it is asked again"
            f"{', as if it had other images' if confused else ''}: its caches confuse prompts ({_CACHES}), or it does "
            "not decode greedily (temperature 0)"
        )

    async def _ask(self, number: int, fresh: bool = False) -> Completion:
        """The completion of a probe; `fresh` without what is cached, where that is possible.

        Raises:
            ServerFailure: The server does not answer it.
        """
        body = {"model": self._model, "messages": probe_messages()[number], **self._decoding}
        if fresh:
            body |= self._dialect.without_cache(uuid.uuid4().hex)
        try:
            completion = await self._complete(body | {"logprobs": True, "top_logprobs": TOP, "max_tokens": 1})
        except Rejected as rejected:
            if "logprob" not in str(rejected).lower():
                raise
        else:
            if completion.first:
                return completion
        return await self._complete(body)

    async def _complete(self, body: dict[str, Any]) -> Completion:
        content = json.dumps(body).encode()
        reply = await patiently(lambda: self._client.chat(content))
        return completion_of(reply, None, self._key, body["max_tokens"])
