"""The settings' own checks: what cannot work is refused before anything is connected."""

from __future__ import annotations

import pytest

from nvr_backup.errors import ConfigError
from nvr_backup.sources.scrypted import ScryptedSettings
from nvr_backup.sources.scrypted.settings import parse_fingerprint

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "url",
    [
        "",
        "192.168.1.20:10443",
        "nvr.local",
        "ftp://nvr.local",
        "https://",
        "https://nvr.local:99999",
        "https://nvr.local/endpoint/@scrypted/core/",
        "https://nvr.local/?a=b",
        "https://admin:secret@nvr.local",
        "https://admin@nvr.local",
    ],
)
def test_an_address_that_is_none_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ScryptedSettings("home", url)
    assert "sources.home.url" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("slashes", ["", "/", "//"])
def test_a_trailing_slash_does_not_matter(slashes: str) -> None:
    settings = ScryptedSettings("home", "https://nvr.local:10443" + slashes)
    assert str(settings.origin / "login") == "https://nvr.local:10443/login"


@pytest.mark.parametrize(
    "text",
    [
        f"sha256:{DIGEST}",
        f"SHA256:{DIGEST.upper()}",
        "sha256:" + ":".join(DIGEST[i : i + 2] for i in range(0, 64, 2)),
        f" sha256:{DIGEST} ",
    ],
)
def test_a_fingerprint_may_be_written_in_the_usual_ways(text: str) -> None:
    assert parse_fingerprint(text, "here") == bytes.fromhex(DIGEST)
    ScryptedSettings("home", "https://nvr.local", tls_fingerprint=text)


@pytest.mark.parametrize("text", ["", DIGEST, f"sha1:{DIGEST}", "sha256:abc", f"sha256:{DIGEST}00"])
def test_a_fingerprint_of_another_kind_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"sources\.home\.tls_fingerprint"):
        ScryptedSettings("home", "https://nvr.local", tls_fingerprint=text)


def test_the_password_is_in_no_repr() -> None:
    settings = ScryptedSettings("home", "https://nvr.local", "backup", "hunter2")
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    "fields",
    [
        {"username": "backup"},
        {"password": "with blank"},
        {"password": "line\nbreak"},
        {"tls": "off"},
        {"stall_seconds": 0},
        {"rpc_seconds": float("nan")},
    ],
)
def test_other_contradictions_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"sources\.home\."):
        ScryptedSettings("home", "https://nvr.local", **fields)  # type: ignore[arg-type]
