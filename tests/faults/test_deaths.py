"""`kill -9` in the middle of a clip: how it goes on, what is read and sent again, what was harmed.

The clip is held at a byte by the recorder, or not at all, so that the death may fall anywhere. The
long one is of 32 MiB here and comes slowly; LONG_CLIP_BYTES=2147483648 makes it 2 GiB.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Counted
from tests.faults.conftest import Rigs
from tests.faults.rig import CHUNK, KINDS, RANGED, SIX, STREAM, Filmed, Kind, Rig, rig

pytestmark = [pytest.mark.process, pytest.mark.long]

HELD_AT = 3 * CHUNK + 100
DEATHS = 5
LONG = int(os.environ.get("LONG_CLIP_BYTES", str(32 * 1024 * 1024)))
LONG_CHUNK = 8 * 1024 * 1024 if LONG >= 1 << 30 else CHUNK


def confirmed(rig: Rig, clip: Filmed) -> int:
    """How far the clip's upload has come, by the checkpoint."""
    rows = rig.ask(
        "SELECT max(offset_bytes) FROM upload JOIN copy ON copy.id = upload.copy"
        " JOIN clip ON clip.id = copy.clip WHERE source_id = ?",
        clip.id,
    )
    return int(rows[0][0] or 0) if rows else 0


def killed_when_held(rig: Rig, camera: str) -> Filmed:
    """A clip of which three chunks are stored, and a daemon that died at this moment."""
    clip = rig.film(camera, size=SIX)
    rig.fault("stall_body", clip=clip.id, at_bytes=HELD_AT)
    rig.nudge(at_once=True)
    rig.until(lambda: confirmed(rig, clip) == 3 * CHUNK, "three chunks")
    assert rig.stop(signal.SIGKILL) == -signal.SIGKILL
    assert rig.happened("stall_body") == [1]
    rig.nvr.do("release")
    return clip


def served(rig: Rig, clip: Filmed) -> list[dict[str, Any]]:
    return [body for body in rig.nvr.ask("served") if body["clip_id"] == clip.id]


def sent(rig: Rig) -> int:
    """Bytes of chunks that the double has received, by its own journal."""
    return sum(s["body_bytes"] for s in rig.journal() if s["where"] in {"chunk", "last"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("camera", [RANGED, STREAM])
def test_what_is_read_again_after_a_death(
    rigs: Rigs, kind: Kind, camera: str, counted: Counted
) -> None:
    """With Range from the missing byte on; without it all, of which the first part is proof."""
    rig = rigs(kind)
    clip = killed_when_held(rig, camera)
    rig.start()
    rig.settle()
    first, second = served(rig, clip)
    proof = 256  # bytes, so that it is seen to be the same clip
    wanted = 3 * CHUNK - proof if camera == RANGED else 0
    assert (first["offset"], second["offset"]) == (0, wanted)
    assert second["complete"]
    if kind == "gcs":
        assert clip.size <= sent(rig) <= clip.size + CHUNK
    rig.settled()
    counted("fault cases")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("camera", "how"),
    [(STREAM, "longer"), (STREAM, "another byte"), (RANGED, "longer"), (RANGED, "larger")],
)
def test_a_clip_that_changed_meanwhile_begins_anew(
    rigs: Rigs, kind: Kind, camera: str, how: str, counted: Counted
) -> None:
    """Also where only the rest of it is asked for: no clip is put together from two."""
    rig = rigs(kind)
    clip = killed_when_held(rig, camera)
    if how != "another byte":
        size = SIX + (30_000 if how == "larger" else 0)
        rig.nvr.do("grow", camera=clip.camera, clip=clip.id, seconds=5, size=size)
    else:
        rig.fault("wrong_bytes", clip=clip.id, at_bytes=2 * CHUNK)
    rig.start()
    truth = None
    if how != "another byte":
        truth = stored_versions(rig, clip)
    else:
        rig.settle()
        assert rig.happened("wrong_bytes") == [1]
        assert [body["offset"] for body in served(rig, clip)] == [0, 0, 0]
    rig.settled(truth=truth)
    counted("fault cases")


def stored_versions(rig: Rig, clip: Filmed) -> dict[str, str]:
    """What there is of a clip that has grown on its way: twice the whole longer one.

    Once under the key that was begun, once as a version of its own: better twice than not at all.
    """
    stem = clip.key.removesuffix(".mp4")

    def stored() -> dict[str, str]:
        rig.nudge()
        return {key: sha for key, sha in rig.stored().items() if key.startswith(stem)}

    rig.until(lambda: len(stored()) == 2, "the longer version")
    assert set(stored().values()) == {rig.truth()[clip.key]}
    return stored()


Harm = Callable[[Path], object]


def other_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(CHUNK + 5)
        byte = file.read(1)
        file.seek(CHUNK + 5)
        file.write(bytes([byte[0] ^ 0xFF]))


def shorter(path: Path) -> None:
    os.truncate(path, CHUNK + 5)


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"not of this clip" * 1000)


def all_zeros(path: Path) -> None:
    """As some file systems leave it after a power cut."""
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, size)


HARMS = (other_byte, shorter, longer, all_zeros, Path.unlink)


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("camera", [RANGED, STREAM])
def test_a_partial_file_that_was_harmed_meanwhile(
    rigs: Rigs, camera: str, harm: Harm, counted: Counted
) -> None:
    rig = rigs("directory")
    killed_when_held(rig, camera)
    (path,) = (rig.backup.footage / ".nvr-backup" / "partial").iterdir()
    harm(path)
    rig.start()
    rig.settle()
    rig.settled()
    counted("fault cases")


@pytest.mark.parametrize("status", [404, 410, 499])
def test_a_session_that_was_lost_meanwhile(rigs: Rigs, status: int, counted: Counted) -> None:
    rig = rigs("gcs")
    killed_when_held(rig, RANGED)
    rig.lose_sessions(status)
    rig.start()
    rig.settle()
    rig.settled()
    counted("fault cases")


@pytest.mark.parametrize("where", ["single", "last"])
def test_a_death_between_the_finished_object_and_its_record(
    rigs: Rigs, where: str, counted: Counted
) -> None:
    """The store has it, the answer never came: it is found, verified, and not sent again."""
    rig = rigs("gcs")
    rig.store_fault(where, "Delay", seconds=0.7)
    clip = rig.film(size=CHUNK - 1000 if where == "single" else SIX)
    rig.nudge(at_once=True)
    rig.until(lambda: clip.key in rig.stored(), "finished")
    assert rig.stop(signal.SIGKILL) == -signal.SIGKILL
    rig.start()
    rig.settle()
    assert rig.store_faults_happened()
    assert len([seen for seen in rig.journal() if seen["where"] == where]) == 1
    rig.settled()
    counted("fault cases")


@pytest.mark.parametrize(("kind", "camera"), [("gcs", RANGED), ("directory", STREAM)])
def test_five_deaths_in_one_long_clip(
    tmp_path: Path, kind: Kind, camera: str, counted: Counted, record_property: Any
) -> None:
    """Wherever they fall: identical in the end, and at most a chunk for each is sent again."""
    transfer = {"chunk_size": f"{LONG_CHUNK // 1024}KiB", "workers": 1}
    chance = random.Random(f"{kind}{camera}")
    with rig(kind, tmp_path, tables={"transfer": transfer}) as made:
        made.begin()
        clip = made.film(camera, size=LONG)
        if LONG < 1 << 30:
            made.fault("slow_body", clip=clip.id, times=DEATHS + 1, seconds=0.01)
        made.nudge(at_once=True)
        before = 0
        for death in range(1, DEATHS + 1):
            least = before + LONG // (2 * DEATHS) + chance.randrange(LONG_CHUNK)
            made.until(partial(lambda least: confirmed(made, clip) >= least, least), "so much")
            assert made.stop(signal.SIGKILL) == -signal.SIGKILL
            now = confirmed(made, clip)
            assert before < now < clip.size, death
            before = now
            made.start()
        made.settle()
        offsets = [body["offset"] for body in served(made, clip)]
        assert len(offsets) == DEATHS + 1
        assert all(offsets[1:]) if camera == RANGED else not any(offsets)
        if kind == "gcs":
            again = sent(made) - clip.size
            record_property("sent again", again)
            print(f"{again:,} bytes of {clip.size:,} were sent again after {DEATHS} deaths")
            assert 0 <= again <= DEATHS * LONG_CHUNK
        made.settled()
    counted("fault cases", DEATHS)
