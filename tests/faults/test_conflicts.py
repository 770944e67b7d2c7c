"""Keys that are taken, refusals that stay, bodies that are no videos: what becomes of the clip.

Nobody's object is ever replaced; what is given up is given up by name and comes back by `retry`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import Counted
from tests.faults.conftest import Rigs
from tests.faults.rig import CHUNK, KINDS, RANGED, SIX, STREAM, Filmed, Kind, Rig, rig
from tests.process.parts import call

pytestmark = [pytest.mark.process, pytest.mark.long]

SMALL = CHUNK - 1000
CREATE = "storage.objects.create"
EVERYTHING = [f"storage.objects.{what}" for what in ("create", "delete", "get", "list", "update")]
TEXT = "Somebody else's, and none of our business."


def stored_as(rig: Rig, clip: Filmed) -> str:
    """The key under which a clip is stored at last, whatever it was planned to be."""

    def done() -> bool:
        rows = rig.ask(
            "SELECT state FROM copy JOIN clip ON clip.id = clip WHERE source_id = ?", clip.id
        )
        rig.nudge()
        return rows == [("stored",)]

    rig.until(done, f"{clip} stored")
    (key,) = rig.keys_of(clip.id)
    return key


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [SMALL, SIX])
def test_an_object_of_somebody_else_is_left_alone(
    rigs: Rigs, kind: Kind, size: int, counted: Counted
) -> None:
    rig = rigs(kind)
    clip = rig.film(size=size)
    rig.place(clip.key, TEXT)
    other = stored_as(rig, clip)
    assert other != clip.key
    rig.settled(truth={other: rig.truth()[clip.key]})
    counted("fault cases")


@pytest.mark.parametrize("size", [SMALL, SIX])
def test_an_object_of_somebody_else_that_may_not_be_looked_at(
    rigs: Rigs, size: int, counted: Counted
) -> None:
    rig = rigs("gcs")
    assert rig.store is not None
    clip = rig.film(size=size)
    rig.place(clip.key, TEXT)
    call(f"{rig.store.url}/_double/permissions", {"permissions": [CREATE]})
    other = stored_as(rig, clip)
    call(f"{rig.store.url}/_double/permissions", {"permissions": EVERYTHING})
    assert other != clip.key
    assert 403 in [seen["status"] for seen in rig.journal() if seen["where"] == "get"]
    rig.settled(truth={other: rig.truth()[clip.key]})
    counted("fault cases")


@pytest.mark.parametrize("where", ["single", "last"])
def test_a_lost_answer_without_permission_to_look(rigs: Rigs, where: str, counted: Counted) -> None:
    """The object is ours, and nobody else's can be under its key: not sent again, not doubted."""
    rig = rigs("gcs")
    assert rig.store is not None
    call(f"{rig.store.url}/_double/permissions", {"permissions": [CREATE]})
    rig.store_fault(where, "Reset", at="after")
    clip = rig.film(size=SMALL if where == "single" else SIX)
    rig.settle()
    call(f"{rig.store.url}/_double/permissions", {"permissions": EVERYTHING})
    assert rig.store_faults_happened()
    rig.until(lambda: rig.said("clip stored"), "said")
    (line,) = rig.said("clip stored")
    assert line["key"] == clip.key
    assert line["verified"] is (where == "last")
    rig.settled()
    counted("fault cases")


@pytest.mark.parametrize("where", ["initiate", "chunk", "query", "last", "single"])
@pytest.mark.parametrize("what", ["Status", "Reset"])
def test_trouble_without_end_is_a_bounded_failure(
    rigs: Rigs, where: str, what: str, counted: Counted
) -> None:
    """So many tries for one step and no more; then the clip waits, and is stored afterwards."""
    rig = rigs("gcs")
    assert rig.store is not None
    options = {"code": 503} if what == "Status" else {"at": "before"}
    if where == "query":
        rig.store_fault("chunk", "Status", code=503)
    rig.store_fault(where, what, times=None, **options)
    rig.film(size=SMALL if where == "single" else SIX)
    rig.nudge(at_once=True)
    given_up = ("clip failed", "blocked")
    rig.until(lambda: any(map(rig.said, given_up)), "given up")
    tried = sum(1 for seen in rig.journal() if what in seen["fault"])
    assert 5 <= tried <= 60
    assert rig.store_faults_happened()
    rig.end_store_faults()
    rig.settle()
    rig.settled(told={"clip failed": (0, 3), "blocked": (0, 1)})
    counted("fault cases")


@pytest.mark.parametrize("where", ["initiate", "chunk", "last", "single"])
def test_what_the_store_will_not_take_is_set_aside_and_brought_back(
    rigs: Rigs, where: str, counted: Counted
) -> None:
    rig = rigs("gcs")
    rig.store_fault(where, "Status", code=413, message="Too much.")
    clip = rig.film(size=SMALL if where == "single" else SIX)
    rig.film(STREAM, size=SMALL)
    set_aside_and_retried(rig, clip, "Too much.")
    assert rig.store_faults_happened()
    rig.settled(told={"clip set aside": 1})
    counted("fault cases")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 1])
def test_a_body_that_is_no_video_every_time(
    rigs: Rigs, kind: Kind, size: int, counted: Counted
) -> None:
    """Ten times the same finding, and the clip is set aside; nothing of it is in the store."""
    rig = rigs(kind)
    clip = rig.film(STREAM)
    if size:
        rig.fault("early_end", times=10, clip=clip.id, at_bytes=size)
    else:
        rig.fault("empty_body", times=10, clip=clip.id)
    other = rig.film(RANGED)
    set_aside_and_retried(rig, clip, "")
    assert rig.happened("early_end" if size else "empty_body") == [10]
    assert rig.states([other.key]) == {other.key: "stored"}
    rig.settled(told={"clip failed": (5, 9), "camera rests": (1, 9), "clip set aside": 1})
    counted("fault cases")


def set_aside_and_retried(rig: Rig, clip: Filmed, reason: str) -> None:
    """Until it is listed as set aside, with its reason; then it is tried again by hand."""
    rig.nudge(at_once=True)
    rig.until(lambda: rig.said("clip set aside"), "set aside")
    assert reason in rig.said("clip set aside")[0]["reason"]
    assert clip.key not in rig.stored()
    assert rig.backup.command("retry", clip.id).returncode == 0
    rig.settle()


@pytest.mark.parametrize("kind", KINDS)
def test_an_older_checkpoint_and_none_at_all(tmp_path: Path, kind: Kind, counted: Counted) -> None:
    """What was stored since is found in the store under its key, by its metadata; nothing twice."""
    with rig(kind, tmp_path) as made:
        made.begin()
        for camera in (RANGED, STREAM):
            made.film(camera, size=SMALL)
            made.film(camera, size=SIX)
        made.settle()
        state, older = tmp_path / "state", tmp_path / "older"
        made.stop()
        shutil.copytree(state, older)
        made.start().until_said("cycle finished")
        for camera in (RANGED, STREAM):
            made.film(camera, size=SMALL)
            made.film(camera, size=SIX)
        made.settle()
        before = identities(made)
        for put_back in (older, None):
            made.stop()
            shutil.rmtree(state)
            if put_back is not None:
                shutil.copytree(put_back, state)
            made.start()
            made.settle()
            assert identities(made) == before
        made.settled()
    counted("fault cases", 2)


def identities(rig: Rig) -> dict[str, object]:
    """What tells one object from another that has its place."""
    if rig.store is not None:
        return {name: held["generation"] for name, held in rig.store.objects().items()}
    paths = [path for path in rig.backup.footage.rglob("*.mp4") if path.is_file()]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def test_a_token_that_dies_in_the_middle_of_a_clip(rigs: Rigs, counted: Counted) -> None:
    """A new one is fetched, and what was sent so far is not sent again."""
    rig = rigs("gcs")
    assert rig.store is not None
    rig.store_fault("chunk", "Delay", nth=3, seconds=0.5)
    clip = rig.film()
    rig.nudge(at_once=True)
    rig.until(rig.store_faults_happened, "a chunk on its way")
    assert call(f"{rig.store.url}/_double/expire-tokens", {})["tokens"]
    rig.settle()
    asked = [seen for seen in rig.journal() if seen["where"] == "token"]
    refused = [seen for seen in rig.journal() if seen["status"] == 401]
    assert len(asked) == 1
    assert refused
    sent = sum(s["body_bytes"] for s in rig.journal() if s["where"] in {"chunk", "last"})
    assert sent <= clip.size + CHUNK
    rig.settled()
    counted("fault cases")


@pytest.mark.parametrize("where", ["chunk", "single"])
def test_the_store_asks_for_patience(rigs: Rigs, where: str, counted: Counted) -> None:
    rig = rigs("gcs")
    rig.store_fault(where, "Status", code=503, retry_after="1")
    rig.film(size=SMALL if where == "single" else SIX)
    rig.settle()
    assert rig.store_faults_happened()
    rig.until(lambda: rig.said("clip stored"), "said")
    assert rig.said("clip stored")[0]["seconds"] >= 1
    rig.settled()
    counted("fault cases")


def test_a_store_that_forgets_some_of_what_it_confirmed(tmp_path: Path, counted: Counted) -> None:
    with rig("gcs", tmp_path, double=("--keep", "all")) as made:
        for hit, nth in (("chunk", 4), ("last", 1)):
            made.begin()
            made.store_fault(hit, "Backwards", nth=nth, to=CHUNK)
            made.film()
            made.settle()
            assert made.store_faults_happened()
            made.settled()
    counted("fault cases", 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * 1024 * 1024 + 12345])
def test_clips_of_every_size(rigs: Rigs, kind: Kind, size: int, counted: Counted) -> None:
    """With a length and Range, and without, both broken off once at the last byte but one."""
    rig = rigs(kind)
    for camera in (RANGED, STREAM):
        clip = rig.film(camera, size=size)
        rig.fault("cut_body", clip=clip.id, at_bytes=size - 1)
    rig.settle()
    assert rig.happened("cut_body") == [2]
    rig.settled(told={"clip failed": 2})
    counted("fault cases", 2)
