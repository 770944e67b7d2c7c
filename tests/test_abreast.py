"""The same work for many: how many at a time, and that nothing goes on afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from nvr_backup.abreast import each, in_order


async def test_all_are_done_so_many_at_a_time() -> None:
    done: list[int] = []
    running = most = 0

    async def work(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        done.append(number)

    await each(in_order(range(20)), work, 3)
    assert (sorted(done), most) == (list(range(20)), 3)


@pytest.mark.parametrize("bad", [0, 2, 5])
async def test_the_first_error_ends_it_all(bad: int) -> None:
    ended: list[int] = []
    closed = False

    async def things() -> AsyncGenerator[int]:
        nonlocal closed
        try:
            for number in range(6):
                yield number
        finally:
            closed = True

    async def work(number: int) -> None:
        try:
            if number >= bad:
                raise ValueError(number)
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    with pytest.raises(ValueError):
        await each(things(), work, bad + 2)
    assert closed
    assert set(range(bad)) <= set(ended)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "abreast"]


async def test_whoever_gives_up_leaves_nothing_behind() -> None:
    ended: list[int] = []

    async def work(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    going = asyncio.create_task(each(in_order(range(6)), work, 4))
    for _ in range(10):
        await asyncio.sleep(0)
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going
    assert sorted(ended) == [0, 1, 2, 3]
