"""Which engines are measured, by the flags of `icdsel bench`."""

import pytest
from fakes import fake_kind

from icdsel.bench.ways import LOCAL, NO_MODEL, SERVER, named_engines, names_engines, needless, ways_of
from icdsel.errors import SettingsError
from icdsel.settings import Settings, settings_from
from icdsel.vlm.engines import ENGINES

URL = "http://localhost:8000/v1"


def settings(**vlm: object) -> Settings:
    return settings_from({"data": {"threads": 1}, "vlm": {"model": "tiny-vlm", "device": "cpu"} | vlm})


def measured(engines: list[str], local_model: str | None = None, **vlm: object) -> list[tuple[str, str, bool, int]]:
    """Name, engine, whether it asks servers, and the number of workers of each."""
    ways = ways_of(settings(**vlm), engines, local_model)
    assert all(way.settings.vlm.on_ray == way.name.endswith("on Ray") for way in (*ways.local, *ways.servers))
    found = [(way, bool(way.settings.vlm.url)) for way in (*ways.local, *ways.servers)]
    return [(way.name, way.settings.vlm.engine, asks, way.settings.vlm.workers or 1) for way, asks in found]


HERE, OTHER = (LOCAL, "auto", False, 1), ("transformers", "transformers", False, 1)


@pytest.mark.parametrize(
    ("engines", "vlm", "expected"),
    [
        (["auto"], {}, [HERE]),
        (["transformers"], {"engine": "server"}, [HERE, OTHER]),
        ([], {"workers": 2}, [HERE, (LOCAL, "auto", False, 2)]),
        (["transformers"], {"workers": 2}, [HERE, OTHER, ("transformers", "transformers", False, 2)]),
        ([], {"url": URL}, [HERE, (SERVER, "auto", True, 1)]),
        (
            ["server", "transformers"],
            {"url": URL, "workers": 3},
            [HERE, OTHER, ("transformers", "transformers", False, 3), (SERVER, "server", True, 1)],
        ),
        ([], {"ray": True}, [HERE, (f"{LOCAL} on Ray", "auto", False, 1)]),
        ([], {"ray": True, "workers": 2}, [HERE, (LOCAL, "auto", False, 2), (f"{LOCAL} on Ray", "auto", False, 2)]),
        ([], {"url": URL, "ray": True}, [HERE, (f"{LOCAL} on Ray", "auto", False, 1), (SERVER, "auto", True, 1)]),
        (["server"], {}, [HERE, ("server", "server", False, 1)]),  # opening it asks for an address
    ],
)
def test_engines_of_flags(engines, vlm, expected):
    assert measured(engines, **vlm) == expected


def test_the_model_on_this_machine_may_have_another_name():
    ways = ways_of(settings(url=URL, model="served"), [], "tiny-vlm")
    assert [way.settings.vlm.model for way in (*ways.local, *ways.servers)] == ["tiny-vlm", "served"]
    assert [name for name, *_ in measured([], NO_MODEL, url=URL)] == [SERVER]


def test_names_come_from_the_flag_or_the_settings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(ENGINES, "fake", fake_kind())
    assert named_engines(settings(engine="fake"), None) == ["fake"]
    assert named_engines(settings(engine="fake"), "transformers, auto,auto") == ["transformers", "auto"]
    assert named_engines(settings(), None) == []
    with pytest.raises(SettingsError, match="unknown engine 'vllm'"):
        named_engines(settings(), "auto,vllm")


@pytest.mark.parametrize(
    ("vlm", "expected"), [({}, False), ({"workers": 1}, False), ({"workers": 2}, True), ({"ray": True}, True)]
)
def test_only_settings_that_name_other_engines_measure_engines(vlm, expected):
    assert names_engines(settings(**vlm), []) is expected


def test_settings_that_serve_one_of_the_ways_are_not_warned_of():
    given = {"url": URL, "concurrency": 8, "dtype": "float32", "length_penalty": 2.0}
    [warning] = needless(ways_of(settings(**given), [], None))
    assert "--length-penalty" in warning
