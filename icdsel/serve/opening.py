"""From what the operator wants to a running proxy: the bundle, whoever answers, the socket."""

from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image

from icdsel.artefacts.checkpoint import load_policy
from icdsel.choosing.selector import Selector
from icdsel.console import note, warn
from icdsel.errors import SettingsError
from icdsel.records import AUTO, Shots
from icdsel.serve.choices import Plan
from icdsel.serve.feedback import Feedback
from icdsel.serve.http_upstream import HttpUpstream
from icdsel.serve.limits import Limits, Opened
from icdsel.serve.local_upstream import LocalUpstream
from icdsel.serve.metrics import Metrics
from icdsel.serve.service import Service
from icdsel.serve.upstream import Upstream
from icdsel.settings.loading import Settings, with_values
from icdsel.stages.choose import open_selector
from icdsel.tasks.cleaners import CLEANERS
from icdsel.vlm.engines import open_engine
from icdsel.vlm.server.client import is_readable
from icdsel.vlm.server.key import ApiKey

_OF_MODEL = ("model", "engine", "device", "workers", "dtype", "batch_tokens", "image_cache_mb")
"""The settings of a model in this process that are the operator's; the others are the bundle's."""


@dataclass(frozen=True)
class Wanted:
    """What the operator wants.

    Attributes:
        settings: Where runs are, and what a bundle lacks; the servers or the model that answer.
        run: A bundle, or a run on this machine; None for the last run.
        checkpoint: Another policy for the same candidates; None for theirs.
        selector: Who chooses where a request does not say.
        shots: How many, where a request does not say; None for what the policy was trained for.
        feedback: The file for scores; None for no feedback.
        opened: Where images of requests may come from.
        limits: The limits of a request.
    """

    settings: Settings
    run: str | None = None
    checkpoint: Path | None = None
    selector: str = "policy"
    shots: Shots | None = None
    feedback: Path | None = None
    opened: Opened = field(default_factory=Opened)
    limits: Limits = field(default_factory=Limits)


def open_service(wanted: Wanted) -> Service:
    """Opens everything that the proxy needs, and chooses once, so that the first request does not wait.

    Raises:
        UserError: Something is missing, or cannot be used.
    """
    if wanted.opened.folder is not None and not wanted.opened.folder.is_dir():
        raise SettingsError(f"--allow-image-dir {wanted.opened.folder} is not a folder")
    selector = selector_of(wanted)
    if not selector.bundle.train[0].image.is_file():
        raise SettingsError(
            f"{wanted.run} has no images of its candidates, which are shown to the model: name their folder with "
            "--image-dir"
        )
    default = default_plan(selector, wanted)
    choose_once(selector, default)
    metrics = Metrics()
    upstream = _servers(wanted, metrics) if wanted.settings.vlm.url else _model(selector, wanted, metrics)
    task = selector.settings.data.task
    feedback = None if wanted.feedback is None else Feedback(wanted.feedback, task)
    return Service(selector, upstream, metrics, default, wanted.limits, wanted.opened, feedback)


def selector_of(wanted: Wanted) -> Selector:
    """Whoever chooses.

    Raises:
        UserError: There is no such run, bundle or policy, or it cannot be used.
    """
    selector, _ = open_selector(with_values(wanted.settings, {"vlm": {"url": None}}), wanted.run)
    return selector if wanted.checkpoint is None else selector.with_policy(load_policy(wanted.checkpoint))


def default_plan(selector: Selector, wanted: Wanted) -> Plan:
    """Who chooses, and how many, where a request does not say.

    Raises:
        SettingsError: There is no such selector, or it cannot choose so many.
    """
    if wanted.selector not in selector.names:
        raise SettingsError(f"{wanted.selector} cannot choose here: there are {', '.join(selector.names)}")
    may_stop = wanted.selector == "policy" and selector.bundle.network.config.stop
    shots = wanted.shots if wanted.shots is not None else AUTO if may_stop else selector.bundle.manifest.shots
    if isinstance(shots, int) and shots > wanted.limits.most_shots:
        raise SettingsError(f"--shots {shots} is above the limit of a request, {wanted.limits.most_shots}")
    if isinstance(shots, str) and (own := selector.bundle.manifest.shots) > wanted.limits.most_shots:
        raise SettingsError(
            f"--shots {shots} may show {own}, above the limit of a request, {wanted.limits.most_shots}: give a number, "
            "or raise --max-shots"
        )
    return Plan(wanted.selector, shots)


def choose_once(selector: Selector, plan: Plan) -> None:
    """Chooses for a grey picture, which encodes the candidates and loads what is loaded at first use."""
    picture = BytesIO()
    Image.new("RGB", (64, 64), "grey").save(picture, "PNG")
    path = selector.hold(picture.getvalue())
    try:
        selector.choose_encoded(selector.encode([selector.query(path, "What is shown?")]), plan.shots, plan.selector)
    finally:
        selector.forget(path)


def _servers(wanted: Wanted, metrics: Metrics) -> Upstream:
    addresses = wanted.settings.vlm.url
    key = ApiKey.exported()
    if key and (readable := [url for url in addresses if is_readable(url)]):
        warn(f"the key goes to {', '.join(readable)} unencrypted: anybody on the way can read it (https:// hides it)")
    note(f"Requests go to {', '.join(addresses)}.")
    return HttpUpstream(addresses, key, wanted.limits.seconds, wanted.limits.at_once, metrics)


def _model(selector: Selector, wanted: Wanted, metrics: Metrics) -> Upstream:
    settings = _settings_of_model(selector, wanted)
    engine = open_engine(settings.vlm, settings.data.max_image_pixels)
    note(f"Model {settings.vlm.model} on {engine.device}.")
    clean = CLEANERS.named(settings.vlm.clean_answers).clean
    return LocalUpstream(engine, wanted.limits.batch, wanted.limits.seconds, metrics, clean)


def _settings_of_model(selector: Selector, wanted: Wanted) -> Settings:
    """How the model in this process is run: one request that fails must not end the others."""
    given = wanted.settings.vlm.model_dump(include={*_OF_MODEL}, exclude_unset=True)
    own = {"model": selector.bundle.manifest.vlm_name, "dtype": None, **given, "max_failed": 1.0}
    return with_values(selector.settings, {"vlm": {**own, "call_timeout": wanted.limits.seconds}})
