"""The source as a whole: what becomes of clips and cameras that change, go, or cannot be had."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from nvr_backup.errors import Blocked, Suspect, Transient, Unfit
from nvr_backup.model import Camera, Clip, Window
from nvr_backup.simulator import SimCamera
from nvr_backup.sources.scrypted import ScryptedSettings
from nvr_backup.sources.scrypted import source as source_module
from nvr_backup.sources.scrypted.source import FRESH_SECONDS, MOST_FRESH, TURN_SECONDS
from tests.sources.kit import bench, content, listed, received, source

STYLES_THAT_GROW = ["href", "nvr", "nvr_local", "file", "local_uri"]


# -- cameras -------------------------------------------------------------------------------------


async def test_every_device_with_clips_and_no_other_is_a_camera() -> None:
    async with bench(SimCamera("Porch"), SimCamera("Garden", style="nvr")) as b:
        found = await b.source.cameras()
        assert [(c.source, c.name) for c in found] == [("home", "Garden"), ("home", "Porch")]


async def test_patterns_choose() -> None:
    cameras = [SimCamera(name) for name in ("Porch", "Garden", "Garage")]
    async with bench(*cameras, include=("gar*",), exclude=("GARAGE",)) as b:
        assert [c.name for c in await b.source.cameras()] == ["Garden"]


async def test_two_cameras_of_one_name_do_not_mix_their_clips() -> None:
    async with bench(SimCamera("Door", clips=2), SimCamera("Door", clips=3)) as b:
        first, second = await b.source.cameras()
        assert first.id != second.id and first.name == second.name
        ids = {c.id: [x.id for x in await listed(b.source, c, b.window())] for c in (first, second)}
        for camera in (first, second):
            truth = b.nvr.catalogue.clips(camera.id.partition(":")[2])
            assert ids[camera.id] == [c.id for c in truth]


async def test_a_camera_added_again_is_the_same_and_its_clips_can_be_had() -> None:
    async with bench(SimCamera("Porch", style="nvr"), SimCamera("Garden")) as b:
        clip, truth = await b.one()
        gone = b.nvr.catalogue.remove("Porch")
        b.nvr.catalogue.re_add(gone)
        assert (await b.camera()).id == clip.camera.id
        assert await content(b.source, clip) == truth
        assert clip in await listed(b.source, clip.camera, b.window())


async def test_a_camera_that_is_gone_does_not_look_like_an_empty_one() -> None:
    async with bench(SimCamera("Porch"), SimCamera("Garden")) as b:
        clip, _ = await b.one()
        b.nvr.catalogue.remove("Porch")
        await b.source.cameras()
        with pytest.raises(Transient, match="not at the NVR"):
            await listed(b.source, clip.camera, b.window())
        with pytest.raises(Unfit, match="no longer at the NVR"):
            await content(b.source, clip)


async def test_a_camera_whose_plugin_starts_is_waited_for() -> None:
    async with bench() as b:
        clip, _ = await b.one()
        link = await b.source._reconnect.link()
        device_id = b.nvr.catalogue.camera("Porch").device_id
        link._mirror.devices[device_id]["interfaces"] = {"value": ["Camera"]}
        with pytest.raises(Transient, match="offers no clips"):
            await listed(b.source, clip.camera, b.window())


# -- listings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("filters", ["overlap", "within", "start", "none"])
async def test_whatever_a_plugin_filters_the_window_is_ours(filters: Any) -> None:
    camera = SimCamera("Porch", clips=0, filters=filters, clip_seconds=60)
    async with bench(camera) as b:
        begin = b.clock.now() - timedelta(hours=12)
        end = b.clock.now() - timedelta(hours=1)
        inside = [
            begin - timedelta(seconds=30),  # straddles the window's start
            begin + timedelta(hours=5) - timedelta(seconds=30),  # and a border between questions
            begin + timedelta(hours=5),
            begin + timedelta(hours=7),
            end - timedelta(seconds=30),  # and the window's end
        ]
        outside = [begin - timedelta(seconds=61), end, end + timedelta(minutes=10)]
        truth = [b.nvr.catalogue.add_clip("Porch", start=start) for start in inside + outside]
        clips = await b.clips(window=Window(begin, end))
        assert [c.id for c in clips] == [c.id for c in truth[: len(inside)]]
        assert b.called("getVideoClips") == 3


@pytest.mark.parametrize(
    "fault, lost",
    [
        ("listing_outside", 0),
        ("listing_duplicates", 0),
        ("listing_unsorted", 0),
        ("listing_no_duration", 0),
        ("listing_missing_fields", 4),
        ("listing_garbage", 13),
    ],
)
async def test_an_odd_listing_still_has_every_clip_once(fault: str, lost: int) -> None:
    async with bench() as b:
        recent = Window(b.clock.now() - timedelta(hours=5), b.clock.now())
        hours = [timedelta(hours=h) for h in (1, 2, 3)]
        truth = [b.nvr.catalogue.add_clip("Porch", start=recent.start + h) for h in hours]
        b.nvr.faults.arm(fault)
        clips = await b.clips(window=recent)
        known = {c.id for c in b.nvr.catalogue.clips("Porch")}
        assert {c.id for c in truth} <= {c.id for c in clips}
        assert [c.start for c in clips] == sorted(c.start for c in clips)
        ours = [c.id for c in clips if c.id in known]
        assert len(ours) == len(set(ours))
        assert b.source.left_out == {clips[0].camera.id: lost}
        assert not b.nvr.faults.unexercised()


@pytest.mark.parametrize(
    "fault", ["listing_error", "listing_not_a_list", "plugin_dead", "drop_link"]
)
@pytest.mark.parametrize("skip", [0, 2])
async def test_a_listing_that_fails_anywhere_fails(fault: str, skip: int) -> None:
    async with bench() as b:
        camera = await b.camera()
        options: dict[str, Any] = {"on": "getVideoClips"} if fault == "drop_link" else {}
        b.nvr.faults.arm(fault, skip=skip, **options)
        with pytest.raises(Transient):
            await listed(b.source, camera, b.window())
        assert not b.nvr.faults.unexercised()
        assert len(await listed(b.source, camera, b.window())) == 3


async def test_a_day_of_twenty_thousand_clips() -> None:
    async with bench(SimCamera("Porch", clips=0)) as b:
        b.nvr.catalogue.add_many("Porch", 20_000)
        clips = await b.clips(window=b.window(24))
        assert [c.id for c in clips] == [c.id for c in b.nvr.catalogue.clips("Porch")]
        assert len(b.source._entries) == MOST_FRESH


async def test_an_empty_window_asks_nothing_and_one_from_the_beginning_of_time_is_no_error() -> (
    None
):
    async with bench() as b:
        camera, now = await b.camera(), b.clock.now()
        assert await listed(b.source, camera, Window(now, now)) == []
        assert await listed(b.source, camera, Window(now, now - timedelta(hours=1))) == []
        assert b.called("getVideoClips") == 0


async def test_one_listing_at_a_time() -> None:
    async with bench(SimCamera("Porch"), SimCamera("Garden")) as b:
        first, second = await b.source.cameras()
        b.nvr.faults.arm("hang_listing")
        one = asyncio.create_task(listed(b.source, first, b.window(1)))
        await b.nvr.faults.wait_happened("hang_listing")
        other = asyncio.create_task(listed(b.source, second, b.window(1)))
        await b.clock.settle()
        assert b.called("getVideoClips") == 1
        b.nvr.faults.release()
        await asyncio.gather(one, other)
        assert b.called("getVideoClips") == 2


async def test_a_listing_that_hangs_does_not_hold_up_the_clips_of_others() -> None:
    async with bench(SimCamera("Porch"), SimCamera("Garden")) as b:
        clip, truth = await b.one("Garden")
        await b.clock.advance(FRESH_SECONDS)
        b.nvr.faults.arm("hang_listing", camera="Porch")
        one = asyncio.create_task(listed(b.source, await b.camera("Porch"), b.window(1)))
        await b.nvr.faults.wait_happened("hang_listing")
        before = b.called("getVideoClips")
        looking = asyncio.create_task(content(b.source, clip))
        await b.clock.until_asleep()
        assert b.called("getVideoClips") == before
        await b.clock.advance(TURN_SECONDS)
        assert await looking == truth
        b.nvr.faults.release()
        await one


async def test_a_clip_is_looked_for_after_a_listing_that_goes_on() -> None:
    async with bench(SimCamera("Porch"), SimCamera("Garden")) as b:
        clip, truth = await b.one("Garden")
        await b.clock.advance(FRESH_SECONDS)
        b.nvr.faults.arm("hang_listing", camera="Porch")
        one = asyncio.create_task(listed(b.source, await b.camera("Porch"), b.window(1)))
        await b.nvr.faults.wait_happened("hang_listing")
        before = b.called("getVideoClips")
        looking = asyncio.create_task(content(b.source, clip))
        await b.clock.until_asleep()
        given_up = asyncio.create_task(content(b.source, clip))
        await b.clock.until_asleep(2)
        given_up.cancel()
        await asyncio.wait([given_up])
        assert b.called("getVideoClips") == before
        b.nvr.faults.release()
        await one
        assert await looking == truth
        assert await b.clips("Porch")  # the turn is free


async def test_the_clips_of_half_an_hour_are_looked_up_together() -> None:
    async with bench(SimCamera("Porch", clips=0, style="file")) as b:
        start = b.clock.now() - timedelta(hours=3)
        for minute in range(0, 25, 5):
            b.nvr.catalogue.add_clip("Porch", start=start + timedelta(minutes=minute))
        clips = await b.clips()
        await b.clock.advance(FRESH_SECONDS)
        before = b.called("getVideoClips")
        for clip in clips:
            await content(b.source, clip)
        assert b.called("getVideoClips") == before + 1


async def test_a_listing_left_half_way_blocks_nobody() -> None:
    async with bench() as b:
        clips = b.source.clips(await b.camera(), b.window())
        await anext(clips)
        assert len(await b.clips()) == 3


# -- opening: what is remembered -----------------------------------------------------------------


async def test_a_clip_just_listed_is_fetched_without_another_listing() -> None:
    async with bench(SimCamera("Porch", style="href")) as b:
        clip, truth = await b.one()
        before = b.called("getVideoClips")
        assert await content(b.source, clip) == truth
        assert b.called("getVideoClips") == before
        await b.clock.advance(FRESH_SECONDS)
        assert await content(b.source, clip) == truth
        assert b.called("getVideoClips") == before + 1


@pytest.mark.parametrize("style", ["href", "href_external", "file", "nvr", "nvr_local", "request"])
async def test_a_clip_listed_before_a_restart_of_ours_and_of_the_nvrs(style: str) -> None:
    async with bench(SimCamera("Porch", style=style)) as b:
        clip, truth = await b.one()
        await b.nvr.restart()
        await b.clock.settle()
        other = ScryptedSettings("home", b.nvr.url, "backup", "secret")
        async with source(other, b.clock) as opened:
            assert await content(opened, clip) == truth


@pytest.mark.parametrize("style", ["href_external", "external_url", "href"])
async def test_an_address_outdated_by_a_restart_is_asked_for_anew(style: str) -> None:
    async with bench(SimCamera("Porch", style=style)) as b:
        clip, truth = await b.one()
        await b.nvr.restart()
        while (await b.source._reconnect.link()).alive is False or b.nvr.links != 1:
            await asyncio.sleep(0)
        assert await content(b.source, clip) == truth


@pytest.mark.parametrize("style", STYLES_THAT_GROW)
@pytest.mark.parametrize("fresh", [True, False])
async def test_a_clip_that_has_grown_is_still_the_same_clip(style: str, fresh: bool) -> None:
    async with bench(SimCamera("Porch", style=style)) as b:
        clip, truth = await b.one()
        grown = b.nvr.catalogue.grow_clip(b.nvr.catalogue.clips("Porch")[-1], seconds=7)
        if not fresh:
            await b.clock.advance(FRESH_SECONDS)
        got = await content(b.source, clip)
        # What was planned may still be had in the NVR's styles; afterwards it is the whole clip.
        assert got in ([truth, grown.content.read()] if fresh else [grown.content.read()])


async def test_a_clip_that_has_grown_by_hours_is_found() -> None:
    async with bench(SimCamera("Porch", style="nvr", filters="within")) as b:
        start = b.clock.now() - timedelta(hours=4)
        first = b.nvr.catalogue.add_clip("Porch", start=start, seconds=10)
        clip = next(c for c in await b.clips() if c.id == first.id)
        grown = b.nvr.catalogue.grow_clip(first, seconds=3 * 3600)
        await b.clock.advance(FRESH_SECONDS)
        assert await content(b.source, clip) == grown.content.read()


# -- opening: what cannot be had -----------------------------------------------------------------


@pytest.mark.parametrize("style", ["href", "file", "nvr", "href_external", "buffer"])
@pytest.mark.parametrize("fresh", [True, False])
async def test_a_clip_that_retention_took_is_unfit(style: str, fresh: bool) -> None:
    async with bench(SimCamera("Porch", style=style)) as b:
        clips = await b.clips()
        b.nvr.catalogue.remove_clip(b.nvr.catalogue.clips("Porch")[0])
        b.nvr.catalogue.add_clip("Porch")
        if not fresh:
            await b.clock.advance(FRESH_SECONDS)
        with pytest.raises(Unfit, match="gone at the NVR"):
            await content(b.source, clips[0])


@pytest.mark.parametrize("style", ["href", "file", "nvr"])
async def test_without_any_other_clip_in_sight_nothing_is_declared_gone(style: str) -> None:
    async with bench(SimCamera("Porch", style=style, clips=1)) as b:
        clip, _ = await b.one()
        b.nvr.catalogue.remove_clip(b.nvr.catalogue.clips("Porch")[0])
        with pytest.raises(Transient) as caught:
            await content(b.source, clip)
        assert type(caught.value) is Transient


async def test_a_listing_that_swallows_an_error_does_not_hide_a_clip() -> None:
    async with bench() as b:
        clip, truth = await b.one()
        await b.clock.advance(FRESH_SECONDS)
        b.nvr.faults.arm("empty_listing", times=3)
        assert await content(b.source, clip) == truth
        assert not b.nvr.faults.unexercised()


@pytest.mark.parametrize("style", ["href", "file", "buffer"])
async def test_a_clip_that_is_listed_but_not_served_takes_patience(style: str) -> None:
    async with bench(SimCamera("Porch", style=style)) as b:
        clip, truth = await b.one()
        b.nvr.faults.arm("not_found", times=2)
        with pytest.raises(Suspect, match="listed by the NVR, but it is not served"):
            await content(b.source, clip)
        assert not b.nvr.faults.unexercised()
        assert await content(b.source, clip) == truth


@pytest.mark.parametrize(
    "fault, times",
    [("plugin_dead", 2), ("plugin_dead", None), ("server_error", 1)],
)
@pytest.mark.parametrize("style", ["href", "file"])
async def test_a_plugin_that_died_is_waited_for(fault: str, times: int | None, style: str) -> None:
    async with bench(SimCamera("Porch", style=style)) as b:
        clip, truth = await b.one()
        b.nvr.faults.arm(fault, times=times)
        with pytest.raises(Transient) as caught:
            await content(b.source, clip)
        assert type(caught.value) is Transient
        b.nvr.faults.disarm()
        assert await content(b.source, clip) == truth


async def test_a_plugin_that_dies_between_listing_and_fetching_is_waited_for() -> None:
    async with bench(SimCamera("Porch", style="file")) as b:
        clip, _ = await b.one()
        message = "RpcPeer has been killed (apply) getVideoClip"
        b.nvr.faults.arm("clip_error", times=2, message=message)
        with pytest.raises(Transient, match="plugin died") as caught:
            await content(b.source, clip)
        assert type(caught.value) is Transient
        assert not b.nvr.faults.unexercised()


async def test_a_plugin_that_cannot_open_the_clip_takes_patience_and_says_why() -> None:
    async with bench(SimCamera("Porch", style="file")) as b:
        clip, _ = await b.one()
        b.nvr.faults.arm("clip_error", times=2, message="disk\x1b[31m unplugged")
        with pytest.raises(Suspect, match="unplugged") as caught:
            await content(b.source, clip)
        assert caught.value.message.isprintable()


async def test_an_unreachable_nvr_blocks() -> None:
    async with bench(SimCamera("Porch", style="href")) as b:
        clip, truth = await b.one()
        down = asyncio.create_task(b.nvr.restart(down=1000))
        await b.clock.until_asleep(1)
        with pytest.raises(Blocked, match="cannot be reached"):
            await content(b.source, clip)
        with pytest.raises(Blocked, match="cannot be reached"):
            await b.source.cameras()
        await b.clock.advance(1000)
        await down
        assert await content(b.source, clip) == truth


# -- opening: the rest ---------------------------------------------------------------------------


async def test_a_link_lost_during_a_body_does_not_touch_the_body() -> None:
    async with bench(SimCamera("Porch", style="href", clip_size=600_000)) as b:
        clip, truth = await b.one()
        b.nvr.faults.arm("drop_link_in_body")
        assert await content(b.source, clip) == truth
        assert not b.nvr.faults.unexercised()


async def test_a_cancelled_body_leaves_the_source_usable() -> None:
    async with bench(SimCamera("Porch", style="buffer", clip_size=600_000)) as b:
        clip, truth = await b.one()
        for _ in range(3):
            b.nvr.faults.arm("stall_body")
            task = asyncio.create_task(content(b.source, clip))
            await b.nvr.faults.wait_happened("stall_body", b.nvr.faults.happened("stall_body") + 1)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        b.nvr.faults.release()
        assert await content(b.source, clip) == truth


@pytest.mark.parametrize("awaits", range(0, 60, 4))
async def test_being_cancelled_at_any_moment_of_opening(awaits: int) -> None:
    async with bench(SimCamera("Porch", style="buffer", clip_size=50_000)) as b:
        clip, truth = await b.one()
        await b.clock.advance(FRESH_SECONDS)
        task = asyncio.create_task(content(b.source, clip))
        for _ in range(awaits):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert await content(b.source, clip) == truth


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "MOST_FRESH", 5)
    async with bench(SimCamera("Porch", clips=20)) as b:
        await b.clips()
        assert len(b.source._entries) == 5


async def test_no_address_is_in_an_error_or_a_repr() -> None:
    async with bench(SimCamera("Porch", style="href_external", clips=2)) as b:
        clip, _ = await b.one()
        b.nvr.faults.arm("server_error")
        with pytest.raises(Transient) as caught:
            await content(b.source, clip)
        cause: BaseException | None = caught.value
        while cause is not None:
            assert "signature" not in str(cause)
            cause = cause.__cause__ or cause.__context__
        assert "signature" not in repr(b.source._entries)


async def test_a_clip_of_a_camera_never_seen_is_no_crash() -> None:
    async with bench() as b:
        stranger = Clip(Camera("home", "@x:y", "Stranger"), "id", b.clock.now())
        with pytest.raises(Unfit):
            await content(b.source, stranger)


async def test_offsets_by_style() -> None:
    async with bench(SimCamera("File", style="file"), SimCamera("Stream", style="stream")) as b:
        for name, granted in (("File", 1000), ("Stream", 0)):
            clip, truth = await b.one(name)
            async with b.source.open(clip, offset=1000) as body:
                assert body.offset == granted
                assert body.size == (None if name == "Stream" else len(truth))
                assert await received(body) == truth[granted:]
