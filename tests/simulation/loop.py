"""An event loop without real time, threads or chance: a seed gives the same run, step by step.

Time moves only when nothing is left to do, straight to the next timer. What the program hands to
threads (`run_in_executor`) is carried out in the loop itself, in order, after delays drawn from the
seed: so the checkpoint's work and a crash can fall between any two steps. Tasks and futures are
numbered and hash by their number, so that not even the order within a set depends on addresses.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any

ROUNDS_AT_ONCE = 200_000
"""So many rounds of the loop without any time passing are a program that spins."""

Work = tuple[asyncio.Future[Any], Callable[..., Any], tuple[Any, ...]]


class Spinning(AssertionError):
    """The program is busy for ever."""


class _Numbered(asyncio.Task[Any]):
    def __init__(self, number: int, *arguments: Any, **options: Any) -> None:
        self.number = number
        super().__init__(*arguments, **options)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class _Future(asyncio.Future[Any]):
    def __init__(self, number: int, *, loop: asyncio.AbstractEventLoop) -> None:
        self.number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class _NoWaiting(selectors.SelectSelector):
    """Asked once in each round of the loop: where it would wait, `passing` lets time pass."""

    def __init__(self, passing: Callable[[float | None], None]) -> None:
        super().__init__()
        self._passing = passing

    def select(self, timeout: float | None = None) -> list[Any]:
        self._passing(timeout)
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """See the module. `execute` carries out a thread's work: a place for faults and checks."""

    def __init__(self, rng: random.Random) -> None:
        self.rounds = 0
        self.refusing = False  # the process is dead: nothing it hands over is done any more
        self.slow_disk = False
        self.execute: Callable[[Callable[..., Any], tuple[Any, ...]], Any] = lambda f, args: f(
            *args
        )
        self.signals: dict[int, Callable[[], object]] = {}
        self._rng = rng
        self._now = 0.0
        self._numbers = itertools.count(1)
        self._since = 0
        self._halt_at: int | None = None
        self._lanes: dict[int, deque[Work]] = {}
        self._executors: dict[int, object] = {}
        self._results: dict[asyncio.Future[Any], Any] = {}
        super().__init__(_NoWaiting(self._round))
        self._clock_resolution = 1e-6
        self.set_task_factory(self._make_task)
        self.unheard: list[str] = []
        self.set_exception_handler(self._note_unheard)
        self._dead_until = 0

    # -- time ---------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def _round(self, timeout: float | None) -> None:
        self.rounds += 1
        if self._halt_at is not None and self.rounds >= self._halt_at:
            self.stop()
        if timeout is None:
            self.stop()  # nothing is left to do
        elif timeout > 0:
            self._now += timeout
            self._since = self.rounds
        elif self.rounds - self._since > ROUNDS_AT_ONCE:
            raise Spinning(f"{ROUNDS_AT_ONCE} rounds of the loop without a pause")

    def _note_unheard(self, _loop: object, context: dict[str, Any]) -> None:
        """An error that nobody awaited, unless it is one of a process that was killed."""
        about = context.get("future") or context.get("task")
        if getattr(about, "number", self._dead_until) > self._dead_until:
            self.unheard.append(f"{context['message']}: {context.get('exception')!r} of {about}")

    def run_seconds(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.call_later(seconds, self.stop)
        self.run_forever()
        end.cancel()

    def run_rounds(self, rounds: int) -> None:
        """Stop after so many rounds of the loop: between any two steps of the program."""
        self._halt_at = self.rounds + rounds
        try:
            self.run_forever()
        finally:
            self._halt_at = None

    # -- tasks, futures, signals --------------------------------------------------------------

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        context: Context | None = None,
        **options: Any,
    ) -> asyncio.Task[Any]:
        return _Numbered(next(self._numbers), coro, loop=loop, context=context, **options)

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(next(self._numbers), loop=self)

    def add_signal_handler(  # type: ignore[override]
        self, sig: int, callback: Callable[..., object], *args: Any
    ) -> None:
        self.signals[sig] = lambda: callback(*args)

    def remove_signal_handler(self, sig: int) -> bool:
        return self.signals.pop(sig, None) is not None

    # -- threads ------------------------------------------------------------------------------

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = self.create_future()
        if self.refusing:
            future.cancel()
            return future
        lane = self._lanes.setdefault(id(executor), deque())
        self._executors[id(executor)] = executor  # keeps it alive, so that its id stays its own
        lane.append((future, func, args))
        if len(lane) == 1:
            self._after(self._delay(), self._work, lane)
        return future

    def drop_work(self) -> list[Any]:
        """The process is gone: what its threads had not begun never happens.

        Returns what they had finished and nobody was told of.
        """
        for lane in self._lanes.values():
            while lane:
                lane.popleft()[0].cancel()
        self._lanes.clear()
        self._executors.clear()
        undelivered = list(self._results.items())
        self._results.clear()
        self._dead_until = next(self._numbers)
        for future, _ in undelivered:
            future.cancel()
        return [result for _, result in undelivered]

    def _work(self, lane: deque[Work]) -> None:
        if not lane:
            return
        future, func, args = lane[0]
        try:
            result, error = self.execute(func, args), None
        except Exception as err:
            result, error = None, err
        self._results[future] = result
        self._after(self._delay(), self._deliver, future, result, error)
        lane.popleft()
        if lane:
            self._after(self._delay(), self._work, lane)

    def _deliver(self, future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
        self._results.pop(future, None)
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _delay(self) -> float:
        luck = self._rng.random()
        if self.slow_disk:
            return luck * 3
        if luck < 0.8:
            return 0.0
        return (luck - 0.8) / 10 if luck < 0.99 else 1.0

    def _after(self, delay: float, callback: Callable[..., object], *args: Any) -> None:
        if delay:
            self.call_later(delay, callback, *args)
        else:
            self.call_soon(callback, *args)
