"""The folder of restored footage: nothing is replaced, nothing outside touched, no half a clip."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import pytest

from nvr_backup import arriving
from nvr_backup.arriving import Found, Part, Unwritable
from nvr_backup.landing import Landing
from tests.support.fakes import EPOCH, mp4

NAME = "2026-01-01_00-00-00Z.mp4"
DATA = mp4(100_000)
RIGHT = (len(DATA), google_crc32c.value(DATA))


@pytest.fixture
def landing(tmp_path: Path) -> Iterator[Landing]:
    made = Landing(tmp_path / "deep" / "out")
    made.open()
    yield made
    made.close()


def part(landing: Landing, *, inspected: bool = False, token: str = "00000001") -> Part:
    return landing.part("Porch", NAME, token, inspected=inspected)


def names(landing: Landing) -> set[str]:
    return {path.relative_to(landing.path).as_posix() for path in landing.path.rglob("*.*")}


def test_a_file_appears_whole_and_dated(landing: Landing) -> None:
    on_its_way = part(landing)
    on_its_way.append([DATA[:10], DATA[10:]])
    assert names(landing) == {f"Porch/{NAME}.00000001.part"}
    assert on_its_way.finish(EPOCH) is Found.NOTHING
    on_its_way.close()
    assert names(landing) == {f"Porch/{NAME}"}
    assert (landing.path / "Porch" / NAME).read_bytes() == DATA
    assert on_its_way.sum.sha256.hexdigest() == hashlib.sha256(DATA).hexdigest()
    what, found = landing.compare("Porch", NAME, {RIGHT}, EPOCH)
    assert (what, found.crc32c) == (Found.SAME, RIGHT[1])


@pytest.mark.parametrize("links", [True, False])
def test_what_has_the_name_stays(
    landing: Landing, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:  # a file system without hard links

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    for content, expected in ((DATA, Found.NOTHING), (DATA, Found.SAME), (DATA[::-1], Found.OTHER)):
        on_its_way = part(landing)
        on_its_way.append([content])
        assert on_its_way.finish(EPOCH) is expected
        on_its_way.close()
        assert (landing.path / "Porch" / NAME).read_bytes() == DATA
    assert names(landing) == {f"Porch/{NAME}", f"Porch/{NAME}.00000001.part"}


def test_a_part_goes_on_with_what_is_on_the_disk(landing: Landing) -> None:
    first = part(landing)
    first.append([DATA[:777]])
    first.close()
    second = part(landing)
    assert second.size == 777
    second.append([DATA[777:]])
    assert (second.sum.size, second.sum.crc32c) == RIGHT
    second.restart()
    assert second.size == 0
    second.append([DATA])
    second.finish(EPOCH)
    second.close()
    assert (landing.path / "Porch" / NAME).read_bytes() == DATA


def test_a_part_that_is_no_video_begins_anew(landing: Landing) -> None:
    first = part(landing)
    first.append([b"<html>" + DATA])
    first.close()
    second = part(landing, inspected=True)
    assert second.size == 0
    second.append([DATA])
    assert second.sum.verdict() == ""
    second.finish(EPOCH)
    second.close()
    assert (landing.path / "Porch" / NAME).read_bytes() == DATA


def test_what_was_damaged_is_kept_once_under_a_name_that_says_so(landing: Landing) -> None:
    for content in (b"bad", b"worse"):
        on_its_way = part(landing)
        assert on_its_way.keep_damaged(EPOCH) is None
        on_its_way.append([content])
        on_its_way.set_aside()
        assert on_its_way.size == 0
        kept = on_its_way.keep_damaged(EPOCH)
        on_its_way.close()
        assert kept == "2026-01-01_00-00-00Z.damaged.mp4"
        assert names(landing) == {f"Porch/{kept}"}
        assert (landing.path / "Porch" / kept).read_bytes() == b"bad"


def test_an_empty_part_leaves_nothing(landing: Landing) -> None:
    part(landing).close()
    assert names(landing) == set()


@pytest.mark.parametrize(
    ("content", "wanted", "expected"),
    [
        (DATA, {RIGHT}, Found.SAME),
        (DATA, {(1, 1), RIGHT}, Found.SAME),
        (DATA, {(len(DATA), 5)}, Found.OTHER),
        (DATA[:-1], {RIGHT}, Found.OTHER),
        (DATA, {(len(DATA), None)}, Found.OTHER),  # not of the clip's time: not ours
        (None, {RIGHT}, Found.NOTHING),
    ],
)
def test_a_file_is_judged_by_its_bytes(
    landing: Landing,
    content: bytes | None,
    wanted: set[tuple[int, int | None]],
    expected: Found,
) -> None:
    if content is not None:
        (landing.path / "Porch").mkdir()
        (landing.path / "Porch" / NAME).write_bytes(content)
    assert landing.compare("Porch", NAME, wanted, EPOCH)[0] is expected


def test_without_a_checksum_the_clips_time_tells_a_whole_file(landing: Landing) -> None:
    on_its_way = part(landing)
    on_its_way.append([DATA])
    on_its_way.finish(EPOCH)
    on_its_way.close()
    assert landing.compare("Porch", NAME, {(len(DATA), None)}, EPOCH)[0] is Found.SAME


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_what_is_no_file_is_another(landing: Landing, kind: str) -> None:
    path = landing.path / "Porch" / NAME
    path.parent.mkdir()
    if kind in {"link", "dangling"}:
        target = landing.path.parent / "target"
        if kind == "link":
            target.write_bytes(DATA)
        path.symlink_to(target)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    assert landing.compare("Porch", NAME, {RIGHT}, EPOCH)[0] is Found.OTHER
    on_its_way = part(landing)
    on_its_way.append([DATA])
    assert on_its_way.finish(EPOCH) is Found.OTHER
    on_its_way.close()


def test_one_restore_at_a_time(landing: Landing) -> None:
    with pytest.raises(Unwritable, match="Another restore"):
        Landing(landing.path).open()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    for path in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(Unwritable):
            Landing(path).open()


def test_a_small_file_is_written_whole_or_not_at_all(
    landing: Landing, monkeypatch: pytest.MonkeyPatch
) -> None:
    (landing.path / "m.json.part").symlink_to(landing.path.parent / "elsewhere")
    landing.write_new("m.json", [b"a", b"b"])
    assert (landing.path / "m.json").read_bytes() == b"ab"
    assert not (landing.path.parent / "elsewhere").exists()
    with pytest.raises(FileExistsError):
        landing.write_new("m.json", [b"c"])
    assert (landing.path / "m.json").read_bytes() == b"ab"

    def full(_file: int, _content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("nvr_backup.landing.write", full)
    with pytest.raises(Unwritable, match="is full"):
        landing.write_new("n.json", [b"c"])
    assert not landing.has("n.json")


def test_short_writes_of_the_system_lose_nothing(
    landing: Landing, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, content: write(file, bytes(content)[:1000]))
    on_its_way = part(landing)
    on_its_way.append([DATA])
    monkeypatch.undo()
    on_its_way.finish(EPOCH)
    on_its_way.close()
    assert (landing.path / "Porch" / NAME).read_bytes() == DATA


def test_no_descriptor_is_left_open(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = len(os.listdir("/proc/self/fd"))
    on_its_way = part(landing)
    on_its_way.append([b"bad"])
    on_its_way.set_aside()
    on_its_way.keep_damaged(EPOCH)
    on_its_way.close()
    monkeypatch.setattr(arriving, "summed", broken)
    with pytest.raises(Unwritable):
        part(landing)
    assert len(os.listdir("/proc/self/fd")) == before
