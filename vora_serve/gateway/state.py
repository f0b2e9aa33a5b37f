"""What the requests of one gateway process share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from vora_core.errors import APIError
from vora_serve.gateway.adapters import Adapters
from vora_serve.gateway.admission import FairQueue, KeyRing, RateLimits, TokenVerifier
from vora_serve.gateway.audit import AuditLog
from vora_serve.gateway.context import RequestContext
from vora_serve.gateway.forward import Forwarder
from vora_serve.gateway.images import DocumentLoader, ImageLoader, Resolver
from vora_serve.gateway.lifetime import Lifetime
from vora_serve.gateway.memory import MemoryBudget
from vora_serve.gateway.metrics import Metrics
from vora_serve.gateway.settings import Settings, UpstreamSettings
from vora_serve.gateway.stored import open_store
from vora_serve.gateway.tracing import Tracer
from vora_serve.gateway.upstreams import Balancer, HealthMonitor, Upstream

logger = logging.getLogger("vora_serve.gateway.state")


class GatewayState:
    """Settings, engines, images, admission and metrics of one process.

    Args:
        settings: The whole tree.
        resolver: Name resolution for images; the operating system's where absent.
    """

    def __init__(self, settings: Settings, resolver: Resolver | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.tracer = Tracer(settings.tracing)
        self.audit = AuditLog(settings.logging.audit_file)
        self.audit.require_writable()
        given = settings.auth.jwt
        self.tokens = TokenVerifier(given) if given is not None else None
        self.keys = KeyRing(settings.auth.keys_file, self.audit, required=given is not None)
        admission = settings.admission
        self.queue = FairQueue(
            admission.max_in_flight, admission.max_queued, admission.queue_timeout_s
        )
        self.limits = RateLimits(admission)
        self.responses = open_store(settings.responses)
        self.bodies = MemoryBudget(settings.server.max_body_memory_bytes)
        self.offline_bodies = MemoryBudget(settings.batches.max_body_memory_bytes)
        self._resolver = resolver
        self.balancer = Balancer(self._upstreams(settings.upstreams), settings.routing)
        self.forwarder = Forwarder(self.balancer, settings.routing, self.metrics)
        self.monitor = HealthMonitor(self.balancer, settings.routing, self._engine_changed)
        self.adapters = Adapters(self.balancer, self.monitor, self.audit)
        self.active: set[Lifetime] = set()
        self.draining = False
        """Not ready any more, but requests are still taken."""
        self.closing = False
        """New requests are refused."""
        self.before_metrics: list[Callable[[], None]] = []
        """Called, in a thread, before metrics are read."""
        self._tasks: list[asyncio.Task[None]] = []
        self._restoring: set[asyncio.Task[None]] = set()

    def _upstreams(self, given: list[UpstreamSettings]) -> list[Upstream]:
        return [Upstream(upstream, self.settings.routing, upstream.url) for upstream in given]

    async def start(self) -> None:
        """Begin probing engines and watching files; needs a running event loop."""
        self.images = ImageLoader(self.settings.images, self._resolver)
        self.documents = DocumentLoader(
            self.settings.documents, self.images.fetcher, self.settings.images.max_count
        )
        await self.monitor.start()
        for upstream in self.balancer.upstreams:
            self._upstream_changed(upstream)
        self._tasks = [
            asyncio.create_task(self._drop_stalled_clients()),
            asyncio.create_task(self.keys.watch(self.settings.auth.reload_interval_s)),
        ]

    async def stop(self) -> None:
        """End everything that runs in the background."""
        tasks = [*self._tasks, *self._restoring]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.monitor.stop()
        for upstream in self.balancer.upstreams:
            upstream.pool.retire()
        self.images.close()
        self.tracer.stop()
        await self.limits.close()
        if self.responses is not None:
            await self.responses.close()
        for _ in range(3):  # let the aborted transports close before the loop ends
            await asyncio.sleep(0)

    def tenant(self, context: RequestContext) -> str:
        """Whose data and turns a request's are: its key's tenant, or its address without keys."""
        return context.client if self.keys.open else context.key.tenant

    @property
    def ready(self) -> bool:
        """Whether new requests are taken and an engine can take work."""
        return not self.draining and self.balancer.ready

    def reload_upstreams(self, given: list[UpstreamSettings]) -> None:
        """Engines as the configuration has them now: new ones join, removed ones drain."""
        present = {upstream.url: upstream for upstream in self.balancer.upstreams}
        kept: list[Upstream] = []
        for settings in given:
            old = present.get(settings.url)
            if old is None:
                kept.append(self._upstreams([settings])[0])
            else:
                old.settings = settings
                old.draining = settings.drain
                old.max_in_flight = settings.max_in_flight or self.settings.routing.max_in_flight
                kept.append(old)
        self.balancer.replace(kept)

    def cut_all(self) -> None:
        """End every request that is still going on."""
        for lifetime in list(self.active):
            lifetime.interrupt("deadline")

    def render_metrics(self) -> bytes:
        """The metrics, with gauges that mirror others' state brought up to date."""
        for refresh in self.before_metrics:
            refresh()
        upstreams = list(self.balancer.upstreams)
        for upstream in upstreams:
            self._upstream_changed(upstream)
        return self.metrics.render({upstream.name for upstream in upstreams})

    def _upstream_changed(self, upstream: Upstream) -> None:
        self.metrics.upstream_up.labels(upstream.name).set(upstream.healthy)
        self.metrics.upstream_breaker.labels(upstream.name).set(not upstream.breaker.closed)
        self.metrics.upstream_in_flight.labels(upstream.name).set(upstream.in_flight)

    def _engine_changed(self, upstream: Upstream) -> None:
        self._upstream_changed(upstream)
        if upstream.healthy:
            self._restoring.add(task := asyncio.create_task(self._restore(upstream)))
            task.add_done_callback(self._restoring.discard)

    async def _restore(self, upstream: Upstream) -> None:
        """Give an engine that came back the adapters that were loaded meanwhile."""
        try:
            await self.adapters.restore(upstream)
        except APIError as error:
            logger.error("engine %s did not take an adapter again: %s", upstream.name, error)

    async def _drop_stalled_clients(self) -> None:
        limit = self.settings.streams.write_timeout_s
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                await asyncio.sleep(min(1.0, limit / 2))
                now = time.monotonic()
                for lifetime in list(self.active):
                    lifetime.interrupt_if_stalled(now, limit)
