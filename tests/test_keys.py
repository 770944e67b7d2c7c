"""Object keys: safe for any name, bounded, stable, and distinct for distinct clips."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvr_backup.keys import (
    DEFAULT_TEMPLATE,
    MAX_PREFIX_BYTES,
    PLACEHOLDERS,
    RESERVED,
    candidates,
    check_prefix,
    check_template,
    day_of,
    object_key,
    safe_name,
    spellings,
    start_of,
    told_by,
    with_extension,
)
from nvr_backup.model import Camera, Clip

NOON = datetime(2024, 5, 1, 12, 0, 0, tzinfo=UTC)

# sha256 of ["home", "9", "c1", 1714564800000, 1714564830000] as JSON, its first eight digits
GOLDEN = "Porch/2024/05/01/12-00-00_f94cf9ca.mp4"

TEMPLATES = [
    DEFAULT_TEMPLATE,
    "{source}/{cameraName}-{cameraId}/{yyyy}-{MM}-{dd}/{HH}{mm}{ss}.mp4",
    "{cameraName}/{yyyy}/{MM}/{dd}/{HH-mm-ss}_{clipId}.mp4",
    "{clipId}{cameraId}.mp4",
]

ANY = st.characters(exclude_categories=())
NASTY = st.sampled_from(
    [
        *'./\\ <>:"|?*#[]\x00\n\r\x7f\x85\u200b\u202e\u2066\ufeff\ud800\udfff\u0301\u0338\u00e9e',
        *"\u212b\u1100\u1161\u11a8\u0958\U0001f469\u200d\u3164\ufffe\U0001fffe\u2028\u00a0\u3000",
        *"\U000e0001\u0344",
        "..",
    ]
)
names = st.one_of(
    st.text(ANY),
    st.lists(NASTY).map("".join),
    st.text(ANY, min_size=60, max_size=120),
    st.lists(NASTY, min_size=60, max_size=90).map("".join),
    st.sampled_from(["", ".", "..", "../../etc/passwd", ".well-known/acme-challenge/x", "CON"]),
)
times = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(  # noqa: DTZ001
    lambda naive: naive.replace(microsecond=naive.microsecond // 1000 * 1000, tzinfo=UTC)
)
texts = names.map(lambda name: name.encode("utf-8", "replace").decode())  # as `model` demands
clips = st.builds(
    Clip,
    st.builds(Camera, st.sampled_from(["home", "front-door_2"]), texts, texts),
    texts,
    times,
)


def clip(
    name: str = "Porch", *, clip_id: str = "c1", camera_id: str = "9", seconds: float | None = 30
) -> Clip:
    end = None if seconds is None else NOON + timedelta(seconds=seconds)
    return Clip(Camera("home", camera_id, name), clip_id, NOON, end)


def assert_safe(key: str) -> None:
    """What every store and share takes: written from their rules, not from the code."""
    assert 1 <= len(key.encode("utf-8")) <= 1024 - MAX_PREFIX_BYTES
    assert unicodedata.is_normalized("NFC", key)
    assert not key.startswith(("/", ".well-known/acme-challenge/"))
    parts = key.split("/")
    assert list(PurePosixPath(key).parts) == parts
    for part in parts:
        assert part not in ("", ".", "..")
        assert len(part.encode("utf-8")) <= 200
        assert not part.startswith((".", " "))
        assert not part.endswith((".", " "))
        assert not set(part) & set('\\<>:"|?*#[]')
        for character in part:
            assert unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}, part


def test_the_default_key() -> None:
    assert object_key(DEFAULT_TEMPLATE, clip()) == "Porch/2024/05/01/12-00-00.mp4"


def test_every_placeholder() -> None:
    start = datetime(987, 6, 5, 4, 3, 2, tzinfo=UTC)
    given_clip = Clip(Camera("home", "42", "Front Door"), "id/7", start)
    expected = {
        "source": "home",
        "cameraName": "Front Door",
        "cameraId": "42",
        "clipId": "id_7",
        "yyyy": "0987",
        "MM": "06",
        "dd": "05",
        "HH": "04",
        "mm": "03",
        "ss": "02",
        "HH-mm-ss": "04-03-02",
    }
    assert set(expected) == set(PLACEHOLDERS)
    for name, text in expected.items():
        assert object_key(f"x{{{name}}}.mp4", given_clip) == f"x{text}.mp4"


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("Porch", "Porch"),
        ("Küche 2. Stock", "Küche 2. Stock"),
        ("Ku\u0308che", "Küche"),
        ("前門", "前門"),
        ("a/b\\c", "a_b_c"),
        ("../../etc/passwd", "_._etc_passwd"),
        ("..", ""),
        (" .hidden. ", "hidden"),
        ('Cam <1>: "x"|?*#[]', "Cam _1__ _x_______"),
        ("a\x00b\nc", "a_b_c"),
        ("ev\u202eil\u200b\ufeff", "evil"),
        ("e\u200b\u0301", "é"),
        ("half \ud800 pair", "half _ pair"),
        ("no\u00a0break\u3000wide", "no break wide"),
        ("\u3164", ""),
        ("x" * 300, "x" * 200),
        ("é" * 150, "é" * 100),
        ("x" + "é" * 150, "x" + "é" * 99),
        ("x" * 198 + "q\u0323\u0323", "x" * 198),  # q with its marks, or nothing of it
    ],
)
def test_safe_name(name: str, safe: str) -> None:
    assert safe_name(name) == safe


@given(names)
def test_safe_name_again_changes_nothing(name: str) -> None:
    once = safe_name(name)
    assert safe_name(once) == once
    if once:
        assert_safe(once)


def test_no_character_becomes_a_dangerous_one() -> None:
    moving = [
        chr(point)
        for point in range(0x110000)
        if unicodedata.normalize("NFC", chr(point)) != chr(point)
    ]
    assert len(moving) > 1000
    for character in moving:
        assert_safe("x" + safe_name(f"a{character}b"))


@given(clips, st.sampled_from(TEMPLATES))
def test_keys_are_safe_and_deterministic(one: Clip, template: str) -> None:
    assert check_template(template) == template
    keys = list(candidates(template, one))
    assert keys == list(candidates(template, one))
    assert keys[0] == object_key(template, one)
    assert len(keys) == len(set(keys)) == 4
    for key in keys:
        assert_safe(key)
        assert key.endswith(".mp4")
        for extension in (".mkv", ".webm", ".ts"):
            other = with_extension(key, extension)
            assert_safe(other)
            assert other == key[: -len(".mp4")] + extension


@given(st.lists(clips, min_size=2, max_size=4), st.sampled_from(TEMPLATES))
def test_distinct_clips_find_distinct_keys(some: list[Clip], template: str) -> None:
    same_second = [Clip(Camera("home", c.camera.id, "Porch"), c.id, NOON) for c in some]
    taken: set[str] = set()
    for one in dict.fromkeys(same_second):
        free = next(key for key in candidates(template, one) if key not in taken)
        taken.add(free)
    assert len(taken) == len(set(same_second))


@pytest.mark.parametrize(
    "other",
    [
        clip(clip_id="c2"),
        clip(camera_id="10"),
        clip(seconds=31),
        clip(seconds=None),
        Clip(Camera("cabin", "9", "Porch"), "c1", NOON, NOON + timedelta(seconds=30)),
        Clip(
            Camera("home", "9", "Porch"),
            "c1",
            NOON + timedelta(milliseconds=1),
            NOON + timedelta(seconds=30),
        ),
    ],
)
def test_each_part_of_the_identity_counts(other: Clip) -> None:
    plain, *hashed = candidates(DEFAULT_TEMPLATE, clip())
    other_plain, *other_hashed = candidates(DEFAULT_TEMPLATE, other)
    assert plain == other_plain
    assert not set(hashed) & set(other_hashed)


def test_candidates_stay_what_they_are() -> None:
    """The hash is part of stored names: this text must hold in every release."""
    assert list(candidates(DEFAULT_TEMPLATE, clip()))[1] == GOLDEN


def test_a_rename_does_not_change_the_hash() -> None:
    renamed = list(candidates(DEFAULT_TEMPLATE, clip("Veranda")))[1]
    assert renamed == GOLDEN.replace("Porch", "Veranda")


def test_a_nameless_camera_is_called_by_its_id() -> None:
    first = object_key(DEFAULT_TEMPLATE, clip("...", camera_id="9"))
    second = object_key(DEFAULT_TEMPLATE, clip("\u200b", camera_id="10"))
    assert first.startswith("camera-")
    assert second.startswith("camera-")
    assert first != second


def test_long_ids_that_differ_at_their_end_stay_distinct() -> None:
    keys = {object_key("{clipId}.mp4", clip(clip_id="/media/" + "x" * 200 + end)) for end in "ab"}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{camera}/{clipId}.mp4", "{camera} is not a placeholder"),
        ("{cameraName}/{clipId.mp4", "brace"),
        ("{cameraName}/{clipId}}.mp4", "brace"),
        ("{cameraName}/{clipId}", "end in .mp4"),
        ("{cameraName}.mp4", "tell clips apart"),
        ("{cameraName}/{HH-mm-ss}.mp4", "tell clips apart"),
        ("{yyyy}{MM}{dd}{HH}{mm}.mp4", "tell clips apart"),
        ("/{clipId}.mp4", "relative"),
        ("a//{clipId}.mp4", "empty part"),
        ("../{clipId}.mp4", "dot"),
        ("./{clipId}.mp4", "dot"),
        (".well-known/acme-challenge/{clipId}.mp4", "dot"),
        ("{cameraName}../{clipId}.mp4", "dot"),
        ("a /{clipId}.mp4", "not safe"),
        ("a:b/{clipId}.mp4", "not safe"),
        ("a\\{clipId}.mp4", "not safe"),
        ("e\u0301/{clipId}.mp4", "not safe"),
        ("{clipId}{clipId}{clipId}{cameraName}.mp4", "a part of"),
        ("/".join(["{cameraName}"] * 9) + "/{clipId}.mp4", "a key of"),
        ("", "end in .mp4"),
    ],
)
def test_bad_templates_say_why(template: str, says: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        check_template(template)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("prefix", "result"), [("", ""), ("a", "a/"), ("a/", "a/"), ("a/b c", "a/b c/")]
)
def test_prefixes(prefix: str, result: str) -> None:
    assert check_prefix(prefix) == result
    assert check_prefix(result) == result


@pytest.mark.parametrize("prefix", ["/", "/a", "a//", "a//b", "..", "a/../b", "a\n", "x" * 200])
def test_bad_prefixes(prefix: str) -> None:
    with pytest.raises(ValueError, match="the prefix"):
        check_prefix(prefix)


def test_with_extension() -> None:
    assert with_extension("a.ts/b.mp4", ".mkv") == "a.ts/b.mkv"
    assert with_extension("a/b.mkv", ".mkv") == "a/b.mkv"
    assert with_extension("a/b", ".mp4") == "a/b.mp4"
    for bad in ("mkv", ".", ".a/b", ".MP4", ""):
        with pytest.raises(ValueError, match="extension"):
            with_extension("a.mp4", bad)


def test_an_unchecked_template_is_refused() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        object_key("{nonsense}.mp4", clip())


# -- read back: a key without its clip --------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES[:3])
@given(
    st.builds(
        Clip,
        st.builds(Camera, st.sampled_from(["home", "front-door_2"]), texts, texts),
        texts,
        st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 30)).map(  # noqa: DTZ001
            lambda naive: naive.replace(microsecond=0, tzinfo=UTC)
        ),
    )
)
def test_every_key_tells_its_day_and_its_second(template: str, made: Clip) -> None:
    for key in spellings(candidates(template, made)):
        if template == TEMPLATES[1] and not told_by(template, key):
            continue  # a camera's name with a dash can be read in two ways; never wrongly
        assert day_of(template, key) == made.start.date()
        assert start_of(template, key) == made.start


@pytest.mark.parametrize(
    "key",
    [
        "Porch/2024/05/01/12-00-00.mp4.txt",
        "Porch/2024/05/01/12-00-00.avi",
        "Porch/2024/05/12-00-00.mp4",
        "a/Porch/2024/05/01/12-00-00.mp4",
        "Porch/2024/02/30/12-00-00.mp4",
        "Porch/2024/5/01/12-00-00.mp4",
        "Porch/2024/05/01/12-00-00_f94cf9.mp4",
        "",
    ],
)
def test_a_key_of_another_making_tells_nothing(key: str) -> None:
    assert day_of(DEFAULT_TEMPLATE, key) is None
    assert start_of(DEFAULT_TEMPLATE, key) is None


def test_a_template_without_a_time_tells_none() -> None:
    assert day_of("{clipId}.mp4", "2024-05-01.mp4") is None
    template = "{yyyy}/{MM}/{dd}/{clipId}.mp4"
    assert day_of(template, "2024/05/01/x.mp4") == NOON.date()
    assert start_of(template, "2024/05/01/x.mp4") is None


def test_a_day_without_its_second_is_a_day() -> None:
    assert day_of(DEFAULT_TEMPLATE, "Porch/2024/05/01/99-00-00.mp4") == NOON.date()
    assert start_of(DEFAULT_TEMPLATE, "Porch/2024/05/01/99-00-00.mp4") is None


def test_every_container_s_key_is_a_spelling() -> None:
    found = list(spellings(["a/b.mp4", "c.mkv"]))
    assert found[0] == "a/b.mp4"
    assert {key for key in found if key.startswith("a/b")} == {
        f"a/b.{name}" for name in ("mp4", "mov", "mkv", "webm", "ts", "m2ts")
    }
    assert len(found) == len(set(found)) == 12


def test_no_template_leads_among_the_programs_own_keys() -> None:
    """A rebuild does not look there for clips."""
    assert check_prefix(RESERVED) == RESERVED  # it is safe as a key
    with pytest.raises(ValueError, match="its own"):
        check_template(f"{RESERVED}{DEFAULT_TEMPLATE}")
    assert check_template(f"x{RESERVED}{DEFAULT_TEMPLATE}")
