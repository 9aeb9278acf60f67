"""What servers add to OpenAI's protocol: parameters of decoding, versions, and what they can tell of a prompt.

To add a dialect, subclass `Dialect`, override what differs, and put an object into `DIALECTS` before the last one:

    class MyServer(Dialect):
        name = "my-server"

        def recognises(self, card):
            return card.get("owned_by") == "me"

The first dialect that recognises the entry of the model in a server's list is the server's. `OpenAi` recognises any.
"""

from collections.abc import Mapping
from typing import Any

from icdsel.errors import SettingsError, VlmError
from icdsel.registry import Registry
from icdsel.settings.tables import VlmSettings
from icdsel.vlm.server.references import References, VllmReferences
from icdsel.vlm.server.tokens import LocalTokenizer

Card = Mapping[str, Any]
"""The entry of a model in the list at `/v1/models`."""


class Dialect:
    """A kind of server.

    Attributes:
        name: Its name, for messages.
        version_path: Where below the root of the server its version is; None if nowhere.
        tells_tokens: Whether replies can contain the tokens of the prompt (`return_token_ids`).
        penalises_repetition: Whether `repetition_penalty` is known.
    """

    name = "an OpenAI-compatible server"
    version_path: str | None = None
    tells_tokens = False
    penalises_repetition = False

    def recognises(self, card: Card) -> bool:
        """Whether a server with this entry speaks the dialect."""
        del card
        return True

    def version(self, value: Any) -> str:
        """The version, from the JSON at `version_path`."""
        found = value.get("version") if isinstance(value, dict) else None
        return found if isinstance(found, str) else ""

    def decoding(self, settings: VlmSettings) -> dict[str, Any]:
        """The parameters of greedy decoding, without those of a model's own `generation_config`.

        Raises:
            SettingsError: A setting is not possible on this server.
        """
        penalty = float(settings.repetition_penalty)  # the settings of servers have a number
        if penalty != 1 and not self.penalises_repetition:
            raise SettingsError(f"--repetition-penalty {penalty:g} is not possible on {self.name}: leave it at 1")
        return {
            "temperature": 0,
            "top_p": 1,
            "seed": 0,
            "n": 1,
            "stream": False,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "max_tokens": settings.max_new_tokens,
        }

    def without_cache(self, salt: str) -> dict[str, Any]:
        """Parameters by which a prompt does not use what is cached of other prompts; `salt` is new each time."""
        del salt
        return {}

    def references(self, tokenizer: LocalTokenizer | None, settings: VlmSettings) -> References:
        """How log-probs of references are had.

        Args:
            tokenizer: Tokenizer and template of the model, if its files are on this machine.
            settings: The model, and how prompts are laid out.

        Raises:
            VlmError: They cannot be had; the message says why.
        """
        del tokenizer, settings
        raise VlmError(f"{self.name} tells no log-probs of chosen tokens, as vLLM does")


class _WithSampling(Dialect):
    """A server with vLLM's parameters of sampling."""

    penalises_repetition = True

    def decoding(self, settings: VlmSettings) -> dict[str, Any]:
        """Adds those that a `generation_config` of the model would set."""
        thinks = {"enable_thinking": False, "thinking": False}  # templates without these switches ignore them
        return super().decoding(settings) | {
            "top_k": -1,
            "min_p": 0,
            "repetition_penalty": float(settings.repetition_penalty),
            "skip_special_tokens": True,
            "chat_template_kwargs": thinks,
        }


class Vllm(_WithSampling):
    """vLLM's OpenAI-compatible server."""

    name = "vLLM"
    version_path = "/version"
    tells_tokens = True

    def recognises(self, card: Card) -> bool:
        """By the owner of the model."""
        return card.get("owned_by") == "vllm"

    def without_cache(self, salt: str) -> dict[str, Any]:
        """A salt goes into the hashes of the prefix cache."""
        return {"cache_salt": salt}

    def references(self, tokenizer: LocalTokenizer | None, settings: VlmSettings) -> References:
        """By `logprob_token_ids`."""
        if tokenizer is None:
            raise VlmError(
                f"that needs the tokenizer of {settings.model} on this machine: fetch it (`hf download "
                f"{settings.model} --exclude '*.safetensors'`), or serve the model under the name of a folder with it "
                "(vLLM --served-model-name FOLDER)"
            )
        return VllmReferences(tokenizer, settings)


class Sglang(_WithSampling):
    """SGLang's OpenAI-compatible server."""

    name = "SGLang"
    version_path = "/get_server_info"

    def recognises(self, card: Card) -> bool:
        """By the owner of the model."""
        return card.get("owned_by") == "sglang"

    def without_cache(self, salt: str) -> dict[str, Any]:
        """Prompts with different salts share nothing in the cache."""
        return {"cache_salt": salt}


class LlamaCpp(Dialect):
    """The server of llama.cpp."""

    name = "llama.cpp"
    version_path = "/props"
    penalises_repetition = True

    def recognises(self, card: Card) -> bool:
        """By the owner of the model."""
        return card.get("owned_by") == "llamacpp"

    def version(self, value: Any) -> str:
        """The build."""
        found = value.get("build_info") if isinstance(value, dict) else None
        return found if isinstance(found, str) else ""

    def decoding(self, settings: VlmSettings) -> dict[str, Any]:
        """Its names of parameters; every prompt is read anew, as reuse of a slot's cache changes the last digits."""
        return super().decoding(settings) | {
            "top_k": 1,
            "min_p": 0,
            "repeat_penalty": float(settings.repetition_penalty),
            "cache_prompt": False,
        }


DIALECTS: Registry[Dialect] = Registry("dialect", [Vllm(), Sglang(), LlamaCpp(), Dialect()])


def dialect_of(card: Card) -> Dialect:
    """The dialect of the server with this entry."""
    return next(dialect for dialect in DIALECTS.values() if dialect.recognises(card))
