"""File names of restored clips: sorted as it happened, one for each clip, the same every time."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from nvr_backup.footage import Holding, Place
from nvr_backup.keys import safe_name
from nvr_backup.layout import LONGEST_FOLDER, lay_out
from nvr_backup.model import Camera, Clip
from tests.support.fakes import EPOCH, clip_at


def holding(clip: Clip, key: str = "a/b.mp4") -> Holding:
    return Holding(clip, (Place("nas", key, 1, 1, None, "store"),))


def paths(*clips: Clip) -> list[str]:
    return [target.path for target in lay_out([holding(clip) for clip in clips])]


def camera(id_: str, name: str, source: str = "home") -> Camera:
    return Camera(source, id_, name)


def test_a_folder_for_each_camera_and_names_in_utc() -> None:
    found = lay_out(
        [
            holding(clip_at(0)),
            holding(clip_at(61, camera=camera("2", "Hof/..\n ä"))),
            holding(clip_at(62), "x/y.mkv"),
            holding(clip_at(63), "no-extension"),
        ]
    )
    assert [one.path for one in found] == [
        "Porch/2026-01-01_00-00-00Z.mp4",
        "Hof_._ ä/2026-01-01_01-01-00Z.mp4",
        "Porch/2026-01-01_01-02-00Z.mkv",
        "Porch/2026-01-01_01-03-00Z.mp4",
    ]


def test_clips_of_one_second_are_kept_apart_the_longest_first() -> None:
    short, long = clip_at(0, seconds=5, id="a"), clip_at(0, seconds=9, id="a")
    other = replace(clip_at(0, seconds=5, id="b"), start=EPOCH + timedelta(milliseconds=900))
    found = paths(short, long, other)
    assert len(set(found)) == 3
    assert found[1] == "Porch/2026-01-01_00-00-00Z.mp4"
    assert found[0].startswith("Porch/2026-01-01_00-00-00Z_")
    assert paths(other, long, short) == found[::-1]
    assert found[1] == min(found)


def test_cameras_of_one_name_have_folders_of_their_own() -> None:
    names = [camera("1", "Door"), camera("2", "DOOR"), camera("1", "Door", "barn")]
    folders = {path.split("/")[0] for path in paths(*(clip_at(0, camera=one) for one in names))}
    assert len({folder.casefold() for folder in folders}) == 3


def test_a_renamed_camera_is_one_and_one_told_by_its_key_alone_joins_it() -> None:
    old, new = clip_at(0, camera=camera("1", "Door")), clip_at(1, camera=camera("1", "Gate"))
    loose = clip_at(2, camera=camera("", "gate", ""))
    assert {path.split("/")[0] for path in paths(old, new, loose)} == {"Gate"}


def test_an_unusable_name_becomes_one() -> None:
    found = paths(clip_at(0, camera=camera("1", "...")), clip_at(0, camera=camera("2", "x" * 500)))
    assert found[0].startswith("camera ")
    assert len(found[1].split("/")[0]) == LONGEST_FOLDER


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Door", "door", "Door ", "", "Tür", "../x"]),
            st.sampled_from(["", "1", "2"]),
            st.integers(0, 2000),
            st.sampled_from([None, 0, 5]),
            st.sampled_from(["a", "b"]),
        ),
        max_size=12,
        unique_by=lambda one: (one[1] or one[0], *one[2:]),
    )
)
def test_no_two_clips_share_a_name_and_all_are_safe(
    drawn: list[tuple[str, str, int, int | None, str]],
) -> None:
    clips = []
    for name, id_, ms, seconds, clip_id in drawn:
        start = EPOCH + timedelta(milliseconds=ms)
        end = None if seconds is None else start + timedelta(seconds=seconds)
        clips.append(Clip(camera(id_, name), clip_id, start, end))
    clips.sort(key=lambda c: c.start)
    found = paths(*clips)
    assert len({path.casefold() for path in found}) == len(found)
    for path in found:
        folder, _, file = path.partition("/")
        assert folder == safe_name(folder)
        assert file == safe_name(file)
    by_folder: dict[str, list[str]] = {}
    for path in found:  # the order of the clips is that of the names, to the second
        by_folder.setdefault(path.split("/")[0], []).append(path.split("/")[1][:19])
    assert all(names == sorted(names) for names in by_folder.values())
