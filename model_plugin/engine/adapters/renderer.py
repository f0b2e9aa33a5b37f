"""Prompts on a host: an adapter's chat template and images, or the LLM's own text."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

from vllm.renderers.params import ChatParams

from model_plugin.engine.adapters.registry import ADAPTER_KEY, CURRENT, key_of, registry
from model_plugin.engine.renderer import VoRARenderer
from model_plugin.errors import PlaceholderError
from model_plugin.processor import VoRAProcessor


class HostRenderer(VoRARenderer):
    """The renderer of an engine with vision adapters."""

    @cached_property
    def processor(self) -> VoRAProcessor:
        """The LLM's tokenizer and chat template."""
        processor: VoRAProcessor = self.get_mm_processor().info.processor
        return processor

    def render_messages(self, messages: Any, params: ChatParams) -> tuple[Any, Any]:
        """As in the base class, by the adapter's chat template."""
        return super().render_messages(messages, _with_template(params))

    async def render_messages_async(self, messages: Any, params: ChatParams) -> tuple[Any, Any]:
        """As in the base class, by the adapter's chat template."""
        return await super().render_messages_async(messages, _with_template(params))

    def _process_tokens(self, prompt: Any, *, skip_mm_cache: bool = False) -> Any:
        return super()._process_tokens(_marked(prompt), skip_mm_cache=skip_mm_cache)

    async def _process_tokens_async(self, prompt: Any, *, skip_mm_cache: bool = False) -> Any:
        return await super()._process_tokens_async(_marked(prompt), skip_mm_cache=skip_mm_cache)


def _marked(prompt: Any) -> Any:
    """A prompt that says which adapter its images are for.

    Raises:
        PlaceholderError: it has images, but is for the LLM alone.
    """
    if not prompt.get("multi_modal_data"):
        return prompt
    key = key_of(prompt)
    if key is None:
        found = registry()
        names = found.names() if found is not None else "none are loaded"
        raise PlaceholderError(
            "This model answers text only; send images to one of its vision adapters by model "
            f"name ({names})."
        )
    return prompt | {
        "mm_processor_kwargs": dict(prompt.get("mm_processor_kwargs") or {}) | {ADAPTER_KEY: key}
    }


def _with_template(params: ChatParams) -> ChatParams:
    adapter = CURRENT.get()
    if adapter is None or adapter.template is None or params.chat_template is not None:
        return params
    if params.chat_template_kwargs.get("tools") and "tools" not in adapter.template:
        return params  # the tokenizer's may know tools
    return replace(params, chat_template=adapter.template)
