"""What a user can do about a request that a server rejects: the flags of the server, or of icdsel."""

import re

from icdsel.vlm.server.failures import Rejected, Unreachable

REMEDY_OF_FILES = "start vLLM with --allowed-local-media-path FOLDER, which holds the images, or leave out --file-urls"
_FILES = r"allowed.local.media|local files|file://"
_REMEDIES = (
    (
        r"context length|max_model_len|maximum model length|longer than the|exceeds? the (model|available) context|"
        r"context size|too many tokens",
        "the prompt is too long: start the server with a longer context (vLLM --max-model-len, SGLang "
        "--context-length, llama.cpp --ctx-size), or use fewer ICDs (--shots, --max-shots, --pointer-shots) or smaller "
        "images (--max-pixels)",
    ),
    (
        r"at most \d+ image|limit.mm.per.prompt|too many images|number of images",
        "start the server with more images in a prompt (vLLM --limit-mm-per-prompt '{\"image\": 17}', SGLang "
        "--limit-mm-data-per-request), or use fewer ICDs (--shots, --max-shots, --pointer-shots)",
    ),
    (rf"{_FILES}|url scheme", REMEDY_OF_FILES),
    (
        r"not a multimodal|does not support (image|multimodal|vision)|image input is not supported|image_url|mmproj",
        "the model reads no images there: serve a vision-language model (llama.cpp needs its --mmproj)",
    ),
    (
        r"image dimensions|MAX_IMAGE_PIXELS|image (is )?too (large|big)",
        "allow larger images on the server (vLLM: the variable VLLM_MAX_IMAGE_PIXELS), or use --max-pixels",
    ),
    (r"request entity too large|payload|body.{0,20}too large", "use smaller images (--max-pixels) or --file-urls"),
)
_BY_STATUS = {
    401: "export the server's key as ICDSEL_VLM_API_KEY",
    403: "export a key that may use the model as ICDSEL_VLM_API_KEY",
    413: "use smaller images (--max-pixels), fewer ICDs, or --file-urls",
}

_OF_ENCRYPTION = {
    "CERTIFICATE_VERIFY_FAILED": (
        "name the host as its certificate does, or export SSL_CERT_FILE, a file with the certificate of its authority"
    ),
    "WRONG_VERSION_NUMBER": "the server does not encrypt: name it with http:// in --vlm-url",
}


def remedy_of(rejected: Rejected) -> str | None:
    """What to do about a rejected request; None if it is not known."""
    if rejected.status in _BY_STATUS:
        return _BY_STATUS[rejected.status]
    return next((remedy for words, remedy in _REMEDIES if re.search(words, str(rejected), re.IGNORECASE)), None)


def is_about_files(reason: str) -> bool:
    """Whether a request failed because the server may not read a file: vLLM reports that as an error of its own."""
    return re.search(_FILES, reason, re.IGNORECASE) is not None


def remedy_of_encryption(failure: Unreachable) -> str | None:
    """What to do about a connection that was not encrypted as one side wanted; None if that was not the reason."""
    return next((remedy for words, remedy in _OF_ENCRYPTION.items() if words in str(failure)), None)


def explained(rejected: Rejected) -> str:
    """Why a request was rejected, and what to do about it."""
    remedy = remedy_of(rejected)
    return f"{rejected}: {remedy}" if remedy else str(rejected)
