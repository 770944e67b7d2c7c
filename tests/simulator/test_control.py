"""The control surface, and the simulator as a process of its own."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from typing import Any

import aiohttp
import pytest

from nvr_backup.simulator import SimCamera, Simulator, SimulatorSettings
from nvr_backup.simulator.__main__ import main
from tests.simulator.client import LIMIT, connected, http_session, one_camera
from tests.support.clock import VirtualClock


class Control:
    """Asks and orders by HTTP."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self._url = f"{url}/_simulator/"
        self._http = http

    async def ask(self, path: str) -> Any:
        async with self._http.get(self._url + path) as response:
            assert response.status == 200
            return await response.json()

    async def order(self, path: str, status: int = 200, **body: Any) -> Any:
        async with self._http.post(self._url + path, json=body) as response:
            assert response.status == status
            return await response.json()


async def test_everything_by_http() -> None:
    async with Simulator(one_camera("nvr")) as nvr, http_session() as http:
        control = Control(nvr.url, http)
        state = await control.ask("state")
        assert state["url"] == nvr.url
        assert state["administrators_created"] == []
        (camera,) = state["cameras"]
        assert camera == {"name": "Porch", "device_id": "31", "native_id": "porch", "clips": 1}

        (added,) = await control.order("clips", camera="Porch", size=5000, seconds=3)
        assert added["size"] == 5000
        grown = await control.order("grow", camera="Porch", clip=added["id"], seconds=2)
        assert grown["end_ms"] - grown["start_ms"] == 5000
        oracle = await control.ask("oracle")
        truth = {clip.id: clip.content.digest() for clip in nvr.catalogue.clips()}
        assert {e["clip_id"]: (e["size"], e["sha256"], e["crc32c"]) for e in oracle} == {
            key: (d.size, d.sha256, d.crc32c) for key, d in truth.items()
        }
        assert {e["sha256"] for e in await control.ask("oracle?digests=0")} == {""}
        await control.order("remove-clip", camera="Porch", clip=grown["id"])
        assert len(nvr.catalogue.clips()) == 1
        assert await control.order("many", camera="Porch", count=50) == {"clips": 51}

        await control.order("rename", camera="Porch", name="Door")
        assert (await control.order("remove", camera="Door"))["native_id"] == "porch"
        assert (await control.ask("state"))["cameras"] == []
        assert (await control.order("re-add", camera="porch"))["device_id"] == "32"

        await control.order("faults", name="not_found", camera="Door", times=1)
        path = nvr.state.nvr_path(nvr.catalogue.cameras[0], nvr.catalogue.clips()[0])
        url = f"{nvr.url}{path}?scryptedToken={nvr.gate.user_token}"
        for status in (404, 200):
            async with http.get(url) as response:
                assert response.status == status
                await response.read()
        faults = await control.ask("faults")
        assert (faults["happened"], faults["unexercised"]) == ({"not_found": 1}, [])
        assert "cut_body" in faults["known"]
        served = await control.ask("served")
        assert [body["fault"] for body in served] == ["not_found", ""]
        assert await control.ask("served?since=1") == served[1:]

        await control.order("faults", name="cut_body", times=None)
        await control.order("disarm", name="cut_body")
        await control.order("release")
        async with connected(nvr) as client:
            assert (await control.ask("calls"))[-1]["method"] == "getMediaManager"
            await control.order("drop-links")
            await asyncio.wait_for(client.lost.wait(), LIMIT)
        await control.order("expire")
        await control.order("restart")
        async with asyncio.timeout(LIMIT):
            while nvr.restarts == 0:
                await asyncio.sleep(0)
        assert (await control.ask("state"))["restarts"] == 1


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("faults", {"name": "nonsense"}, "no fault"),
        ("faults", {}, "name"),
        ("rename", {"camera": "nobody", "name": "x"}, "nobody"),
        ("clips", {"camera": "Porch", "start_ms": "soon"}, "soon"),
        ("grow", {"camera": "Porch", "clip": "nonsense"}, "nonsense"),
    ],
)
async def test_wrong_orders_are_400(path: str, body: dict[str, Any], words: str) -> None:
    async with Simulator(one_camera()) as nvr, http_session() as http:
        answer = await Control(nvr.url, http).order(path, status=400, **body)
        assert words in answer["error"]


async def test_live_clips_come_in_turn() -> None:
    clock = VirtualClock()
    cameras = (SimCamera("Porch", clips=0), SimCamera("Garden", clips=0))
    settings = SimulatorSettings(cameras=cameras, live_every=10)
    async with Simulator(settings, clock=clock) as nvr:
        await clock.advance(35)
        assert [len(camera.clips) for camera in nvr.catalogue.cameras] == [2, 1]
        ends = sorted(clip.end_ms for clip in nvr.catalogue.clips())
        assert [end - ends[0] for end in ends] == [0, 10_000, 20_000]


async def test_a_fault_of_the_simulator_itself_ends_it() -> None:
    """A live clip that cannot be made is an error of whoever set it up, not silence."""
    clock = VirtualClock()
    camera = SimCamera("Porch", clips=0, clip_size=3, content="synthetic")
    settings = SimulatorSettings(cameras=(camera,), live_every=10)
    nvr = Simulator(settings, clock=clock)
    with pytest.raises(ValueError, match="synthetic"):
        async with nvr:
            running = asyncio.create_task(nvr.run())
            await clock.advance(10)
            await running


async def test_two_cannot_have_the_same_port() -> None:
    async with Simulator(one_camera()) as nvr:
        port = int(nvr.url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            async with Simulator(one_camera(), port=port):
                pass


def test_a_taken_port_is_told_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=f"cannot listen on 127.0.0.1:{port}"):
            main(["--port", str(port)])


@pytest.mark.process
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
async def test_as_a_process(stop: signal.Signals) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "nvr_backup.simulator", "--tls", "--cameras", "5", "--clips", "2"),
        *("--clip-size", "1M", "--username", "me", "--password", "mine"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), LIMIT)
        told = json.loads(line)
        assert told["control"] == f"{told['url']}/_simulator/"
        pin = aiohttp.Fingerprint(bytes.fromhex(told["fingerprint"]))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=pin)) as http:
            body = {"username": told["username"], "password": told["password"]}
            async with http.post(f"{told['url']}/login", json=body) as response:
                assert (await response.json())["username"] == "me"
            oracle = await Control(told["url"], http).ask("oracle?digests=0")
            assert [entry["size"] for entry in oracle] == [1024**2] * 10
    finally:
        process.send_signal(stop)
        _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
