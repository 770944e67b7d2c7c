"""Which devices are cameras, and what identifies one: on states as servers send them."""

from __future__ import annotations

from typing import Any

import pytest

from nvr_backup.sources.scrypted import ScryptedSettings
from nvr_backup.sources.scrypted.devices import cameras, has_clips, stable_ids


def device(name: Any = "Porch", plugin: Any = "@a/b", native: Any = "n1", **more: Any) -> Any:
    values = {"name": name, "pluginId": plugin, "nativeId": native, "interfaces": ["VideoClips"]}
    values |= more
    return {k: {"value": v} for k, v in values.items() if v is not None}


def settings(**patterns: tuple[str, ...]) -> ScryptedSettings:
    return ScryptedSettings("home", "https://nvr.local", **patterns)  # type: ignore[arg-type]


def test_a_camera_keeps_its_id_through_a_rename_and_through_being_added_again() -> None:
    before = cameras({"9": device("Porch")}, settings())[0]
    renamed = cameras({"9": device("Front door")}, settings())[0]
    added_again = cameras({"27": device("Porch")}, settings())[0]
    assert before.id == renamed.id == added_again.id == "@a/b:n1"
    assert stable_ids({"27": device()}) == {"@a/b:n1": "27"}


@pytest.mark.parametrize("plugin, native", [("@a/b", None), (None, "n1"), ("", "n1"), ("@a/b", 7)])
def test_without_both_halves_the_device_id_stands_in(plugin: Any, native: Any) -> None:
    assert [c.id for c in cameras({"9": device("P", plugin, native)}, settings())] == ["9"]


def test_two_devices_that_share_an_identity_are_told_apart() -> None:
    state = {"9": device("A"), "10": device("B"), "11": device("C", native="n2")}
    assert stable_ids(state) == {"9": "9", "10": "10", "@a/b:n2": "11"}


def test_two_cameras_of_one_name_are_two_cameras() -> None:
    found = cameras({"9": device(native="n1"), "10": device(native="n2")}, settings())
    assert [(c.name, c.id) for c in found] == [("Porch", "@a/b:n1"), ("Porch", "@a/b:n2")]


@pytest.mark.parametrize(
    "interfaces", [None, {}, "VideoClips", ["Camera"], [], {"VideoClips": True}, 5]
)
def test_only_a_list_with_the_interface_makes_a_camera(interfaces: Any) -> None:
    assert not has_clips(device(interfaces=interfaces))


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"name": {}, "interfaces": {}},
        {"name": None, "interfaces": []},
        {"interfaces": {"value": None}},
    ],
)
def test_unset_and_broken_properties_do_no_harm(broken: Any) -> None:
    assert cameras({"9": broken, "10": device()}, settings()) == cameras(
        {"10": device()}, settings()
    )


@pytest.mark.parametrize("name", [None, "", 5])
def test_a_camera_without_a_name_is_called_by_its_id(name: Any) -> None:
    assert cameras({"9": device(name)}, settings())[0].name == "@a/b:n1"


@pytest.mark.parametrize(
    "include, exclude, expected",
    [
        (("*",), (), ["Garage", "Garten", "Porch"]),
        (("gar*",), (), ["Garage", "Garten"]),
        (("GAR*",), ("*AGE",), ["Garten"]),
        (("@A/B:n3",), (), ["Garten"]),
        (("11",), (), ["Garten"]),
        ((), (), []),
        (("*",), ("*",), []),
    ],
)
def test_patterns_are_for_names_and_ids_without_case(
    include: tuple[str, ...], exclude: tuple[str, ...], expected: list[str]
) -> None:
    state = {
        "9": device("Porch", native="n1"),
        "10": device("Garage", native="n2"),
        "11": device("Garten", native="n3"),
    }
    found = cameras(state, settings(include=include, exclude=exclude))
    assert [c.name for c in found] == expected
