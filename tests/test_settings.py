"""The configuration: every layer, every refusal, and no secret in any text."""

from __future__ import annotations

import json
import logging
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from nvr_backup.errors import ConfigError
from nvr_backup.settings import (
    Cameras,
    Change,
    DirectoryStore,
    GcsStore,
    ScryptedSource,
    Settings,
    changes,
    find_config,
    format_duration,
    format_size,
    known_keys,
    load_settings,
    parse_duration,
    parse_size,
    read_layers,
)

ROOT = Path(__file__).parent.parent

BASE = """
[sources.home]
kind = "scrypted"
url = "https://192.168.1.20:10443"
username = "backup"
password = "hunter2-hunter2"
[stores.offsite]
kind = "gcs"
bucket = "my-footage"
[stores.nas]
kind = "directory"
path = "/mnt/nas"
"""

ORIGINAL = {
    "SCRYPTED_HOST": "nvr",
    "SCRYPTED_USER": "admin",
    "SCRYPTED_PASSWORD": "hunter2-hunter2",
    "GCS_BUCKET_NAME": "my-footage",
}

KEY_FILE = {
    "type": "service_account",
    "client_email": "x@y.iam.gserviceaccount.com",
    "private_key": "-----BEGIN PRIVATE KEY-----\nMIIhunter2\n-----END PRIVATE KEY-----\n",
}


def written(folder: Path, text: str, *, mode: int = 0o600) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def loaded(folder: Path, text: str, **environ: str) -> Settings:
    return load_settings(written(folder, text), environ)


def scrypted(settings: Settings, name: str = "home") -> ScryptedSource:
    return settings.sources[name]


def gcs(settings: Settings, name: str = "offsite") -> GcsStore:
    store = settings.stores[name]
    assert isinstance(store, GcsStore)
    return store


def directory(settings: Settings, name: str = "nas") -> DirectoryStore:
    store = settings.stores[name]
    assert isinstance(store, DirectoryStore)
    return store


# What a good file becomes


def test_defaults(tmp_path: Path) -> None:
    settings = loaded(tmp_path, BASE)
    assert settings.state_dir == Path("/var/lib/nvr-backup")
    schedule = settings.schedule
    assert (schedule.every, schedule.cron) == (timedelta(hours=1), None)
    assert schedule.zone == ZoneInfo("UTC")
    assert schedule.settle == timedelta(seconds=30)
    assert schedule.lookback == timedelta(hours=2)
    assert schedule.backfill == timedelta(hours=24)
    assert (settings.transfer.workers, settings.transfer.chunk_size) == (4, 8 * 2**20)
    assert (settings.checkpoint.snapshots, settings.checkpoint.stores) == (2, ())
    assert settings.log.level == "info"
    source = scrypted(settings)
    assert source.password.get_secret_value() == "hunter2-hunter2"
    assert (source.tls, source.tls_fingerprint, source.stores) == ("verify", None, None)
    assert (source.cameras.include, source.cameras.exclude) == (("*",), ())
    store = gcs(settings)
    assert (store.credentials_file, store.prefix, store.endpoint) == (None, "", "")
    assert store.key_template == "{cameraName}/{yyyy}/{MM}/{dd}/{HH-mm-ss}.mp4"
    assert directory(settings).key_template == store.key_template
    assert settings.stores_of("home") == ("offsite", "nas")
    assert settings.warnings == ()


def test_everything_else(tmp_path: Path) -> None:
    key_file = tmp_path / "gcs.json"
    key_file.write_text(json.dumps(KEY_FILE))
    key_file.chmod(0o400)
    settings = loaded(
        tmp_path,
        f"""
        state_dir = "state"
        [schedule]
        cron = "0  2 * * MON-FRI"
        timezone = "Europe/Berlin"
        settle = "1m"
        lookback = "1d"
        backfill = "all"
        [transfer]
        workers = 32
        chunk_size = "256KiB"
        [log]
        level = "DEBUG"
        [sources.front-door_2]
        kind = "scrypted"
        url = "HTTPS://NVR.Local:10443/"
        username = ""
        tls_fingerprint = "SHA256:{":".join(["AB"] * 32)}"
        cameras = {{ include = ["Porch", "G*"], exclude = ["Garage"] }}
        stores = ["nas"]
        [stores.offsite]
        kind = "gcs"
        bucket = "b_1.example"
        credentials_file = "gcs.json"
        prefix = "house/one"
        endpoint = "http://127.0.0.1:4443"
        key_template = "{{source}}/{{clipId}}.mp4"
        [stores.nas]
        kind = "directory"
        path = "footage"
        """,
    )
    assert settings.state_dir == tmp_path / "state"
    assert settings.schedule.every is None
    assert settings.schedule.cron == "0 2 * * MON-FRI"
    assert settings.schedule.zone == ZoneInfo("Europe/Berlin")
    assert settings.schedule.backfill == "all"
    assert settings.transfer.chunk_size == 262144
    assert settings.log.level == "debug"
    source = scrypted(settings, "front-door_2")
    assert source.url == "https://nvr.local:10443"
    assert source.tls_fingerprint == "sha256:" + "ab" * 32
    assert source.cameras == Cameras(include=("Porch", "G*"), exclude=("Garage",))
    assert settings.stores_of("front-door_2") == ("nas",)
    assert gcs(settings).credentials_file == key_file
    assert gcs(settings).prefix == "house/one/"
    assert gcs(settings).endpoint == "http://127.0.0.1:4443"
    assert directory(settings).path == tmp_path / "footage"
    assert settings.warnings == ()


def test_settings_are_frozen(tmp_path: Path) -> None:
    settings = loaded(tmp_path, BASE)
    with pytest.raises(ValidationError, match="frozen"):
        settings.log.level = "debug"
    with pytest.raises(TypeError):
        settings.sources["x"] = scrypted(settings)  # type: ignore[index]


@pytest.mark.parametrize(
    ("written_url", "url"),
    [
        ("https://[FD00::1]:10443", "https://[fd00::1]:10443"),
        ("http://nvr", "http://nvr"),
        ("https://nvr.example./", "https://nvr.example."),
        ("https://kamera-süd.local:1", "https://kamera-süd.local:1"),
    ],
)
def test_urls(tmp_path: Path, written_url: str, url: str) -> None:
    text = BASE.replace("https://192.168.1.20:10443", written_url)
    assert scrypted(loaded(tmp_path, text)).url == url


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    assert loaded(tmp_path, "\ufeff" + BASE).sources


# The layers


def test_environment_over_file(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        BASE + "[sources.front-door]\nkind='scrypted'\nurl='https://x'\nusername='u'\n",
        NVR_BACKUP_STATE_DIR="elsewhere",
        NVR_BACKUP_LOG__LEVEL="WARNING",
        NVR_BACKUP_TRANSFER__WORKERS="7",
        NVR_BACKUP_SCHEDULE__EVERY="15m",
        NVR_BACKUP_SOURCES__home__PASSWORD="123456",
        NVR_BACKUP_SOURCES__FRONT_DOOR__PASSWORD='{"a": 1}',
        nvr_backup_sources__home__cameras__include="Porch, Garage*",
        NVR_BACKUP_SOURCES__HOME__CAMERAS__EXCLUDE='["a, b"]',
        NVR_BACKUP_STORES__NAS__PATH="",
        NVR_BACKUP_CONFIG="ignored",
        NVR_BACKUP_PORT="tcp://10.0.0.1:80",
        NVR_BACKUP_SERVICE_HOST="10.0.0.1",
        HOME="/root",
    )
    assert settings.state_dir == tmp_path / "elsewhere"
    assert settings.log.level == "warning"
    assert settings.transfer.workers == 7
    assert settings.schedule.every == timedelta(minutes=15)
    assert scrypted(settings).password.get_secret_value() == "123456"
    assert type(scrypted(settings).password.get_secret_value()) is str
    assert scrypted(settings, "front-door").password.get_secret_value() == '{"a": 1}'
    assert scrypted(settings).cameras.include == ("Porch", "Garage*")
    assert scrypted(settings).cameras.exclude == ("a, b",)
    assert directory(settings).path == Path("/mnt/nas")


def test_environment_and_credentials_alone(tmp_path: Path) -> None:
    (tmp_path / "sources.cabin.password").write_text("p")
    settings = load_settings(
        None,
        {
            "NVR_BACKUP_SOURCES__CABIN__KIND": "scrypted",
            "NVR_BACKUP_SOURCES__CABIN__URL": "http://x",
            "NVR_BACKUP_SOURCES__CABIN__USERNAME": "u",
            "NVR_BACKUP_STORES__NAS__KIND": "directory",
            "NVR_BACKUP_STORES__NAS__PATH": "footage",
            "NVR_BACKUP_STORES__OFF-SITE__KIND": "directory",
            "NVR_BACKUP_STORES__OFF_SITE__PATH": "/mnt/off-site",
            "CREDENTIALS_DIRECTORY": str(tmp_path),
        },
    )
    assert scrypted(settings, "cabin").url == "http://x"
    assert scrypted(settings, "cabin").password.get_secret_value() == "p"
    assert directory(settings, "off-site").path == Path("/mnt/off-site")
    assert directory(settings).path == Path.cwd() / "footage"


def test_credentials_over_environment(tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "sources.home.password").write_bytes(" p\u00e4ss \r\n".encode())
    (folder / "stores.offsite.credentials_file").write_text(json.dumps(KEY_FILE))
    (folder / "stores.offsite.credentials_file").chmod(0o440)
    (folder / "sources.hom.password").write_text("hunter3-hunter3")
    (folder / "tls.pem").write_text("somebody else's")
    settings = loaded(
        tmp_path,
        BASE,
        CREDENTIALS_DIRECTORY=str(folder),
        NVR_BACKUP_SOURCES__HOME__PASSWORD="from the environment",
    )
    assert scrypted(settings).password.get_secret_value() == " p\u00e4ss "
    assert gcs(settings).credentials_file == folder / "stores.offsite.credentials_file"
    (warning,) = settings.warnings
    assert "sources.hom.password" in warning
    assert 'Did you mean "sources.home.password"?' in warning


def test_a_password_may_come_from_a_credential_alone(tmp_path: Path) -> None:
    (tmp_path / "sources.home.password").write_text("p\n")
    text = re.sub("password = .*", "", BASE)
    settings = loaded(tmp_path, text, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert scrypted(settings).password.get_secret_value() == "p"


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n"])
def test_an_empty_credential_counts_as_not_set(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    for name in ("sources.home.password", "stores.offsite.credentials_file", "sources.x.password"):
        (folder / name).write_bytes(content)
    settings = loaded(tmp_path, BASE, CREDENTIALS_DIRECTORY=str(folder))
    assert settings == loaded(tmp_path, BASE)
    assert settings.warnings == ()
    path = written(tmp_path, re.sub("password = .*", "", BASE))
    assert "sources.home.password" in refusal(path, {"CREDENTIALS_DIRECTORY": str(folder)})


def test_only_the_given_environment_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("NVR_BACKUP_LOG__LEVEL=debug\nLOG='debug'\nstate_dir=/x\n")
    (tmp_path / "sources.home.password").write_text("hunter3-hunter3")
    for name in ("NVR_BACKUP_LOG__LEVEL", "LOG", "LOG__LEVEL", "STATE_DIR", "SOURCES", "LOG_LEVEL"):
        monkeypatch.setenv(name, "debug")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert loaded(tmp_path, BASE) == Settings.model_validate(tomllib.loads(BASE))
    assert "There is no configuration" in refusal(None, {})


def test_layers_join_key_by_key_in_the_order_of_the_file(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        BASE + "[sources.home.cameras]\ninclude = ['Porch']\nexclude = ['Garage']\n",
        NVR_BACKUP_SOURCES__HOME__CAMERAS__INCLUDE="Garden",
        NVR_BACKUP_STORES__CELLAR__KIND="directory",
        NVR_BACKUP_STORES__CELLAR__PATH="/mnt/cellar",
        NVR_BACKUP_STORES__NAS__PATH="/mnt/other",
    )
    assert scrypted(settings).cameras == Cameras(include=("Garden",), exclude=("Garage",))
    assert settings.stores_of("home") == ("offsite", "nas", "cellar")
    assert directory(settings).path == Path("/mnt/other")


def test_layers_without_any_check(tmp_path: Path) -> None:
    path = written(tmp_path, "state_dir = 'state'\n[stores.nas]\nbucket = 5\n")
    raw, place = read_layers(path, {"NVR_BACKUP_SOURCES__HOME__X": "y"})
    assert raw == {
        "state_dir": "state",
        "stores": {"nas": {"bucket": 5}},
        "sources": {"home": {"x": "y"}},
    }
    whole = {**tomllib.loads(BASE), "state_dir": raw["state_dir"]}
    assert Settings.model_validate(whole, context=place).state_dir == tmp_path / "state"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("nvr", "https://nvr:10443"),
        ("192.168.1.20", "https://192.168.1.20:10443"),
        ("nvr:443", "https://nvr:443"),
        ("nvr/", "https://nvr:10443"),
        ("fd00::1", "https://[fd00::1]:10443"),
        ("[fd00::1]", "https://[fd00::1]:10443"),
        ("[fd00::1]:99", "https://[fd00::1]:99"),
        ("https://nvr.example", "https://nvr.example"),
        ("http://nvr:11080/", "http://nvr:11080"),
    ],
)
def test_the_original_host(host: str, url: str) -> None:
    settings = load_settings(None, {**ORIGINAL, "SCRYPTED_HOST": host})
    assert scrypted(settings, "scrypted").url == url


def test_the_original_environment(tmp_path: Path) -> None:
    key_file = tmp_path / "gcs.json"
    key_file.write_text(json.dumps(KEY_FILE))
    key_file.chmod(0o644)
    settings = load_settings(
        None,
        {
            **ORIGINAL,
            "SCRYPTED_USER": " admin ",
            "SCRYPTED_PASSWORD": " hunter2 ",
            "ALLOW_SELF_SIGNED": "True",
            "GCS_PROJECT_ID": "p",
            "GCS_KEYFILE_PATH": str(key_file),
            "STATE_FILE_PATH": str(tmp_path / "state" / "state.json"),
            "LOG_LEVEL": "WARN",
            "NVR_BACKUP_TRANSFER__WORKERS": "2",
        },
    )
    source = scrypted(settings, "scrypted")
    assert (source.username, source.tls) == ("admin", "insecure")
    assert source.password.get_secret_value() == " hunter2 "
    assert gcs(settings, "gcs").bucket == "my-footage"
    assert gcs(settings, "gcs").credentials_file == key_file
    assert settings.state_dir == tmp_path / "state"
    assert settings.log.level == "warning"
    assert settings.transfer.workers == 2
    (warning,) = settings.warnings
    assert f"chmod o= {key_file}" in warning


def test_variables_override_the_original_environment(tmp_path: Path) -> None:
    (tmp_path / "sources.scrypted.password").write_text("from the credential")
    settings = load_settings(
        None,
        {
            **ORIGINAL,
            "LOG_LEVEL": "warn",
            "NVR_BACKUP_LOG__LEVEL": "debug",
            "NVR_BACKUP_SOURCES__SCRYPTED__URL": "https://other",
            "NVR_BACKUP_SOURCES__SCRYPTED__TLS": "insecure",
            "NVR_BACKUP_STORES__GCS__BUCKET": "your-footage",
            "CREDENTIALS_DIRECTORY": str(tmp_path),
        },
    )
    source = scrypted(settings, "scrypted")
    assert settings.log.level == "debug"
    assert (source.url, source.tls, source.username) == ("https://other", "insecure", "admin")
    assert source.password.get_secret_value() == "from the credential"
    assert gcs(settings, "gcs").bucket == "your-footage"


def test_original_variables_do_nothing_beside_a_file(tmp_path: Path) -> None:
    settings = loaded(tmp_path, BASE, **ORIGINAL, LOG_LEVEL="debug")
    assert set(settings.sources) == {"home"}
    assert settings.log.level == "info"
    (warning,) = settings.warnings
    assert "SCRYPTED_HOST" in warning
    assert "no effect" in warning


def test_original_variables_are_named_when_wrong() -> None:
    environ = {"SCRYPTED_HOST": "bad host", "ALLOW_SELF_SIGNED": "perhaps", "LOG_LEVEL": "loud"}
    message = refusal(None, environ)
    for text in (
        "sources.scrypted.url: must not contain blanks (environment variable SCRYPTED_HOST)",
        "sources.scrypted.tls: must be true or false (environment variable ALLOW_SELF_SIGNED)",
        "sources.scrypted.username: is missing",
        "(environment variable SCRYPTED_USER)",
        "stores.gcs.bucket: is missing",
        "(environment variable GCS_BUCKET_NAME)",
        "log.level: must be",
        "(environment variable LOG_LEVEL)",
    ):
        assert text in message


@pytest.mark.parametrize(("mode", "warned"), [(0o600, 0), (0o640, 0), (0o644, 1), (0o604, 1)])
def test_a_file_everyone_may_read(tmp_path: Path, mode: int, warned: int) -> None:
    path = written(tmp_path, BASE, mode=mode)
    assert len(load_settings(path, {}).warnings) == warned
    without = re.sub("password = .*", "", BASE)
    path = written(tmp_path, without, mode=mode)
    environ = {"NVR_BACKUP_SOURCES__HOME__PASSWORD": "p"}
    assert load_settings(path, environ).warnings == ()


def test_find_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default = tmp_path / "default.toml"
    monkeypatch.setattr("nvr_backup.settings.load.DEFAULT_CONFIG", default)
    environ = {"NVR_BACKUP_CONFIG": "named.toml"}
    assert find_config(Path("x"), environ) == Path("x")
    assert find_config(None, environ) == Path("named.toml")
    assert find_config(None, {}) is None
    default.touch()
    assert find_config(None, {}) == default


# What a bad file says


def refusal(path: Path | None, environ: Mapping[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(path, environ)
    # A chained error could show values; only errors of the operating system cannot.
    assert isinstance(caught.value.__context__, OSError | None) or "\0" in str(path)
    return str(caught.value)


def changed(key: str, value: str) -> str:
    """BASE with a line replaced, in the table where the key is."""
    text, count = re.subn(rf"(?m)^{key} = .*$", lambda _: value, BASE, count=1)
    assert count == 1
    return text


WRONG = [
    # how the file is changed, the path named, what is said
    (changed("url", "url = 5"), "sources.home.url", "must be text in quotes"),
    (changed("url", "url = '192.168.1.20'"), "sources.home.url", "must begin with https://"),
    (changed("url", "url = 'ftp://nvr'"), "sources.home.url", "must begin with https://"),
    (changed("url", "url = 'https://'"), "sources.home.url", "has no host"),
    (changed("url", "url = 'https://a:99999'"), "sources.home.url", "port"),
    (changed("url", "url = 'https://a:x'"), "sources.home.url", "port"),
    (changed("url", "url = 'https://a_b..c'"), "sources.home.url", "no usable host"),
    (
        changed("url", "url = 'https://u:hunter2-hunter2@a'"),
        "sources.home.url",
        "keys of their own",
    ),
    (changed("url", "url = 'https://a/endpoint/'"), "sources.home.url", "without path"),
    (changed("url", "url = 'https://a?x=1'"), "sources.home.url", "without path, query"),
    (changed("url", "url = 'https://a/#x'"), "sources.home.url", "query or fragment"),
    (changed("url", "url = 'https://a b'"), "sources.home.url", "blanks"),
    (changed("url", ""), "sources.home.url", "is missing; expected the server"),
    (changed("username", ""), "sources.home.username", "is missing"),
    (changed("username", "username = ''"), "sources.home.username", "although there is a password"),
    (changed("password", ""), "sources.home.password", "NVR_BACKUP_SOURCES__HOME__PASSWORD"),
    (changed("password", "password = ''"), "sources.home.password", "must not be empty"),
    (changed("password", "password = 12"), "sources.home.password", "must be text in quotes"),
    (changed("kind", "kind = 'scrypted'\ntsl = 'verify'"), "sources.home.tsl", 'mean "tls"?'),
    (changed("kind", "kind = 'frigate'"), "sources.home.kind", 'must be "scrypted"'),
    (changed("kind", ""), "sources.home.kind", 'is missing; expected "scrypted"'),
    (
        changed("kind", "kind = 'scrypted'\ntls = 'off'"),
        "sources.home.tls",
        '"verify" or "insecure"',
    ),
    (
        changed("kind", "kind = 'scrypted'\ntls_fingerprint = 'sha256:abc'"),
        "sources.home.tls_fingerprint",
        "64 hexadecimal digits",
    ),
    (
        changed(
            "kind", f"kind = 'scrypted'\ntls = 'insecure'\ntls_fingerprint = 'sha256:{'a' * 64}'"
        ),
        "sources.home.tls_fingerprint",
        "contradicts",
    ),
    (
        changed("url", f"url = 'http://nvr'\ntls_fingerprint = 'sha256:{'a' * 64}'"),
        "sources.home.tls_fingerprint",
        "no meaning with an http:// url",
    ),
    (
        changed("kind", "kind = 'scrypted'\ncameras = 'x'"),
        "sources.home.cameras",
        "must be a table",
    ),
    (
        changed("kind", "kind = 'scrypted'\ncameras = { include = 'Porch' }"),
        "sources.home.cameras.include",
        "must be a list",
    ),
    (
        changed("kind", "kind = 'scrypted'\ncameras = { include = [] }"),
        "sources.home.cameras.include",
        "must not be an empty list",
    ),
    (
        changed("kind", "kind = 'scrypted'\ncameras = { include = ['a', 5] }"),
        "sources.home.cameras.include[1]",
        "must be text in quotes",
    ),
    (
        changed("kind", "kind = 'scrypted'\ncameras = { includes = ['a'] }"),
        "sources.home.cameras.includes",
        'Did you mean "include"?',
    ),
    (
        changed("kind", "kind = 'scrypted'\nstores = ['offsit']"),
        "sources.home.stores[0]",
        'there are offsite, nas. Did you mean "offsite"?',
    ),
    (changed("kind", "kind = 'scrypted'\nstores = []"), "sources.home.stores", "empty list"),
    (changed("kind", "kind = 'scrypted'\nstores = ['nas', 'nas']"), "sources.home.stores", "twice"),
    (changed("bucket", ""), "stores.offsite.bucket", "is missing; expected the bucket's name"),
    (changed("bucket", "bucket = 'gs://b/x'"), "stores.offsite.bucket", "without gs://"),
    (changed("bucket", "bucket = 'My Footage'"), "stores.offsite.bucket", "lower-case"),
    (changed("bucket", "bucket = 'bbb'\nprefix = '/a'"), "stores.offsite.prefix", "slash"),
    (changed("bucket", "bucket = 'bbb'\nendpoint = 'x'"), "stores.offsite.endpoint", "https://"),
    (
        changed("bucket", "bucket = 'bbb'\nkey_template = '{camera}/{clipId}.mp4'"),
        "stores.offsite.key_template",
        "{camera} is not a placeholder; there are {source}",
    ),
    (
        changed("bucket", "bucket = 'bbb'\nkey_template = '{cameraName}.mp4'"),
        "stores.offsite.key_template",
        "cannot tell clips apart",
    ),
    (
        changed("bucket", "bucket = 'bbb'\ncredentials_file = 'nowhere.json'"),
        "stores.offsite.credentials_file",
        "cannot be read (No such file or directory)",
    ),
    (
        changed("bucket", "bucket = 'bbb'\ncredentials_file = '~/gcs.json'"),
        "stores.offsite.credentials_file",
        "~ is not expanded",
    ),
    (changed("path", "path = ''"), "stores.nas.path", "must not be empty"),
    (changed("path", "path = '/a'\nbucket = 'b'"), "stores.nas.bucket", "this kind of store"),
    (
        BASE + "[stores.copy]\nkind = 'directory'\npath = '/mnt/./nas/'\n",
        "stores.copy",
        "is the same place as stores.nas",
    ),
    (
        BASE + "[stores.copy]\nkind = 'gcs'\nbucket = 'my-footage'\n",
        "stores.copy",
        "is the same place as stores.offsite",
    ),
    (BASE + "[stores.s]\nkind = 's3'\n", "stores.s.kind", 'must be "gcs" or "directory"'),
    (BASE + "[stores.s]\npath = '/x'\n", "stores.s.kind", 'expected "gcs" or "directory"'),
    (BASE + "[stores.S]\nkind = 'directory'\npath = '/x'\n", "stores.S", "lower-case"),
    (BASE + "[stores.a__b]\nkind = 'directory'\npath = '/x'\n", "stores.a__b", "single - or _"),
    (
        BASE
        + "[stores.a-b]\nkind='directory'\npath='/x'\n[stores.a_b]\nkind='directory'\npath='/y'\n",
        "stores.a_b",
        "differs from stores.a-b only in - and _",
    ),
    (BASE[: BASE.index("[stores")], "stores", "is missing; expected at least one table"),
    ("sources = {}\n" + BASE[BASE.index("[stores") :], "sources", "at least one table"),
    ("sources = 5\n" + BASE[BASE.index("[stores") :], "sources", "must be a table"),
    ("state_dir = 5\n" + BASE, "state_dir", "must be text in quotes"),
    ("state_dir = ''\n" + BASE, "state_dir", "must not be empty"),
    ('state_dir = "a\\u0000b"\n' + BASE, "state_dir", "control characters"),
    ("stat_dir = '/x'\n" + BASE, "stat_dir", 'Did you mean "state_dir"?'),
    ("workers = 4\n" + BASE, "workers", 'Did you mean "transfer.workers"?'),
    (BASE + "[log]\nstate_dir = '/x'\n", "log.state_dir", 'Did you mean "state_dir"?'),
    (BASE + "[log]\nlevel = 'loud'\n", "log.level", '"debug", "info", "warning" or "error"'),
    ("log = 'debug'\n" + BASE, "log", "must be a table, such as [log]"),
    (BASE + "[schedule]\nevery = 60\n", "schedule.every", "must be a duration in quotes"),
    (BASE + "[schedule]\nevery = '60'\n", "schedule.every", "is not a duration"),
    (BASE + "[schedule]\nevery = '0s'\n", "schedule.every", "between 1s and 366d"),
    (BASE + "[schedule]\nsettle = '25h'\n", "schedule.settle", "between 0s and 1d"),
    (BASE + "[schedule]\nbackfill = 'some'\n", "schedule.backfill", '"all", or "none"'),
    (BASE + "[schedule]\nevery='1h'\ncron='0 2 * * *'\n", "schedule.cron", "keep one"),
    (BASE + "[schedule]\ncron='61 2 * * *'\n", "schedule.cron", "bad minute"),
    (BASE + "[schedule]\ncron='* * * * * *'\n", "schedule.cron", "five fields"),
    (BASE + "[schedule]\ncron='@daily'\n", "schedule.cron", "five fields"),
    (BASE + "[schedule]\ncron='0 0 30 2 *'\n", "schedule.cron", "bad day-of-month"),
    (BASE + "[schedule]\ntimezone='UTC'\n", "schedule.timezone", "without schedule.cron"),
    (
        BASE + "[schedule]\ncron='0 2 * * *'\ntimezone='europe/berln'\n",
        "schedule.timezone",
        'Did you mean "Europe/Berlin"?',
    ),
    (
        BASE + "[schedule]\ncron='0 2 * * *'\ntimezone='Europe'\n",
        "schedule.timezone",
        "not a known",
    ),
    (BASE + "[schedule]\ncron='0 2 * * *'\ntimezone='../x'\n", "schedule.timezone", "not a known"),
    (BASE + "[transfer]\nworkers = 0\n", "transfer.workers", "from 1 to 32"),
    (BASE + "[transfer]\nworkers = 33\n", "transfer.workers", "from 1 to 32"),
    (BASE + "[transfer]\nworkers = true\n", "transfer.workers", "whole number"),
    (BASE + "[checkpoint]\nsnapshots = -1\n", "checkpoint.snapshots", "from 0 to 100"),
    (BASE + "[checkpoint]\nsnapshots = 101\n", "checkpoint.snapshots", "from 0 to 100"),
    (BASE + "[checkpoint]\nstores = ['cloud']\n", "checkpoint.stores[0]", "offsite, nas"),
    (BASE + "[checkpoint]\nstores = ['nsa']\n", "checkpoint.stores[0]", 'Did you mean "nas"'),
    (
        BASE + "[checkpoint]\nsnapshots = 0\nstores = ['nas']\n",
        "checkpoint.stores",
        "checkpoint.snapshots is 0",
    ),
    (
        BASE + "key_template = '_nvr-backup/{clipId}.mp4'\n",
        "stores.nas.key_template",
        "keeps its own there",
    ),
    (BASE + "[transfer]\nworkers = '4'\n", "transfer.workers", "whole number"),
    (BASE + "[transfer]\nchunk_size = '8M'\n", "transfer.chunk_size", "is not a size"),
    (BASE + "[transfer]\nchunk_size = '1MB'\n", "transfer.chunk_size", "multiple of 256KiB"),
    (BASE + "[transfer]\nchunk_size = '0B'\n", "transfer.chunk_size", "from 256KiB to 256MiB"),
    (BASE + "[transfer]\nchunk_size = '257MiB'\n", "transfer.chunk_size", "from 256KiB to 256MiB"),
    (BASE + "[transfer]\nchunk_size = 1.5\n", "transfer.chunk_size", "size in quotes"),
    ('"a b\\n" = 1\n' + BASE, '"a b\\n"', "is not a known key"),
]


@pytest.mark.parametrize(("text", "path", "says"), WRONG, ids=[f"{p}-{s}" for _, p, s in WRONG])
def test_one_problem_is_one_clear_message(tmp_path: Path, text: str, path: str, says: str) -> None:
    file = written(tmp_path, text)
    message = refusal(file, {})
    head = f"{file} cannot be used: {path}: "
    assert message.startswith(head)
    assert says in message.removeprefix(head)
    assert "\n" not in message
    assert "hunter2" not in message


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    chosen = [row for row in WRONG if row[0].startswith(BASE) and "[transfer]" in row[0]][:1]
    text = "x = 1\n" + BASE.replace("my-footage", "gs://x").replace("password", "pasword")
    text += chosen[0][0].removeprefix(BASE) + "[schedule]\nevery='1h'\ncron='x'\ntimezone='x'\n"
    message = refusal(written(tmp_path, text), {})
    lines = message.splitlines()
    assert lines[0].endswith("cannot be used, it has 8 problems:")
    assert len(lines) == 9
    named = {line.split(":")[0].strip() for line in lines[1:]}
    assert named == {
        "x",
        "stores.offsite.bucket",
        "sources.home.pasword",
        "sources.home.password",
        "schedule.cron",
        "schedule.timezone",
        "transfer.workers",
    }


@pytest.mark.parametrize(
    "key",
    [
        *("path", "environ", "place", "self", "copy", "_env_file", "_secrets_dir", "__class__"),
        *("model_config", "model_extra", "settings_customise_sources", "__pydantic_extra__"),
    ],
)
def test_a_key_that_means_something_to_the_library_is_unknown(tmp_path: Path, key: str) -> None:
    text = f"{key} = 'hunter2'\n{BASE}[{key}-2]\n"
    message = refusal(written(tmp_path, text), {f"NVR_BACKUP_{key.strip('_')}-3": "hunter2"})
    assert message.count("is not a known key") == 3
    assert "hunter2" not in message


def test_a_long_list_of_problems_is_cut(tmp_path: Path) -> None:
    text = "".join(f"k{n} = 1\n" for n in range(60)) + BASE
    message = refusal(written(tmp_path, text), {})
    assert "it has 60 problems" in message
    assert message.endswith("\n  and 10 more")
    assert len(message.splitlines()) == 52


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (BASE + "x = \n", BASE.count("\n") + 1),
        ("\n\npassword = hunter2-hunter2\n", 3),
        ("a = 1\na = 2\n", 2),
        ('\na = "open\n', 2),
        ("a = [1,\n", 2),
    ],
)
def test_toml_errors_name_the_line(tmp_path: Path, text: str, line: int) -> None:
    message = refusal(written(tmp_path, text), {})
    assert re.search(rf"config\.toml, line {line}\b.*: is not valid TOML", message), message
    assert "hunter2" not in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "none.toml", {})
    assert "Is a directory" in refusal(tmp_path, {})
    loop = tmp_path / "loop.toml"
    loop.symlink_to(loop)
    assert "cannot be read" in refusal(loop, {})
    assert "not a possible file name" in refusal(Path("a\0b"), {})
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"a = 1\n# \xff\n")
    assert "line 2: is not UTF-8" in refusal(binary, {})
    binary.write_bytes(b"#" * (2**20 + 1))
    assert "larger than" in refusal(binary, {})


def test_no_configuration_at_all() -> None:
    message = refusal(None, {"LOG_LEVEL": "info", "HOME": "/", "NVR_BACKUP_CONFIG": ""})
    assert message.startswith("There is no configuration.")
    assert "/etc/nvr-backup/config.toml" in message
    assert "NVR_BACKUP_STATE__: is not" in refusal(None, {"NVR_BACKUP_STATE__": "x"})


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        (
            "NVR_BACKUP_SCHEDUL__EVERY",
            "1h",
            'schedul: is not a known key. Did you mean "schedule"?',
        ),
        ("NVR_BACKUP_SOURCES__HOME__PASWORD", "hunter2", 'Did you mean "password"?'),
        ("NVR_BACKUP_SOURCES__HOM__PASSWORD", "hunter2", "sources.hom.kind: is missing"),
        ("NVR_BACKUP_TRANSFER__WORKERS", "many", "transfer.workers: must be a whole number"),
        ("NVR_BACKUP_TRANSFER__WORKERS", "٣", "transfer.workers: must be a whole number"),
        ("NVR_BACKUP_TRANSFER____WORKERS", "4", "is not NVR_BACKUP_TABLE__KEY"),
        ("NVR_BACKUP_", "4", "is not NVR_BACKUP_TABLE__KEY"),
        ("NVR_BACKUP_STATE_DIR__X", "4", "state_dir.x: cannot be set by"),
        ("NVR_BACKUP_LOG", "debug", "log: must be a table"),
        ("NVR_BACKUP_SOURCES__CABIN", "hunter2", "sources.cabin: must be a table"),
        ("nvr_backup_log__level__x", "hunter2", "log.level.x: cannot be set by"),
        ("NVR_BACKUP_SOURCES__HOME__CAMERAS__INCLUDE", "[1", "is not a list"),
        ("nvr_backup_log__level", "debug", "log.level: is set twice"),
    ],
)
def test_bad_variables_are_named(tmp_path: Path, variable: str, value: str, says: str) -> None:
    path = written(tmp_path, "state_dir = '/x'\n" + BASE)
    message = refusal(path, {"NVR_BACKUP_LOG__LEVEL": "info", variable: value})
    assert says in message
    assert variable in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("hunter2-hunter2", "is not JSON"),
        ("[" * 20000, "is not JSON"),
        ('"hunter2-hunter2"', 'its "type" is not "service_account"'),
        ('{"type": "authorized_user"}', 'its "type" is not "service_account"'),
        (json.dumps({**KEY_FILE, "private_key": ""}), 'has no "private_key"'),
        (json.dumps({**KEY_FILE, "client_email": 5}), 'has no "client_email"'),
        (" " * 70_000, "is too large"),
    ],
    ids=range(7),
)
def test_bad_key_files(tmp_path: Path, content: str, says: str) -> None:
    key_file = tmp_path / "gcs.json"
    key_file.write_text(content)
    text = changed("bucket", "bucket = 'bbb'\ncredentials_file = 'gcs.json'")
    message = refusal(written(tmp_path, text), {})
    assert f"stores.offsite.credentials_file: {key_file}" in message
    assert says in message
    assert "hunter2" not in message
    assert "PRIVATE" not in message


def test_bad_credentials(tmp_path: Path) -> None:
    path = written(tmp_path, BASE)
    message = refusal(path, {"CREDENTIALS_DIRECTORY": str(tmp_path / "none")})
    assert "cannot be listed" in message
    folder = tmp_path / "credentials"
    folder.mkdir()
    credential = folder / "sources.home.password"
    for content, says in [
        (b"hunter2\xff", "not UTF-8"),
        (b"two\nlines", "line ends"),
        (b"x" * 70_000, "too large"),
    ]:
        credential.write_bytes(content)
        message = refusal(path, {"CREDENTIALS_DIRECTORY": str(folder)})
        assert "sources.home.password: " in message
        assert says in message
        assert "credential" in message
    credential.unlink()
    credential.mkdir()
    message = refusal(path, {"CREDENTIALS_DIRECTORY": str(folder)})
    assert "cannot be read (Is a directory)" in message
    credential.rename(folder / "sources.a.b.password")
    text = BASE.replace("[sources.home]", '[sources."a.b"]')
    message = refusal(written(tmp_path, text), {"CREDENTIALS_DIRECTORY": str(folder)})
    assert "this name must be lower-case" in message
    (folder / "sources.home.password").write_text("hunter2")
    text = "sources = { home = 5 }\n" + BASE[BASE.index("[stores") :]
    message = refusal(written(tmp_path, text), {"CREDENTIALS_DIRECTORY": str(folder)})
    assert "sources.home: must be a table" in message


# Secrets

secrets = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=12, max_size=60).map(
    lambda text: "S3cr" + text
)
slow = hypothesis_settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)


def leaves(raw: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in raw.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))
        yield (*path, name)


FULL = tomllib.loads((ROOT / "config.example.toml").read_text())
PATHS = [
    *leaves(FULL),
    ("schedule", "cron"),
    ("schedule", "timezone"),
    ("sources", "home", "tls_fingerprint"),
    ("sources", "home", "stores"),
    ("unknown",),
]


def with_value(path: tuple[str, ...], value: object) -> dict[str, Any]:
    raw = json.loads(json.dumps(FULL))
    table = raw
    for part in path[:-1]:
        table = table[part]
    table[path[-1]] = value
    return dict(raw)


@slow
@given(secrets, st.sampled_from(PATHS), st.booleans())
def test_a_secret_in_the_wrong_place_is_never_repeated(
    secret: str, path: tuple[str, ...], in_list: bool
) -> None:
    raw = with_value(path, [secret] if in_list else secret)
    raw["one_problem"] = True
    with pytest.raises(ConfigError) as caught:
        Settings.model_validate(raw)
    assert secret not in str(caught.value) + repr(caught.value)
    assert caught.value.__context__ is None


@slow
@given(secrets, st.integers(min_value=0, max_value=400))
def test_a_broken_file_never_shows_its_secret(tmp_path: Path, secret: str, end: int) -> None:
    quoted = BASE.replace('"hunter2-hunter2"', json.dumps(secret))
    bare = BASE.replace('"hunter2-hunter2"', secret)
    for text in (quoted[:end], bare[:end], quoted + "= broken"):
        try:
            shown = repr(load_settings(written(tmp_path, text), {}))
        except ConfigError as error:
            shown = str(error) + repr(error)
        assert secret not in shown


@slow
@given(secrets)
def test_a_secret_is_in_no_text_of_good_settings(tmp_path: Path, secret: str) -> None:
    environ = {"NVR_BACKUP_SOURCES__HOME__PASSWORD": secret}
    settings = load_settings(written(tmp_path, BASE), environ)
    assert scrypted(settings).password.get_secret_value() == secret
    other = load_settings(written(tmp_path, BASE), {})
    texts = (
        repr(settings),
        str(settings),
        repr(settings.model_dump()),
        repr(changes(other, settings)),
    )
    for text in (*texts, settings.model_dump_json()):
        assert secret not in text
        assert json.dumps(secret)[1:-1] not in text


def test_the_library_logs_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sources.home.password").write_text("hunter3-hunter3")
    monkeypatch.setenv("PYDANTIC_SETTINGS_DEBUG", "1")
    caplog.set_level(logging.DEBUG)
    environ = {
        "CREDENTIALS_DIRECTORY": str(tmp_path),
        "NVR_BACKUP_SOURCES__HOME__USERNAME": "hunter4",
    }
    assert load_settings(written(tmp_path, BASE), environ).sources
    assert load_settings(None, {**ORIGINAL, **environ, "NVR_BACKUP_SOURCES__HOME__USERNAME": ""})
    assert "EnvironmentLayer" in caplog.text  # it did log
    assert "hunter" not in caplog.text


def test_a_single_table_never_echoes_what_it_refuses() -> None:
    with pytest.raises(ValidationError) as caught:
        ScryptedSource.model_validate(
            {"kind": "scrypted", "url": "hunter2", "password": "hunter2", "x": "hunter2"}
        )
    assert "hunter2" not in str(caught.value)


# Comparing


def test_changes(tmp_path: Path) -> None:
    old = loaded(tmp_path, BASE)
    assert changes(old, loaded(tmp_path, BASE)) == []
    new = loaded(
        tmp_path,
        BASE.replace("hunter2-hunter2", "hunter3-hunter3").replace("my-footage", "your-footage")
        + """
        [schedule]
        cron = "0 2 * * *"
        backfill = "all"
        [transfer]
        chunk_size = "1MiB"
        [sources.cabin]
        kind = "scrypted"
        url = "https://cabin"
        username = "u"
        password = "hunter4-hunter4"
        cameras = { include = ["a", "b"] }
        """,
    )
    found = changes(old, new)
    assert found == sorted(found, key=lambda change: change.path)
    by_path = {change.path: (change.old_text, change.new_text) for change in found}
    assert by_path == {
        "schedule.every": ("1h", "(absent)"),
        "schedule.cron": ("(absent)", "0 2 * * *"),
        "schedule.backfill": ("1d", "all"),
        "transfer.chunk_size": ("8MiB", "1MiB"),
        "stores.offsite.bucket": ("my-footage", "your-footage"),
        "sources.home.password": ("(secret)", "(changed)"),
        "sources.cabin.kind": ("(absent)", "scrypted"),
        "sources.cabin.url": ("(absent)", "https://cabin"),
        "sources.cabin.username": ("(absent)", "u"),
        "sources.cabin.password": ("(absent)", "(secret)"),
        "sources.cabin.tls": ("(absent)", "verify"),
        "sources.cabin.cameras.include": ("(absent)", "a, b"),
        "sources.cabin.cameras.exclude": ("(absent)", "(none)"),
    }
    backwards = changes(new, old)
    assert Change("transfer.chunk_size", "1MiB", "8MiB") in backwards
    assert Change("sources.cabin.password", "(secret)", "(absent)") in backwards


def test_settings_made_by_code() -> None:
    settings = Settings.model_validate(
        {
            "sources": {
                "demo": ScryptedSource(
                    kind="scrypted",
                    url="http://127.0.0.1:1",
                    username="u",
                    password=SecretStr("p"),
                )
            },
            "stores": {
                "gcs": {"kind": "gcs", "bucket": "bbb", "credentials_file": "/nowhere.json"}
            },
            "transfer": {"workers": 1, "chunk_size": 262144},
        }
    )
    assert settings.transfer.chunk_size == 262144
    assert gcs(settings, "gcs").credentials_file == Path("/nowhere.json")


# Quantities


@given(st.integers(0, 36_500 * 86_400))
def test_durations_round_trip(seconds: int) -> None:
    duration = timedelta(seconds=seconds)
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("2h", 7200),
        ("24h", 86400),
        ("7d", 604800),
        ("1h30m", 5400),
        (" 1d 1s ", 86401),
    ],
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "5", "h", "-1h", "1.5h", "30m1h", "1h1h", "1y", "٣s", "1H", "40000d", "9" * 30 + "s"],
)
def test_bad_durations(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|longer"):
        parse_duration(text)


@given(st.integers(0, 10**15 - 1))
def test_sizes_round_trip(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8MiB", 8 * 2**20),
        ("256KiB", 2**18),
        ("1GB", 10**9),
        ("1 kb", 1000),
        ("7B", 7),
        ("2TiB", 2**41),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "8", "8M", "8 Mi", "1.5GB", "-1B", "8iB", "٣B", "9" * 20 + "B"]
)
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


# The example and the documentation


def schema_keys() -> set[str]:
    """Every key by path, read from the JSON schema rather than from our own table."""
    schema = Settings.model_json_schema()

    def walk(node: dict[str, Any], path: str) -> Iterator[str]:
        if "$ref" in node:
            yield from walk(schema["$defs"][node["$ref"].rpartition("/")[2]], path)
        elif "properties" in node:
            for name, child in node["properties"].items():
                yield from walk(child, f"{path}.{name}" if path else name)
        elif "additionalProperties" in node or "patternProperties" in node:
            inner = node.get("additionalProperties") or next(
                iter(node["patternProperties"].values())
            )
            for child in inner.get("oneOf", [inner]):
                yield from walk(child, f"{path}.*")
        else:
            yield path

    return set(walk(schema, ""))


def test_known_keys_are_all_keys() -> None:
    assert set(known_keys()) == schema_keys()
    assert "sources.*.cameras.include" in schema_keys()
    assert "stores.*.bucket" in schema_keys()


def example() -> str:
    return (ROOT / "config.example.toml").read_text()


def test_the_example_loads(tmp_path: Path) -> None:
    key_file = tmp_path / "gcs.json"
    key_file.write_text(json.dumps(KEY_FILE))
    key_file.chmod(0o400)
    text = example().replace("/etc/nvr-backup/credentials/gcs.json", str(key_file))
    settings = loaded(tmp_path, text)
    assert settings.warnings == ()
    assert settings.stores_of("home") == ("offsite", "nas")
    bare = loaded(tmp_path, BASE)
    assert settings.schedule == bare.schedule
    assert settings.transfer == bare.transfer


def test_the_example_has_every_key_with_a_comment() -> None:
    lines = example().splitlines()
    for key in known_keys():
        # One line holds both lists of `cameras`.
        name = "cameras" if ".cameras." in key else key.rpartition(".")[2]
        at = [n for n, line in enumerate(lines) if re.match(rf"(# )?{name} = ", line)]
        assert at, key
        for number in at:
            above = reversed(lines[:number])  # alternatives share one comment
            first = next(line for line in above if not re.match(r"# \w+ = ", line))
            assert first.startswith("# "), f"{key} has no comment"
    assert "include" in example()
    assert "exclude" in example()


def test_what_the_example_has_commented_out_works_too(tmp_path: Path) -> None:
    text = re.sub(r"(?m)^# (\w+ = )", r"\1", example())
    text = re.sub(r"(?m)^(every|credentials_file) = .*$", "", text)
    settings = loaded(tmp_path, text)
    assert settings.schedule.cron == "0 2 * * *"
    assert settings.schedule.timezone == "Europe/Berlin"
    assert scrypted(settings).tls_fingerprint == "sha256:" + "0" * 64
    assert settings.stores_of("home") == ("offsite",)


def test_the_documentation_names_every_key_with_its_default(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    for key in known_keys():
        assert f"| `{key.replace('*', 'NAME')}` |" in page, key
    settings = loaded(tmp_path, BASE)
    for key in ("every", "settle", "lookback", "backfill"):
        (default,) = re.findall(rf"\| `schedule\.{key}` \| `\"(.+?)\"`", page)
        assert parse_duration(default) == getattr(settings.schedule, key)
    (size,) = re.findall(r"\| `transfer\.chunk_size` \| `\"(.+?)\"`", page)
    assert parse_size(size) == settings.transfer.chunk_size
    assert f"| `transfer.workers` | `{settings.transfer.workers}` |" in page
    assert f'| `state_dir` | `"{settings.state_dir}"` |' in page
    assert directory(settings).key_template in page


def test_the_documentation_names_every_variable_of_the_original_script() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    for name in (
        *ORIGINAL,
        "ALLOW_SELF_SIGNED",
        "GCS_PROJECT_ID",
        "GCS_KEYFILE_PATH",
        "STATE_FILE_PATH",
        "LOG_LEVEL",
    ):
        assert f"| `{name}` |" in page


def test_the_smallest_file_in_the_documentation_works(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    text = re.sub(r"(?m)^credentials_file = .*$", "", text)
    assert loaded(tmp_path, text, NVR_BACKUP_SOURCES__HOME__PASSWORD="p").sources
