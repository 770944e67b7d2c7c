"""`clips`, `explain` and `retry`: finding single clips, their history, and another try."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing

import pytest

from nvr_backup import report
from nvr_backup.model import to_ms
from tests.cli.kit import GARDEN, Desk


def rows(desk: Desk, sql: str) -> list[tuple[object, ...]]:
    """What is on the disk, read by another connection."""
    with closing(sqlite3.connect(desk.state / "checkpoint.sqlite3")) as connection, connection:
        return connection.execute(sql).fetchall()


@pytest.fixture
def three(desk: Desk) -> Desk:
    """One clip stored, one set aside, one put off."""
    desk.clip(5)
    desk.store()
    desk.clip(4, GARDEN, id_='{"startTime": 1}')
    desk.set_aside("The clip is gone at the NVR.")
    desk.clip(3)
    desk.fail("No answer.")
    return desk


def test_all_clips_newest_first(three: Desk) -> None:
    found = three("clips", "--json").json
    assert [clip["state"] for clip in found] == ["waiting", "set-aside", "stored"]
    waiting, aside, stored = found
    assert waiting["reason"] == "No answer."
    assert waiting["attempts"] == 1
    assert waiting["not_before"] > waiting["planned"]
    assert aside["clip"] == '{"startTime": 1}'
    assert aside["not_before"] is None
    assert (stored["size"], stored["crc32c"], stored["verified"]) == (1_500_000, 7, True)
    assert stored["key"] == f"Porch/{to_ms(three.ago(5))}.mp4"


@pytest.mark.parametrize("state", ["waiting", "stored", "set-aside"])
def test_by_state(three: Desk, state: str) -> None:
    assert [clip["state"] for clip in three("clips", "--state", state, "--json").json] == [state]


@pytest.mark.parametrize("name", ["garden", "GARDEN", "plugin:garden"])
def test_by_camera_name_or_id_in_any_case(three: Desk, name: str) -> None:
    found = three("clips", "--camera", name, "--json").json
    assert [clip["camera"] for clip in found] == ["Garden"]


def test_an_unknown_camera_is_a_usage_error_that_names_those_there_are(three: Desk) -> None:
    answer = three("clips", "--camera", "Cellar")
    assert answer.code == 2
    assert "There are: Garden, Porch." in answer.err


def test_the_limit_is_told(three: Desk) -> None:
    answer = three("clips", "--limit", "2")
    assert "2 of 3 shown" in answer.err
    assert len(answer.out.splitlines()) == 1 + 2 + 2  # heading, clips, a reason below each


def test_lines_of_a_pipe_are_whole_and_have_no_blanks_at_their_end(three: Desk) -> None:
    out = three("clips").out
    assert "The clip is gone at the NVR." in out
    assert all(line == line.rstrip() for line in out.splitlines())


def test_nothing_on_record(desk: Desk) -> None:
    desk.cycle()
    answer = desk("clips")
    assert (answer.code, answer.out) == (0, "No such clip is on record.\n")
    assert desk("clips", "--json").json == []


def test_explain_finds_by_key_by_id_and_by_camera_and_time(three: Desk) -> None:
    at = three.ago(4)
    for name in (
        f"Garden/{to_ms(at)}.mp4",
        '{"startTime": 1}',
        f"garden@{at:%Y-%m-%dT%H:%M:%SZ}",
        f"Garden@{at:%Y-%m-%d %H:%M:%S}",
        f"Garden@{at:%Y-%m-%d %H:%M}",
        f"plugin:garden@{at:%Y-%m-%dT%H:%M:%S+00:00}",
    ):
        answer = three("explain", name)
        assert answer.code == 0, name
        assert "set aside: The clip is gone at the NVR." in answer.out, name


def test_a_time_within_the_clip_finds_it_and_one_outside_does_not(three: Desk) -> None:
    start = to_ms(three.ago(4)) / 1000
    for offset, code in ((-1, 1), (0, 0), (19, 0), (20, 1)):
        moment = f"{three.ago(4).fromtimestamp(start + offset):%Y-%m-%dT%H:%M:%SZ}"
        assert three("explain", f"Garden@{moment}").code == code, offset


def test_explain_tells_the_history_in_order(desk: Desk) -> None:
    clip = desk.clip(5)
    desk.fail("No answer.")
    desk.fail("Still none.")
    desk.store()
    [found] = desk("explain", clip.id, "--json").json
    assert [(entry["outcome"], entry["reason"]) for entry in found["history"]] == [
        ("failed", "No answer."),
        ("failed", "Still none."),
        ("stored", ""),
    ]
    assert found["history"][0]["received_bytes"] == 1000
    answer = desk("explain", clip.id)
    assert answer.out.index("No answer.") < answer.out.index("Still none.")
    assert "size and checksum compared with ours" in answer.out


def test_explain_tells_where_an_upload_goes_on(desk: Desk) -> None:
    clip = desk.clip(5)
    desk.half_way()
    answer = desk("explain", clip.id)
    assert "4.0 MB confirmed, goes on from there" in answer.out
    assert "secret-session" not in answer.out


def test_an_unknown_clip_is_exit_1_and_says_how_clips_are_named(three: Desk) -> None:
    for name in ("nonsense", "Porch@yesterday", "Porch@2020-01-01"):
        answer = three("explain", name)
        assert answer.code == 1, name
        assert "object key, its id, or CAMERA@TIME" in answer.err
    assert three("explain", "Cellar@2020-01-01").code == 2


def test_retry_puts_a_set_aside_clip_back_afresh(three: Desk) -> None:
    answer = three("retry", '{"startTime": 1}')
    assert answer.code == 0
    assert "was set-aside" in answer.out
    assert rows(
        three,
        "SELECT state, attempts, same_reason, not_before_ms, finished_ms FROM copy"
        " JOIN clip ON clip.id = clip WHERE source_id LIKE '{%'",
    ) == [("waiting", 0, 0, 0, None)]
    [found] = three("explain", '{"startTime": 1}', "--json").json
    assert [entry["outcome"] for entry in found["history"]] == ["set-aside", "retried"]


def test_retry_lets_a_put_off_clip_be_tried_at_once_and_keeps_its_attempts(three: Desk) -> None:
    three("retry", "porch-3")
    assert rows(three, "SELECT attempts, not_before_ms FROM copy WHERE state = 'waiting'") == [
        (1, 0)
    ]


def test_retry_never_touches_a_stored_clip(three: Desk) -> None:
    before = rows(three, "SELECT * FROM copy WHERE state = 'stored'")
    answer = three("retry", "porch-5")
    assert "Nothing to retry" in answer.out
    three("retry", "--all")
    assert rows(three, "SELECT * FROM copy WHERE state = 'stored'") == before
    assert rows(three, "SELECT outcome FROM attempt WHERE copy = 1") == [("stored",)]


def test_retry_all_takes_what_is_set_aside_or_put_off_and_nothing_twice(three: Desk) -> None:
    answer = three("retry", "--all")
    assert len([line for line in answer.out.splitlines() if "to be tried" in line]) == 2
    assert "No daemon runs" in answer.out
    assert "Nothing to retry" in three("retry", "--all").out
    assert rows(three, "SELECT count(*) FROM attempt WHERE outcome = 'retried'") == [(2,)]


def test_retry_of_an_unknown_clip_still_does_the_others(three: Desk) -> None:
    answer = three("retry", "nonsense", "porch-3")
    assert answer.code == 1
    assert "'nonsense'" in answer.err
    assert rows(three, "SELECT not_before_ms FROM copy WHERE state = 'waiting'") == [(0,)]


@pytest.mark.parametrize("arguments", [(), ("--all", "porch-3")])
def test_retry_wants_clips_or_all(three: Desk, arguments: tuple[str, ...]) -> None:
    assert three("retry", *arguments).code == 2


def test_retry_makes_no_checkpoint(desk: Desk) -> None:
    desk.state.mkdir()
    assert desk("retry", "--all").code == 74
    assert list(desk.state.iterdir()) == []


def test_retry_works_beside_an_engine(three: Desk) -> None:
    async def engine(checkpoint: object) -> None:
        process = await asyncio.to_thread(report.engine_process, three.state)
        assert process is not None
        answer = await asyncio.to_thread(three, "retry", "--all")
        assert answer.code == 0
        assert f"kill -USR1 {process}" in answer.out

    three.engine(engine)
    assert report.engine_process(three.state) is None
