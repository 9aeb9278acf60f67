"""An engine that asks servers over HTTP.

Many prompts are under way at once. Answers are returned in the order of the requests, whatever the order in which they
arrive. Failures are handled here, where they are understood: what comes back as failed has been tried several times.
"""

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from icdsel.console import warn
from icdsel.data.images import ImageError
from icdsel.errors import VlmError
from icdsel.records import Answer
from icdsel.settings.tables import VlmSettings
from icdsel.store.metadata import ON_SERVERS
from icdsel.vlm.engine import Engine, Request
from icdsel.vlm.prompts import PromptStyle, chat_messages
from icdsel.vlm.server.background import BackgroundLoop, all_or_cancelled
from icdsel.vlm.server.client import Client, is_readable
from icdsel.vlm.server.conversation import openai_messages, without_markup
from icdsel.vlm.server.descriptors import require_descriptors
from icdsel.vlm.server.failures import Rejected, ServerFailure
from icdsel.vlm.server.fleet import Fleet, Server
from icdsel.vlm.server.images import SentImages, picture_url
from icdsel.vlm.server.key import ApiKey
from icdsel.vlm.server.known import KnownModels
from icdsel.vlm.server.local_files import first_file, require_readable
from icdsel.vlm.server.references import References, Scored
from icdsel.vlm.server.remedies import explained
from icdsel.vlm.server.replies import Completion, completion_of
from icdsel.vlm.server.startup import Served, open_client, start, still_serves, unusable
from icdsel.vlm.server.tokens import LocalTokenizer, are_tokens, local_tokenizer, require_same_tokens, two_shot_prompt

if TYPE_CHECKING:
    from torch import Tensor

_FILLED = 64  # requests that a call of `answer` has at least in most stages


class ServerEngine(Engine):
    """Asks one or several servers of one model.

    Args:
        settings: The servers, the model, and how it is used.
        max_image_pixels: Images with more pixels are rejected.
        key: The key of the servers.

    Attributes:
        served: What is known of the servers.
        settings: The settings.
        style: How prompts are laid out.
        tokenizer: Tokenizer and template of the model, if its files are on this machine and the server was compared
            with them.

    Raises:
        VlmError: A server cannot be used; the message says what to change.
        SettingsError: A setting is not possible on servers.
    """

    chunk = 1024
    dtype = ON_SERVERS
    retries_itself = True
    tokenizer: LocalTokenizer | None = None
    _references: References | None = None

    def __init__(self, settings: VlmSettings, max_image_pixels: int, key: ApiKey) -> None:
        self.settings, self._key = settings, key
        self.style = PromptStyle.of(settings)
        self.name, self.device = settings.model, ", ".join(settings.url)
        self.at_once = 2 + settings.concurrency * len(settings.url) // _FILLED
        self._images = SentImages(settings, max_image_pixels)
        self._clients = [open_client(settings, url, key) for url in settings.url]
        self._must_read_files, self._reading_files = settings.file_urls, asyncio.Lock()
        self._loop = BackgroundLoop("servers")
        try:
            self.served: Served = self._loop.run(self._start())
        except BaseException:
            self.close()
            raise
        self.fingerprint = self.served.fingerprint
        self._known: KnownModels | None = None
        self._keeping = Lock()

    async def _start(self) -> Served:
        settings = self.settings
        clients = self._clients
        served = await start(clients, settings, self._key)
        self._decoding = served.dialect.decoding(settings)
        if served.dialect.tells_tokens and (local := local_tokenizer(settings)):
            self.tokenizer = local
            await all_or_cancelled(self._check_tokens(client, served, local) for client in clients)
        await self._open_references(clients, served)

        turns = cycle(range(len(served.probed)))

        async def check(client: Client, whole: bool) -> None:
            probes = range(len(served.probed)) if whole else [next(turns)]
            await still_serves(client, served, settings, self._key, probes)

        self._fleet = Fleet(clients, settings.concurrency, settings.retries, settings.call_timeout, check)
        return served

    async def _check_tokens(self, client: Client, served: Served, local: LocalTokenizer) -> None:
        """Compares the tokens of a prompt with those of the model's own tokenizer, if the server tells them.

        Raises:
            VlmError: They differ, or the server does not answer.
        """
        try:
            completion = await self._try(client, served, max_tokens=1, return_token_ids=True)
        except ServerFailure as failure:
            raise unusable(client, failure) from None
        tokens = completion.reply.get("prompt_token_ids")
        if tokens is not None and not are_tokens(tokens):
            raise VlmError(f"{client.address} tells tokens of a prompt that are none (return_token_ids)")
        if tokens is not None:
            require_same_tokens(client.address, tokens, local, two_shot_prompt(self.settings))

    async def _open_references(self, clients: Sequence[Client], served: Served) -> None:
        """Finds out whether the servers tell log-probs of references, and why not."""
        try:
            references = served.dialect.references(self.tokenizer, self.settings)
            messages = two_shot_prompt(self.settings)
            for client in clients:
                await references.check(messages, partial(self._try, client, served))
        except VlmError as error:
            self.why_no_references = str(error)
        else:
            self._references, self.can_score_references = references, True

    async def _try(self, client: Client, served: Served, **parameters: Any) -> Completion:
        """The completion of a prompt of two ICDs by one server.

        Raises:
            ServerFailure: The call failed.
        """

        async def url(picture: Any) -> str:
            return picture_url(picture)

        messages = await openai_messages(two_shot_prompt(self.settings), url)
        body = {"model": served.model, "messages": messages, **self._decoding, **parameters}
        reply = await client.chat(json.dumps(body).encode())
        return completion_of(reply, served.answers_as, self._key, body["max_tokens"])

    def recognise(self, folder: Path) -> None:
        """Takes the fingerprint under which earlier commands knew the model, by their results in a folder."""
        self._known = KnownModels(folder, self.name)
        self.served = self._known.as_known(self.served)
        self.fingerprint = self.served.fingerprint
        if self._known.last() not in (None, self.fingerprint):
            self._known.keep(self.served)

    def close(self) -> None:
        """Cancels what is under way; the engine cannot be used any more."""
        self._loop.close(self._close_clients)
        self._images.close()

    async def _close_clients(self) -> None:
        for client in self._clients:
            await client.close()

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers requests, several at a time; may be called from several threads.

        No answer is returned before its server has shown that it still serves the same model.

        Raises:
            CallsError: No server is left, or the engine was closed.
        """
        with self._keeping:
            if self._known is not None:
                self._known.keep(self.served)
        shown = [without_markup(request) for request in requests]
        order = sorted(range(len(shown)), key=lambda i: _place_in_order(shown[i]))
        answers = self._loop.run(self._confirmed_answers([shown[i] for i in order]))
        by_position = dict(zip(order, answers, strict=True))
        return [by_position[i] for i in range(len(requests))]

    def embed_images(self, paths: Sequence[Path]) -> "tuple[Tensor, dict[int, str]]":
        """Servers embed nothing."""
        raise NotImplementedError

    def embed_texts(self, texts: Sequence[str]) -> "Tensor":
        """Servers embed nothing."""
        raise NotImplementedError

    async def _confirmed_answers(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers of servers that serve the same model afterwards; what others have answered is asked again.

        Raises:
            CallsError: No server is left.
        """
        await self._check_files(requests)
        confirmed: dict[int, Answer] = {}
        while left := [i for i in range(len(requests)) if i not in confirmed]:
            asked: dict[int, set[Server]] = {i: set() for i in left}
            answers = await all_or_cancelled(self._answer(requests[i], asked[i]) for i in left)
            servers = list(set().union(*asked.values()))
            same = await all_or_cancelled(map(self._fleet.confirms, servers))
            trusted = {server for server, is_same in zip(servers, same, strict=True) if is_same}
            confirmed |= {i: answer for i, answer in zip(left, answers, strict=True) if asked[i] <= trusted}
        return [confirmed[i] for i in range(len(requests))]

    async def _check_files(self, requests: Sequence[Request]) -> None:
        """Has all servers read one of the pictures that are sent by their addresses, before the first prompt.

        Raises:
            VlmError: One does not.
        """
        async with self._reading_files:
            if not self._must_read_files:
                return
            shown = dict.fromkeys(image for request in requests for image in request.images)
            if url := await first_file(self._images, shown):
                for client in self._clients:
                    await require_readable(client, url, self.served.model, self._decoding)
            self._must_read_files = False

    async def _answer(self, request: Request, asked: set[Server]) -> Answer:
        """The answer to a request; adds the servers that it comes from to `asked`."""
        complete = partial(self._complete, request, asked)
        try:
            if request.references and self._references is not None:
                scored = await self._references.score(request, complete)
            else:
                scored = Scored(await complete())
        except (ImageError, ServerFailure) as error:
            return Answer("", error=_reason(error))
        answer = scored.completion
        return Answer(answer.text, scored.log_probs, scored.lengths, cut=answer.cut, prompt_tokens=answer.prompt_tokens)

    async def _complete(self, request: Request, asked: set[Server], **parameters: Any) -> Completion:
        """The completion of a request.

        Args:
            request: The prompt; its references are not looked at.
            asked: The server that completes it is added.
            parameters: Parameters of the completion beside those of decoding, or in their place. With `messages`, these
                follow the messages of the prompt.

        Raises:
            ServerFailure: The call failed.
            ImageError: An image cannot be read.
            CallsError: No server is left.
        """
        messages = chat_messages(request.icds, request.query, self.style)
        more = parameters.pop("messages", [])
        values = self._decoding | parameters

        async def body() -> bytes:
            turns = await openai_messages(messages, self._images.url)
            return json.dumps({"model": self.served.model, "messages": [*turns, *more], **values}).encode()

        reply, server = await self._fleet.chat(place_of(request), body)
        completion = completion_of(reply, self.served.answers_as, self._key, values["max_tokens"])
        asked.add(server)
        return completion


def place_of(request: Request) -> str:
    """What decides which server is asked: the query."""
    return f"{request.query.question_id!r} {request.query.image}"


def _place_in_order(request: Request) -> tuple[str, list[tuple[Path, str]]]:
    """Requests of one query are adjacent, and of these those that begin with the same ICDs."""
    return place_of(request), [(icd.image, icd.question) for icd in request.icds]


def _reason(error: Exception) -> str:
    return explained(error) if isinstance(error, Rejected) else str(error)


def open_server(settings: VlmSettings, max_image_pixels: int) -> ServerEngine:
    """Opens the engine of the servers in the settings, with the key of the environment.

    Raises:
        VlmError: A server cannot be used; the message says what to change.
        SettingsError: A setting is not possible on servers.
    """
    require_descriptors(len(settings.url), settings.concurrency)
    key = ApiKey.exported()
    if key and (readable := [url for url in settings.url if is_readable(url)]):
        warn(f"the key goes to {', '.join(readable)} unencrypted: anybody on the way can read it (https:// hides it)")
    return ServerEngine(settings, max_image_pixels, key)


def recalled(settings: VlmSettings, folder: Path) -> tuple[str, str] | None:
    """Fingerprint and dtype of the model as earlier commands knew it; None if none of them asked for it."""
    known = KnownModels(folder, settings.model).last()
    return None if known is None else (known, ON_SERVERS)
