"""Choosing an engine: least outstanding tokens, with affinity of bounded load."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vora_core.errors import NotFoundError, UnavailableError
from vora_core.geometry import ImageSettings
from vora_serve.gateway.settings import RoutingSettings
from vora_serve.gateway.upstreams.upstream import Upstream


def _rank(key: bytes, upstream: Upstream) -> bytes:
    """Rendezvous hashing: adding or removing an engine moves only its own share of keys."""
    return hashlib.blake2b(key, key=upstream.url.encode()[:64], digest_size=8).digest()


class Balancer:
    """All engines, and who gets the next request.

    Args:
        upstreams: The engines.
        routing: Affinity and its bound.
    """

    def __init__(self, upstreams: Sequence[Upstream], routing: RoutingSettings) -> None:
        self.upstreams = list(upstreams)
        self._routing = routing
        self._changed = asyncio.Event()

    def models(self) -> dict[str, dict[str, Any]]:
        """Model cards by id, of all engines that have been up."""
        result: dict[str, dict[str, Any]] = {}
        for upstream in self.upstreams:
            for name, card in upstream.models.items():
                result.setdefault(name, card)
        return result

    def require_model(self, model: str) -> None:
        """Check that some engine serves the model.

        Raises:
            NotFoundError: none does.
            UnavailableError: no engine has been up yet, or none that serves it is up.
        """
        serving = [upstream for upstream in self.upstreams if model in upstream.models]
        if not serving and any(upstream.models for upstream in self.upstreams):
            raise NotFoundError(
                f"The model '{_shown(model)}' does not exist here.",
                param="model",
                code="model_not_found",
            )
        if not any(upstream.available for upstream in serving):
            raise _unavailable()

    def image_settings(self, model: str) -> ImageSettings | None:
        """How all engines that serve the model turn images into pixels; None where they differ.

        Engines that do not say, or not the same, get ordinary files.
        """
        said = {
            upstream.image_settings.get(model)
            for upstream in self.upstreams
            if upstream.available and model in upstream.models
        }
        return said.pop() if len(said) == 1 else None

    @property
    def ready(self) -> bool:
        """Whether an engine can take work."""
        return any(upstream.available for upstream in self.upstreams)

    def pick(self, model: str, affinity: bytes | None, exclude: set[Upstream]) -> Upstream | None:
        """The engine that a request would go to now; None where none has room.

        Raises:
            UnavailableError: no engine that has the model can take work.
        """
        able = [
            upstream
            for upstream in self.upstreams
            if upstream.available and model in upstream.models and upstream not in exclude
        ]
        if not able:
            raise _unavailable()
        free = [upstream for upstream in able if upstream.in_flight < upstream.max_in_flight]
        if not free:
            return None
        if affinity is not None and self._routing.affinity and len(free) > 1:
            mean = sum(upstream.load for upstream in able) / len(able)
            preferred = max(able, key=lambda upstream: _rank(affinity, upstream))
            bound = self._routing.affinity_load_factor * mean
            if preferred in free and (preferred.load <= bound or preferred.in_flight == 0):
                return preferred
        return min(free, key=lambda upstream: (upstream.load, upstream.in_flight))

    async def choose(self, model: str, affinity: bytes | None, exclude: set[Upstream]) -> Upstream:
        """An engine with room for one more request; waits for room.

        Raises:
            UnavailableError: no engine that serves the model is up.
        """
        while True:
            upstream = self.pick(model, affinity, exclude)
            if upstream is not None:
                return upstream
            await self._changed.wait()

    @contextmanager
    def working(self, upstream: Upstream, tokens: int) -> Iterator[None]:
        """Count a request at an engine for as long as it is there."""
        upstream.in_flight += 1
        upstream.outstanding_tokens += tokens
        upstream.breaker.begin()
        try:
            yield
        finally:
            upstream.in_flight -= 1
            upstream.outstanding_tokens -= tokens
            self.wake()

    def wake(self) -> None:
        """Engines came, went or have room: all that wait look again, in order of arrival."""
        self._changed.set()
        self._changed = asyncio.Event()

    def replace(self, upstreams: Sequence[Upstream]) -> None:
        """Engines as a reloaded configuration has them; removed ones finish what they have."""
        for old in self.upstreams:
            if old not in upstreams:
                old.draining = True
                old.pool.retire()
        self.upstreams = list(upstreams)
        self.wake()


def _shown(model: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in model[:128])


def _unavailable() -> UnavailableError:
    return UnavailableError("No engine can take work at the moment.", retry_after=2)
