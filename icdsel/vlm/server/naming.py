"""Which model servers are asked for, if the user has not named one: the only one that they serve."""

import asyncio

from icdsel.errors import VlmError
from icdsel.settings.loading import Settings, with_values
from icdsel.vlm.server.key import ApiKey
from icdsel.vlm.server.startup import listed, models_of, open_client

_LONGEST_NAME = 200
_WITHOUT = "No server is needed to look at results, or for `icdsel train` on existing RL data: there, --model is enough"


def with_served_model(settings: Settings) -> Settings:
    """The settings with the model of the first server, if there are servers and no model is given.

    Results are named after the model, so it has to be known before anything else is done.

    Raises:
        VlmError: The server cannot be reached, or serves several models; the message lists them.
    """
    if not settings.vlm.url or "model" in settings.vlm.model_fields_set:
        return settings
    try:
        names = asyncio.run(_names(settings))
    except VlmError as error:
        raise VlmError(f"{error}. {_WITHOUT}") from None
    if len(names) != 1 or len(names[0]) > _LONGEST_NAME or not names[0].isprintable():  # files are named after it
        raise VlmError(f"{settings.vlm.url[0]} serves {listed(names)}: name one with --model")
    return with_values(settings, {"vlm": {"model": names[0]}})


async def _names(settings: Settings) -> list[str]:
    client = open_client(settings.vlm, settings.vlm.url[0], ApiKey.exported())
    try:
        return [card["id"] for card in await models_of(client)]
    finally:
        await client.close()
