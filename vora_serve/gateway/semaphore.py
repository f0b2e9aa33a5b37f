"""A weighted semaphore that is fair between callers: places in flight, pixels, bytes."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Group:
    """Callers that share what there is with other groups as one.

    Attributes:
        name: of the group.
        share: relative to other groups'.
    """

    name: str
    share: float = 1.0


@dataclass(eq=False)
class _Waiter:
    weight: int
    caller: str
    group: Group
    limit: int | None
    in_line: bool = True
    granted: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class WeightedSemaphore:
    """Hands out up to ``capacity`` units; whoever finds too few free waits in line.

    Higher priorities go first. Within a priority, the group that holds least for its share goes
    first, and equals take turns, each in order of arrival: one group's thousand requests delay
    another's first by one, and its long requests do not crowd out another's short ones. Nobody is
    passed over for wanting much: the next in line is waited for, unless its caller is at a limit
    of its own. A caller that names no group is one by itself.

    Not for use from several threads.

    Args:
        capacity: units.

    Attributes:
        held: units handed out.
        waiting: number of waiters.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held = 0
        self.waiting = 0
        self._held_by: Counter[str] = Counter()
        self._held_by_group: Counter[str] = Counter()
        self._waiting_by: Counter[str] = Counter()
        self._lines: dict[int, OrderedDict[str, deque[_Waiter]]] = {}

    def waiting_of(self, caller: str) -> int:
        """How many of a caller's are waiting."""
        return self._waiting_by[caller]

    def try_acquire(
        self,
        weight: int = 1,
        *,
        caller: str = "",
        group: Group | None = None,
        limit: int | None = None,
    ) -> bool:
        """Take units without waiting and without passing anybody who waits; whether it worked."""
        if self.waiting or not self._fits(weight, caller, limit):
            return False
        self._take(weight, caller, group or Group(caller))
        return True

    async def acquire(
        self,
        weight: int = 1,
        *,
        caller: str = "",
        group: Group | None = None,
        priority: int = 0,
        limit: int | None = None,
    ) -> None:
        """Take units, in turn.

        Args:
            weight: how many, at most ``capacity``.
            caller: who asks.
            group: whose turn it takes; the caller's own where absent.
            priority: higher goes first.
            limit: units that this caller may hold at a time.

        Raises:
            ValueError: more than there will ever be.
        """
        if weight > self.capacity:
            raise ValueError(f"{weight} units were asked for, but there are {self.capacity}.")
        if self.try_acquire(weight, caller=caller, group=group, limit=limit):
            return
        waiter = _Waiter(weight, caller, group or Group(caller), limit)
        lines = self._lines.setdefault(priority, OrderedDict())
        line = lines.setdefault(waiter.group.name, deque())
        line.append(waiter)
        self.waiting += 1
        self._waiting_by[caller] += 1
        self._advance()  # others may be waiting for a limit of their own only
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled():
                self.release(weight, caller=caller, group=group)  # granted in this very moment
            elif waiter.in_line:
                self._remove(priority, waiter, turn_taken=False)
                self._advance()  # a lighter one behind may fit now
            raise

    def release(self, weight: int = 1, *, caller: str = "", group: Group | None = None) -> None:
        """Give units back."""
        self.held -= weight
        name = group.name if group is not None else caller
        for held, holder in ((self._held_by, caller), (self._held_by_group, name)):
            held[holder] -= weight
            if not held[holder]:
                del held[holder]
        self._advance()

    @asynccontextmanager
    async def hold(
        self, weight: int = 1, *, caller: str = "", priority: int = 0, limit: int | None = None
    ) -> AsyncIterator[None]:
        """Hold units for the length of a block; arguments as in :meth:`acquire`."""
        await self.acquire(weight, caller=caller, priority=priority, limit=limit)
        try:
            yield
        finally:
            self.release(weight, caller=caller)

    def _fits(self, weight: int, caller: str, limit: int | None) -> bool:
        return self.held + weight <= self.capacity and self._below(weight, caller, limit)

    def _below(self, weight: int, caller: str, limit: int | None) -> bool:
        return limit is None or self._held_by[caller] + weight <= limit

    def _take(self, weight: int, caller: str, group: Group) -> None:
        self.held += weight
        self._held_by[caller] += weight
        self._held_by_group[group.name] += weight

    def _advance(self) -> None:
        """Grant whatever has become possible."""
        while self.waiting:
            found = self._next()
            if found is None or self.held + found[1].weight > self.capacity:
                return
            priority, waiter = found
            cancelled = waiter.granted.done()  # and its task has not run since
            self._remove(priority, waiter, turn_taken=not cancelled)
            if not cancelled:
                self._take(waiter.weight, waiter.caller, waiter.group)
                waiter.granted.set_result(None)

    def _next(self) -> tuple[int, _Waiter] | None:
        """Whose turn it is; callers at their own limit are skipped."""
        for priority in sorted(self._lines, reverse=True):
            firsts = [
                first
                for line in self._lines[priority].values()
                if (first := self._first(line)) is not None
            ]
            if firsts:  # in order of turns: min() takes the first of equals
                return priority, min(firsts, key=self._load)
        return None

    def _first(self, line: deque[_Waiter]) -> _Waiter | None:
        for waiter in line:
            if self._below(waiter.weight, waiter.caller, waiter.limit):
                return waiter
        return None

    def _load(self, waiter: _Waiter) -> float:
        return self._held_by_group[waiter.group.name] / waiter.group.share

    def _remove(self, priority: int, waiter: _Waiter, *, turn_taken: bool) -> None:
        """Take a waiter out of line; a group that has taken its turn goes to the end of them."""
        lines = self._lines[priority]
        line = lines[waiter.group.name]
        line.remove(waiter)
        if not line:
            del lines[waiter.group.name]
            if not lines:
                del self._lines[priority]
        elif turn_taken:
            lines.move_to_end(waiter.group.name)
        waiter.in_line = False
        self.waiting -= 1
        self._waiting_by[waiter.caller] -= 1
        if not self._waiting_by[waiter.caller]:
            del self._waiting_by[waiter.caller]
