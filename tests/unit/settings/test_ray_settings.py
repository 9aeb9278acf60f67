"""Where Ray is found, and what does not go together with it."""

from typing import Any

import pytest

from icdsel.errors import SettingsError
from icdsel.settings import settings_from
from icdsel.settings.hints import without_effect


@pytest.mark.parametrize("address", ["auto", "head:6379", "10.0.0.1:1", "node-1.cluster.local:65535", "[fe80::1]:6379"])
def test_addresses_of_clusters(address: str) -> None:
    vlm = settings_from({"vlm": {"ray_address": address}}).vlm
    assert vlm.ray_address == address and vlm.on_ray


@pytest.mark.parametrize(
    ("vlm", "message"),
    [
        ({"ray_address": "ray://head:10001"}, r"--ray-address.* run icdsel on one of its machines, and give host:6379"),
        ({"ray_address": "head"}, r"'head' is no address of a Ray cluster, such as host:6379, or auto"),
        ({"ray_address": "head:0"}, "is no address of a Ray cluster"),
        ({"ray_address": "head:65536"}, "is no address of a Ray cluster"),
        ({"ray_address": "head:6379 --evil"}, "is no address of a Ray cluster"),
        ({"ray_address": "http://head:6379"}, "is no address of a Ray cluster"),
        (
            {"ray": True, "device": "cuda:0,cuda:1"},
            "Ray chooses each worker's GPU: use auto, cpu or cuda",
        ),
    ],
)
def test_what_cannot_be_is_explained(vlm: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_from({"vlm": vlm})


def test_ray_changes_no_result_and_waits_only_with_ray() -> None:
    from icdsel.settings.identity import identity

    one, other = settings_from({}), settings_from({"vlm": {"ray": True, "ray_wait": 5}})
    assert identity(one, "vlm") == identity(other, "vlm")
    [warning] = without_effect(settings_from({"vlm": {"ray_wait": 5}}), ["vlm"])
    assert warning == "--ray-wait has no effect without --ray or --ray-address"
