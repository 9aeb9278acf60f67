"""What requests and responses look like, for validation and for the description at `/openapi.json`."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool

from icdsel.records import Shots, parsed_shots


def _shots(value: object) -> Shots:
    if isinstance(value, int) and not isinstance(value, bool):
        return parsed_shots(str(value))
    if isinstance(value, str):
        return parsed_shots(value)
    raise ValueError("give a number, or auto")


def _is_text(value: str) -> str:
    value.encode()  # half of a surrogate pair cannot be sent on
    return value


RequestedShots = Annotated[
    int | str,
    BeforeValidator(_shots),
    Field(json_schema_extra={"anyOf": [{"type": "integer", "minimum": 0, "maximum": 16}, {"enum": ["auto"]}]}),
]
Name = Annotated[str, Field(min_length=1, max_length=64)]


class Strict(BaseModel):
    """A request: a field that is not known is an error, so that none is overlooked."""

    model_config = ConfigDict(extra="forbid")


class Options(Strict):
    """The field `icdsel` of a chat request."""

    enabled: StrictBool | None = Field(None, description="false sends the request on unchanged.")
    shots: RequestedShots | None = Field(None, description="Demonstrations to show: a number, or `auto`.")
    selector: Name | None = Field(None, description="Who chooses them.")
    shown: StrictBool = Field(False, alias="return", description="Adds the field `icdsel` to the response.")


class ChoiceRequest(Strict):
    """The body of `/v1/choose`."""

    image: Annotated[str, AfterValidator(_is_text)] = Field(description="A data URL.", min_length=1)
    question: Annotated[str, AfterValidator(_is_text)] = Field(min_length=1)
    shots: RequestedShots | None = None
    selectors: list[Name] | None = Field(None, min_length=1, max_length=16)
    messages: StrictBool = Field(False, description="Also give the prompt, with the images in it.")


class Icd(BaseModel):
    """A demonstration."""

    question_id: int | str
    question: str
    answer: str
    image: str = Field(description="The path of its image on this server.")


class Candidate(Icd):
    """The response of `/v1/candidates/{row}`."""

    object: Literal["icdsel.candidate"] = "icdsel.candidate"
    row: int


class SelectorChoice(BaseModel):
    """What one selector chose."""

    selector: str
    shots: int | str = Field(description="As asked for.")
    icds: list[Icd]
    scores: list[float] | None = Field(description="The log-prob of each demonstration in nats, if there are any.")
    messages: list[dict[str, Any]] | None = None


class Timing(BaseModel):
    """How long it took, in milliseconds."""

    encode: float
    choose: float


class ChoiceResponse(BaseModel):
    """The response of `/v1/choose`."""

    object: Literal["icdsel.choice"] = "icdsel.choice"
    request_id: str
    choices: list[SelectorChoice]
    timing_ms: Timing


class FeedbackRequest(Strict):
    """The body of `/v1/feedback`."""

    request_id: Annotated[str, Field(min_length=1, max_length=64)]
    score: float = Field(ge=0, le=1, allow_inf_nan=False)


class FeedbackResponse(BaseModel):
    """The response of `/v1/feedback`."""

    object: Literal["icdsel.feedback"] = "icdsel.feedback"
    request_id: str
    question_id: str


class Selectors(BaseModel):
    """The response of `/v1/selectors`."""

    object: Literal["icdsel.selectors"] = "icdsel.selectors"
    selectors: list[str]
    default_selector: str
    default_shots: int | str
    auto: bool = Field(description="Whether the policy can decide how many demonstrations it shows.")
    candidates: int


class Health(BaseModel):
    """The response of `/health`."""

    status: Literal["ok"] = "ok"
    version: str
    candidates: int
    feedback: bool


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    code: str | None
    param: str | None


class ErrorResponse(BaseModel):
    """An error."""

    error: ErrorBody


CHAT_BODY: dict[str, Any] = {
    "type": "object",
    "required": ["messages"],
    "properties": {
        "model": {"type": "string"},
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role"],
                "properties": {
                    "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
                    "content": {
                        "anyOf": [
                            {"type": "string"},
                            {"type": "null"},
                            {"type": "array", "items": {"type": "object", "required": ["type"]}},
                        ]
                    },
                },
            },
        },
        "stream": {"type": "boolean"},
        "icdsel": Options.model_json_schema(),
    },
    "additionalProperties": True,
}
"""A chat completion of OpenAI's protocol. Fields that are not listed go on to the upstream."""
