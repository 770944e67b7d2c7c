"""The whole program as an operator runs it: real processes, real wire protocols, real files.

The oracle is the simulated NVR's own knowledge of every clip (size and SHA-256), never ours.
"""

from __future__ import annotations

import hashlib
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nvr_backup.overlap import PROOF_BYTES
from tests.process.parts import Backup, Nvr, gcs_double, simulated_nvr

pytestmark = [pytest.mark.process, pytest.mark.long]

STYLES = 13
RECIPE = (
    "The camera's plugin offers this clip as x-scrypted/x-ffmpeg-input: "
    "a recipe for a stream, no file."
)
MIB = 1024 * 1024


def truth(nvr: Nvr, *, but: tuple[str, ...] = ()) -> Counter[str]:
    """SHA-256 of every clip at the NVR, of all cameras but those named."""
    return Counter(clip["sha256"] for clip in nvr.ask("oracle") if clip["camera"] not in but)


def held(objects: dict[str, dict[str, Any]]) -> Counter[str]:
    return Counter(item["sha256"] for item in objects.values())


def in_folder(folder: Path) -> Counter[str]:
    return Counter(
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and ".nvr-backup" not in path.parts
    )


@pytest.fixture(params=["gcs", "directory"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_style_is_stored_once_whatever_happens_between_the_cycles(tmp_path: Path) -> None:
    """TLS, a real token flow at the store, a rename, a restart of the NVR, expired tokens."""
    key_file = tmp_path / "gcs.json"
    with (
        simulated_nvr("--tls", "--cameras", str(STYLES), "--clips", "3") as nvr,
        gcs_double("--auth", "--service-account", str(key_file)) as store,
    ):
        backup = Backup(tmp_path, nvr, store.url, credentials=key_file)
        # One style is a recipe for ffmpeg, not a video: set aside by name, never stored.
        cameras = [camera["name"] for camera in nvr.ask("state")["cameras"]]
        result, _ = backup.once(code=1)
        recipes = tuple({item["camera"] for item in result["set_aside"]})
        assert len(recipes) == 1
        assert {item["reason"] for item in result["set_aside"]} == {RECIPE}
        assert len(cameras) == STYLES
        assert held(store.objects()) == truth(nvr, but=recipes)
        one = next(iter(store.objects().values()))
        assert one["content_type"] == "video/mp4"
        assert {"source", "camera-id", "camera-name", "clip-id", "start", "end"} <= set(
            one["metadata"]
        )
        assert one["name"].startswith(f"{one['metadata']['camera-name']}/20")

        def uploads() -> int:
            return sum(seen["where"] in {"single", "initiate"} for seen in store.journal())

        before = uploads()
        backup.once(code=0)
        assert uploads() == before

        first = next(name for name in cameras if name not in recipes)
        nvr.do("rename", camera=first, name="Front Door")
        nvr.do("restart", down=0)
        nvr.wait_until_up()
        nvr.do("expire")
        for name in cameras:
            nvr.do("clips", camera="Front Door" if name == first else name, count=1)
        backup.once(code=1 if recipes else 0)
        assert held(store.objects()) == truth(nvr, but=recipes)
        assert nvr.ask("state")["other_origin_authorizations"] == 0
        assert any(name.startswith("Front Door/") for name in store.objects())


def test_bad_bodies_are_named_and_the_others_go_on(tmp_path: Path, kind: str) -> None:
    with (
        simulated_nvr("--cameras", "3", "--clips", "4", "--style", "stream") as nvr,
        gcs_double() as store,
    ):
        backup = Backup(tmp_path, nvr, store.url if kind == "gcs" else "")
        faults = ("early_end", "html_page", "empty_body")
        for name in faults:
            nvr.do("faults", name=name, times=1)
        result, lines = backup.once(code=1)
        assert [nvr.happened(name) for name in faults] == [1, 1, 1]
        stored = held(store.objects()) if kind == "gcs" else in_folder(backup.footage)
        assert stored.total() == 9
        assert not stored - truth(nvr)
        failed = [line for line in lines if line["message"] == "clip failed"]
        assert len(failed) == len(result["failed"]) == 3
        assert len({line["reason"] for line in failed}) == 3
        status = backup.command("status", "--json")
        assert '"waiting": 3' in status.stdout
        backup.once(code=0)
        stored = held(store.objects()) if kind == "gcs" else in_folder(backup.footage)
        assert stored == truth(nvr)


def test_the_daemon_carries_new_clips_reloads_and_drains(tmp_path: Path) -> None:
    with simulated_nvr("--cameras", "2", "--clips", "2") as nvr:
        backup = Backup(tmp_path, nvr)
        with backup.daemon() as daemon:
            daemon.until_said("cycle finished")
            assert in_folder(backup.footage) == truth(nvr)

            nvr.do("clips", camera="Porch", count=1)
            daemon.signal(signal.SIGUSR1)
            daemon.until_said("cycle finished", 2)
            assert in_folder(backup.footage) == truth(nvr)

            good = backup.config.read_text()
            backup.config.write_text(good.replace("[schedule]", "[schedul]"))
            daemon.signal(signal.SIGHUP)
            refused = daemon.until_said("reload refused, the old configuration stays")
            assert "schedul" in refused["reason"]
            assert refused["level"] == "error"

            backup.config.write_text(good.replace('every = "1h"', 'every = "2h"'))
            daemon.signal(signal.SIGHUP)
            changed = daemon.until_said("changed")
            assert (changed["setting"], changed["old"], changed["new"]) == (
                "schedule.every",
                "1h",
                "2h",
            )
            daemon.until_said("reloaded")

            second = backup.command("once")
            assert second.returncode == 75
            assert "SIGUSR1" in second.stderr
            assert backup.command("status").returncode == 0

            daemon.signal(signal.SIGTERM)
            assert daemon.end() == 0
        secrets = "".join(daemon.raw)
        assert nvr.password not in secrets


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_stop_in_the_middle_of_a_clip_costs_at_most_a_chunk(
    tmp_path: Path, kind: str, how: signal.Signals
) -> None:
    size = 64 * MIB
    chunk = MIB
    with (
        simulated_nvr(
            "--cameras", "1", "--clips", "1", "--style", "href", "--clip-size", str(size)
        ) as nvr,
        gcs_double() as store,
    ):
        backup = Backup(
            tmp_path,
            nvr,
            store.url if kind == "gcs" else "",
            tables={"transfer": {"chunk_size": "1MiB"}},
        )
        nvr.do("faults", name="stall_body", times=1, at_bytes=size // 2)

        def arrived() -> int:
            if kind == "gcs":
                return sum(seen["body_bytes"] for seen in store.journal())
            partial = backup.footage / ".nvr-backup" / "partial"
            return sum(path.stat().st_size for path in partial.glob("*"))

        with backup.daemon() as daemon:
            daemon.until(lambda: arrived() >= size // 2 - 2 * chunk, "half of the clip")
            daemon.signal(how)
            code = daemon.end()
        assert code == (0 if how == signal.SIGTERM else -signal.SIGKILL)
        nvr.do("release")
        backup.once()
        stored = held(store.objects()) if kind == "gcs" else in_folder(backup.footage)
        assert stored == truth(nvr)
        if kind == "gcs":
            sent = sum(seen["body_bytes"] for seen in store.journal())
            assert sent <= size + chunk + 64 * 1024
        offsets = [served["offset"] for served in nvr.ask("served")]
        assert offsets[0] == 0
        assert offsets[1] >= size // 2 - 3 * chunk - PROOF_BYTES
