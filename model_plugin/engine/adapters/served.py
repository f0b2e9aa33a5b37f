"""Adapters of a running server: loaded, listed and dropped while it answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from vllm.lora.request import LoRARequest

from model_plugin.engine.adapters.flags import NAME
from model_plugin.engine.adapters.registry import AdapterRegistry, LoadedAdapter
from vora_core.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
)

#: Seconds that a name which is to go may be in use yet, where nothing is said.
DRAIN_S = 60.0
_POLL_S = 0.02


class ServedAdapters:
    """Who may be asked for, and what it takes to change that.

    Args:
        registry: the adapters.
        client: vLLM's engine client.
        models: vLLM's list of models, which requests are checked against.
        folder: where adapters may be loaded from; from nowhere when None.
    """

    def __init__(
        self, registry: AdapterRegistry, client: Any, models: Any, folder: Path | None
    ) -> None:
        self.registry = registry
        self._client = client
        self._models = models
        self._folder = folder
        self._lock = asyncio.Lock()

    def cards(self) -> list[dict[str, Any]]:
        """What there is to say of each adapter."""
        return [self.registry.loaded[name].card() for name in sorted(self.registry.loaded)]

    @property
    def room(self) -> int:
        """How many more can be loaded."""
        return self.registry.limits.adapters - len(self.registry.loaded)

    async def load_folder(self, name: str, folder: str) -> LoadedAdapter:
        """Load one of the configured folder's adapters.

        Args:
            name: the model name that it gets.
            folder: its folder's name.

        Raises:
            PermissionDeniedError: no folder is configured.
            InvalidRequestError: a name has another form.
            NotFoundError: there is no such adapter.
            VoRAError: as :meth:`load`.
        """
        if self._folder is None:
            raise PermissionDeniedError(
                "This engine loads no adapters at run time: it was started without "
                "--adapters-folder."
            )
        for what, value in (("name", name), ("folder", folder)):
            if NAME.fullmatch(value) is None:
                raise InvalidRequestError(
                    f"{what} takes up to 64 letters, digits, '.', '_' and '-'.", param=what
                )
        root = self._folder.resolve()
        path = root / folder
        # What a link points to elsewhere is not in the folder.
        if path.resolve().parent != root or not path.is_dir():
            raise NotFoundError(f"There is no adapter {folder} in the adapters' folder.")
        return await self.load(name, path)

    async def load(self, name: str, folder: Path) -> LoadedAdapter:
        """Load an adapter on every rank, then offer its name.

        Raises:
            ConflictError: the name is taken, its contents are loaded already, or there is no room.
            VoRAError: the adapter does not fit.
        """
        async with self._lock:
            self._require_free(name)
            adapter = await asyncio.to_thread(self.registry.prepare, name, folder)
            for other in self.registry.loaded.values():
                if other.digest == adapter.digest:
                    raise ConflictError(f"This adapter is loaded already, as {other.name}.")
            request = LoRARequest(name, self._models.lora_id_counter.inc(1), str(adapter.path))
            await self._client.collective_rpc(
                "vora_load_adapter", args=(adapter.key, str(adapter.path))
            )
            try:
                await self._client.add_lora(request)
            except Exception:
                await self._client.collective_rpc("vora_drop_adapter", args=(adapter.key,))
                raise
            self.registry.loaded[name] = adapter
            self._models.lora_requests[name] = request
            return adapter

    async def drop(self, name: str, timeout_s: float = DRAIN_S) -> None:
        """Stop offering a name, wait for its requests, then free its memory.

        Args:
            name: the adapter's.
            timeout_s: how long its requests may take; after that it is offered again.

        Raises:
            NotFoundError: there is no such adapter.
            ConflictError: its requests took longer.
        """
        async with self._lock:
            adapter = self.registry.loaded.get(name)
            if adapter is None:
                raise NotFoundError("There is no vision adapter of this name.")
            request = self._models.lora_requests.pop(name)
            adapter.draining = True
            try:
                async with asyncio.timeout(timeout_s):
                    while adapter.in_flight:
                        await asyncio.sleep(_POLL_S)
                await self._client.remove_lora(request.lora_int_id)
                await self._client.collective_rpc("vora_drop_adapter", args=(adapter.key,))
            except BaseException as error:
                adapter.draining = False
                self._models.lora_requests[name] = request
                if isinstance(error, TimeoutError):
                    raise ConflictError(
                        f"{name} is still used by {adapter.in_flight} requests after "
                        f"{timeout_s:g} s; it stays loaded."
                    ) from None
                raise
            self.registry.forget(adapter)

    def _require_free(self, name: str) -> None:
        if name in self.registry.loaded or self._models.is_base_model(name):
            raise ConflictError(f"The model name {name} is taken.", param="name")
        if self.room < 1:
            raise ConflictError(
                f"There is no room: {len(self.registry.loaded)} adapters are loaded "
                "(--max-adapters). Drop one first."
            )
