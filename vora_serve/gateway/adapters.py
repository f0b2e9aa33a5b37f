"""Vision adapters of all engines: listed, loaded and dropped by keys with the scope ``admin``.

``/admin/adapters`` asks every engine that serves a plain LLM with adapters, and keeps them alike. A
name that is to go takes no new requests here; those that were admitted finish before any engine
forgets the adapter.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from pydantic import Field
from pydantic_core import from_json, to_json

from vora_core.errors import (
    APIError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from vora_serve.gateway.audit import AuditLog
from vora_serve.gateway.engine_errors import from_engine_error, from_transport_error, message_of
from vora_serve.gateway.http1 import HTTPClientError
from vora_serve.gateway.settings.engines import ADAPTER_NAME
from vora_serve.gateway.settings.types import Section
from vora_serve.gateway.upstreams import Balancer, HealthMonitor, Upstream

_ENGINE_PATH = "/v1/vision_adapters"
_NAME = re.compile(ADAPTER_NAME)
#: Seconds that loading may take on an engine: it reads and hashes the adapter's files.
_LOAD_TIMEOUT_S = 600.0
_MOST_BYTES = 2**20


class AdapterRequest(Section):
    """An adapter to load."""

    name: str = Field(pattern=ADAPTER_NAME)
    """The model name that requests will use."""
    folder: str = Field(pattern=ADAPTER_NAME)
    """A folder's name inside the engines' ``adapters_folder``."""


class Adapters:
    """The adapters of a gateway's engines.

    Args:
        balancer: The engines.
        monitor: Looks at the engines' models again after a change.
        audit: Where changes are recorded.
    """

    def __init__(self, balancer: Balancer, monitor: HealthMonitor, audit: AuditLog) -> None:
        self._balancer = balancer
        self._monitor = monitor
        self._audit = audit
        self._lock = asyncio.Lock()
        self._in_use: Counter[str] = Counter()
        self._going: set[str] = set()
        self._wanted: dict[str, str] = {}
        """What was loaded through this process: name to folder, for engines that come back."""

    @contextmanager
    def using(self, model: str) -> Iterator[None]:
        """Count a request for a model, from its admission to its answer's end.

        Raises:
            NotFoundError: the model is on its way out.
        """
        if model in self._going:
            raise NotFoundError(
                "The model does not exist here.", param="model", code="model_not_found"
            )
        self._in_use[model] += 1
        try:
            yield
        finally:
            self._in_use[model] -= 1
            if not self._in_use[model]:
                del self._in_use[model]

    async def listed(self) -> dict[str, Any]:
        """Every adapter, with the engines that have it.

        Raises:
            NotFoundError: no engine takes adapters.
        """
        found = await self._hosts()
        adapters: dict[str, dict[str, Any]] = {}
        for upstream, answer in found.items():
            for card in answer["data"]:
                entry = adapters.setdefault(
                    str(card["name"]), {**card, "engines": [], "in_flight": 0}
                )
                entry["engines"].append(self._balancer.upstreams.index(upstream))
                entry["in_flight"] += card["in_flight"]
        return {
            "object": "list",
            "data": [adapters[name] for name in sorted(adapters)],
            "engines": len(found),
            "room": min(answer["room"] for answer in found.values()),
        }

    async def load(self, asked: AdapterRequest, by: str) -> dict[str, Any]:
        """Load an adapter on every engine, or on none.

        Args:
            asked: Its name and folder.
            by: The key's name, for the audit log.

        Raises:
            ConflictError: the name is taken, or an engine has no room.
            APIError: an engine refused it, or could not be reached.
        """
        async with self._lock:
            engines = [*await self._hosts()]
            if any(asked.name in upstream.models for upstream in self._balancer.upstreams):
                raise ConflictError(f"The model name {asked.name} is taken.", param="name")
            body = to_json(asked)
            done: list[Upstream] = []
            card: dict[str, Any] = {}
            try:
                for upstream in engines:
                    card = await self._ask(upstream, "POST", body=body)
                    done.append(upstream)
            except APIError:
                for upstream in done:
                    await self._ask(upstream, "DELETE", asked.name, timeout_s=0)
                raise
            self._wanted[asked.name] = asked.folder
            self._audit.record(
                "adapter.loaded",
                name=asked.name,
                folder=asked.folder,
                sha256=card.get("sha256"),
                engines=len(engines),
                key=by,
            )
            await self._monitor.probe_all()
            return {**card, "engines": len(engines)}

    async def drop(self, name: str, by: str, timeout_s: float) -> dict[str, Any]:
        """Take an adapter's name away, wait for its requests, then drop it everywhere.

        Args:
            name: The adapter's.
            by: The key's name, for the audit log.
            timeout_s: How long its requests may take; after that it stays.

        Raises:
            NotFoundError: there is no such adapter.
            ConflictError: its requests take longer.
            APIError: an engine could not be reached.
        """
        if _NAME.fullmatch(name) is None:
            raise NotFoundError("There is no vision adapter of this name.")
        async with self._lock:
            hosts = await self._hosts()
            having = [u for u, a in hosts.items() if any(c["name"] == name for c in a["data"])]
            if not having:
                raise NotFoundError("There is no vision adapter of this name.")
            self._going.add(name)
            try:
                async with asyncio.timeout(timeout_s):
                    while self._in_use[name]:
                        await asyncio.sleep(0.02)
                for upstream in having:
                    await self._ask(upstream, "DELETE", name, timeout_s=timeout_s)
                self._wanted.pop(name, None)
                self._audit.record("adapter.dropped", name=name, engines=len(having), key=by)
                await self._monitor.probe_all()
            except TimeoutError:
                raise ConflictError(
                    f"{name} is still used by {self._in_use[name]} requests after "
                    f"{timeout_s:g} s; it stays loaded."
                ) from None
            finally:
                self._going.discard(name)
        return {"name": name, "deleted": True, "engines": len(having)}

    async def restore(self, upstream: Upstream) -> None:
        """Load again, on an engine that came back, what was loaded through this process."""
        async with self._lock:
            missing = [n for n in self._wanted if n not in upstream.models]
            for name in missing:
                body = to_json({"name": name, "folder": self._wanted[name]})
                await self._ask(upstream, "POST", body=body)

    async def _hosts(self) -> dict[Upstream, dict[str, Any]]:
        """The engines that take adapters, with what each has.

        Raises:
            NotFoundError: there are none.
            UnavailableError: none is up.
        """
        if not self._balancer.ready:
            raise UnavailableError("No engine can take work at the moment.", retry_after=2)
        found = {}
        for upstream in self._balancer.upstreams:
            if not upstream.healthy:
                continue
            try:
                found[upstream] = await self._ask(upstream, "GET")
            except NotFoundError:
                continue  # an engine with one model
        if not found:
            raise NotFoundError(
                "No engine here takes vision adapters; start one with --vision-adapter or "
                "--adapters-folder.",
                code="no_adapters",
            )
        return found

    async def _ask(
        self,
        upstream: Upstream,
        method: str,
        name: str = "",
        *,
        body: bytes = b"",
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """One engine's answer.

        Raises:
            APIError: it refused, or could not be reached.
        """
        path = f"{_ENGINE_PATH}/{name}" if name else _ENGINE_PATH
        if timeout_s is not None:
            path += "?" + urlencode({"timeout_s": timeout_s})
        limit = _LOAD_TIMEOUT_S + (timeout_s or 0)
        headers = [(b"content-type", b"application/json")]
        try:
            async with asyncio.timeout(limit):
                exchange = await upstream.send(method.encode(), path.encode(), headers, body)
                try:
                    status, content = (
                        exchange.response.status,
                        await exchange.response.body(_MOST_BYTES),
                    )
                finally:
                    exchange.close()
        except HTTPClientError as error:
            raise from_transport_error(error) from None
        except TimeoutError:
            raise UnavailableError("An engine did not answer in time.", retry_after=5) from None
        if status == 409:
            raise ConflictError(message_of(content))
        if status == 400:
            raise InvalidRequestError(message_of(content), code="invalid_adapter")
        if status != 200:
            raise from_engine_error(status, content)
        answer: dict[str, Any] = from_json(content)
        return answer
