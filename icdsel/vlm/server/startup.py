"""The check of servers before anything is asked of them. Each failure says what to change."""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from icdsel.console import warn
from icdsel.errors import VlmError
from icdsel.settings.presets import MODEL_ALIASES
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.server.background import all_or_cancelled
from icdsel.vlm.server.client import Client
from icdsel.vlm.server.dialects import Dialect, dialect_of
from icdsel.vlm.server.failures import Busy, Rejected, ServerFailure, Temporary, Unreachable
from icdsel.vlm.server.key import ApiKey
from icdsel.vlm.server.probes import LONGEST_TEXT, TOP, Probed, fingerprint, probe_messages
from icdsel.vlm.server.remedies import remedy_of
from icdsel.vlm.server.replies import Completion, completion_of

_MOST_NAMES = 12  # of models in a message
_REPEATS = 3


@dataclass(frozen=True)
class Served:
    """What is known of the servers of a model.

    Attributes:
        model: The name by which they are asked for it.
        answers_as: The name that their replies have for it.
        dialect: Their dialect.
        version: Their version; empty if they do not say.
        fingerprint: Identifies the model.
        probed: The answers to the probes.
    """

    model: str
    answers_as: str
    dialect: Dialect
    version: str
    fingerprint: str
    probed: tuple[Probed, ...]

    @property
    def log_probs(self) -> bool:
        """Whether they give log-probs."""
        return all(each.first for each in self.probed)


async def start(clients: Sequence[Client], settings: VlmSettings, key: ApiKey) -> Served:
    """Checks servers, and returns what all of them serve.

    Raises:
        VlmError: One cannot be used, or they do not serve the same model.
        SettingsError: A setting is not possible on them.
    """
    all_served = await all_or_cancelled(_served(client, settings, key) for client in clients)
    first = all_served[0]
    for client, other in zip(clients[1:], all_served[1:], strict=True):
        if (other.dialect.name, other.version, other.model) != (first.dialect.name, first.version, first.model):
            raise VlmError(
                f"{clients[0].address} ({first.dialect.name} {first.version}, model {first.model}) and "
                f"{client.address} ({other.dialect.name} {other.version}, model {other.model}) differ: use servers of "
                "one version with one model, or one server"
            )
        if not all(a.agrees(b) for a, b in zip(first.probed, other.probed, strict=True)):
            raise VlmError(
                f"{clients[0].address} and {client.address} answer the same prompts differently: they serve other "
                f"weights, or other settings, under the name {first.model}; name one of them"
            )
    return first


async def still_serves(client: Client, served: Served, settings: VlmSettings, key: ApiKey) -> None:
    """Checks a server that has come back.

    Raises:
        ServerFailure: It is not ready.
        VlmError: It serves another model now.
    """
    names = [str(card.get("id")) for card in _cards(await client.get(f"{client.address}/models"))]
    if served.model not in names:
        raise VlmError(f"it does not serve {served.model} any more, but {listed(names)}")
    again = await _probed(client, served, settings, key, 0)
    if not again.agrees(served.probed[0]):
        raise VlmError(f"it serves another model under the name {served.model} now")


async def _served(client: Client, settings: VlmSettings, key: ApiKey) -> Served:
    cards = await models_of(client)
    name = served_name(settings, [str(card.get("id")) for card in cards], client.address)
    card = next(card for card in cards if card.get("id") == name)
    dialect = dialect_of(card)
    dialect.decoding(settings)  # what it refuses is told before anything is asked
    version = await _version(client, dialect)
    served = Served(name, name, dialect, version, "", ())
    try:
        answers_as, probed = await _checked(client, served, settings, key)
    except ServerFailure as failure:
        raise unusable(client, failure) from None
    return replace(
        served,
        answers_as=answers_as,
        probed=probed,
        fingerprint=fingerprint(dialect.name, name, version, probed),
    )


def open_client(settings: VlmSettings, address: str, key: ApiKey) -> Client:
    """A client of a server.

    Raises:
        VlmError: A proxy of the environment cannot be used.
    """
    return Client(address, key, settings.request_timeout, settings.concurrency)


async def models_of(client: Client) -> list[dict[str, Any]]:
    """The entries of the models that a server serves.

    Raises:
        VlmError: The server cannot be used.
    """
    try:
        return _cards(await client.get(f"{client.address}/models"))
    except ServerFailure as failure:
        raise unusable(client, failure) from None


def _cards(value: Any) -> list[dict[str, Any]]:
    """The entries of a list of models.

    Raises:
        Rejected: It is not one.
    """
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, list) or not all(isinstance(card, dict) for card in data):
        raise Rejected(200, "its reply is not a list of models, so it does not speak OpenAI's protocol there")
    return data


def served_name(settings: VlmSettings, names: Sequence[str], address: str) -> str:
    """The server's name of the model in the settings.

    Raises:
        VlmError: The server does not serve it.
    """
    wanted = settings.model
    same = [name for name in names if wanted in (name, MODEL_ALIASES.get(name.lower()))]
    if same:
        return wanted if wanted in same else same[0]
    raise VlmError(f"{address} does not serve {wanted!r}, but {listed(names)}: name one with --model")


def listed(names: Sequence[str]) -> str:
    """Names of models, for a message."""
    if not names:
        return "no model"
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(map(repr, names[:_MOST_NAMES])) + more


async def _version(client: Client, dialect: Dialect) -> str:
    if dialect.version_path is None:
        return ""
    try:
        return dialect.version(await client.get(client.root + dialect.version_path))
    except Rejected:  # a gateway may serve the protocol alone
        return ""
    except ServerFailure as failure:
        raise unusable(client, failure) from None


def unusable(client: Client, failure: ServerFailure) -> VlmError:
    """The message for a server that cannot be used, with what to change."""
    address, remedy = client.address, None
    if isinstance(failure, Rejected):
        remedy = remedy_of(failure)
        if failure.status in (404, 405):
            remedy = (
                "name the address that ends in /v1, as in http://host:8000/v1"
                if not address.endswith("/v1")
                else "start a server that speaks OpenAI's protocol there (`vllm serve MODEL`)"
            )
    elif isinstance(failure, Unreachable):
        remedy = "start the server, wait until it is ready, or correct host and port in --vlm-url"
    elif isinstance(failure, Busy):
        remedy = "it is busy: try again later"
    elif isinstance(failure, Temporary):
        remedy = "look into the server's log"
    return VlmError(f"{address} cannot be used: {failure}" + (f". {remedy[0].upper()}{remedy[1:]}" if remedy else ""))


# ---- probes ----


async def _checked(
    client: Client, served: Served, settings: VlmSettings, key: ApiKey
) -> tuple[str, tuple[Probed, ...]]:
    """The name that replies have for the model, and the answers to the probes, which show that images arrive.

    Raises:
        ServerFailure: A probe fails.
        VlmError: The server confuses images, or answers differently each time.
    """
    count = len(probe_messages())
    completions = [await _ask(client, served, settings, key, k, fresh=True) for k in range(count)]
    answers_as = str(completions[0].reply.get("model"))
    probed = tuple(map(Probed.of, completions))
    _require_images(client.address, served, probed)
    await _require_repeatable(client, served, settings, key, probed)
    return answers_as, probed


def _require_images(address: str, served: Served, probed: Sequence[Probed]) -> None:
    """Rejects a server whose answers do not depend on the images.

    Raises:
        VlmError: Two prompts with different images have equal log-probs.
    """
    kinds = ("first image", "last image", "order of images")
    with_log_probs = all(each.first for each in probed)
    same = [kind for kind, each in zip(kinds, probed[1:], strict=True) if each == probed[0]]
    if same and with_log_probs:
        raise VlmError(
            f"{address} answers prompts that differ in their {' and '.join(same)} with the same probabilities: it "
            f"drops images or confuses them. Serve {served.model} as a vision-language model, or switch off its caches "
            "(vLLM --no-enable-prefix-caching --mm-processor-cache-gb 0, SGLang --disable-radix-cache)"
        )
    if len(same) == len(kinds):
        warn(
            f"{address} gives no log-probs, and the same answer to prompts with different images: whether it sees "
            "images cannot be told. Look at its answers before you trust them"
        )


async def _require_repeatable(
    client: Client, served: Served, settings: VlmSettings, key: ApiKey, probed: Sequence[Probed]
) -> None:
    """Asks again, now with what is cached: the answers must be the same.

    Raises:
        VlmError: They are not.
        ServerFailure: A probe fails.
    """
    for k, before in enumerate(probed):
        again = [await _probed(client, served, settings, key, k)]
        while not before.first and before not in again and len(again) < _REPEATS:  # two texts may be close
            again.append(await _probed(client, served, settings, key, k))
        if any(before.agrees(each) for each in again):
            continue
        other = next((n for n, each in enumerate(probed) if n != k and each.first and each.agrees(again[-1])), None)
        raise VlmError(
            f"{client.address} answers the same prompt differently when it is asked again"
            + (", as if it had other images" if other is not None else "")
            + ": its caches confuse prompts (vLLM --no-enable-prefix-caching --mm-processor-cache-gb 0, SGLang "
            "--disable-radix-cache), or it does not decode greedily (temperature 0)"
        )


async def _probed(client: Client, served: Served, settings: VlmSettings, key: ApiKey, number: int) -> Probed:
    return Probed.of(await _ask(client, served, settings, key, number))


async def _ask(
    client: Client, served: Served, settings: VlmSettings, key: ApiKey, number: int, fresh: bool = False
) -> Completion:
    """Asks a probe; `fresh` without what is cached, where that is possible.

    Raises:
        ServerFailure: The server does not answer it.
    """
    plain_settings = settings.model_copy(update={"repetition_penalty": 1.0, "max_new_tokens": LONGEST_TEXT})
    body = {"model": served.model, "messages": probe_messages()[number], **served.dialect.decoding(plain_settings)}
    if fresh:
        body |= served.dialect.without_cache(uuid.uuid4().hex)
    with_log_probs = {"logprobs": True, "top_logprobs": TOP, "max_tokens": 1}
    try:
        reply = await client.chat(json.dumps(body | with_log_probs).encode())
    except Rejected as rejected:
        if "logprob" not in str(rejected).lower():
            raise
        reply = None
    if reply is not None:
        completion = completion_of(reply, None, key)
        if completion.first:
            return completion
    return completion_of(await client.chat(json.dumps(body).encode()), None, key)
