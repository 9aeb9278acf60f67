"""Trackers fail, hang and are interrupted: what they track goes on, and each is closed."""

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from icdsel.errors import SettingsError
from icdsel.trackers import TRACKERS, Subject, Tracked, Tracker, require, track

SUBJECT = Subject("training", "mine", "world", Path("nowhere"), Path("nowhere"), {"data": {"seed": 1, "columns": None}})
Fault = Callable[[], None]


class Fake(Tracker, Tracked):
    """Keeps what it is told; `faults` are called before a method's work, by its name."""

    def __init__(self, name: str, told: list[tuple[Any, ...]], limit: float | None = None, **faults: Fault) -> None:
        self.name, self.told, self.limit, self.faults = name, told, limit, faults

    def _tell(self, what: str, *values: Any) -> None:
        self.faults.get(what, lambda: None)()
        self.told.append((self.name, what, *values))

    def require(self) -> None:
        self._tell("require")

    def start(self, subject: Subject) -> Tracked:
        self._tell("start")
        return self

    def log_epoch(self, number, metrics) -> None:
        self._tell("epoch", number, dict(metrics))

    def log_recommended(self, checkpoint) -> None:
        self._tell("recommended", checkpoint)

    def log_rows(self, rows) -> None:
        self._tell("rows", rows)

    def close(self, finished) -> None:
        self._tell("close", finished)


@pytest.fixture
def told() -> list[tuple[Any, ...]]:
    return []


@pytest.fixture
def add(told, monkeypatch) -> Iterator[Callable[..., str]]:
    def added(name: str, limit: float | None = None, **faults: Fault) -> str:
        monkeypatch.setitem(TRACKERS, name, Fake(name, told, limit, **faults))
        return name

    yield added


def fails(error: BaseException) -> Fault:
    def fault() -> None:
        raise error

    return fault


def two_epochs(*names: str) -> None:
    with track(names, SUBJECT) as tracking:
        tracking.log_epoch(1, {"loss": 2.0})
        tracking.log_epoch(2, {"loss": 1.0})
        tracking.log_recommended("rce_epoch2.pt")


def test_every_tracker_is_told_everything_in_order(add, told):
    two_epochs(add("a"), add("b", limit=10))
    for name in "ab":
        assert [what for who, *what in told if who == name] == [
            ["start"],
            ["epoch", 1, {"loss": 2.0}],
            ["epoch", 2, {"loss": 1.0}],
            ["recommended", "rce_epoch2.pt"],
            ["close", True],
        ]


@pytest.mark.parametrize("limit", [None, 10])
def test_one_that_fails_is_warned_of_once_and_gets_nothing_more(add, told, limit, caplog):
    two_epochs(add("bad", limit, epoch=fails(OSError(28, "No space left on device"))), add("good"))
    [message] = [record.getMessage() for record in caplog.records]
    assert "the tracker bad failed: [Errno 28] No space left on device. Not logged there: epoch 1 and what follows" in (
        message
    )
    assert [what for who, *what in told if who == "bad"] == [["start"], ["close", True]]
    assert len([1 for who, *_ in told if who == "good"]) == 5


def test_one_that_hangs_is_left_behind(add, told, caplog):
    release = threading.Event()
    began = time.monotonic()
    two_epochs(add("slow", limit=0.1, epoch=lambda: release.wait(60) and None), add("good"))
    assert time.monotonic() - began < 30
    release.set()
    assert "the tracker slow failed: no answer within 0.1 seconds" in caplog.text
    assert [what for who, *what in told if who == "good"][-1] == ["close", True]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("bug"), SettingsError("mistake")])
def test_they_are_closed_as_unfinished_if_the_work_ends(add, told, error):
    with pytest.raises(type(error)), track((add("a"), add("b", 10)), SUBJECT):
        raise error
    assert told[2:] == [("a", "close", False), ("b", "close", False)]


def test_an_interruption_within_a_tracker_ends_the_work(add, told):
    with pytest.raises(KeyboardInterrupt):
        two_epochs(add("a"), add("stopped", epoch=fails(KeyboardInterrupt())))
    assert told[-2:] == [("a", "close", False), ("stopped", "close", False)]


def test_a_failure_while_closing_does_not_hide_why_the_work_ended(add, told):
    with pytest.raises(ZeroDivisionError), track((add("bad", close=fails(OSError("gone"))), add("b")), SUBJECT):
        _ = 1 / 0
    assert told[-1] == ("b", "close", False)


def test_one_that_cannot_be_started_is_an_error_and_the_others_are_closed(add, told):
    names = add("a"), add("wrong", start=fails(ValueError("no such project")))
    with pytest.raises(SettingsError, match=r"the tracker wrong cannot be used: no such project.*leave it out"):
        two_epochs(*names)
    assert told == [("a", "start"), ("a", "close", False)]


def test_a_wrong_configuration_is_found_before_any_work(add):
    with pytest.raises(SettingsError, match="the tracker wrong cannot be used: bad address"):
        require((add("a"), add("wrong", require=fails(ValueError("bad address")))))
    with pytest.raises(SettingsError, match="its own words"):
        require((add("clear", require=fails(SettingsError("its own words"))),))


@pytest.mark.parametrize(
    ("tracker", "library"),
    [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow"), ("mlflow", "alembic")],
)
def test_a_missing_library_is_named_with_its_extra(tracker, library, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == library else found(name) or found("json")
    )
    with pytest.raises(SettingsError, match=rf'needs the library "{library}": pip install "icdsel\[{tracker}\]"'):
        require((tracker,))


def test_an_unknown_tracker_is_named_with_those_that_exist():
    with pytest.raises(
        SettingsError, match=r"unknown tracker 'wadnb': did you mean 'wandb'.*tensorboard, wandb, mlflow"
    ):
        require(("wadnb",))


def test_settings_without_a_value_are_left_out():
    assert list(SUBJECT.flat_settings()) == [("data.seed", 1)]
