"""Prometheus metrics: base units, bounded label sets."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from functools import lru_cache

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)


class Metrics:
    """The gateway's metrics, registered in a registry of their own.

    With ``PROMETHEUS_MULTIPROC_DIR`` set, several worker processes are exposed as one.
    """

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "vora_gateway_requests",
            "Requests answered.",
            ["route", "status", "key"],
            registry=registry,
        )
        self.duration = Histogram(
            "vora_gateway_request_duration_seconds",
            "From a request's first byte to its answer's last.",
            ["route"],
            buckets=_LATENCY,
            registry=registry,
        )
        self.first_token = Histogram(
            "vora_gateway_time_to_first_token_seconds",
            "From a streaming request's first byte to its first event.",
            ["route"],
            buckets=_LATENCY,
            registry=registry,
        )
        self.inter_token = Histogram(
            "vora_gateway_inter_token_seconds",
            "Between the events of a stream.",
            buckets=_SHORT,
            registry=registry,
        )
        self.queue = Histogram(
            "vora_gateway_queue_duration_seconds",
            "Waiting for a place in flight.",
            buckets=_LATENCY,
            registry=registry,
        )
        self.fetch = Histogram(
            "vora_gateway_image_fetch_duration_seconds",
            "Fetching a request's images.",
            buckets=_LATENCY,
            registry=registry,
        )
        self.decode = Histogram(
            "vora_gateway_image_decode_duration_seconds",
            "Checking and decoding a request's images.",
            buckets=_LATENCY,
            registry=registry,
        )
        self.overhead = Histogram(
            "vora_gateway_overhead_seconds",
            "From a request's first byte to the answer's head, less "
            "the wait for a place and for the engine.",
            ["route"],
            buckets=_SHORT,
            registry=registry,
        )
        self.files = Counter("vora_gateway_files", "Files in requests.", registry=registry)
        self.pages = Counter(
            "vora_gateway_file_pages", "Images that files became.", registry=registry
        )
        self.file_render = Histogram(
            "vora_gateway_file_render_duration_seconds",
            "Rendering a request's files.",
            buckets=_LATENCY,
            registry=registry,
        )
        self.images = Counter("vora_gateway_images", "Images accepted.", registry=registry)
        self.image_bytes = Counter(
            "vora_gateway_image_bytes", "Bytes of images accepted, as received.", registry=registry
        )
        self.image_pixels = Counter(
            "vora_gateway_image_pixels", "Pixels of images accepted.", registry=registry
        )
        self.tokens = Counter(
            "vora_gateway_tokens",
            "Tokens by kind: prompt (of which cached, image), completion.",
            ["kind", "key"],
            registry=registry,
        )
        self.model_requests = Counter(
            "vora_gateway_model_requests",
            "Requests taken, by model or vision adapter.",
            ["model"],
            registry=registry,
        )
        self.model_tokens = Counter(
            "vora_gateway_model_tokens",
            "Tokens by kind, as above, and by model or vision adapter.",
            ["kind", "model"],
            registry=registry,
        )
        self.batch_requests = Counter(
            "vora_gateway_batch_requests",
            "Requests of batches, by outcome: completed, failed, retried.",
            ["outcome"],
            registry=registry,
        )
        self.batches = Gauge(
            "vora_gateway_batches",
            "Batches that are kept, by status.",
            ["status"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.batch_bytes = Gauge(
            "vora_gateway_batch_file_bytes",
            "Files of the files API on disk.",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.in_flight = Gauge(
            "vora_gateway_requests_in_flight",
            "Requests admitted and not yet answered.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.queued = Gauge(
            "vora_gateway_requests_queued",
            "Requests waiting for a place.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.refused = Counter(
            "vora_gateway_refused",
            "Requests refused, by error code.",
            ["cause"],
            registry=registry,
        )
        self.disconnects = Counter(
            "vora_gateway_client_disconnects",
            "Clients that left before their answer's end.",
            ["phase"],
            registry=registry,
        )
        self.upstream_up = Gauge(
            "vora_gateway_upstream_up",
            "Whether an engine is healthy.",
            ["upstream"],
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.upstream_breaker = Gauge(
            "vora_gateway_upstream_breaker_open",
            "Whether an engine's circuit breaker is open.",
            ["upstream"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.upstream_in_flight = Gauge(
            "vora_gateway_upstream_requests_in_flight",
            "Requests at an engine.",
            ["upstream"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.upstream_requests = Counter(
            "vora_gateway_upstream_requests",
            "Requests sent to an engine, by outcome.",
            ["upstream", "outcome"],
            registry=registry,
        )

        for metric in (
            *(self.requests, self.duration, self.first_token, self.overhead, self.tokens),
            *(self.model_requests, self.model_tokens, self.upstream_requests),
        ):
            # Their children are never removed; the library's look-up takes a lock and new strings.
            metric.labels = lru_cache(1024)(metric.labels)  # type: ignore[assignment, method-assign]

    def render(self, upstreams: Collection[str]) -> bytes:
        """The exposition, of all workers together where there are several.

        Args:
            upstreams: Names of the engines that there are. Gauges of others are left out: an engine
                that was removed must not look up, or down, for ever.
        """
        registry = self.registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(_Present(registry, upstreams))


class _Present(CollectorRegistry):
    """A registry's metrics, without gauges of engines that are gone.

    A gauge's own ``remove`` works in one process only.
    """

    def __init__(self, registry: CollectorRegistry, upstreams: Collection[str]) -> None:
        super().__init__()
        self._registry = registry
        self._upstreams = upstreams

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            if family.type == "gauge":
                family.samples = [
                    sample
                    for sample in family.samples
                    if sample.labels.get("upstream") in (None, *self._upstreams)
                ]
            yield family
