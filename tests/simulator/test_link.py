"""The RPC link, with the SDK's own client: state, listings, every style, changes, broken links."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from scrypted_sdk.rpc import RPCResultError

from nvr_backup.model import to_ms
from nvr_backup.simulator import STYLES, SimCamera, Simulator, SimulatorSettings
from tests.simulator.client import LIMIT, connected, http_session, login, one_camera, simulated
from tests.support.clock import VirtualClock


async def refusal(call: Any) -> str:
    with pytest.raises(RPCResultError) as caught:
        await call
    return str(caught.value.message)


# -- listings and styles -----------------------------------------------------------------------


async def test_system_state_has_the_shapes_that_were_seen() -> None:
    async with simulated(one_camera()) as (nvr, client):
        state = client.sdk.systemManager.getSystemState()
        camera = nvr.catalogue.cameras[0]
        porch = state[camera.device_id]
        assert {key: porch[key]["value"] for key in ("name", "room", "type", "nativeId")} == {
            "name": "Porch",
            "room": "Outside",
            "type": "Camera",
            "nativeId": "porch",
        }
        assert "VideoClips" in porch["interfaces"]["value"]
        with_clips = [
            key
            for key, device in state.items()
            if "VideoClips" in device.get("interfaces", {}).get("value", ())
        ]
        assert with_clips == [camera.device_id]
        assert any(not device.get("interfaces") for device in state.values())


async def test_unknown_device_is_none_and_a_removed_one_says_what_the_real_one_says() -> None:
    async with simulated(one_camera()) as (nvr, client):
        assert await client.sdk.api.getDeviceById("999") is None
        device = await client.device()
        nvr.catalogue.remove("porch")
        message = await refusal(device.getVideoClips({}))
        assert message == "target undefined does not have method getVideoClips"


@pytest.mark.parametrize("style", list(STYLES))
async def test_every_style_lists_and_serves(style: str) -> None:
    """As the official UI does it: the href, or else a local URL of the media object."""
    async with simulated(one_camera(style, clips=2)) as (nvr, client):
        clips = await client.list(startTime=0)
        truth = nvr.catalogue.clips("porch")
        assert [clip["id"] for clip in clips] == [clip.id for clip in truth]
        assert [clip["startTime"] for clip in clips] == [clip.start_ms for clip in truth]
        assert [clip["duration"] for clip in clips] == [10_000, 10_000]
        assert ("videoId" in clips[0]) == STYLES[style].video_id
        url = clips[1].get("resources", {}).get("video", {}).get("href")
        assert (url is not None) == (STYLES[style].href != "none")
        if url is None:
            url = await client.local_url("porch", clips[1].get("videoId") or clips[1]["id"])
        response, body = await client.get(url)
        assert response.status == 200
        if style == "ffmpeg":
            assert json.loads(body)["inputArguments"][0] == "-i"
            assert response.content_type == "x-scrypted/x-ffmpeg-input"
        else:
            assert body == truth[1].content.read()
            assert ("Content-Length" in response.headers) == (style != "stream")


@pytest.mark.parametrize("style", list(STYLES))
async def test_every_style_as_a_media_object(style: str) -> None:
    async with simulated(one_camera(style)) as (nvr, client):
        (listed,) = await client.list()
        clip = nvr.catalogue.clips("porch")[0]
        media = await (await client.device()).getVideoClip(listed["id"])
        assert media.sourceId == nvr.catalogue.cameras[0].device_id
        data = await media.getData()
        match STYLES[style].media:
            case "file":
                assert media.mimeType == "x-scrypted/x-scrypted-scheme-file"
                assert data == f"file:{clip.id}"
                url = await client.local_url("porch", clip.id)
                assert url.startswith(f"{nvr.settings.own_origin}/endpoint/8/public/")
                async with client.http.get(client.here(url)) as response:
                    assert response.status == 200
            case "local_uri" | "nvr_uri":
                assert media.mimeType == "text/x-local-uri"
                assert await client.local_url("porch", clip.id) == data
                async with client.http.get(client.here(data)) as response:
                    assert response.status == 401
            case "url" | "other_origin":
                assert media.mimeType == "x-scrypted/x-scrypted-scheme-http"
                assert (await client.get(data))[1] == clip.content.read()
            case "request":
                assert media.mimeType == "x-scrypted/x-scrypted-request-media-object"
                assert await (await data()).getData() == clip.content.read()
            case "ffmpeg":
                assert media.mimeType == "x-scrypted/x-ffmpeg-input"
            case _:
                assert media.mimeType == "video/mp4"
                assert data == clip.content.read()


async def test_only_the_buffer_route_works_for_awkward_file_names() -> None:
    camera = SimCamera("Porch", style="file", awkward_names=True, clips=1)
    async with simulated(SimulatorSettings(cameras=(camera,))) as (nvr, client):
        (clip,) = nvr.catalogue.clips()
        url = await client.local_url("porch", clip.id)
        assert (await client.get(url))[0].status == 404
        media = await (await client.device()).getVideoClip(clip.id)
        manager = client.sdk.mediaManager
        assert await manager.convertMediaObjectToBuffer(media, "video/mp4") == clip.content.read()
        url = await manager.mediaManager.convertMediaObjectToLocalUrl(media, "video/mp4")
        assert (await client.get(url))[1] == clip.content.read()


async def test_published_files_need_no_login_but_are_gone_after_a_restart() -> None:
    async with Simulator(one_camera("file")) as nvr:
        async with connected(nvr) as client:
            url = client.here(await client.local_url("porch", nvr.catalogue.clips()[0].id))
        async with http_session() as http:
            async with http.get(url) as response:
                assert response.status == 200
            await nvr.restart()
            async with http.get(url) as response:
                assert response.status == 404


async def test_a_forgetful_plugin_wants_a_listing_first() -> None:
    async with Simulator(one_camera("href_external")) as nvr:
        clip = nvr.catalogue.clips()[0]
        async with connected(nvr) as client:
            device = await client.device()
            assert "clip not found" in await refusal(device.getVideoClip(clip.id))
            (listed,) = await client.list()
            await device.getVideoClip(clip.id)
        await nvr.restart()
        async with connected(nvr) as client:
            device = await client.device()
            assert "clip not found" in await refusal(device.getVideoClip(clip.id))
            old, new = listed, (await client.list())[0]
            await device.getVideoClip(clip.id)
            assert (await client.get(old["resources"]["video"]["href"]))[0].status == 403
            assert (await client.get(new["resources"]["video"]["href"]))[0].status == 200
        assert nvr.state.other_origin_authorizations == 2


async def test_the_other_origin_tells_whether_it_was_shown_a_token() -> None:
    async with simulated(one_camera("href_external")) as (nvr, client):
        (listed,) = await client.list()
        url = listed["resources"]["video"]["href"]
        assert not url.startswith(nvr.url)
        async with client.http.get(url) as response:
            await response.read()
        assert nvr.state.other_origin_authorizations == 0
        await client.get(url)
        assert nvr.state.other_origin_authorizations == 1
        assert [(body.origin, body.authorization) for body in nvr.served] == [
            ("other", False),
            ("other", True),
        ]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [("overlap", [0, 1, 2]), ("within", [1]), ("start", [1, 2]), ("none", [0, 1, 2, 3])],
)
async def test_which_filters_a_plugin_honours(filters: Any, expected: list[int]) -> None:
    camera = SimCamera("Porch", style="buffer", clips=0, filters=filters)
    async with simulated(SimulatorSettings(cameras=(camera,))) as (nvr, client):
        noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
        clips = [
            nvr.catalogue.add_clip("porch", start=noon + timedelta(seconds=s), seconds=10)
            for s in (-5, 20, 55, 300)
        ]
        window = {"startTime": to_ms(noon), "endTime": to_ms(noon) + 60_000}
        ids = [clip["id"] for clip in await client.list(**window)]
        assert ids == [clips[i].id for i in expected]
        limited = await client.list(**window, count=1)
        assert len(limited) == (1 if filters != "none" else 4)


async def test_cameras_that_say_less() -> None:
    cameras = (
        SimCamera("Porch", style="nvr", has_duration=False, clips=3),
        SimCamera("Garden", style="nvr", max_listed=2, clips=5),
    )
    async with simulated(SimulatorSettings(cameras=cameras)) as (nvr, client):
        assert all("duration" not in clip for clip in await client.list("porch"))
        ids = [clip["id"] for clip in await client.list("garden")]
        assert ids == [clip.id for clip in nvr.catalogue.clips("garden")[:2]]


async def test_twenty_thousand_clips_need_a_larger_message_limit() -> None:
    async with simulated(one_camera("nvr", clips=0)) as (nvr, client):
        nvr.catalogue.add_many("porch", 20_000)
        clips = await client.list()
        assert len({clip["id"] for clip in clips}) == 20_000
        assert len(json.dumps(clips)) > 4 * 1024**2
        assert max(clip["startTime"] + clip["duration"] for clip in clips) <= to_ms(nvr.clock.now())


# -- growing, renaming, re-adding --------------------------------------------------------------


async def test_a_growing_clip_of_the_nvr_has_a_new_id_and_the_old_one_still_works() -> None:
    async with simulated(one_camera("nvr", clips=0)) as (nvr, client):
        short = nvr.catalogue.add_clip("porch", seconds=10)
        (first,) = await client.list()
        long = nvr.catalogue.grow_clip(short, seconds=5)
        (second,) = await client.list()
        assert json.loads(first["id"]) == {"startTime": short.start_ms, "duration": 10_000}
        assert json.loads(second["id"]) == {"startTime": short.start_ms, "duration": 15_000}
        for listed, clip in ((first, short), (second, long)):
            assert (await client.get(listed["resources"]["video"]["href"]))[1] == (
                clip.content.read()
            )
        assert short.content.read() != long.content.read()


async def test_a_growing_clip_elsewhere_keeps_its_id_and_loses_its_old_bytes() -> None:
    async with simulated(one_camera("file", clips=0)) as (nvr, client):
        short = nvr.catalogue.add_clip("porch", seconds=10, size=10_000)
        long = nvr.catalogue.grow_clip(short, seconds=5, size=20_000)
        (listed,) = await client.list()
        assert listed["id"] == short.id == long.id
        assert listed["duration"] == 15_000
        url = await client.local_url("porch", listed["id"])
        assert (await client.get(url))[1] == long.content.read()


@pytest.mark.parametrize("style", ["nvr", "href"])
async def test_a_clip_that_grows_with_every_listing(style: str) -> None:
    async with simulated(one_camera(style)) as (nvr, client):
        nvr.faults.arm("growing_clip", times=2, seconds=5)
        listed = [(await client.list())[0] for _ in range(4)]
        assert [clip["duration"] for clip in listed] == [15_000, 20_000, 20_000, 20_000]
        assert len({clip["id"] for clip in listed}) == (2 if style == "nvr" else 1)
        hrefs = {clip["resources"]["video"]["href"] for clip in listed}
        assert len(hrefs) == (2 if style == "nvr" else 1)
        assert [(await client.get(href))[0].status for href in hrefs] == [200] * len(hrefs)


async def test_the_nvr_serves_only_its_own_clips() -> None:
    cameras = (SimCamera("Porch", style="href", clips=1), SimCamera("Garden", style="nvr", clips=1))
    async with simulated(SimulatorSettings(cameras=cameras)) as (nvr, client):
        garden, clip = nvr.catalogue.camera("garden"), nvr.catalogue.clips("porch")[0]
        porch = nvr.catalogue.camera("porch")
        path = nvr.state.nvr_path(garden, clip).replace(garden.device_id, porch.device_id)
        assert (await client.get(path))[0].status == 404


async def test_changes_reach_the_mirror_of_the_state() -> None:
    async with simulated(one_camera("file")) as (nvr, client):
        state = client.sdk.systemManager.getSystemState()
        first = nvr.catalogue.cameras[0].device_id
        nvr.catalogue.rename("porch", "Front door")
        async with asyncio.timeout(LIMIT):
            while state[first]["name"]["value"] != "Front door":
                await asyncio.sleep(0)
        gone = nvr.catalogue.remove("porch")
        async with asyncio.timeout(LIMIT):
            while first in state:
                await asyncio.sleep(0)
        back = nvr.catalogue.re_add(gone)
        assert back.device_id != first
        async with asyncio.timeout(LIMIT):
            while back.device_id not in state:
                await asyncio.sleep(0)
        assert state[back.device_id]["nativeId"] == {"value": "porch"}
        assert len(await client.list()) == 1


async def test_an_nvr_path_dies_with_the_device_id() -> None:
    async with simulated(one_camera("nvr")) as (nvr, client):
        href = (await client.list())[0]["resources"]["video"]["href"]
        nvr.catalogue.re_add(nvr.catalogue.remove("porch"))
        assert (await client.get(href))[0].status == 404
        href = (await client.list())[0]["resources"]["video"]["href"]
        assert (await client.get(href))[0].status == 200


async def test_two_cameras_of_one_name() -> None:
    cameras = (SimCamera("Porch", clips=1), SimCamera("Porch", clips=2))
    async with simulated(SimulatorSettings(cameras=cameras)) as (nvr, client):
        assert [c.native_id for c in nvr.catalogue.cameras] == ["porch", "porch-2"]
        assert (len(await client.list("porch")), len(await client.list("porch-2"))) == (1, 2)


async def test_a_new_clip_is_told_to_those_who_listen_to_the_device() -> None:
    async with simulated(one_camera("file", clips=0)) as (nvr, client):
        told: asyncio.Queue[Any] = asyncio.Queue()
        device_id = nvr.catalogue.cameras[0].device_id

        def heard(_source: Any, details: Any, _data: Any) -> None:
            told.put_nowait(details)

        client.sdk.systemManager.listenDevice(device_id, "VideoClips", heard)
        async with asyncio.timeout(LIMIT):
            while not any(call.method == "listenDevice" for call in nvr.calls):
                await asyncio.sleep(0)
            nvr.catalogue.add_clip("porch")
            assert (await told.get())["eventInterface"] == "VideoClips"


# -- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        "listing_duplicates",
        "listing_unsorted",
        "listing_no_duration",
        "listing_missing_fields",
        "listing_garbage",
        "listing_short",
        "empty_listing",
        "listing_not_a_list",
        "listing_outside",
    ],
)
async def test_distorted_listings(fault: str) -> None:
    async with simulated(one_camera("nvr", clips=5)) as (nvr, client):
        truth = [clip.id for clip in nvr.catalogue.clips()]
        third = nvr.catalogue.clips()[2]
        nvr.faults.arm(fault, camera="Porch")
        listing = await client.list(startTime=third.start_ms, endTime=third.end_ms)
        if fault in ("listing_outside", "listing_unsorted"):
            nvr.faults.arm(fault)
            whole = [clip["id"] for clip in await client.list()]
        match fault:
            case "listing_duplicates":
                assert [clip["id"] for clip in listing] == [third.id, third.id]
            case "listing_unsorted":
                assert sorted(whole) == sorted(truth) != whole
            case "listing_no_duration":
                assert "duration" not in listing[0]
            case "listing_missing_fields":
                assert {} in listing
                assert listing[0]["id"] == third.id
            case "listing_garbage":
                assert None in listing
                assert listing[0]["id"] == third.id
            case "listing_outside":
                assert [clip["id"] for clip in listing] == truth
            case "listing_not_a_list":
                assert listing is None
            case "empty_listing":
                assert listing == []
            case _:
                assert len(listing) == 1
        assert not nvr.faults.unexercised()
        assert [clip["id"] for clip in await client.list()] == truth


async def test_errors_of_plugins() -> None:
    async with simulated(one_camera("file")) as (nvr, client):
        device = await client.device()
        clip = nvr.catalogue.clips()[0]
        nvr.faults.arm("listing_error", message="the disk is gone")
        assert await refusal(device.getVideoClips({})) == "the disk is gone"
        nvr.faults.arm("clip_error", clip=clip.id)
        assert "could not open" in await refusal(device.getVideoClip(clip.id))
        nvr.faults.arm("plugin_dead", times=2)
        message = await refusal(device.getVideoClips({}))
        assert message == "RpcPeer has been killed (apply) getVideoClips"
        assert "(apply) getVideoClip" in await refusal(device.getVideoClip(clip.id))
        nvr.faults.arm("convert_error")
        assert "no converter" in await refusal(client.local_url("porch", clip.id))
        assert "clip not found" in await refusal(device.getVideoClip("nonsense"))
        assert not nvr.faults.unexercised()


async def test_slow_and_hanging_answers_do_not_hold_up_others() -> None:
    clock = VirtualClock()
    async with simulated(one_camera("file"), clock=clock) as (nvr, client):
        nvr.faults.arm("slow_listing", seconds=60)
        nvr.faults.arm("hang_clip")
        slow = asyncio.create_task(client.list())
        hanging = asyncio.create_task(client.local_url("porch", nvr.catalogue.clips()[0].id))
        async with asyncio.timeout(LIMIT):
            await nvr.faults.wait_happened("slow_listing")
            await nvr.faults.wait_happened("hang_clip")
            assert len(await client.list()) == 1
            assert not slow.done()
            assert not hanging.done()
            await clock.advance(60)
            assert len(await slow) == 1
            nvr.faults.release()
            assert "/public/" in await hanging


async def test_a_dropped_link_drops_and_another_comes_up() -> None:
    async with Simulator(one_camera("file")) as nvr:
        async with connected(nvr) as client:
            nvr.faults.arm("drop_link", on="getVideoClips")
            device = await client.device()
            call = asyncio.create_task(device.getVideoClips({}))
            await asyncio.wait_for(client.lost.wait(), LIMIT)
            assert nvr.links == 0
            call.cancel()
        async with connected(nvr) as client:
            assert nvr.links == 1
            assert len(await client.list()) == 1
        assert nvr.faults.happened("drop_link") == 1


async def test_a_black_hole_answers_nothing_and_keeps_the_connection() -> None:
    async with simulated(one_camera("file"), clock=VirtualClock()) as (nvr, client):
        nvr.faults.arm("black_hole")
        call = asyncio.create_task(client.list())
        async with asyncio.timeout(LIMIT):
            await nvr.faults.wait_happened("black_hole")
        calls = len(nvr.calls)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.sdk.api.getDeviceById("31")
        assert len(nvr.calls) == calls
        assert (client.transport.eio.state, nvr.links) == ("connected", 1)
        call.cancel()


async def test_a_black_hole_swallows_pings_too() -> None:
    """Without a heartbeat of its own a client notices nothing until the pings fail to come."""
    settings = one_camera("file", ping_interval=0.05, ping_timeout=1.0)
    async with simulated(settings) as (nvr, client):
        assert len(await client.list()) == 1
        nvr.faults.arm("black_hole")
        call = asyncio.create_task(client.list())
        await asyncio.wait_for(client.lost.wait(), LIMIT)
        assert nvr.faults.happened("black_hole") == 1
        call.cancel()


async def test_a_silent_and_a_refused_link() -> None:
    from scrypted_sdk import EioRpcTransport, ScryptedConnectionError, connect_scrypted_client

    async with Simulator(one_camera("file")) as nvr:
        loop = asyncio.get_running_loop()
        for fault, words in (("silent_link", "Timed out"), ("refuse_link", "connect failed")):
            nvr.faults.arm(fault)
            transport = EioRpcTransport(loop)
            transport.eio.handle_sigint = False
            with pytest.raises(ScryptedConnectionError, match=words):
                await connect_scrypted_client(
                    loop, nvr.url, "backup", "secret", transport=transport, timeout=0.2
                )
        assert not nvr.faults.unexercised()


async def test_a_restart_drops_links_refuses_and_comes_back_at_the_same_place() -> None:
    clock = VirtualClock()
    async with Simulator(one_camera("file"), clock=clock) as nvr:
        async with connected(nvr) as client:
            restarting = asyncio.create_task(nvr.restart(down=30))
            await asyncio.wait_for(client.lost.wait(), LIMIT)
            async with asyncio.timeout(LIMIT):
                while not clock.sleepers:
                    await asyncio.sleep(0)
            with pytest.raises(aiohttp.ClientConnectorError):
                await login(nvr, client.http)
            await clock.advance(30)
            async with asyncio.timeout(LIMIT):
                await restarting
        async with connected(nvr) as client:
            assert len(await client.list()) == 1
        assert nvr.restarts == 1


async def test_dropping_links_leaves_bodies_alone() -> None:
    async with simulated(one_camera("href", clip_size=1_000_000)) as (nvr, client):
        nvr.faults.arm("drop_link_in_body")
        url = (await client.list())[0]["resources"]["video"]["href"]
        assert (await client.get(url))[1] == nvr.catalogue.clips()[0].content.read()
        await asyncio.wait_for(client.lost.wait(), LIMIT)
        assert nvr.links == 0


async def test_over_tls() -> None:
    async with simulated(one_camera("nvr", tls=True)) as (nvr, client):
        url = (await client.list())[0]["resources"]["video"]["href"]
        assert (await client.get(url))[1] == nvr.catalogue.clips()[0].content.read()


async def test_calls_are_recorded() -> None:
    async with simulated(one_camera("file")) as (nvr, client):
        device_id = nvr.catalogue.cameras[0].device_id
        await client.local_url("porch", nvr.catalogue.clips()[0].id)
        assert [(call.method, call.device_id) for call in nvr.calls][-3:] == [
            ("getDeviceById", device_id),
            ("getVideoClip", device_id),
            ("convertMediaObject", ""),
        ]
