"""The weighted semaphore: never over capacity, fair, nothing lost when waiters are cancelled."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vora_serve.gateway.semaphore import WeightedSemaphore


def run(coroutine: object) -> None:
    asyncio.run(coroutine)  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_it_takes_and_gives_back() -> None:
    semaphore = WeightedSemaphore(3)
    assert semaphore.try_acquire(2)
    assert not semaphore.try_acquire(2)
    assert semaphore.try_acquire(1)
    semaphore.release(2)
    assert semaphore.held == 1


def test_more_than_there_is_is_refused() -> None:
    async def body() -> None:
        with pytest.raises(ValueError, match="4 units"):
            await WeightedSemaphore(3).acquire(4)

    run(body())


def test_callers_take_turns_and_priorities_go_first() -> None:
    async def body() -> None:
        semaphore, order = WeightedSemaphore(1), list[str]()

        async def one(name: str, caller: str, priority: int = 0) -> None:
            async with semaphore.hold(caller=caller, priority=priority):
                order.append(name)

        async with semaphore.hold():
            names = [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("b2", "b")]
            tasks = [asyncio.create_task(one(name, caller)) for name, caller in names]
            await settle()
            tasks.append(asyncio.create_task(one("urgent", "c", 1)))
            await settle()
            assert semaphore.waiting == 6
            assert semaphore.waiting_of("a") == 3
        await asyncio.gather(*tasks)
        assert order == ["urgent", "a1", "b1", "a2", "b2", "a3"]
        assert semaphore.held == semaphore.waiting == 0

    run(body())


def test_the_heavy_are_not_passed_over() -> None:
    async def body() -> None:
        semaphore, order = WeightedSemaphore(10), list[str]()

        async def one(name: str, weight: int) -> None:
            async with semaphore.hold(weight, caller=name):
                order.append(name)
                await settle()

        await semaphore.acquire(6)
        heavy = asyncio.create_task(one("heavy", 8))
        await settle()
        light = asyncio.create_task(one("light", 1))
        await settle()
        assert order == []  # there is room for the light one, but it is not its turn
        assert not semaphore.try_acquire(1)
        semaphore.release(6)
        await asyncio.gather(heavy, light)
        assert order == ["heavy", "light"]

    run(body())


def test_a_caller_at_its_limit_holds_nobody_up() -> None:
    async def body() -> None:
        semaphore = WeightedSemaphore(5)
        await semaphore.acquire(caller="a", limit=1)
        more = asyncio.create_task(semaphore.acquire(caller="a", limit=1))
        await settle()
        await asyncio.wait_for(semaphore.acquire(caller="b", limit=1), 5)
        assert not more.done()
        semaphore.release(caller="a")
        await asyncio.wait_for(more, 5)

    run(body())


def test_a_cancelled_heavy_waiter_lets_the_light_ones_in() -> None:
    async def body() -> None:
        semaphore = WeightedSemaphore(4)
        await semaphore.acquire(2)
        heavy = asyncio.create_task(semaphore.acquire(4, caller="heavy"))
        await settle()
        light = asyncio.create_task(semaphore.acquire(1, caller="light"))
        await settle()
        heavy.cancel()
        await asyncio.wait_for(light, 5)
        assert (semaphore.held, semaphore.waiting) == (3, 0)

    run(body())


def test_cancelled_in_the_moment_of_being_granted() -> None:
    async def body() -> None:
        semaphore = WeightedSemaphore(1)
        await semaphore.acquire()
        first = asyncio.create_task(semaphore.acquire(caller="first"))
        second = asyncio.create_task(semaphore.acquire(caller="second"))
        await settle()
        semaphore.release()  # grants the first, which has not run yet
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await asyncio.wait_for(second, 5)
        assert (semaphore.held, semaphore.waiting) == (1, 0)

    run(body())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), capacity=st.integers(1, 6), count=st.integers(1, 40))
def test_nothing_is_lost_whatever_is_cancelled(seed: int, capacity: int, count: int) -> None:
    async def body() -> None:
        draw = random.Random(seed)
        semaphore, holding = WeightedSemaphore(capacity), Counter[str]()

        async def one(weight: int, caller: str, priority: int, limit: int | None) -> None:
            options = {"caller": caller, "limit": limit}
            async with semaphore.hold(weight, priority=priority, **options):  # type: ignore[arg-type]
                holding[caller] += weight
                # Units granted to a waiter that has not run yet are held as well.
                assert sum(holding.values()) <= semaphore.held <= capacity
                assert limit is None or holding[caller] <= limit
                try:
                    for _ in range(draw.randrange(4)):
                        await asyncio.sleep(0)
                finally:
                    holding[caller] -= weight

        tasks = []
        for _ in range(count):
            weight, caller = draw.randint(1, capacity), draw.choice("abc")
            # A caller's limit is the same for all of its requests, and none exceeds it.
            limit = {"a": None, "b": capacity, "c": None}[caller]
            tasks.append(asyncio.create_task(one(weight, caller, draw.randrange(2), limit)))
            if draw.random() < 0.4:
                await asyncio.sleep(0)
            if draw.random() < 0.3:
                draw.choice(tasks).cancel()
        done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        failed = [e for e in done if isinstance(e, Exception)]
        assert failed == []
        assert (semaphore.held, semaphore.waiting) == (0, 0)
        assert semaphore.try_acquire(capacity)

    run(body())
