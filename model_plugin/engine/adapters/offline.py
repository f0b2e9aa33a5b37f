"""Vision adapters in ``vllm.LLM``, without a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm.lora.request import LoRARequest

from model_plugin.engine.adapters.flags import open_registry
from model_plugin.engine.adapters.registry import ADAPTER_KEY, AdapterRegistry, set_registry
from model_plugin.engine.adapters.requests import hook_requests
from model_plugin.engine.adapters.settings import HostLimits


class AdapterLLM:
    """An LLM with vision adapters in this process.

    Args:
        llm: ``vllm.LLM(model, **vllm_settings(limits))``.
        model: folder or hub id of the LLM.
        limits: what it has room for.

    Attributes:
        registry: the adapters.

    Raises:
        CheckpointError: it is no LLM that adapters go with.
    """

    def __init__(self, llm: Any, model: str | Path, limits: HostLimits) -> None:
        self.registry: AdapterRegistry = open_registry(str(model), limits)
        set_registry(self.registry)
        hook_requests()
        self._ids = 0
        self._requests: dict[str, LoRARequest] = {}
        self.llm = llm

    def load(self, name: str, folder: str | Path) -> None:
        """Load an adapter under a name.

        Raises:
            CheckpointError: it is damaged, or belongs to another LLM.
            ConfigError: there is no room for it.
        """
        adapter = self.registry.prepare(name, Path(folder))
        self._ids += 1
        request = LoRARequest(name, self._ids, str(adapter.path))
        self.llm.collective_rpc("vora_load_adapter", args=(adapter.key, str(adapter.path)))
        self.llm.llm_engine.add_lora(request)
        self.registry.loaded[name] = adapter
        self._requests[name] = request

    def drop(self, name: str) -> None:
        """Forget an adapter that no request uses."""
        adapter, request = self.registry.loaded[name], self._requests.pop(name)
        self.llm.llm_engine.remove_lora(request.lora_int_id)
        self.llm.collective_rpc("vora_drop_adapter", args=(adapter.key,))
        self.registry.forget(adapter)

    def request(self, name: str) -> LoRARequest:
        """What vLLM wants beside a prompt that is for this adapter."""
        return self._requests[name]

    def prompt(self, name: str, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """A prompt with images, for this adapter."""
        return {**prompt, "mm_processor_kwargs": {ADAPTER_KEY: name}}
