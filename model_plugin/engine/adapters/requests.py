"""A request's adapter on its way through vLLM's front end: chosen by model name, and checked.

vLLM renders a prompt before it looks at LoRA adapters. These hooks tell the renderer whose prompt
it is, give requests the adapter's sampling defaults and ends of answers, and see that images and
LoRA factors that reach the engine are the same adapter's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from vllm.exceptions import VLLMNotFoundError, VLLMValidationError

from model_plugin.engine.adapters.registry import (
    ADAPTER_KEY,
    LoadedAdapter,
    registry,
    rendering,
)


def hook_requests(hold: Callable[[LoadedAdapter], None] = lambda _: None) -> None:
    """Install the hooks in this process. Safe to repeat; nothing changes without adapters.

    Args:
        hold: counts a use of an adapter, from the moment that a request chooses it.
    """
    from vllm.entrypoints.serve.engine.serving import BaseServing
    from vllm.renderers.online_renderer import OnlineRenderer
    from vllm.v1.engine.input_processor import InputProcessor

    for name in ("preprocess_chat", "preprocess_cmpl"):
        _wrap(OnlineRenderer, name, partial(_for_adapter, hold))
    _wrap(BaseServing, "_get_active_default_mm_loras", _by_name_only)
    _wrap(InputProcessor, "process_inputs", _checked)


def _wrap(owner: Any, name: str, wrapper: Any) -> None:
    original = getattr(owner, name)
    if not getattr(original, "vora_adapters", False):
        wrapped = wrapper(original)
        wrapped.vora_adapters = True
        setattr(owner, name, wrapped)


def _by_name_only(original: Any) -> Any:
    """No adapter by the types of a message's parts, which vLLM offers beside model names."""

    @wraps(original)
    def chosen(self: Any, request: Any) -> Any:
        return None if registry() is not None else original(self, request)

    return chosen


def _for_adapter(hold: Callable[[LoadedAdapter], None], original: Any) -> Any:
    """Rendering by the adapter that the request's model name stands for."""

    @wraps(original)
    async def preprocess(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        found = registry()
        adapter = found.loaded.get(getattr(request, "model", None) or "") if found else None
        if adapter is not None:
            if adapter.draining:  # it was dropped since the request's model name was checked
                raise VLLMNotFoundError(f"The model `{adapter.name}` does not exist.")
            hold(adapter)
            for name, value in adapter.defaults.items():
                if getattr(request, name, value) is None:
                    setattr(request, name, value)
        with rendering(adapter):
            return await original(self, request, *args, **kwargs)

    return preprocess


def _checked(original: Any) -> Any:
    """An engine request with the adapter's ends of answers, its images checked to be its own."""

    @wraps(original)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = registry()
        if found is None:
            return original(self, *args, **kwargs)
        lora = kwargs.get("lora_request")
        adapter = found.by_path(lora.lora_path) if lora is not None else None
        saved = self.generation_config_fields
        if adapter is not None and "eos_token_id" in adapter.generation:
            ends = {"eos_token_id": adapter.generation["eos_token_id"]}
            self.generation_config_fields = saved | ends
        try:
            request = original(self, *args, **kwargs)
        finally:
            self.generation_config_fields = saved
        _same_adapter(request, adapter)
        return request

    return process_inputs


def _same_adapter(request: Any, adapter: LoadedAdapter | None) -> None:
    """See that a request's images were made for the adapter whose factors it uses.

    Raises:
        VLLMValidationError: they were not.
    """
    wanted = adapter.key if adapter is not None else None
    for feature in request.mm_features or ():
        if feature.data is None or int(feature.data[ADAPTER_KEY].data[0]) != wanted:
            raise VLLMValidationError(
                "The request's images were prepared for another vision adapter than it uses."
            )
