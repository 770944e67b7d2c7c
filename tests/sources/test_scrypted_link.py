"""The guards of the RPC link: every way in which the SDK's own would hang, print or freeze."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import engineio.base_client
import pytest
from aiohttp import ClientWebSocketResponse

from nvr_backup.clock import SystemClock
from nvr_backup.errors import Blocked, Transient
from nvr_backup.simulator import SimCamera, Simulator, SimulatorSettings
from nvr_backup.sources.scrypted import ScryptedSettings, transport
from nvr_backup.sources.scrypted.link import IDLE_SECONDS, Link, Mirror, RemoteError
from nvr_backup.sources.scrypted.reconnect import HANDSHAKES
from tests.sources.kit import Bench, bench, content, source
from tests.support.clock import VirtualClock
from tests.support.proxy import TcpProxy


def link_of(b: Bench) -> Link:
    link = b.source._reconnect._link
    assert link is not None
    return link


def pending(link: Link) -> dict[str, Any]:
    found: dict[str, Any] = link._peer.pendingResults or {}
    return found


async def reached(b: Bench, method: str, count: int = 1) -> None:
    while b.called(method) < count:
        await asyncio.sleep(0)


async def gone(b: Bench) -> None:
    """Return once the server has no link any more."""
    while b.nvr.links:
        await asyncio.sleep(0)


@asynccontextmanager
async def hanging(b: Bench, fault: str = "hang_listing") -> AsyncIterator[asyncio.Task[Any]]:
    """A listing that the server never answers."""
    camera = await b.camera()
    b.nvr.faults.arm(fault)
    task = asyncio.create_task(b.clips())
    await b.nvr.faults.wait_happened(fault)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert camera


# -- 1: a loss is noticed ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["drop_links", "restart"])
async def test_a_lost_link_fails_its_calls_at_once_and_is_made_anew(how: str) -> None:
    async with bench() as b:
        async with hanging(b) as task:
            if how == "restart":
                await b.nvr.restart()
            else:
                b.nvr.drop_links()
            with pytest.raises(Transient, match="was lost"):
                await task
        assert not link_of(b).alive
        assert len(await b.clips()) == 3
        assert link_of(b).alive and b.nvr.links == 1


async def test_a_link_that_breaks_on_the_call_itself() -> None:
    async with bench() as b:
        camera = await b.camera()
        b.nvr.faults.arm("drop_link", on="getVideoClips")
        with pytest.raises(Transient, match="was lost"):
            await b.clips()
        assert not b.nvr.faults.unexercised()
        assert [c async for c in b.source.clips(camera, b.window())] == await b.clips()


async def test_a_lost_link_whose_server_stays_away_blocks() -> None:
    async with bench() as b:
        camera = await b.camera()
        down = asyncio.create_task(b.nvr.restart(down=100))
        await b.clock.until_asleep(1)
        while link_of(b).alive:
            await asyncio.sleep(0)
        with pytest.raises(Blocked, match="cannot be reached"):
            [c async for c in b.source.clips(camera, b.window())]
        await b.clock.advance(100)
        await down
        assert len(await b.clips()) == 3


# -- 2: a black hole is noticed, every call ends ---------------------------------------------------


async def test_a_heartbeat_finds_a_black_hole_while_a_call_waits() -> None:
    async with bench(heartbeat_seconds=10, heartbeat_limit_seconds=0.2) as b:
        camera = await b.camera()
        b.nvr.faults.arm("black_hole", on="getVideoClips")
        task = asyncio.create_task(b.clips())
        await b.nvr.faults.wait_happened("black_hole")
        await b.clock.advance(10)
        with pytest.raises(Transient, match="was lost"):
            await task
        assert len([c async for c in b.source.clips(camera, b.window())]) == 3


async def test_the_probe_finds_a_black_hole_and_makes_a_new_link() -> None:
    async with bench(heartbeat_limit_seconds=0.2) as b:
        await b.source.cameras()
        old = link_of(b)
        b.nvr.faults.arm("black_hole")
        assert len(await b.source.cameras()) == 1
        assert link_of(b) is not old and not old.alive
        assert not b.nvr.faults.unexercised()


async def test_a_heartbeat_leaves_a_live_link_alone() -> None:
    async with bench(heartbeat_seconds=10) as b:
        await b.source.cameras()
        link, before = link_of(b), b.called("getDeviceById")
        await b.clock.advance(10)
        await reached(b, "getDeviceById", before + 1)
        await b.clock.until_asleep(1)
        assert link.alive and await b.clips() and link_of(b) is link


async def test_a_listing_that_is_never_answered_ends() -> None:
    async with bench(listing_seconds=0.2) as b:
        camera = await b.camera()
        b.nvr.faults.arm("hang_listing")
        with pytest.raises(Transient, match="did not answer getVideoClips"):
            [c async for c in b.source.clips(camera, b.window())]
        assert link_of(b).alive and pending(link_of(b)) == {}
        assert len(await b.clips()) == 3


async def test_a_clip_that_is_never_answered_ends() -> None:
    async with bench(rpc_seconds=0.3) as b:
        clip, truth = await b.one()
        b.nvr.faults.arm("hang_clip")
        with pytest.raises(Transient, match="did not answer getVideoClip "):
            await content(b.source, clip)
        assert await content(b.source, clip) == truth


async def test_an_idle_link_is_closed_and_made_anew_when_needed() -> None:
    async with bench(heartbeat_seconds=30) as b:
        await b.source.cameras()
        old = link_of(b)
        for _ in range(int(IDLE_SECONDS // 30) + 1):
            await b.clock.until_asleep(1)
            await b.clock.advance(30)
            if not old.alive:
                break
            await b.clock.until_asleep(1)
        assert not old.alive
        await gone(b)
        assert len(await b.clips()) == 3


# -- 3: a server that starts -----------------------------------------------------------------------


async def test_a_handshake_that_never_ends_is_tried_once_more() -> None:
    async with bench(connect_seconds=0.5) as b:
        b.nvr.faults.arm("silent_link")
        assert len(await b.source.cameras()) == 1
        assert not b.nvr.faults.unexercised()
        assert b.nvr.links == 1


async def test_a_server_that_opens_no_link_blocks_with_words_and_is_left_alone() -> None:
    async with bench() as b:
        b.nvr.faults.arm("refuse_link", times=None)
        tries = []
        for wait in [0, 0.5, 0.6, 1, 1, 100, 1]:
            await b.clock.advance(wait)
            with pytest.raises(Blocked, match="accepted the login but opened no link"):
                await b.source.cameras()
            tries.append(b.nvr.faults.happened("refuse_link") // 2)
        # Pauses of 1, 2, 4 … seconds.
        assert tries == [1, 1, 2, 2, 3, 4, 4]
        b.nvr.faults.disarm()
        await b.clock.advance(60)
        assert len(await b.source.cameras()) == 1


async def test_a_source_can_be_opened_before_its_nvr() -> None:
    async with bench() as b, TcpProxy("127.0.0.1", int(b.nvr.url.rsplit(":", 1)[1])) as proxy:
        await proxy.refuse()
        settings = ScryptedSettings("home", proxy.url(), "backup", "secret")
        async with source(settings, b.clock) as opened:
            with pytest.raises(Blocked, match="cannot be reached"):
                await opened.cameras()
            await proxy.accept()
            with pytest.raises(Blocked):
                await opened.cameras()
            assert proxy.links == []
            await b.clock.advance(1)
            assert len(await opened.cameras()) == 1


# -- 4, 5, 6: cancelled and late calls -------------------------------------------------------------


async def test_a_cancelled_call_leaves_nothing_behind_and_breaks_nothing() -> None:
    async with bench() as b:
        async with hanging(b) as task:
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()
        assert pending(link_of(b)) == {}
        assert len(await b.clips()) == 3


async def test_the_first_call_on_a_device_may_be_cancelled() -> None:
    async with bench() as b:
        camera = await b.camera()
        for _ in range(3):
            b.nvr.faults.arm("hang_listing")
            task = asyncio.create_task(b.clips())
            await b.nvr.faults.wait_happened("hang_listing")
            task.cancel()
            await asyncio.wait([task])
            b.nvr.faults.disarm()
            assert len([c async for c in b.source.clips(camera, b.window())]) == 3


async def test_cancelled_and_waiting_calls_at_the_loss_of_a_link() -> None:
    async with bench(SimCamera("Porch"), SimCamera("Garden")) as b:
        link = await b.source._reconnect.link()
        device = await link.device(b.nvr.catalogue.camera("Porch").device_id)
        b.nvr.faults.arm("hang_listing", times=None)
        calls = [
            asyncio.create_task(link.call(device, "getVideoClips", {}, limit=30)) for _ in range(4)
        ]
        await b.nvr.faults.wait_happened("hang_listing", 4)
        # Cancelled in the same breath in which the link is lost: kill() must survive it.
        calls[0].cancel()
        for future in list(pending(link).values())[1:2]:
            future.cancel()
        link._end("test")
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(r) for r in results[2:]] == [Transient, Transient]
        with pytest.raises(Transient, match="was lost"):
            await link.beat()


async def test_late_answers_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    async with bench(listing_seconds=0.2) as b:
        camera = await b.camera()
        b.nvr.faults.arm("hang_listing")
        with pytest.raises(Transient):
            [c async for c in b.source.clips(camera, b.window())]
        b.nvr.faults.release()
        for _ in range(3):
            await b.source.cameras()
        b.nvr.catalogue.rename("Porch", "Front door")
        b.nvr.drop_links()
        await b.source.cameras()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"type": None},
        {"type": "result"},
        {"type": "result", "id": "unknown", "result": 5},
        {"type": "param", "id": "1"},
        {"type": "apply"},
        {"type": "apply", "id": "1", "proxyId": "x", "method": "__class__", "args": []},
        {"type": "apply", "id": "1", "proxyId": [], "method": None},
        {"type": "finalize"},
        {"type": "nonsense"},
    ],
)
async def test_messages_without_sense_print_nothing_and_hang_nothing(
    message: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    async with bench() as b:
        await b.source.cameras()
        with pytest.MonkeyPatch.context() as patch:
            # Our answer is for nobody: the simulator's peer, which is the SDK's, would print.
            patch.setattr(link_of(b)._transport, "send", lambda _message: None)
            link_of(b)._received(message)
        assert len(await b.source.cameras()) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "result",
    [
        {"__remote_constructor_name": "RPCResultError", "__serialized_value": None},
        {"__local_proxy_id": "unknown"},
        {"__remote_constructor_name": "Buffer", "__serialized_value": 0},
    ],
)
async def test_an_answer_that_cannot_be_read_is_an_error_and_not_a_hang(result: Any) -> None:
    async with bench() as b:
        await b.source.cameras()
        link = link_of(b)
        call = asyncio.create_task(link.beat())
        while not pending(link):
            await asyncio.sleep(0)
        link._received({"type": "result", "id": next(iter(pending(link))), "result": result})
        with pytest.raises(RemoteError):
            await call


async def test_an_answer_to_a_call_cancelled_in_the_same_moment_is_dropped() -> None:
    async with bench() as b:
        await b.source.cameras()
        link = link_of(b)
        call = asyncio.create_task(link.beat())
        while not pending(link):
            await asyncio.sleep(0)
        id_ = next(iter(pending(link)))
        pending(link)[id_].cancel()
        link._received({"type": "result", "id": id_, "result": None})
        await asyncio.wait([call])
        assert call.cancelled() and link.alive


async def test_buffers_without_end_end_the_link() -> None:
    async with bench() as b:
        await b.source.cameras()
        link = link_of(b)
        for _ in range(100):
            link._received(b"x")
        assert not link.alive


# -- 7: the garbage collector ----------------------------------------------------------------------


async def test_finalizers_in_another_thread_reach_the_loop_by_its_own_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bench() as b:
        link = await b.source._reconnect.link()
        sent: list[tuple[str, int]] = []
        real = transport.GuardedTransport.send

        def spy(self: transport.GuardedTransport, message: dict[str, Any]) -> None:
            sent.append((message["type"], threading.get_ident()))
            real(self, message)

        monkeypatch.setattr(transport.GuardedTransport, "send", spy)
        cycle: list[Any] = [await link.device(b.nvr.catalogue.camera("Porch").device_id)]
        cycle.append(cycle)
        del cycle
        await asyncio.to_thread(gc.collect)
        await b.clock.settle()
        finalized = [thread for kind, thread in sent if kind == "finalize"]
        assert finalized and set(finalized) == {threading.get_ident()}


async def test_garbage_collected_in_the_middle_of_sending_freezes_nothing() -> None:
    async with bench() as b:
        link = await b.source._reconnect.link()
        device_id = b.nvr.catalogue.camera("Porch").device_id
        thresholds = gc.get_threshold()
        gc.set_threshold(1)
        try:
            for _ in range(50):
                cycle: list[Any] = [await link.device(device_id)]
                cycle.append(cycle)
                del cycle
        finally:
            gc.set_threshold(*thresholds)
        assert link.alive


async def test_a_finalizer_after_the_loop_is_gone_is_silent() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    guarded = transport.GuardedTransport.__new__(transport.GuardedTransport)
    guarded._loop = loop
    guarded.send_from_anywhere({"type": "finalize"})


# -- 8: signals ------------------------------------------------------------------------------------


async def test_signals_stay_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    # Other clients in this process (of the simulator's own tests) may have set it.
    monkeypatch.setattr(engineio.base_client, "original_signal_handler", None)
    loop = asyncio.get_running_loop()
    heard: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, heard.append, number)
    try:
        async with bench() as b:
            await b.source.cameras()
            b.nvr.drop_links()
            await b.source.cameras()
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), number)
                while number not in heard:
                    await asyncio.sleep(0)
            assert len(await b.source.cameras()) == 1
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT, signal.SIGTERM]
    assert engineio.base_client.original_signal_handler is None


# -- 9: large messages -----------------------------------------------------------------------------


async def test_twenty_thousand_clips_at_once_come_through_the_link() -> None:
    async with bench(SimCamera("Porch", clips=0, filters="none")) as b:
        b.nvr.catalogue.add_many("Porch", 20_000)
        clips = await b.clips(window=b.window(1))
        truth = [c for c in b.nvr.catalogue.clips("Porch") if c.end_ms > 0]
        since = b.window(1).start.timestamp() * 1000
        assert [c.id for c in clips] == [c.id for c in truth if c.end_ms > since]
        assert link_of(b).alive


# -- nothing is left behind ------------------------------------------------------------------------


async def test_closing_leaves_no_task_and_no_link() -> None:
    async with bench() as b:
        own = ScryptedSettings("other", b.nvr.url, "backup", "secret")
        before = asyncio.all_tasks()
        async with source(own, b.clock) as opened:
            await opened.cameras()
            names = {t.get_name() for t in asyncio.all_tasks() - before}
            assert {"link other", "link other: heartbeat", "link other: sending"} <= names
        left = {t for t in asyncio.all_tasks() - before if "other" in t.get_name()}
        assert left == set()
        assert engineio.base_client.connected_clients == []


async def test_closing_fails_what_is_under_way() -> None:
    async with bench() as b, AsyncExitStack() as stack:
        own = ScryptedSettings("other", b.nvr.url, "backup", "secret")
        opened = await stack.enter_async_context(source(own, b.clock))
        camera = (await opened.cameras())[0]
        b.nvr.faults.arm("hang_listing")

        async def listing() -> list[Any]:
            return [c async for c in opened.clips(camera, b.window())]

        task = asyncio.create_task(listing())
        await b.nvr.faults.wait_happened("hang_listing")
        await stack.aclose()
        with pytest.raises(Transient):
            await task


async def test_being_cancelled_while_connecting_leaves_nothing_behind() -> None:
    async with bench() as b:
        b.nvr.faults.arm("silent_link")
        task = asyncio.create_task(b.source.cameras())
        await b.nvr.faults.wait_happened("silent_link")
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await gone(b)
        assert engineio.base_client.connected_clients == []
        assert len(await b.source.cameras()) == 1


@pytest.mark.parametrize("awaits", range(0, 40, 3))
async def test_being_cancelled_at_any_moment_of_connecting(awaits: int) -> None:
    async with bench() as b:
        task = asyncio.create_task(b.source.cameras())
        for _ in range(awaits):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert len(await b.source.cameras()) == 1


def open_websockets() -> list[ClientWebSocketResponse]:
    """All of this process: other tests may have left some."""
    found = [each for each in gc.get_objects() if isinstance(each, ClientWebSocketResponse)]
    return [each for each in found if not each.closed]


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_an_upgrade_that_falls_silent_leaves_no_open_connection(direction: Any) -> None:
    """engine.io drops its WebSocket unclosed when it is cancelled between upgrade and probe.

    The failure that is remembered keeps it alive; later aiohttp says `Unclosed connection`.
    """
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
    others = open_websockets()
    async with Simulator(SimulatorSettings(cameras=(SimCamera("Porch"),))) as nvr:
        host, _, port = nvr.url.rpartition("//")[2].partition(":")
        async with TcpProxy(host, int(port)) as proxy:
            settings = ScryptedSettings(
                "home", proxy.url(), "backup", "secret", connect_seconds=0.5
            )
            head_end = (direction, b"\r\n\r\n")
            entries = [
                proxy.cut_behind(
                    "stall", b"transport=websocket", head_end, after_bytes=1, direction=direction
                )
                for _ in range(HANDSHAKES)
            ]
            async with source(settings, SystemClock()) as opened:
                with pytest.raises(Blocked):
                    await opened.cameras()
                assert [entry.happened for entry in entries] == [1] * HANDSHAKES
                left = open_websockets()
                assert all(any(one is other for other in others) for one in left)
                left.clear()
            proxy.release()
    gc.collect()
    assert not complaints


async def test_many_first_callers_share_one_link() -> None:
    async with bench() as b:
        await asyncio.gather(*(b.source.cameras() for _ in range(20)))
        assert b.nvr.links == 1


# -- the server may call only what it is meant to --------------------------------------------------


@pytest.mark.parametrize(
    "method", ["__init__", "__getattribute__", "__reduce_ex__", "apply", "loadZip", "devices"]
)
async def test_a_server_cannot_reach_into_our_objects(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench() as b:
        await b.source.cameras()
        link = link_of(b)
        sent: list[dict[str, Any]] = []
        monkeypatch.setattr(link._transport, "send", sent.append)
        for lent in (link._mirror, link._get_remote):
            target = link._peer.localProxied[lent]["id"]
            call = {"type": "apply", "id": "1", "proxyId": target, "method": method}
            link._received({**call, "args": ["__globals__"]})
        assert [answer.get("throw") for answer in sent] == [True, True]
        assert all("not offered" in str(answer["result"]) for answer in sent)
        assert link.alive


@pytest.mark.parametrize(
    "method, args, expected",
    [
        ("updateDeviceState", ["9", None], {}),
        ("updateDeviceState", ["9"], {}),
        (
            "updateDeviceState",
            ["9", {"name": {"value": "B"}, "x": 1}],
            {"9": {"name": {"value": "B"}}},
        ),
        ("notify", ["9", {"property": "name"}, {"value": "C"}], {"9": {"name": {"value": "C"}}}),
        ("notify", ["9", {"property": "name", "mixinId": "3"}, {"value": "C"}], None),
        ("notify", ["9", {"property": "motionDetected"}, {"value": True}], None),
        ("notify", ["10", {"property": "name"}, {"value": "C"}], None),
        ("notify", ["9"], None),
        ("notify", [], None),
        ("updateDeviceState", [], None),
        ("updateDeviceState", [9, {}], None),
        ("setSystemState", ["x"], None),
        ("ioEvent", [1, 2], None),
    ],
)
def test_the_mirror_takes_what_it_needs(method: str, args: list[Any], expected: Any) -> None:
    mirror = Mirror()
    whole = {"9": {"name": {"value": "A"}, "online": {"value": True}}, "8": None}
    assert mirror.apply("setSystemState", [whole]) is True
    start = {"9": {"name": {"value": "A"}}}
    assert mirror.devices == start
    assert mirror.apply(method, args) is False
    assert mirror.devices == (start if expected is None else expected)


async def test_a_rename_is_seen_without_asking() -> None:
    async with bench() as b:
        camera = await b.camera()
        b.nvr.catalogue.rename("Porch", "Front door")
        renamed = await b.camera("Front door")
        assert renamed.id == camera.id
        assert link_of(b).alive and VirtualClock is type(b.clock)
