"""The check of servers before anything is asked of them. Each failure says what to change."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from icdsel.console import plain
from icdsel.errors import VlmError
from icdsel.settings.presets import MODEL_ALIASES
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.server.background import all_or_cancelled
from icdsel.vlm.server.client import Client
from icdsel.vlm.server.dialects import Card, Dialect, dialect_of
from icdsel.vlm.server.failures import Busy, Rejected, ServerFailure, Temporary, Unreachable
from icdsel.vlm.server.key import ApiKey
from icdsel.vlm.server.probes import Probed, fingerprint
from icdsel.vlm.server.probing import Prober, patiently
from icdsel.vlm.server.remedies import remedy_of, remedy_of_encryption

_MOST_NAMES = 12  # of models in a message


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
        if other.answers_as != first.answers_as:
            raise VlmError(
                f"replies of {clients[0].address} name the model {first.answers_as!r}, those of {client.address} "
                f"{other.answers_as!r}: start both with the same name (vLLM --served-model-name), or name one of them"
            )
        if not all(a.agrees(b) for a, b in zip(first.probed, other.probed, strict=True)):
            raise VlmError(
                f"{clients[0].address} and {client.address} answer the same prompts differently: they serve other "
                f"weights, or other settings, under the name {first.model}; name one of them"
            )
    return first


async def still_serves(
    client: Client, served: Served, settings: VlmSettings, key: ApiKey, probes: Iterable[int]
) -> None:
    """Checks whether a server still serves the model, by its version and some of the probes.

    Raises:
        ServerFailure: It is not ready.
        VlmError: It serves another model now.
    """
    cards = _cards(await client.get(f"{client.address}/models"))
    card = next((card for card in cards if card["id"] == served.model), None)
    if card is None:
        raise VlmError(f"it does not serve {served.model} any more, but {listed([card['id'] for card in cards])}")
    now, version = dialect_of(card), await _told_version(client, served.dialect)
    if now.name != served.dialect.name or (version and served.version and version != served.version):
        was = f"{served.dialect.name} {served.version}".strip()
        raise VlmError(f"it is {f'{now.name} {version}'.strip()} now, and was {was}")
    prober = Prober(client, served.model, served.dialect, settings, key)
    for number in probes:
        if not await prober.answers_as(number, served.probed):
            raise VlmError(f"it serves another model under the name {served.model} now")


async def _served(client: Client, settings: VlmSettings, key: ApiKey) -> Served:
    cards = await models_of(client)
    name = served_name(settings, [card["id"] for card in cards], client.address)
    card = next(card for card in cards if card.get("id") == name)
    dialect = dialect_of(card)
    dialect.decoding(settings)  # what it refuses is told before anything is asked
    version = await _version(client, dialect)
    try:
        answers_as, probed = await Prober(client, name, dialect, settings, key).check()
    except ServerFailure as failure:
        raise unusable(client, failure) from None
    return Served(name, answers_as, dialect, version, fingerprint(dialect.name, name, version, probed), probed)


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
        return _cards(await patiently(lambda: client.get(f"{client.address}/models")))
    except ServerFailure as failure:
        raise unusable(client, failure) from None


def _cards(value: Any) -> list[dict[str, Any]]:
    """The entries of a list of models.

    Raises:
        Rejected: It is not one.
    """
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, list) or not all(isinstance(card, dict) and _is_named(card) for card in data):
        raise Rejected(200, "its reply is not a list of models, so it does not speak OpenAI's protocol there")
    return data


def _is_named(card: Card) -> bool:
    return isinstance(card.get("id"), str)


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
    try:
        return await _told_version(client, dialect)
    except ServerFailure as failure:
        raise unusable(client, failure) from None


async def _told_version(client: Client, dialect: Dialect) -> str:
    """The version of a server; empty if it does not say.

    Raises:
        ServerFailure: It does not answer.
    """
    if dialect.version_path is None:
        return ""
    try:
        return plain(dialect.version(await client.get(client.root + dialect.version_path)))
    except Rejected:  # a gateway may serve the protocol alone
        return ""


def unusable(client: Client, failure: ServerFailure) -> VlmError:
    """The message for a server that cannot be used, with what to change."""
    address, remedy = client.address, None
    proxied = f" through the proxy that {client.proxy} names" if client.proxy else ""
    if isinstance(failure, Rejected):
        remedy = remedy_of(failure)
        if failure.status in (404, 405):
            remedy = (
                "name the address that ends in /v1, as in http://host:8000/v1"
                if not address.endswith("/v1")
                else "start a server that speaks OpenAI's protocol there (`vllm serve MODEL`)"
            )
    elif isinstance(failure, Unreachable):
        remedy = remedy_of_encryption(failure) or (
            f"name the host in NO_PROXY if it is to be asked directly, or correct {client.proxy} or --vlm-url"
            if client.proxy
            else "start the server, wait until it is ready, or correct host and port in --vlm-url"
        )
    elif isinstance(failure, Busy):
        remedy = "it is busy: try again later"
    elif isinstance(failure, Temporary):
        remedy = "look into the server's log"
    how = "" if proxied in str(failure) else proxied
    return VlmError(
        f"{address} cannot be used{how}: {failure}" + (f". {remedy[0].upper()}{remedy[1:]}" if remedy else "")
    )
