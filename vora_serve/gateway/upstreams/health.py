"""Active health checks: every engine is probed at a steady interval."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from vora_serve.gateway.settings import RoutingSettings
from vora_serve.gateway.upstreams.balancer import Balancer
from vora_serve.gateway.upstreams.upstream import Upstream

logger = logging.getLogger("vora_serve.gateway.health")


class HealthMonitor:
    """Probes the balancer's engines until it is stopped.

    Args:
        balancer: Whose engines.
        routing: The interval.
        on_change: Called with an engine whose health has changed.
    """

    def __init__(
        self,
        balancer: Balancer,
        routing: RoutingSettings,
        on_change: Callable[[Upstream], None] | None = None,
    ) -> None:
        self._balancer = balancer
        self._routing = routing
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Probe once, then keep probing in the background."""
        await self.probe_all()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop probing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def probe_all(self) -> None:
        """Probe every engine once, all at the same time."""
        await asyncio.gather(*(self._probe(upstream) for upstream in self._balancer.upstreams))

    async def _probe(self, upstream: Upstream) -> None:
        before = upstream.healthy
        after = await upstream.probe()
        if before != after:
            logger.warning("engine %s is %s", upstream.name, "up" if after else "down")
            if self._on_change is not None:
                self._on_change(upstream)
            self._balancer.wake()

    async def _run(self) -> None:
        while True:
            down = not self._balancer.ready
            # Until an engine is up, look often: start-up and recovery should be seen at once.
            interval = self._routing.health_interval_s
            await asyncio.sleep(min(0.25, interval) if down else interval)
            await self.probe_all()
