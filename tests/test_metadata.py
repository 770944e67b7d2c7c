"""What an object says of its clip: enough to know it again, and never too much."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvr_backup.metadata import LONGEST_VALUE, clip_of, describe, kept_id, names_same_clip
from nvr_backup.model import Camera, Clip
from tests.support.fakes import EPOCH

GCS_LIMIT_BYTES = 8 * 1024  # all custom metadata of one object
MS = timedelta(milliseconds=1)

CLIP = Clip(
    Camera("home", "17", "Tür"),
    '{"startTime":1767225600123}',
    EPOCH + 123 * MS,
    EPOCH + 12 * timedelta(seconds=1) + 7 * MS,
    ("motion", "person"),
)


def test_an_object_says_which_clip_it_is() -> None:
    assert describe(CLIP) == {
        "source": "home",
        "camera-id": "17",
        "camera-name": "Tür",
        "clip-id": '{"startTime":1767225600123}',
        "start": "2026-01-01T00:00:00.123Z",
        "end": "2026-01-01T00:00:12.007Z",
        "classes": '["motion", "person"]',
    }
    assert describe(replace(CLIP, end=None))["end"] == ""


@pytest.mark.parametrize(
    "same",
    [
        CLIP,
        replace(CLIP, camera=replace(CLIP.camera, name="Front Door")),
        replace(CLIP, classes=("car",)),
    ],
    ids=["itself", "renamed camera", "other classes"],
)
def test_a_clip_is_known_again_by_its_object(same: Clip) -> None:
    assert names_same_clip(describe(CLIP), same)


@pytest.mark.parametrize(
    "other",
    [
        replace(CLIP, camera=replace(CLIP.camera, source="cabin")),
        replace(CLIP, camera=replace(CLIP.camera, id="18")),
        replace(CLIP, id="another"),
        replace(CLIP, start=CLIP.start + MS),
        replace(CLIP, end=CLIP.start + 2 * MS),
        replace(CLIP, end=None),
    ],
    ids=["source", "camera", "id", "start", "end", "no end"],
)
def test_another_clip_is_never_taken_for_it(other: Clip) -> None:
    assert not names_same_clip(describe(CLIP), other)
    assert not names_same_clip(describe(other), CLIP)


@pytest.mark.parametrize("field", ["source", "camera-id", "clip-id", "start", "end"])
def test_an_object_that_says_too_little_is_nobodys(field: str) -> None:
    metadata = describe(CLIP)
    del metadata[field]
    assert not names_same_clip(metadata, CLIP)
    assert not names_same_clip({}, CLIP)


TEXT = st.text(max_size=1500)


@given(camera=TEXT, name=TEXT, clip=TEXT, classes=st.lists(TEXT, max_size=4))
def test_whatever_a_recorder_says_fits_into_an_object(
    camera: str, name: str, clip: str, classes: list[str]
) -> None:
    said = describe(Clip(Camera("home", camera, name), clip, EPOCH, None, tuple(classes)))
    sizes = [len(key) + len(value.encode("utf-8")) for key, value in said.items()]
    assert sum(sizes) <= GCS_LIMIT_BYTES
    assert max(len(value.encode("utf-8")) for value in said.values()) <= LONGEST_VALUE


@pytest.mark.parametrize("letter", ["x", "ü", "漢"])
def test_an_id_is_kept_as_it_is_up_to_the_limit_in_bytes(letter: str) -> None:
    fits = letter * (LONGEST_VALUE // len(letter.encode()))
    fits += "x" * (LONGEST_VALUE - len(fits.encode()))
    assert describe(replace(CLIP, id=fits))["clip-id"] == fits
    assert describe(replace(CLIP, id=fits + "x"))["clip-id"] != fits + "x"


def test_long_ids_that_differ_only_at_their_end_stay_apart() -> None:
    first, second = (replace(CLIP, id="x" * 5000 + end) for end in "ab")
    assert names_same_clip(describe(first), first)
    assert not names_same_clip(describe(first), second)


# -- read back: an object without a checkpoint ------------------------------------------------

moments = st.integers(0, 4 * 10**12).map(lambda ms: EPOCH + ms % 10**11 * MS)


@given(
    camera=TEXT.filter(bool),
    name=TEXT,
    clip=TEXT,
    classes=st.lists(st.text(max_size=20), max_size=4),
    start=moments,
    length=st.none() | st.integers(0, 10**7),
)
def test_what_an_object_says_is_the_clip_it_was_made_from(
    camera: str, name: str, clip: str, classes: list[str], start: datetime, length: int | None
) -> None:
    end = None if length is None else start + length * MS
    made = Clip(Camera("home", camera, name), clip, start, end, tuple(classes))
    said = clip_of(describe(made))
    if describe(made)["camera-id"] != camera:
        assert said is None  # the hash of a camera's id is no camera
        return
    assert said is not None
    assert (said.start, said.end, said.camera.source, said.camera.id) == (
        start,
        end,
        "home",
        camera,
    )
    assert said.id == kept_id(clip)
    assert names_same_clip(describe(made), said)
    if len(clip.encode()) <= LONGEST_VALUE and len(name.encode()) <= LONGEST_VALUE:
        assert said == replace(made, classes=said.classes)
    if sum(len(one.encode()) + 10 for one in classes) < 500:
        assert said.classes == tuple(classes)


@pytest.mark.parametrize(
    "change",
    [
        *(
            {field: None}
            for field in ("source", "camera-id", "camera-name", "clip-id", "start", "end")
        ),
        {"source": ""},
        {"camera-id": ""},
        {"camera-id": "sha256:" + "0" * 64},
        {"start": "yesterday"},
        {"start": ""},
        {"start": "2026-01-01T00:00:00"},
        {"start": "2026-01-01T00:00:00+01:00"},
        {"end": "2025-01-01T00:00:00Z"},
        {"clip-id": "\ud800"},
    ],
    ids=str,
)
def test_an_object_that_does_not_say_it_plainly_is_nobodys(change: dict[str, str | None]) -> None:
    metadata = {**describe(CLIP), **change}
    assert clip_of({key: value for key, value in metadata.items() if value is not None}) is None


@given(
    st.dictionaries(
        st.sampled_from([*describe(CLIP), "x"]), TEXT | st.sampled_from([*describe(CLIP).values()])
    )
)
def test_no_metadata_is_an_error(metadata: dict[str, str]) -> None:
    said = clip_of(metadata)
    if said is not None:
        assert (said.camera.source, said.id) == (metadata["source"], metadata["clip-id"])


@pytest.mark.parametrize("text", ["", "[", "{}", '"x"', "sha256:0", "[" * 100_000])
def test_classes_that_cannot_be_read_are_none(text: str) -> None:
    said = clip_of({**describe(CLIP), "classes": text})
    assert said == replace(CLIP, classes=())
